// What one CUDA thread computes of the masks: body(n, i) is the i-th of body.size(n) pieces of work of instance n.
//
// Nothing here needs a GPU, so that the tests run the same code on the CPU.
#pragma once

#include "mask_stage.hpp"

namespace embedmask {

// A box, and where its part of the buffers begins.
struct BoxPlan {
  Span rows, cols;
  int64_t tile_begin;    // in the values of all boxes' cells
  int64_t column_begin;  // in the pixel columns of all boxes

  EMBEDMASK_HOST_DEVICE bool empty() const { return rows.empty() || cols.empty(); }
  EMBEDMASK_HOST_DEVICE int64_t cells() const { return empty() ? 0 : rows.reached() * cols.reached(); }
  EMBEDMASK_HOST_DEVICE int64_t pixel_rows() const { return empty() ? 0 : rows.pixel_end - rows.pixel_begin; }
  EMBEDMASK_HOST_DEVICE int64_t pixel_cols() const { return empty() ? 0 : cols.pixel_end - cols.pixel_begin; }
};

// Plans of all boxes (N, 4) in input pixels, and sums and maxima over them.
struct BoxPlans {
  std::vector<BoxPlan> plans;
  int64_t cells = 0, columns = 0;
  int64_t max_cells = 0, max_columns = 0, max_pixels = 0;

  BoxPlans(const Axis& rows, const Axis& cols, const double* bboxes, int64_t instances, double cell) {
    for (int64_t n = 0; n < instances; ++n, bboxes += 4) {
      const BoxPlan plan{span_of(rows, bboxes[1], bboxes[3], cell), span_of(cols, bboxes[0], bboxes[2], cell), cells,
                         columns};
      cells += plan.cells();
      columns += plan.pixel_cols();
      max_cells = std::max(max_cells, plan.cells());
      max_columns = std::max(max_columns, plan.pixel_cols());
      max_pixels = std::max(max_pixels, plan.pixel_rows() * plan.pixel_cols());
      plans.push_back(plan);
    }
  }
};

// Compute a cell's difference from the proposal, on a grid row. Differences are interpolated, not embeddings, because
// they and their rounding errors are small near the border of the mask.
EMBEDMASK_HOST_DEVICE float difference_at(const float* row, const Neighbors& x, float embed) {
  return (row[x.here] - embed) + x.weight * (row[x.other] - row[x.here]);
}

// Compute the value of a cell inside its box.
EMBEDMASK_HOST_DEVICE float cell_value(const MaskStage& stage, int64_t n, int64_t row, int64_t col) {
  const Neighbors y = neighbors_of(row, stage.upscale, stage.height);
  const Neighbors x = neighbors_of(col, stage.upscale, stage.width);
  float sum = 0;
  for (int64_t c = 0; c < stage.channels; ++c) {
    const float embed = stage.proposal_embed[n * stage.channels + c];
    const float* here = stage.pixel_embed + (c * stage.height + y.here) * stage.width;
    const float* other = stage.pixel_embed + (c * stage.height + y.other) * stage.width;
    const float difference = lerp(difference_at(here, x, embed), difference_at(other, x, embed), y.weight);
    sum -= stage.proposal_margin[n * stage.channels + c] * difference * difference;
  }
  return stage.resize_prob ? std::exp(sum) : sum;
}

// Interpolate the values of a row of cells at a column of pixels.
EMBEDMASK_HOST_DEVICE float value_at(const MaskStage& stage, const BoxPlan& box, const float* tiles, int64_t row,
                                     int64_t x) {
  const int64_t first = stage.cols.index[x], second = first + 1 < stage.cols.cells ? first + 1 : first;
  const float* values = tiles + box.tile_begin + (row - box.rows.low) * box.cols.reached() - box.cols.low;
  return lerp(values[first], values[second], stage.cols.weight[x]);
}

// Computes the value of a cell.
struct CellBody {
  MaskStage stage;
  const BoxPlan* boxes;
  float* tiles;

  EMBEDMASK_HOST_DEVICE int64_t size(int64_t n) const { return boxes[n].cells(); }

  EMBEDMASK_HOST_DEVICE void operator()(int64_t n, int64_t i) const {
    const BoxPlan& box = boxes[n];
    const int64_t row = box.rows.low + i / box.cols.reached(), col = box.cols.low + i % box.cols.reached();
    const bool inside =
        row >= box.rows.begin && row < box.rows.end && col >= box.cols.begin && col < box.cols.end;
    tiles[box.tile_begin + i] = inside ? cell_value(stage, n, row, col) : stage.outside;
  }
};

// Sets a pixel of a box.
struct PixelBody {
  MaskStage stage;
  const BoxPlan* boxes;
  const float* tiles;
  uint8_t* masks;  // (N, rows, cols)

