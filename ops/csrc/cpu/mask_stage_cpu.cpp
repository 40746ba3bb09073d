// From embeddings to masks or run lengths inside each box.
//
// COCO's run lengths go down the columns, and so does this code:
// 1. A strip of the box, some columns of cells wide, is computed and stored column by column.
// 2. Each column of original pixels is interpolated from two columns of cells.
// 3. Only where it crosses the threshold between two cells are single pixels examined.
// Bitmaps come from the same crossings.
#include "mask_stage_cpu.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "simd.hpp"

namespace embedmask {
namespace {

using Vec = Simd<float>::Vec;
constexpr int64_t kLanes = Simd<float>::kLanes;  // grid columns of a strip

// Memory of a thread, reused for all boxes. It grows with a strip and with a mask's border, not with the image.
struct Scratch {
  std::vector<float> grid_rows;  // (3, D, upscale, kLanes): differences to the proposal, resized along x
  std::vector<float> tile;       // (1 + kLanes * upscale + 1, stride): values of cells, a column contiguous
  std::vector<float> column;     // (stride): values of a column of pixels
  Changes changes;               // of one mask
};

// The box being computed. kUpscale is stage.upscale as a constant, or 0 if the compiler does not know it.
template <int64_t kUpscale>
struct Box {
  const MaskStage& stage;
  const float* proposal_embed;
  const float* proposal_margin;
  Span rows, cols;
  int64_t stride;  // floats in a column of cells, at least rows.reached() + 1

