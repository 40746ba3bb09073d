// The log-probability of every pixel for every instance and its gradients, a block of pixels at a time.
//
// Every difference p - q is computed. The matrix product p^2 - 2pq + q^2 would lose all digits if p and q are close and
// large.
#include "log_prob_cpu.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "simd.hpp"

namespace embedmask {
namespace {

constexpr int64_t kBlock = 128;  // pixels, such that all their channels fit into the L1 cache

template <typename T>
struct Embeddings {
  const T* pixel_embed;
  const T* proposal_embed;
  const T* proposal_margin;
  int64_t instances, channels, pixels;
};

// Copy `rows` rows of a block into (rows, kBlock), with zeros after the last pixel.
template <typename T>
EMBEDMASK_INLINE void copy_block(const T* from, int64_t rows, int64_t pixels, int64_t begin, T* to) {
  const int64_t count = std::min(kBlock, pixels - begin);
  for (int64_t i = 0; i < rows; ++i, to += kBlock) {
    std::copy_n(from + i * pixels + begin, count, to);
    std::fill(to + count, to + kBlock, T(0));
  }
}

template <typename T>
EMBEDMASK_INLINE void forward_block(const Embeddings<T>& e, int64_t begin, T* block, T* log_prob) {
  using Vec = typename Simd<T>::Vec;
  constexpr int64_t kLanes = Simd<T>::kLanes, kGroup = 4;  // sums computed side by side
  copy_block(e.pixel_embed, e.channels, e.pixels, begin, block);
  const int64_t count = std::min(kBlock, e.pixels - begin);
  for (int64_t n = 0; n < e.instances; ++n) {
    const T* embed = e.proposal_embed + n * e.channels;
    const T* margin = e.proposal_margin + n * e.channels;
    T row[kBlock];
    for (int64_t i = 0; i < count; i += kGroup * kLanes) {
      Vec sum[kGroup] = {};
      for (int64_t c = 0; c < e.channels; ++c) {
        for (int64_t g = 0; g < kGroup; ++g) {
          const Vec difference = load(block + c * kBlock + i + g * kLanes) - embed[c];
          sum[g] -= margin[c] * difference * difference;
        }
      }
      for (int64_t g = 0; g < kGroup; ++g) store(row + i + g * kLanes, sum[g]);
    }
    std::copy_n(row, count, log_prob + n * e.pixels + begin);
  }
}

// Memory of a thread for the gradients.
template <typename T>
struct BackwardScratch {
  std::vector<T> block;                    // (D, kBlock) of the pixel embedding
  std::vector<T> grad_block;               // (D, kBlock) of its gradient
  std::vector<double> embed_sum, margin_sum;  // (N, D): sums of grad * difference and grad * difference^2

  explicit BackwardScratch(const Embeddings<T>& e)
      : block(e.channels * kBlock),
        grad_block(e.channels * kBlock),
        embed_sum(e.instances * e.channels),
        margin_sum(e.instances * e.channels) {}
};

template <typename T>
EMBEDMASK_INLINE double sum_of(const typename Simd<T>::Vec& vec) {
  double sum = 0;
  for (int64_t i = 0; i < Simd<T>::kLanes; ++i) sum += vec[i];
  return sum;
}

template <typename T>
EMBEDMASK_INLINE void backward_block(const Embeddings<T>& e, const T* grad, int64_t begin, BackwardScratch<T>& scratch,
                                     T* grad_pixel_embed) {
  using Vec = typename Simd<T>::Vec;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  const int64_t count = std::min(kBlock, e.pixels - begin);
  copy_block(e.pixel_embed, e.channels, e.pixels, begin, scratch.block.data());
  std::fill(scratch.grad_block.begin(), scratch.grad_block.end(), T(0));
  for (int64_t n = 0; n < e.instances; ++n) {
    // Skip vectors without gradient: a trained network has gradients at about one pixel in a hundred.
    T grad_row[kBlock];
    copy_block(grad + n * e.pixels, 1, e.pixels, begin, grad_row);
    int64_t chosen[kBlock / kLanes], vectors = 0;
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      if (std::any_of(grad_row + i, grad_row + i + kLanes, [](T value) { return value != 0; })) chosen[vectors++] = i;
    }
    if (vectors == 0) continue;
    for (int64_t c = 0; c < e.channels; ++c) {
      const int64_t at = n * e.channels + c;
      const T embed = e.proposal_embed[at], margin = e.proposal_margin[at];
      Vec embed_sum = {}, margin_sum = {};
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t i = chosen[v];
        const Vec difference = load(scratch.block.data() + c * kBlock + i) - embed;
        const Vec product = load(grad_row + i) * difference;
        T* grad_pixel = scratch.grad_block.data() + c * kBlock + i;
        store(grad_pixel, load(grad_pixel) + margin * product);
        embed_sum += product;
        margin_sum += product * difference;
      }
      scratch.embed_sum[at] += sum_of<T>(embed_sum);
      scratch.margin_sum[at] += sum_of<T>(margin_sum);
    }
  }
  for (int64_t c = 0; c < e.channels; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      grad_pixel_embed[c * e.pixels + begin + i] = -2 * scratch.grad_block[c * kBlock + i];
    }
  }
}

