#pragma once

#include <cstdint>

namespace embedmask {

// Compute log_prob[n, i] = -sum_c margin[n, c] * (pixel_embed[c, i] - proposal_embed[n, c]) ** 2, all contiguous.
template <typename T>
void embedding_log_prob_cpu(const T* pixel_embed, const T* proposal_embed, const T* proposal_margin, T* log_prob,
                            int64_t instances, int64_t channels, int64_t pixels);

// Compute the gradients of the three arguments from the gradient of log_prob.
template <typename T>
void embedding_log_prob_backward_cpu(const T* grad, const T* pixel_embed, const T* proposal_embed,
                                     const T* proposal_margin, T* grad_pixel_embed, T* grad_proposal_embed,
                                     T* grad_proposal_margin, int64_t instances, int64_t channels, int64_t pixels);

}  // namespace embedmask