  EMBEDMASK_INLINE int64_t upscale() const { return kUpscale ? kUpscale : stage.upscale; }
  EMBEDMASK_INLINE int64_t strip_cells() const { return kLanes * upscale(); }
};

// Load the grid columns x - 1, x and x + 1 for kLanes columns from `x` on if some of them lie outside the grid. The
// column before the first one has its values, plus 0 times the second one, as in PyTorch, where a NaN spreads to it.
EMBEDMASK_INLINE void load_at_border(const float* row, int64_t x, int64_t width, Vec& before, Vec& here, Vec& after) {
  float values[kLanes + 2];
  const int64_t begin = std::max<int64_t>(x - 1, 0), end = std::min(x + kLanes + 1, width);
  values[0] = row[0] + 0 * row[std::min<int64_t>(1, width - 1)];
  float* next = std::copy(row + begin, row + end, values + (begin - (x - 1)));
  std::fill(next, values + kLanes + 2, row[width - 1]);
  before = load(values), here = load(values + 1), after = load(values + 2);
}

// Compute differences of grid row `y` from the proposal, resized along x, for kLanes grid columns from `x` on.
template <int64_t kUpscale>
EMBEDMASK_INLINE void resize_grid_row(const Box<kUpscale>& box, int64_t y, int64_t x, float* resized) {
  const MaskStage& stage = box.stage;
  const int64_t upscale = box.upscale();
  const bool at_border = x < 1 || x + kLanes >= stage.width;
  for (int64_t c = 0; c < stage.channels; ++c) {
    const float* row = stage.pixel_embed + (c * stage.height + y) * stage.width;
    Vec before, here, after;
    if (at_border) {
      load_at_border(row, x, stage.width, before, here, after);
    } else {
      before = load(row + x - 1), here = load(row + x), after = load(row + x + 1);
    }
    // Differences are interpolated, as they and their rounding errors are small near the mask's border.
    const Vec difference = here - box.proposal_embed[c], back = before - here, ahead = after - here;
    for (int64_t k = 0; k < upscale; ++k, resized += kLanes) {
      const Phase phase = phase_of(k, upscale);
      store(resized, difference + phase.weight * (phase.after ? ahead : back));
    }
  }
}

// Compute the values of a row of cells, for the lanes of two neighboring columns.
template <int64_t kUpscale>
EMBEDMASK_INLINE void cell_values(const Box<kUpscale>& box, const float* a, const float* b, float weight, int64_t step,
                                  Vec& first, Vec& second) {
  first = second = Vec{};
  for (int64_t c = 0; c < box.stage.channels; ++c) {
    const int64_t at = c * box.strip_cells();
    const Vec x = lerp(load(a + at), load(b + at), weight);
    const Vec y = lerp(load(a + at + step), load(b + at + step), weight);
    first -= box.proposal_margin[c] * x * x;
    second -= box.proposal_margin[c] * y * y;
  }
  if (box.stage.resize_prob) first = exp_of(first), second = exp_of(second);
}

// Store the lanes of one row of cells into columns of the tile.
template <int64_t kUpscale>
EMBEDMASK_INLINE void store_lanes(const Box<kUpscale>& box, const Vec& values, float* to) {
  for (int64_t i = 0; i < kLanes; ++i) to[i * box.upscale() * box.stride] = values[i];
}

// Fill the tile with the strip that begins at grid column `x`. Column 0 keeps the last column of the previous strip.
template <int64_t kUpscale>
EMBEDMASK_INLINE void compute_strip(const Box<kUpscale>& box, int64_t x, Scratch& scratch) {
  const MaskStage& stage = box.stage;
  const int64_t upscale = box.upscale(), strip = x * upscale;
  const int64_t size = stage.channels * upscale * kLanes;
  float* before = scratch.grid_rows.data();
  float* here = before + size;
  float* after = here + size;
  const int64_t begin = box.rows.begin / upscale, end = (box.rows.end - 1) / upscale + 1;
  resize_grid_row(box, begin, x, here);
  if (begin > 0) {
    resize_grid_row(box, begin - 1, x, before);
  } else {
    resize_grid_row(box, std::min<int64_t>(1, stage.height - 1), x, after);
    for (int64_t i = 0; i < size; ++i) before[i] = here[i] + 0 * after[i];
  }
  for (int64_t y = begin; y < end; ++y) {
    if (y + 1 < stage.height) {
      resize_grid_row(box, y + 1, x, after);
    } else {
      std::copy(here, here + size, after);
    }
    const int64_t last_row = std::min((y + 1) * upscale, box.rows.end);
    for (int64_t row = std::max(y * upscale, box.rows.begin); row < last_row; ++row) {
      const Phase phase = phase_of(row - y * upscale, upscale);
      float* tile_row = scratch.tile.data() + box.stride + row - box.rows.low;
      for (int64_t k = 0; k < upscale; k += 2) {
        const int64_t step = k + 1 < upscale ? kLanes : 0;
        Vec first, second;
        cell_values(box, here + k * kLanes, (phase.after ? after : before) + k * kLanes, phase.weight, step,
                    first, second);
        store_lanes(box, first, tile_row + k * box.stride);
        if (step) store_lanes(box, second, tile_row + (k + 1) * box.stride);
      }
    }
    std::swap(before, here);
    std::swap(here, after);
  }
  for (int64_t i = 0; i < box.strip_cells(); ++i) {
    float* column = scratch.tile.data() + (1 + i) * box.stride;
    if (strip + i < box.cols.begin || strip + i >= box.cols.end) std::fill_n(column, box.stride, stage.outside);
  }
}

// Call sink.change() for every change of pixel column `x`, which lies between the columns of cells `a` and `b`.
template <int64_t kUpscale, typename Sink>
EMBEDMASK_INLINE void walk_column(const Box<kUpscale>& box, int64_t x, const float* a, const float* b, Scratch& scratch,
                                  Sink& sink) {
  const float threshold = box.stage.threshold, weight = box.stage.cols.weight[x];
  const Axis& axis = box.stage.rows;
  const int64_t reached = box.rows.reached();
  float* column = scratch.column.data();
  uint64_t before = 0;
  for (int64_t begin = 0; begin < box.stride; begin += 64) {
    uint64_t on = 0;
    const int64_t end = std::min(begin + 64, box.stride);
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec values = lerp(load(a + i), load(b + i), weight);
      store(column + i, values);
      on |= bits_of(values > threshold) << (i - begin);
    }
    for (uint64_t changes = on ^ (on << 1 | before); changes; changes &= changes - 1) {
      const int64_t i = begin + __builtin_ctzll(changes);  // row i differs from the one before
      const int64_t y = i == 0         ? box.rows.pixel_begin
                        : i == reached ? axis.pixels
                                       : crossing(axis, box.rows.low + i - 1, column[i - 1], column[i], threshold);
      sink.change(x, y);
    }
    before = on >> 63;
  }
}

// Call sink.change() for every change of instance n's mask, column by column.
template <int64_t kUpscale, typename Sink>
EMBEDMASK_INLINE void walk_upscaled(const MaskStage& stage, int64_t n, const Span& rows, const Span& cols,
                                    Scratch& scratch, Sink& sink) {
  const Box<kUpscale> box{stage,
                          stage.proposal_embed + n * stage.channels,
                          stage.proposal_margin + n * stage.channels,
                          rows,
                          cols,
                          round_up(rows.reached() + 1, kLanes)};
  const int64_t strip_cells = box.strip_cells();
  scratch.grid_rows.resize(3 * stage.channels * strip_cells);
  scratch.tile.assign((strip_cells + 2) * box.stride, stage.outside);
  scratch.column.resize(box.stride);

  const Axis& axis = stage.cols;
  int64_t pixel = cols.pixel_begin;
  for (int64_t x = cols.begin / box.upscale(); x * box.upscale() < cols.end; x += kLanes) {
    const int64_t strip = x * box.upscale();
    compute_strip(box, x, scratch);
    const int64_t pixel_end = strip + strip_cells < cols.end ? axis.first[strip + strip_cells - 1] : cols.pixel_end;
    for (; pixel < pixel_end; ++pixel) {
      const int64_t cell = axis.index[pixel], next = std::min(cell + 1, axis.cells - 1);
      const float* tile = scratch.tile.data();
      walk_column(box, pixel, tile + (cell - strip + 1) * box.stride, tile + (next - strip + 1) * box.stride, scratch,
                  sink);
    }
    std::copy_n(scratch.tile.data() + strip_cells * box.stride, box.stride, scratch.tile.data());
  }
}

template <typename Sink>
EMBEDMASK_INLINE void walk_instance(const MaskStage& stage, int64_t n, const Span& rows, const Span& cols,
                                    Scratch& scratch, Sink& sink) {
  if (stage.upscale == 2) {
    walk_upscaled<2>(stage, n, rows, cols, scratch, sink);
  } else {
    walk_upscaled<0>(stage, n, rows, cols, scratch, sink);
  }
}

// Collects changes for run lengths.
struct RunSink {
  Changes& changes;
  int64_t height;

