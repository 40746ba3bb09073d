// What one CUDA thread computes of the log-probabilities and their gradients.
//
// Nothing here needs a GPU, so that the tests run the same code on the CPU.
#pragma once

#include <cstdint>

#include "host_device.hpp"

namespace embedmask {

// Contiguous arguments of the log-probability.
template <typename T>
struct LogProbArguments {
  const T* pixel_embed;      // (D, pixels)
  const T* proposal_embed;   // (N, D)
  const T* proposal_margin;  // (N, D)
  int64_t instances, channels, pixels;
};

// Computes the log-probability of pixel i for instance n.
template <typename T>
struct LogProbBody {
  LogProbArguments<T> e;
  T* log_prob;  // (N, pixels)

  EMBEDMASK_HOST_DEVICE int64_t size(int64_t) const { return e.pixels; }

  EMBEDMASK_HOST_DEVICE void operator()(int64_t n, int64_t i) const {
    T sum = 0;
    for (int64_t c = 0; c < e.channels; ++c) {
      const T difference = e.pixel_embed[c * e.pixels + i] - e.proposal_embed[n * e.channels + c];
      sum -= e.proposal_margin[n * e.channels + c] * difference * difference;
    }
    log_prob[n * e.pixels + i] = sum;
  }
};

// Computes the gradient of pixel i's channel c, from all instances.
template <typename T>
struct PixelGradientBody {
  LogProbArguments<T> e;
  const T* grad;        // (N, pixels)
  T* grad_pixel_embed;  // (D, pixels)

  EMBEDMASK_HOST_DEVICE int64_t size(int64_t) const { return e.pixels; }

  EMBEDMASK_HOST_DEVICE void operator()(int64_t c, int64_t i) const {
    const T pixel = e.pixel_embed[c * e.pixels + i];
    T sum = 0;
    for (int64_t n = 0; n < e.instances; ++n) {
      const T value = grad[n * e.pixels + i];
      // Without this test, a NaN or infinite difference would become a gradient where there is none.
      if (value != 0) {
        sum += e.proposal_margin[n * e.channels + c] * value * (pixel - e.proposal_embed[n * e.channels + c]);
      }
    }
    grad_pixel_embed[c * e.pixels + i] = -2 * sum;
  }
};

// Sums over pixels of grad * difference and grad * difference ** 2. Floats are inexact over many pixels.
struct ProposalSums {
  double embed, margin;
};

// Computes the gradients of one channel of one instance, the at-th of (N, D). A block of threads shares the pixels.
template <typename T>
struct ProposalGradientBody {
  LogProbArguments<T> e;
  const T* grad;            // (N, pixels)
  T* grad_proposal_embed;   // (N, D)
  T* grad_proposal_margin;  // (N, D)

  EMBEDMASK_HOST_DEVICE int64_t blocks() const { return e.instances * e.channels; }

  // Add up every `threads`-th pixel, from pixel `thread` on.
  EMBEDMASK_HOST_DEVICE ProposalSums sums(int64_t at, int64_t thread, int64_t threads) const {
    const int64_t n = at / e.channels, c = at % e.channels;
    ProposalSums sums{0, 0};
    for (int64_t i = thread; i < e.pixels; i += threads) {
      const T value = grad[n * e.pixels + i];
      if (value != 0) {
        const T difference = e.pixel_embed[c * e.pixels + i] - e.proposal_embed[at];
        sums.embed += value * difference;
        sums.margin += value * difference * difference;
      }
    }
    return sums;
  }

  // Store the gradients, given the sums of all threads.
  EMBEDMASK_HOST_DEVICE void store(int64_t at, const ProposalSums& total) const {
    grad_proposal_embed[at] = static_cast<T>(2 * e.proposal_margin[at] * total.embed);
    grad_proposal_margin[at] = static_cast<T>(-total.margin);
  }
};

}  // namespace embedmask
