// The operators of embedmask_mmdet._ext: their schemas, and the calls of a device's kernels.
#include "embedmask_ops.hpp"

#include <Python.h>
#include <torch/library.h>

#ifndef _WIN32
#include <sys/mman.h>
#endif

#include <algorithm>

#include "cpu/log_prob_cpu.hpp"
#include "cpu/mask_stage_cpu.hpp"

// Devices ------------------------------------------------------------------------------------------------------------

Tensor embedding_log_prob_impl(const Tensor& pixel_embed, const Tensor& proposal_embed,
                               const Tensor& proposal_margin) {
  return DISPATCH_DEVICE_IMPL(embedding_log_prob_impl, pixel_embed, proposal_embed, proposal_margin);
}

std::tuple<Tensor, Tensor, Tensor> embedding_log_prob_backward_impl(const Tensor& grad, const Tensor& pixel_embed,
                                                                    const Tensor& proposal_embed,
                                                                    const Tensor& proposal_margin) {
  return DISPATCH_DEVICE_IMPL(embedding_log_prob_backward_impl, grad, pixel_embed, proposal_embed, proposal_margin);
}

Tensor instance_masks_impl(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                           const Tensor& bboxes, const Resize& resize) {
  return DISPATCH_DEVICE_IMPL(instance_masks_impl, pixel_embed, proposal_embed, proposal_margin, bboxes, resize);
}

Strings instance_rles_impl(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                           const Tensor& bboxes, const Resize& resize) {
  return DISPATCH_DEVICE_IMPL(instance_rles_impl, pixel_embed, proposal_embed, proposal_margin, bboxes, resize);
}

// The CPU ------------------------------------------------------------------------------------------------------------

namespace cpu {

Tensor embedding_log_prob(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin) {
  const int64_t channels = pixel_embed.size(0), pixels = pixel_embed[0].numel(), instances = proposal_embed.size(0);
  Tensor log_prob = at::empty({instances, pixel_embed.size(1), pixel_embed.size(2)}, pixel_embed.options());
  AT_DISPATCH_FLOATING_TYPES(pixel_embed.scalar_type(), "embedding_log_prob", [&] {
    embedmask::embedding_log_prob_cpu(pixel_embed.data_ptr<scalar_t>(), proposal_embed.data_ptr<scalar_t>(),
                                      proposal_margin.data_ptr<scalar_t>(), log_prob.data_ptr<scalar_t>(), instances,
                                      channels, pixels);
  });
  return log_prob;
}

std::tuple<Tensor, Tensor, Tensor> embedding_log_prob_backward(const Tensor& grad, const Tensor& pixel_embed,
                                                               const Tensor& proposal_embed,
                                                               const Tensor& proposal_margin) {
  const int64_t channels = pixel_embed.size(0), pixels = pixel_embed[0].numel(), instances = proposal_embed.size(0);
  Tensor grad_pixel_embed = at::empty_like(pixel_embed), grad_proposal_embed = at::empty_like(proposal_embed),
         grad_proposal_margin = at::empty_like(proposal_margin);
  AT_DISPATCH_FLOATING_TYPES(pixel_embed.scalar_type(), "embedding_log_prob_backward", [&] {
    embedmask::embedding_log_prob_backward_cpu(
        grad.data_ptr<scalar_t>(), pixel_embed.data_ptr<scalar_t>(), proposal_embed.data_ptr<scalar_t>(),
        proposal_margin.data_ptr<scalar_t>(), grad_pixel_embed.data_ptr<scalar_t>(),
        grad_proposal_embed.data_ptr<scalar_t>(), grad_proposal_margin.data_ptr<scalar_t>(), instances, channels,
        pixels);
  });
  return {grad_pixel_embed, grad_proposal_embed, grad_proposal_margin};
}

// Make bitmaps of zeros. Large ones are mapped, so that the system provides a page of zeros when it is first touched.
// Most pages lie outside the boxes and are never touched, while at::zeros would write every byte.
Tensor zeros(at::IntArrayRef shape) {
  const int64_t bytes = c10::multiply_integers(shape);
#ifndef _WIN32
  constexpr int64_t kMapped = 1 << 20;
  if (bytes >= kMapped) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(data != MAP_FAILED, "instance_masks: no memory for bitmaps of ", bytes, " bytes");
    return at::from_blob(data, shape, [bytes](void* mapped) { munmap(mapped, bytes); }, at::kBool);
  }
#endif
  return at::zeros(shape, at::kBool);
}

Tensor instance_masks(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                      const Tensor& bboxes, const Resize& resize) {
  const embedmask::AxisTable rows = resize.axis(0, pixel_embed.size(1)), cols = resize.axis(1, pixel_embed.size(2));
  const Tensor boxes = boxes_on_host(bboxes);
  Tensor masks = zeros({proposal_embed.size(0), resize.ori_shape[0], resize.ori_shape[1]});
  embedmask::instance_masks_cpu(
      mask_stage_of(pixel_embed, proposal_embed, proposal_margin, resize, rows.view(), cols.view()),
      boxes.data_ptr<double>(), resize.cell(), static_cast<uint8_t*>(masks.data_ptr()));
  return masks;
}

