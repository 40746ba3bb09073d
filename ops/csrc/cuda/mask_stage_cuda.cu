// From embeddings to masks or run lengths inside each box: first the cells of all boxes, then their pixels.
#include <c10/cuda/CUDAGuard.h>

#include "../common/mask_bodies.hpp"
#include "../embedmask_ops.hpp"
#include "launch.cuh"

namespace {

using namespace embedmask;

template <typename T>
Tensor to_device(const std::vector<T>& values, const Tensor& like) {
  const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(T));
  return at::from_blob(const_cast<T*>(values.data()), {bytes}, at::kByte).to(like.device());
}

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

struct DeviceAxis {
  Tensor index, weight, first;
  Axis view;

  DeviceAxis(const AxisTable& table, const Tensor& like)
      : index(to_device(table.index, like)),
        weight(to_device(table.weight, like)),
        first(to_device(table.first, like)),
        view(table.view()) {
    view.index = pointer<int32_t>(index);
    view.weight = pointer<float>(weight);
    view.first = pointer<int32_t>(first);
  }
};

// Values of all boxes' cells, and what the next kernel needs to read them.
struct Cells {
  AxisTable row_table, col_table;
  DeviceAxis rows, cols;
  Tensor boxes_host;
  BoxPlans plans;
  Tensor boxes, tiles;
  MaskStage stage;

  Cells(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin, const Tensor& bboxes,
        const Resize& resize)
      : row_table(resize.axis(0, pixel_embed.size(1))),
        col_table(resize.axis(1, pixel_embed.size(2))),
        rows(row_table, pixel_embed),
        cols(col_table, pixel_embed),
        boxes_host(boxes_on_host(bboxes)),
        plans(row_table.view(), col_table.view(), boxes_host.data_ptr<double>(), bboxes.size(0), resize.cell()),
        boxes(to_device(plans.plans, pixel_embed)),
        tiles(at::empty({plans.cells}, pixel_embed.options())),
        stage(mask_stage_of(pixel_embed, proposal_embed, proposal_margin, resize, rows.view, cols.view)) {
    launch(CellBody{stage, plan(), pointer<float>(tiles)}, stage.instances, plans.max_cells);
  }

  const BoxPlan* plan() const { return pointer<BoxPlan>(boxes); }
};

Tensor instance_masks(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                      const Tensor& bboxes, const Resize& resize) {
  const c10::cuda::CUDAGuard guard(pixel_embed.device());
  const Cells cells(pixel_embed, proposal_embed, proposal_margin, bboxes, resize);
  Tensor masks = at::zeros({proposal_embed.size(0), resize.ori_shape[0], resize.ori_shape[1]},
                           pixel_embed.options().dtype(at::kBool));
  launch(PixelBody{cells.stage, cells.plan(), pointer<float>(cells.tiles), pointer<uint8_t>(masks)},
         cells.stage.instances, cells.plans.max_pixels);
  return masks;
}

Strings instance_rles(const Tensor& pixel_embed, const Tensor& proposal_embed, const Tensor& proposal_margin,
                      const Tensor& bboxes, const Resize& resize) {
  const c10::cuda::CUDAGuard guard(pixel_embed.device());
  const Cells cells(pixel_embed, proposal_embed, proposal_margin, bboxes, resize);
  const int64_t instances = cells.stage.instances, max_columns = cells.plans.max_columns;
  const Tensor counts = at::empty({cells.plans.columns}, pixel_embed.options().dtype(at::kLong));
  launch(CountBody{cells.stage, cells.plan(), pointer<float>(cells.tiles), pointer<int64_t>(counts)}, instances,
         max_columns);
  const Tensor ends = counts.cumsum(0);
  const Tensor ends_host = ends.cpu();
  const int64_t total = cells.plans.columns > 0 ? ends_host.data_ptr<int64_t>()[cells.plans.columns - 1] : 0;
  const Tensor changes = at::empty({total}, counts.options());
  launch(ChangeBody{cells.stage, cells.plan(), pointer<float>(cells.tiles), pointer<int64_t>(ends),
                    pointer<int64_t>(changes)},
         instances, max_columns);
  const Tensor changes_host = changes.cpu();
  return encode_changes(cells.plans, ends_host.data_ptr<int64_t>(), changes_host.data_ptr<int64_t>(),
                        resize.ori_shape[0] * resize.ori_shape[1]);
}

}  // namespace

REGISTER_DEVICE_IMPL(instance_masks_impl, CUDA, instance_masks);
REGISTER_DEVICE_IMPL(instance_rles_impl, CUDA, instance_rles);
