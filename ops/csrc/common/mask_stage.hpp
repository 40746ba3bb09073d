// The arithmetic of the mask stage, shared by the CPU and the CUDA kernels.
//
// D: embedding channels, (h, w): the pixel embedding's grid. Cells are those of the grid after its resize by `upscale`.
// Each cell has a value, a log-probability or a probability. The values are resized once more, to original pixels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "host_device.hpp"

namespace embedmask {

constexpr int kBoxPadding = 2;  // cells by which a box is grown on each side

// One axis of the resize from cells to original pixels. A pixel lies between cell `index` and the cell after it.
struct Axis {
  int64_t cells;
  int64_t pixels;
  const int32_t* index;  // of each pixel
  const float* weight;   // of the cell after `index`, for each pixel
  const int32_t* first;  // for each cell and one more: the first pixel whose index is at least the cell
  float pixels_per_cell;
};

// Part of an axis that a box touches.
struct Span {
  int64_t begin, end;              // cells in the box
  int64_t low, high;               // cells that the box's pixels depend on, high included
  int64_t pixel_begin, pixel_end;  // pixels that touch a cell in the box

  EMBEDMASK_HOST_DEVICE bool empty() const { return begin >= end || pixel_begin >= pixel_end; }
  EMBEDMASK_HOST_DEVICE int64_t reached() const { return high - low + 1; }
};

// Arguments of one call. Tensors are contiguous.
struct MaskStage {
  const float* pixel_embed;      // (D, h, w)
  const float* proposal_embed;   // (N, D)
  const float* proposal_margin;  // (N, D)
  int64_t channels, height, width;
  int64_t instances, upscale;
  bool resize_prob;  // values of cells are probabilities, otherwise log-probabilities
  float threshold;   // for values
  float outside;     // value of cells outside the box, below the threshold
  Axis rows, cols;
};

// Position of the k-th cell of a grid cell: between that grid cell and the one before or after it.
struct Phase {
  bool after;
  float weight;  // of that neighbor
};

EMBEDMASK_HOST_DEVICE Phase phase_of(int64_t k, int64_t upscale) {
  const double offset = (k + 0.5) / upscale - 0.5;
  return {offset >= 0, static_cast<float>(offset < 0 ? -offset : offset)};
}

// Position of a cell, clamped to the grid. The cell before the first grid cell has its value. It also gets 0 times the
// second one, as in PyTorch, where a NaN therefore spreads to it.
struct Neighbors {
  int64_t here, other;
  float weight;  // of the other
};

EMBEDMASK_HOST_DEVICE Neighbors neighbors_of(int64_t cell, int64_t upscale, int64_t size) {
  const int64_t here = cell / upscale, next = here + 1 < size ? here + 1 : here;
  const Phase phase = phase_of(cell - here * upscale, upscale);
  if (phase.after) return {here, next, phase.weight};
  return here > 0 ? Neighbors{here, here - 1, phase.weight} : Neighbors{here, next, 0.0f};
}

template <typename T>
EMBEDMASK_HOST_DEVICE T lerp(const T& a, const T& b, float weight) {
  return a + weight * (b - a);
}

// Return whether a pixel between two values is on. A NaN is off. Nothing is interpolated if both values are on the same
// side, so that rounding cannot make kernels differ that test every pixel or only the changes.
EMBEDMASK_HOST_DEVICE bool pixel_on(float a, float b, float weight, float threshold) {
  const bool on = a > threshold;
  return on == (b > threshold) ? on : lerp(a, b, weight) > threshold;
}

EMBEDMASK_HOST_DEVICE int64_t cell_edge(double edge, double cell, int padding, int64_t cells) {
  const double padded = trunc(edge / cell) + padding;
  return padded < 0 ? 0 : padded < cells ? static_cast<int64_t>(padded) : cells;
}

// Find the part of an axis that a box touches, given its edges in input pixels. It is empty if an edge is NaN.
EMBEDMASK_HOST_DEVICE Span span_of(const Axis& axis, double low_edge, double high_edge, double cell) {
  Span span{};
  if (low_edge != low_edge || high_edge != high_edge) return span;
  span.begin = cell_edge(low_edge, cell, -kBoxPadding, axis.cells);
  span.end = cell_edge(high_edge, cell, kBoxPadding, axis.cells);
  span.low = span.begin > 0 ? span.begin - 1 : 0;
  span.high = span.end < axis.cells ? span.end : axis.cells - 1;
  span.pixel_begin = axis.first[span.low];
  span.pixel_end = axis.first[span.end];
  return span;
}

// Find the pixel at which the mask changes between a cell and the cell after it: the first of the cell's pixels that
// differs from the cell, or the first pixel of the cell after it. Values are monotone in between, rounding included.
EMBEDMASK_HOST_DEVICE int64_t crossing(const Axis& axis, int64_t cell, float a, float b, float threshold) {
  const int64_t begin = axis.first[cell], end = axis.first[cell + 1];
  const bool on = a > threshold;
  // Start where the straight line between the two values crosses the threshold.
  const float steps = ((threshold - a) / (b - a) - (end > begin ? axis.weight[begin] : 0)) * axis.pixels_per_cell;
  int64_t pixel = steps >= 0 ? (steps < end - begin ? begin + static_cast<int64_t>(steps) + 1 : end) : begin;
  while (pixel > begin && pixel_on(a, b, axis.weight[pixel - 1], threshold) != on) --pixel;
  while (pixel < end && pixel_on(a, b, axis.weight[pixel], threshold) == on) ++pixel;
  return pixel;
}

// Host side ----------------------------------------------------------------------------------------------------------

// Owner of an axis: the resize of `cells` to `size` pixels, cut to the first `pixels`.
struct AxisTable {
  std::vector<int32_t> index, first;
  std::vector<float> weight;
  float pixels_per_cell;

