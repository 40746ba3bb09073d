// The arithmetic of the mask stage, shared by the CPU and the CUDA kernels.
//
// D: embedding channels, (h, w): the pixel embedding's grid. A cell is one of the grid after its resize by `upscale`;
// the values, log-probabilities or probabilities, live on cells and are resized once more to the pixels of the original image.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "host_device.hpp"

namespace embedmask {

constexpr int kBoxPadding = 2;  // cells that a box is grown by on each side

// One axis of the resize from cells to original pixels. A pixel lies between cell `index` and the one after it.
struct Axis {
  int64_t cells;
  int64_t pixels;
  const int32_t* index;  // of each pixel
  const float* weight;   // of each pixel, that of the cell after `index`
  const int32_t* first;  // of each cell and one more: the first pixel whose index is not below
  float pixels_per_cell;
};

// The part of an axis that a box touches.
struct Span {
  int64_t begin, end;              // cells in the box
  int64_t low, high;               // cells that pixels of the box reach, high included: one more where there is one
  int64_t pixel_begin, pixel_end;  // pixels that touch a cell in the box

  EMBEDMASK_HOST_DEVICE bool empty() const { return begin >= end || pixel_begin >= pixel_end; }
  EMBEDMASK_HOST_DEVICE int64_t reached() const { return high - low + 1; }
};

// What one call computes. Tensors are contiguous.
struct MaskStage {
  const float* pixel_embed;      // (D, h, w)
  const float* proposal_embed;   // (N, D)
  const float* proposal_margin;  // (N, D)
  int64_t channels, height, width;
  int64_t instances, upscale;
  bool resize_prob;  // whether the values of cells are probabilities, else their logarithms
  float threshold;   // of values
  float outside;     // value of a cell outside its box, below the threshold
  Axis rows, cols;
};

// The k-th of the cells that a grid cell becomes lies between it and the grid cell before or after.
struct Phase {
  bool after;
  float weight;  // of that neighbour
};

EMBEDMASK_HOST_DEVICE Phase phase_of(int64_t k, int64_t upscale) {
  const double offset = (k + 0.5) / upscale - 0.5;
  return {offset >= 0, static_cast<float>(offset < 0 ? -offset : offset)};
}

// The same for one cell, clamped to the grid. Before the first grid cell stands that cell, with weight 0 for the
// second, so that a value that is not finite spreads as in PyTorch.
struct Neighbours {
  int64_t here, other;
  float weight;  // of the other
};

EMBEDMASK_HOST_DEVICE Neighbours neighbours_of(int64_t cell, int64_t upscale, int64_t size) {
  const int64_t here = cell / upscale, next = here + 1 < size ? here + 1 : here;
  const Phase phase = phase_of(cell - here * upscale, upscale);
  if (phase.after) return {here, next, phase.weight};
  return here > 0 ? Neighbours{here, here - 1, phase.weight} : Neighbours{here, next, 0.0f};
}

template <typename T>
EMBEDMASK_HOST_DEVICE T lerp(const T& a, const T& b, float weight) {
  return a + weight * (b - a);
}

// Whether a pixel between two values is on. Between two that agree nothing is computed, so that a kernel which walks
// from change to change and one which asks every pixel cannot differ by a rounding. A NaN is off.
EMBEDMASK_HOST_DEVICE bool pixel_on(float a, float b, float weight, float threshold) {
  const bool on = a > threshold;
  return on == (b > threshold) ? on : lerp(a, b, weight) > threshold;
}

EMBEDMASK_HOST_DEVICE int64_t cell_edge(double edge, double cell, int padding, int64_t cells) {
  const double padded = trunc(edge / cell) + padding;
  return padded < 0 ? 0 : padded < cells ? static_cast<int64_t>(padded) : cells;
}

// The part of an axis that a box from `low_edge` to `high_edge` touches, in input pixels; none where one is NaN.
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

// The first pixel of a cell's pixels that is not as the cell itself, where the cell after it differs; else the first
// pixel of the cell after. Along a cell's pixels the value is monotone, rounding included.
EMBEDMASK_HOST_DEVICE int64_t crossing(const Axis& axis, int64_t cell, float a, float b, float threshold) {
  const int64_t begin = axis.first[cell], end = axis.first[cell + 1];
  const bool on = a > threshold;
  // Start where the straight line crosses.
  const float steps = ((threshold - a) / (b - a) - (end > begin ? axis.weight[begin] : 0)) * axis.pixels_per_cell;
  int64_t pixel = steps >= 0 ? (steps < end - begin ? begin + static_cast<int64_t>(steps) + 1 : end) : begin;
  while (pixel > begin && pixel_on(a, b, axis.weight[pixel - 1], threshold) != on) --pixel;
  while (pixel < end && pixel_on(a, b, axis.weight[pixel], threshold) == on) ++pixel;
  return pixel;
}

// Host side ----------------------------------------------------------------------------------------------------------

// Owner of an axis: the resize of `cells` to `size` pixels, of which the first `pixels` are kept.
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

// Pixels of a whole grid in the original image, rounded up.
inline int64_t resized(int64_t cells, int64_t stride, int64_t img, int64_t ori) {
  return (cells * stride * ori + img - 1) / img;
}

// The pixels of a column-major mask at which it changes, in order. Two changes at one pixel are none.
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

  // The COCO RLE string of a mask of `size` pixels. A run is stored as its difference from the run before the last
  // (from the fourth on), five bits a character.
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
