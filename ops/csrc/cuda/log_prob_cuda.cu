// The log-probability of every pixel for every instance and its gradients.
#include <c10/cuda/CUDAGuard.h>

#include "../common/log_prob_bodies.hpp"
#include "../embedmask_ops.hpp"
#include "launch.cuh"

namespace {

using namespace embedmask;

constexpr int kWarp = 32;

// Return the sum over the block in thread 0.
__device__ double block_sum(double value) {
  __shared__ double warps[kThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffff, value, offset);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / kWarp; ++i) value += warps[i];
  }
  __syncthreads();
  return value;
}

template <typename T>
__global__ void run_proposal_gradient(ProposalGradientBody<T> body) {
  for (int64_t at = blockIdx.x; at < body.blocks(); at += gridDim.x) {
    ProposalSums sums = body.sums(at, threadIdx.x, blockDim.x);
    sums.embed = block_sum(sums.embed);
    sums.margin = block_sum(sums.margin);
    if (threadIdx.x == 0) body.store(at, sums);
  }
}

template <typename T>
LogProbArguments<T> arguments_of(const Tensor& pixel_embed, const Tensor& proposal_embed,
                                 const Tensor& proposal_margin) {
  return {pixel_embed.data_ptr<T>(), proposal_embed.data_ptr<T>(), proposal_margin.data_ptr<T>(),
          proposal_embed.size(0),    pixel_embed.size(0),          pixel_embed.size(1) * pixel_embed.size(2)};
}

Tensor embedding_log_prob(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin) {
  const c10::cuda::CUDAGuard guard(pixel_embed.device());
  Tensor log_prob =
      at::empty({proposal_embed.size(0), pixel_embed.size(1), pixel_embed.size(2)}, pixel_embed.options());
  AT_DISPATCH_FLOATING_TYPES(pixel_embed.scalar_type(), "embedding_log_prob", [&] {
    const auto e = arguments_of<scalar_t>(pixel_embed, proposal_embed, proposal_margin);
    launch(LogProbBody<scalar_t>{e, log_prob.data_ptr<scalar_t>()}, e.instances, e.pixels);
  });
  return log_prob;
}

std::tuple<Tensor, Tensor, Tensor> embedding_log_prob_backward(const Tensor& grad, const Tensor& pixel_embed,
                                                               const Tensor& proposal_embed,
                                                               const Tensor& proposal_margin) {
  const c10::cuda::CUDAGuard guard(pixel_embed.device());
  Tensor grad_pixel_embed = at::empty_like(pixel_embed), grad_proposal_embed = at::empty_like(proposal_embed),
         grad_proposal_margin = at::empty_like(proposal_margin);
  AT_DISPATCH_FLOATING_TYPES(pixel_embed.scalar_type(), "embedding_log_prob_backward", [&] {
    const auto e = arguments_of<scalar_t>(pixel_embed, proposal_embed, proposal_margin);
    const scalar_t* grads = grad.data_ptr<scalar_t>();
    launch(PixelGradientBody<scalar_t>{e, grads, grad_pixel_embed.data_ptr<scalar_t>()}, e.channels, e.pixels);
    const ProposalGradientBody<scalar_t> body{e, grads, grad_proposal_embed.data_ptr<scalar_t>(),
                                              grad_proposal_margin.data_ptr<scalar_t>()};
    if (body.blocks() == 0) return;
    const auto blocks = static_cast<unsigned>(std::min(body.blocks(), kMaxBlocks));
    run_proposal_gradient<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(body);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_pixel_embed, grad_proposal_embed, grad_proposal_margin};
}

}  // namespace

REGISTER_DEVICE_IMPL(embedding_log_prob_impl, CUDA, embedding_log_prob);
REGISTER_DEVICE_IMPL(embedding_log_prob_backward_impl, CUDA, embedding_log_prob_backward);