Strings instance_rles(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                      const Tensor& bboxes, const Resize& resize) {
  const embedmask::AxisTable rows = resize.axis(0, pixel_embed.size(1)), cols = resize.axis(1, pixel_embed.size(2));
  const Tensor boxes = boxes_on_host(bboxes);
  return embedmask::instance_rles_cpu(
      mask_stage_of(pixel_embed, proposal_embed, proposal_margin, resize, rows.view(), cols.view()),
      boxes.data_ptr<double>(), resize.cell());
}

}  // namespace cpu

REGISTER_DEVICE_IMPL(embedding_log_prob_impl, CPU, cpu::embedding_log_prob);
REGISTER_DEVICE_IMPL(embedding_log_prob_backward_impl, CPU, cpu::embedding_log_prob_backward);
REGISTER_DEVICE_IMPL(instance_masks_impl, CPU, cpu::instance_masks);
REGISTER_DEVICE_IMPL(instance_rles_impl, CPU, cpu::instance_rles);

// Operators ----------------------------------------------------------------------------------------------------------

namespace {

Tensor embedding_log_prob(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin) {
  return embedding_log_prob_impl(pixel_embed.contiguous(), proposal_embed.contiguous(), proposal_margin.contiguous());
}

std::tuple<Tensor, Tensor, Tensor> embedding_log_prob_backward(const Tensor& grad, const Tensor& pixel_embed,
                                                               const Tensor& proposal_embed,
                                                               const Tensor& proposal_margin) {
  return embedding_log_prob_backward_impl(grad.contiguous(), pixel_embed.contiguous(), proposal_embed.contiguous(),
                                          proposal_margin.contiguous());
}

Resize resize_of(int64_t stride, at::IntArrayRef img_shape, at::IntArrayRef ori_shape, double mask_thr, double outside,
                 bool resize_prob, int64_t upscale) {
  return {stride, upscale, {img_shape[0], img_shape[1]}, {ori_shape[0], ori_shape[1]}, mask_thr, outside, resize_prob};
}

Tensor single(const Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

Tensor instance_masks(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                      const Tensor& bboxes, int64_t stride, at::IntArrayRef img_shape, at::IntArrayRef ori_shape,
                      double mask_thr, double outside, bool resize_prob, int64_t upscale) {
  return instance_masks_impl(single(pixel_embed), single(proposal_embed), single(proposal_margin), bboxes,
                             resize_of(stride, img_shape, ori_shape, mask_thr, outside, resize_prob, upscale));
}

// Return the bytes of all strings, one after the other, and where each begins, (N + 1), both on the CPU.
std::tuple<Tensor, Tensor> instance_rles(const Tensor& pixel_embed, const Tensor& proposal_embed,
                                         const Tensor& proposal_margin, const Tensor& bboxes, int64_t stride,
                                         at::IntArrayRef img_shape, at::IntArrayRef ori_shape, double mask_thr,
                                         double outside, bool resize_prob, int64_t upscale) {
  const Strings strings =
      instance_rles_impl(single(pixel_embed), single(proposal_embed), single(proposal_margin), bboxes,
                         resize_of(stride, img_shape, ori_shape, mask_thr, outside, resize_prob, upscale));
  Tensor starts = at::empty({static_cast<int64_t>(strings.size()) + 1}, at::kLong);
  int64_t* start = starts.data_ptr<int64_t>();
  start[0] = 0;
  for (size_t n = 0; n < strings.size(); ++n) start[n + 1] = start[n] + static_cast<int64_t>(strings[n].size());
  Tensor bytes = at::empty({start[strings.size()]}, at::kByte);
  for (size_t n = 0; n < strings.size(); ++n) {
    std::copy(strings[n].begin(), strings[n].end(), bytes.data_ptr<uint8_t>() + start[n]);
  }
  return {bytes, starts};
}

void register_kernels(torch::Library& library) {
  library.impl("embedding_log_prob", embedding_log_prob);
  library.impl("embedding_log_prob_backward", embedding_log_prob_backward);
  library.impl("instance_masks", instance_masks);
  library.impl("instance_rles", instance_rles);
}

}  // namespace

TORCH_LIBRARY(embedmask, library) {
  library.def("embedding_log_prob(Tensor pixel_embed, Tensor proposal_embed, Tensor proposal_margin) -> Tensor");
  library.def(
      "embedding_log_prob_backward(Tensor grad, Tensor pixel_embed, Tensor proposal_embed, Tensor proposal_margin)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "instance_masks(Tensor pixel_embed, Tensor proposal_embed, Tensor proposal_margin, Tensor bboxes, SymInt stride,"
      " SymInt[] img_shape, SymInt[] ori_shape, float mask_thr, float outside, bool resize_prob, SymInt upscale)"
      " -> Tensor");
  library.def(
      "instance_rles(Tensor pixel_embed, Tensor proposal_embed, Tensor proposal_margin, Tensor bboxes, SymInt stride,"
      " SymInt[] img_shape, SymInt[] ori_shape, float mask_thr, float outside, bool resize_prob, SymInt upscale)"
      " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(embedmask, CPU, library) { register_kernels(library); }
#ifdef EMBEDMASK_WITH_CUDA
TORCH_LIBRARY_IMPL(embedmask, CUDA, library) { register_kernels(library); }
#endif

// Loading the module registers the operators. It has no Python functions.
PyMODINIT_FUNC PyInit__ext() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