  AxisTable(int64_t cells, int64_t size, int64_t pixels)
      : index(pixels), first(cells + 1), weight(pixels), pixels_per_cell(static_cast<float>(size) / cells) {
    const double scale = static_cast<double>(cells) / size;
    int64_t cell = 0;
    for (int64_t i = 0; i < pixels; ++i) {
      const double source = std::fmax((i + 0.5) * scale - 0.5, 0.0);
      const int64_t below = source < cells - 1 ? static_cast<int64_t>(source) : cells - 1;
      index[i] = static_cast<int32_t>(below);
      weight[i] = static_cast<float>(source - below);
      while (cell <= below) first[cell++] = static_cast<int32_t>(i);
    }
    while (cell <= cells) first[cell++] = static_cast<int32_t>(pixels);
  }

  Axis view() const {
    return {static_cast<int64_t>(first.size()) - 1, static_cast<int64_t>(index.size()), index.data(), weight.data(),
            first.data(), pixels_per_cell};
  }
};

// Compute the size of a complete grid in original pixels, rounded up.
inline int64_t resized(int64_t cells, int64_t stride, int64_t img, int64_t ori) {
  return (cells * stride * ori + img - 1) / img;
}

// Pixels of a column-major mask at which it changes, in order. Two changes at one pixel cancel out.
class Changes {
 public:
  void clear() { pixels_.clear(); }

  EMBEDMASK_HOST_DEVICE void add(int64_t pixel) {
    if (!pixels_.empty() && pixels_.back() == pixel) {
      pixels_.pop_back();
    } else {
      pixels_.push_back(pixel);
    }
  }

  // Encode a mask of `size` pixels as a COCO RLE string. From the fourth run on, the difference from the run before the
  // last one is stored, with five bits in a character.
  std::vector<uint8_t> encode(int64_t size) const {
    std::vector<uint8_t> string((pixels_.size() + 1) * kMaxCharacters);
    uint8_t* next = string.data();
    int64_t start = 0, last = 0, before_last = 0;
    const size_t runs = pixels_.size() + (pixels_.empty() || pixels_.back() != size);
    for (size_t i = 0; i < runs; ++i) {
      const int64_t end = i < pixels_.size() ? pixels_[i] : size, run = end - start;
      int64_t rest = i > 2 ? run - before_last : run;
      start = end, before_last = last, last = run;
      for (bool more = true; more;) {
        const int64_t bits = rest & 0x1f;
        rest >>= 5;
        more = (bits & 0x10) ? rest != -1 : rest != 0;
        *next++ = static_cast<uint8_t>((more ? bits | 0x20 : bits) + 48);
      }
    }
    string.resize(next - string.data());
    string.shrink_to_fit();
    return string;
  }

 private:
  static constexpr int kMaxCharacters = 13;  // 64 bits, five at a time

  std::vector<int64_t> pixels_;
};

}  // namespace embedmask
