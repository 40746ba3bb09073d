// The log-probability of every pixel for every instance and its gradients.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../embedmask_ops.hpp"

namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

template <typename T>
struct Embeddings {
  const T* pixel_embed;      // (D, pixels)
  const T* proposal_embed;   // (N, D)
  const T* proposal_margin;  // (N, D)
  int64_t instances, channels, pixels;
};

// A thread an instance and pixel.
template <typename T>
__global__ void forward_kernel(Embeddings<T> e, T* log_prob) {
  for (int64_t n = blockIdx.y; n < e.instances; n += gridDim.y) {
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < e.pixels;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
      T sum = 0;
      for (int64_t c = 0; c < e.channels; ++c) {
        const T difference = e.pixel_embed[c * e.pixels + i] - e.proposal_embed[n * e.channels + c];
        sum -= e.proposal_margin[n * e.channels + c] * difference * difference;
      }
      log_prob[n * e.pixels + i] = sum;
    }
  }
}

// A thread a channel and pixel, over all instances.
template <typename T>
__global__ void pixel_gradient_kernel(Embeddings<T> e, const T* grad, T* grad_pixel_embed) {
  for (int64_t c = blockIdx.y; c < e.channels; c += gridDim.y) {
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < e.pixels;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
      const T pixel = e.pixel_embed[c * e.pixels + i];
      T sum = 0;
      for (int64_t n = 0; n < e.instances; ++n) {
        const T value = grad[n * e.pixels + i];
        // Where there is no gradient, a difference that is not finite must not make one.
        if (value != 0) {
          sum += e.proposal_margin[n * e.channels + c] * value * (pixel - e.proposal_embed[n * e.channels + c]);
        }
      }
      grad_pixel_embed[c * e.pixels + i] = -2 * sum;
    }
  }
}

// Sum over the block, in thread 0.
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

// A block an instance and channel, over all pixels.
template <typename T>
__global__ void proposal_gradient_kernel(Embeddings<T> e, const T* grad, T* grad_proposal_embed,
                                         T* grad_proposal_margin) {
  for (int64_t at = blockIdx.x; at < e.instances * e.channels; at += gridDim.x) {
    const int64_t n = at / e.channels, c = at % e.channels;
    double embed_sum = 0, margin_sum = 0;
    for (int64_t i = threadIdx.x; i < e.pixels; i += blockDim.x) {
      const T value = grad[n * e.pixels + i];
      if (value != 0) {
        const T difference = e.pixel_embed[c * e.pixels + i] - e.proposal_embed[at];
        embed_sum += value * difference;
        margin_sum += value * difference * difference;
      }
    }
    embed_sum = block_sum(embed_sum);
    margin_sum = block_sum(margin_sum);
    if (threadIdx.x == 0) {
      grad_proposal_embed[at] = static_cast<T>(2 * e.proposal_margin[at] * embed_sum);
      grad_proposal_margin[at] = static_cast<T>(-margin_sum);
    }
  }
}

template <typename T>
Embeddings<T> embeddings(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin) {
  return {pixel_embed.data_ptr<T>(), proposal_embed.data_ptr<T>(),  proposal_margin.data_ptr<T>(),
          proposal_embed.size(0),    pixel_embed.size(0), pixel_embed.size(1) * pixel_embed.size(2)};
}

dim3 grid_of(int64_t pixels, int64_t rows) {
  return dim3(static_cast<unsigned>(std::min<int64_t>((pixels + kThreads - 1) / kThreads, 65535)),
              static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
}

Tensor embedding_log_prob(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin) {
  const c10::cuda::CUDAGuard guard(pixel_embed.device());
  Tensor log_prob =
      at::empty({proposal_embed.size(0), pixel_embed.size(1), pixel_embed.size(2)}, pixel_embed.options());
  if (log_prob.numel() == 0) return log_prob;
  AT_DISPATCH_FLOATING_TYPES(pixel_embed.scalar_type(), "embedding_log_prob", [&] {
    const auto e = embeddings<scalar_t>(pixel_embed, proposal_embed, proposal_margin);
    forward_kernel<<<grid_of(e.pixels, e.instances), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        e, log_prob.data_ptr<scalar_t>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return log_prob;
}

std::tuple<Tensor, Tensor, Tensor> embedding_log_prob_backward(const Tensor& grad, const Tensor& pixel_embed,
                                                               const Tensor& proposal_embed,
                                                               const Tensor& proposal_margin) {
  const c10::cuda::CUDAGuard guard(pixel_embed.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  Tensor grad_pixel_embed = at::empty_like(pixel_embed), grad_proposal_embed = at::empty_like(proposal_embed),
         grad_proposal_margin = at::empty_like(proposal_margin);
  AT_DISPATCH_FLOATING_TYPES(pixel_embed.scalar_type(), "embedding_log_prob_backward", [&] {
    const auto e = embeddings<scalar_t>(pixel_embed, proposal_embed, proposal_margin);
    pixel_gradient_kernel<<<grid_of(e.pixels, e.channels), kThreads, 0, stream>>>(
        e, grad.data_ptr<scalar_t>(), grad_pixel_embed.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    if (e.instances == 0) return;
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(e.instances * e.channels, 65535));
    proposal_gradient_kernel<<<blocks, kThreads, 0, stream>>>(e, grad.data_ptr<scalar_t>(),
                                                              grad_proposal_embed.data_ptr<scalar_t>(),
                                                              grad_proposal_margin.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_pixel_embed, grad_proposal_embed, grad_proposal_margin};
}

}  // namespace

REGISTER_DEVICE_IMPL(embedding_log_prob_impl, CUDA, embedding_log_prob);
REGISTER_DEVICE_IMPL(embedding_log_prob_backward_impl, CUDA, embedding_log_prob_backward);