#define EMBEDMASK_DISPATCH_LOG_PROB(T, suffix)                                                                  \
  EMBEDMASK_DISPATCH(forward_##suffix, forward_block,                                                           \
                     (const Embeddings<T>& e, int64_t begin, T* block, T* log_prob), (e, begin, block, log_prob)) \
  EMBEDMASK_DISPATCH(backward_##suffix, backward_block,                                                         \
                     (const Embeddings<T>& e, const T* grad, int64_t begin, BackwardScratch<T>& scratch,         \
                      T* grad_pixel_embed),                                                                     \
                     (e, grad, begin, scratch, grad_pixel_embed))                                               \
  void forward(const Embeddings<T>& e, int64_t begin, T* block, T* log_prob) {                                  \
    forward_##suffix(e, begin, block, log_prob);                                                                \
  }                                                                                                             \
  void backward(const Embeddings<T>& e, const T* grad, int64_t begin, BackwardScratch<T>& scratch,              \
                T* grad_pixel_embed) {                                                                          \
    backward_##suffix(e, grad, begin, scratch, grad_pixel_embed);                                               \
  }

EMBEDMASK_DISPATCH_LOG_PROB(float, float)
EMBEDMASK_DISPATCH_LOG_PROB(double, double)

int64_t blocks_of(int64_t pixels) { return (pixels + kBlock - 1) / kBlock; }

}  // namespace

template <typename T>
void embedding_log_prob_cpu(const T* pixel_embed, const T* proposal_embed, const T* proposal_margin, T* log_prob,
                            int64_t instances, int64_t channels, int64_t pixels) {
  const Embeddings<T> e{pixel_embed, proposal_embed, proposal_margin, instances, channels, pixels};
  at::parallel_for(0, blocks_of(pixels), 8, [&](int64_t begin, int64_t end) {
    std::vector<T> block(channels * kBlock);
    for (int64_t i = begin; i < end; ++i) forward(e, i * kBlock, block.data(), log_prob);
  });
}

template <typename T>
void embedding_log_prob_backward_cpu(const T* grad, const T* pixel_embed, const T* proposal_embed,
                                     const T* proposal_margin, T* grad_pixel_embed, T* grad_proposal_embed,
                                     T* grad_proposal_margin, int64_t instances, int64_t channels, int64_t pixels) {
  const Embeddings<T> e{pixel_embed, proposal_embed, proposal_margin, instances, channels, pixels};
  std::vector<BackwardScratch<T>> threads(at::get_num_threads(), BackwardScratch<T>(e));
  at::parallel_for(0, blocks_of(pixels), 8, [&](int64_t begin, int64_t end) {
    BackwardScratch<T>& scratch = threads[at::get_thread_num()];
    for (int64_t i = begin; i < end; ++i) backward(e, grad, i * kBlock, scratch, grad_pixel_embed);
  });
  for (int64_t i = 0; i < instances * channels; ++i) {
    double embed_sum = 0, margin_sum = 0;
    for (const auto& scratch : threads) {
      embed_sum += scratch.embed_sum[i];
      margin_sum += scratch.margin_sum[i];
    }
    grad_proposal_embed[i] = static_cast<T>(2 * proposal_margin[i] * embed_sum);
    grad_proposal_margin[i] = static_cast<T>(-margin_sum);
  }
}

#define EMBEDMASK_INSTANTIATE(T)                                                                                       \
  template void embedding_log_prob_cpu(const T*, const T*, const T*, T*, int64_t, int64_t, int64_t);                   \
  template void embedding_log_prob_backward_cpu(const T*, const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t, \
                                                int64_t);
EMBEDMASK_INSTANTIATE(float)
EMBEDMASK_INSTANTIATE(double)

}  // namespace embedmask
