// Run the work of the CUDA kernels' threads one after the other on the CPU, in the order of the .cu files.
#include <cstring>

#include "../../ops/csrc/common/log_prob_bodies.hpp"
#include "../../ops/csrc/common/mask_bodies.hpp"

using namespace embedmask;

template <typename Body>
static void run(const Body& body, int64_t rows) {
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t i = 0; i < body.size(n); ++i) body(n, i);
  }
}

// Write the masks, which must be zero, and the RLE strings one after the other; return the strings' bytes.
extern "C" int64_t run_mask_bodies(const float* pixel_embed, const float* proposal_embed, const float* proposal_margin,
                               const double* bboxes, int64_t instances, int64_t channels, int64_t height,
                               int64_t width, int64_t stride, int64_t upscale, const int64_t* img_shape,
                               const int64_t* ori_shape, bool resize_prob, float threshold, float outside,
                               uint8_t* masks, uint8_t* strings) {
  const AxisTable rows(height * upscale, resized(height, stride, img_shape[0], ori_shape[0]), ori_shape[0]);
  const AxisTable cols(width * upscale, resized(width, stride, img_shape[1], ori_shape[1]), ori_shape[1]);
  const MaskStage stage{pixel_embed, proposal_embed, proposal_margin, channels,  height,  width,       instances,
                        upscale,     resize_prob,    threshold,       outside, rows.view(), cols.view()};
  const BoxPlans plans(stage.rows, stage.cols, bboxes, instances, static_cast<double>(stride) / upscale);
  std::vector<float> tiles(plans.cells);
  run(CellBody{stage, plans.plans.data(), tiles.data()}, instances);
  run(PixelBody{stage, plans.plans.data(), tiles.data(), masks}, instances);

  std::vector<int64_t> ends(plans.columns);
  run(CountBody{stage, plans.plans.data(), tiles.data(), ends.data()}, instances);
  for (int64_t i = 1; i < plans.columns; ++i) ends[i] += ends[i - 1];
  std::vector<int64_t> changes(plans.columns ? ends.back() : 0);
  run(ChangeBody{stage, plans.plans.data(), tiles.data(), ends.data(), changes.data()}, instances);
  int64_t size = 0;
  for (const auto& string : encode_changes(plans, ends.data(), changes.data(), ori_shape[0] * ori_shape[1])) {
    std::memcpy(strings + size, string.data(), string.size());
    size += static_cast<int64_t>(string.size());
  }
  return size;
}

template <typename T>
static void run_log_prob(const LogProbArguments<T>& e, const T* grad, T* log_prob, T* grad_pixel_embed,
                         T* grad_proposal_embed, T* grad_proposal_margin) {
  constexpr int64_t kThreads = 256;  // of a block
  run(LogProbBody<T>{e, log_prob}, e.instances);
  run(PixelGradientBody<T>{e, grad, grad_pixel_embed}, e.channels);
  const ProposalGradientBody<T> body{e, grad, grad_proposal_embed, grad_proposal_margin};
  for (int64_t at = 0; at < body.blocks(); ++at) {
    ProposalSums total{0, 0};
    for (int64_t thread = 0; thread < kThreads; ++thread) {
      const ProposalSums sums = body.sums(at, thread, kThreads);
      total.embed += sums.embed;
      total.margin += sums.margin;
    }
    body.store(at, total);
  }
}

#define RUN_LOG_PROB_BODIES(T)                                                                                      \
  extern "C" void run_log_prob_bodies_##T(const T* pixel_embed, const T* proposal_embed, const T* proposal_margin,  \
                                          const T* grad, int64_t instances, int64_t channels, int64_t pixels,       \
                                          T* log_prob, T* grad_pixel_embed, T* grad_proposal_embed,                 \
                                          T* grad_proposal_margin) {                                                \
    run_log_prob<T>({pixel_embed, proposal_embed, proposal_margin, instances, channels, pixels}, grad, log_prob,    \
                    grad_pixel_embed, grad_proposal_embed, grad_proposal_margin);                                   \
  }
RUN_LOG_PROB_BODIES(float)
RUN_LOG_PROB_BODIES(double)