  EMBEDMASK_HOST_DEVICE int64_t size(int64_t n) const { return boxes[n].pixel_rows() * boxes[n].pixel_cols(); }

  EMBEDMASK_HOST_DEVICE void operator()(int64_t n, int64_t i) const {
    const BoxPlan& box = boxes[n];
    const int64_t y = box.rows.pixel_begin + i / box.pixel_cols(), x = box.cols.pixel_begin + i % box.pixel_cols();
    const int64_t row = stage.rows.index[y], next = row + 1 < stage.rows.cells ? row + 1 : row;
    masks[(n * stage.rows.pixels + y) * stage.cols.pixels + x] =
        pixel_on(value_at(stage, box, tiles, row, x), value_at(stage, box, tiles, next, x), stage.rows.weight[y],
                 stage.threshold);
  }
};

// Call sink.change() for every change of a column of pixels.
template <typename Sink>
EMBEDMASK_HOST_DEVICE void walk_pixel_column(const MaskStage& stage, const BoxPlan& box, const float* tiles, int64_t x,
                                             Sink& sink) {
  float before = stage.outside;
  bool on = false;
  for (int64_t row = box.rows.low; row <= box.rows.high; ++row) {
    const float value = value_at(stage, box, tiles, row, x);
    if ((value > stage.threshold) != on) {
      on = !on;
      sink.change(row == box.rows.low ? box.rows.pixel_begin
                                      : crossing(stage.rows, row - 1, before, value, stage.threshold));
    }
    before = value;
  }
  if (on) sink.change(stage.rows.pixels);
}

// Counts the changes of a column of pixels.
struct CountBody {
  MaskStage stage;
  const BoxPlan* boxes;
  const float* tiles;
  int64_t* counts;  // (columns of all boxes)

  struct Sink {
    int64_t count;
    EMBEDMASK_HOST_DEVICE void change(int64_t) { ++count; }
  };

  EMBEDMASK_HOST_DEVICE int64_t size(int64_t n) const { return boxes[n].pixel_cols(); }

  EMBEDMASK_HOST_DEVICE void operator()(int64_t n, int64_t i) const {
    Sink sink{0};
    walk_pixel_column(stage, boxes[n], tiles, boxes[n].cols.pixel_begin + i, sink);
    counts[boxes[n].column_begin + i] = sink.count;
  }
};

// Stores the changes of a column of pixels, as pixels of the column-major image.
struct ChangeBody {
  MaskStage stage;
  const BoxPlan* boxes;
  const float* tiles;
  const int64_t* ends;  // (columns of all boxes): inclusive sums of the counts
  int64_t* changes;     // (ends[-1])

  struct Sink {
    int64_t base;
    int64_t* next;
    EMBEDMASK_HOST_DEVICE void change(int64_t y) { *next++ = base + y; }
  };

  EMBEDMASK_HOST_DEVICE int64_t size(int64_t n) const { return boxes[n].pixel_cols(); }

  EMBEDMASK_HOST_DEVICE void operator()(int64_t n, int64_t i) const {
    const int64_t x = boxes[n].cols.pixel_begin + i, column = boxes[n].column_begin + i;
    Sink sink{x * stage.rows.pixels, changes + (column > 0 ? ends[column - 1] : 0)};
    walk_pixel_column(stage, boxes[n], tiles, x, sink);
  }
};

// Encode the changes of all columns as a COCO RLE string for each instance.
inline std::vector<std::vector<uint8_t>> encode_changes(const BoxPlans& boxes, const int64_t* ends,
                                                        const int64_t* changes, int64_t pixels) {
  std::vector<std::vector<uint8_t>> strings(boxes.plans.size());
  int64_t at = 0;
  for (size_t n = 0; n < strings.size(); ++n) {
    const int64_t column_end = boxes.plans[n].column_begin + boxes.plans[n].pixel_cols();
    Changes merged;
    for (const int64_t end = column_end > 0 ? ends[column_end - 1] : 0; at < end; ++at) merged.add(changes[at]);
    strings[n] = merged.encode(pixels);
  }
  return strings;
}

}  // namespace embedmask
