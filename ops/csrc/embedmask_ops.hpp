// What a device implements. mmcv's device registry finds it.
#pragma once

#include <tuple>
#include <vector>

#include "common/mask_stage.hpp"
#include "pytorch_cpp_helper.hpp"
#include "pytorch_device_registry.hpp"

// The resize from the pixel embedding to the original image.
struct Resize {
  int64_t stride, upscale;
  int64_t img_shape[2], ori_shape[2];
  double mask_thr, outside;
  bool resize_prob;

  double cell() const { return static_cast<double>(stride) / upscale; }  // side of a cell in input pixels

  embedmask::AxisTable axis(int dim, int64_t grid_size) const {
    return embedmask::AxisTable(grid_size * upscale,
                                embedmask::resized(grid_size, stride, img_shape[dim], ori_shape[dim]), ori_shape[dim]);
  }
};

using Strings = std::vector<std::vector<uint8_t>>;

// float32 or float64 and contiguous: (D, h, w), (N, D), (N, D) -> (N, h, w).
Tensor embedding_log_prob_impl(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin);

std::tuple<Tensor, Tensor, Tensor> embedding_log_prob_backward_impl(const Tensor& grad, const Tensor& pixel_embed,
                                                                    const Tensor& proposal_embed,
                                                                    const Tensor& proposal_margin);

// float32 and contiguous, except the boxes (N, 4) -> bool (N, *ori_shape).
Tensor instance_masks_impl(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                           const Tensor& bboxes, const Resize& resize);

// The same masks as N COCO RLE strings, on the host.
Strings instance_rles_impl(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                           const Tensor& bboxes, const Resize& resize);

inline embedmask::MaskStage mask_stage_of(const Tensor& pixel_embed, const Tensor& proposal_embed,
                                          const Tensor& proposal_margin, const Resize& resize,
                                          const embedmask::Axis& rows, const embedmask::Axis& cols) {
  embedmask::MaskStage stage{};
  stage.pixel_embed = pixel_embed.data_ptr<float>();
  stage.proposal_embed = proposal_embed.data_ptr<float>();
  stage.proposal_margin = proposal_margin.data_ptr<float>();
  stage.channels = pixel_embed.size(0), stage.height = pixel_embed.size(1), stage.width = pixel_embed.size(2);
  stage.instances = proposal_embed.size(0), stage.upscale = resize.upscale;
  stage.resize_prob = resize.resize_prob;
  stage.threshold = static_cast<float>(resize.resize_prob ? resize.mask_thr : std::log(resize.mask_thr));
  stage.outside = static_cast<float>(resize.outside);
  stage.rows = rows, stage.cols = cols;
  return stage;
}

inline Tensor boxes_on_host(const Tensor& bboxes) { return bboxes.to(at::kCPU, at::kDouble).contiguous(); }
