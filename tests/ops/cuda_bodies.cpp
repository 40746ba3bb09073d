// The pieces of work of the CUDA kernels, one after the other on the CPU, in the order of mask_stage_cuda.cu.
#include <cstring>

#include "../../ops/csrc/common/mask_bodies.hpp"

using namespace embedmask;

template <typename Body>
static void run(const Body& body, int64_t instances) {
  for (int64_t n = 0; n < instances; ++n) {
    for (int64_t i = 0; i < body.size(n); ++i) body(n, i);
  }
}

// Writes the masks, zero before, and the RLE strings one after the other; returns the strings' bytes.
extern "C" int64_t cuda_bodies(const float* pixel_embed, const float* proposal_embed, const float* proposal_margin,
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