  EMBEDMASK_INLINE void change(int64_t x, int64_t y) { changes.add(x * height + y); }
};

// Marks changes in a bitmap, each as a 1 that flips everything below it.
struct BitmapSink {
  uint8_t* mask;
  int64_t height, width;

  EMBEDMASK_INLINE void change(int64_t x, int64_t y) {
    if (y < height) mask[y * width + x] ^= 1;
  }
};

EMBEDMASK_INLINE void fill_below_body(uint8_t* mask, int64_t height, int64_t width, const Span& rows,
                                      const Span& cols) {
  // One row more than the box has, because the change at its end is marked there.
  for (int64_t y = rows.pixel_begin + 1; y < std::min(rows.pixel_end + 1, height); ++y) {
    uint8_t* row = mask + y * width;
    for (int64_t x = cols.pixel_begin; x < cols.pixel_end; ++x) row[x] ^= row[x - width];
  }
}

EMBEDMASK_DISPATCH(walk_runs, walk_instance,
                   (const MaskStage& stage, int64_t n, const Span& rows, const Span& cols, Scratch& scratch,
                    RunSink& sink),
                   (stage, n, rows, cols, scratch, sink))

EMBEDMASK_DISPATCH(walk_bitmap, walk_instance,
                   (const MaskStage& stage, int64_t n, const Span& rows, const Span& cols, Scratch& scratch,
                    BitmapSink& sink),
                   (stage, n, rows, cols, scratch, sink))

EMBEDMASK_DISPATCH(fill_below, fill_below_body,
                   (uint8_t* mask, int64_t height, int64_t width, const Span& rows, const Span& cols),
                   (mask, height, width, rows, cols))

// Call work(n, scratch) for every instance. Threads take the next one when they are done, as boxes differ in size.
template <typename Work>
void for_each_instance(const MaskStage& stage, const Work& work) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), stage.instances), 1, [&](int64_t, int64_t) {
    Scratch scratch;
    for (int64_t n = next++; n < stage.instances; n = next++) work(n, scratch);
  });
}

}  // namespace

void instance_masks_cpu(const MaskStage& stage, const double* bboxes, double cell, uint8_t* masks) {
  const int64_t height = stage.rows.pixels, width = stage.cols.pixels;
  for_each_instance(stage, [&](int64_t n, Scratch& scratch) {
    uint8_t* mask = masks + n * height * width;
    const Span rows = span_of(stage.rows, bboxes[n * 4 + 1], bboxes[n * 4 + 3], cell);
    const Span cols = span_of(stage.cols, bboxes[n * 4], bboxes[n * 4 + 2], cell);
    if (rows.empty() || cols.empty()) return;
    BitmapSink sink{mask, height, width};
    walk_bitmap(stage, n, rows, cols, scratch, sink);
    fill_below(mask, height, width, rows, cols);
  });
}

std::vector<std::vector<uint8_t>> instance_rles_cpu(const MaskStage& stage, const double* bboxes, double cell) {
  std::vector<std::vector<uint8_t>> strings(stage.instances);
  for_each_instance(stage, [&](int64_t n, Scratch& scratch) {
    const Span rows = span_of(stage.rows, bboxes[n * 4 + 1], bboxes[n * 4 + 3], cell);
    const Span cols = span_of(stage.cols, bboxes[n * 4], bboxes[n * 4 + 2], cell);
    scratch.changes.clear();
    RunSink sink{scratch.changes, stage.rows.pixels};
    if (!rows.empty() && !cols.empty()) walk_runs(stage, n, rows, cols, scratch, sink);
    strings[n] = scratch.changes.encode(stage.rows.pixels * stage.cols.pixels);
  });
  return strings;
}

}  // namespace embedmask
