// The arithmetic of the mask stage, shared by the CPU and the CUDA kernels.
//
// D: embedding channels, (h, w): the pixel embedding's grid. A cell is one of the grid after its resize by `upscale`;
// the log-probabilities live on cells and are resized once more to the pixels of the original image.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __CUDACC__
#define EMBEDMASK_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define EMBEDMASK_HOST_DEVICE inline __attribute__((always_inline))
#else
#define EMBEDMASK_HOST_DEVICE inline
#endif

namespace embedmask {

constexpr int kBoxPadding = 2;  // cells that a box is grown by on each side

// One axis of the resize from cells to original pixels. A pixel lies between cell `index` and the one after it.
struct Axis {
  int64_t cells;
  int64_t pixels;
  const int32_t* index;  // of each pixel
  const float* weight;   // of each pixel, that of the cell after `index`
  const int32_t* first;  // of each cell and one more: the first pixel whose index is not below
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
  float log_thr;
  float outside;  // log-probability of a cell outside its box, below log_thr
  Axis rows, cols;
};

// A neighbour pair and its weight in the resize by a whole factor: (cell before, cell) or (cell, cell after).
struct Phase {
  bool after;
  float weight;  // of the pair's second
};

EMBEDMASK_HOST_DEVICE Phase phase_of(int64_t k, int64_t upscale) {
  const double offset = (k + 0.5) / upscale - 0.5;
  return offset < 0 ? Phase{false, static_cast<float>(1 + offset)} : Phase{true, static_cast<float>(offset)};
}

// The same for one cell, clamped to the grid. Before the first grid row stands that row, with weight 0 for the second, so
// that a value that is not finite spreads as in PyTorch.
struct Neighbours {
  int64_t first, second;
  float weight;  // of the second
};

EMBEDMASK_HOST_DEVICE Neighbours neighbours_of(int64_t cell, int64_t upscale, int64_t size) {
  const int64_t here = cell / upscale;
  const Phase phase = phase_of(cell - here * upscale, upscale);
  if (here == 0 && !phase.after) return {0, size > 1 ? 1 : 0, 0.0f};
  if (!phase.after) return {here - 1, here, phase.weight};
  return {here, here + 1 < size ? here + 1 : here, phase.weight};
}

template <typename T>
EMBEDMASK_HOST_DEVICE T lerp(const T& a, const T& b, float weight) {
  return a + weight * (b - a);
}

// Whether a pixel between two values is on. Between two that agree nothing is computed, so that a kernel which walks
// from change to change and one which asks every pixel cannot differ by a rounding. A NaN is off.
EMBEDMASK_HOST_DEVICE bool pixel_on(float a, float b, float weight, float log_thr) {
  const bool on = a > log_thr;
  return on == (b > log_thr) ? on : lerp(a, b, weight) > log_thr;
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
EMBEDMASK_HOST_DEVICE int64_t crossing(const Axis& axis, int64_t cell, float a, float b, float log_thr) {
  const int64_t begin = axis.first[cell], end = axis.first[cell + 1];
  const bool on = a > log_thr;
  int64_t pixel = begin;
  if (end - begin > 1) {  // start where the straight line crosses
    const float step = (axis.weight[end - 1] - axis.weight[begin]) / (end - 1 - begin);
    const float steps = ((log_thr - a) / (b - a) - axis.weight[begin]) / step;
    pixel = steps > 0 ? (steps < end - begin ? begin + static_cast<int64_t>(steps) : end) : begin;
  }
  while (pixel > begin && pixel_on(a, b, axis.weight[pixel - 1], log_thr) != on) --pixel;
  while (pixel < end && pixel_on(a, b, axis.weight[pixel], log_thr) == on) ++pixel;
  return pixel;
}

// Host side ----------------------------------------------------------------------------------------------------------

// Owner of an axis: the resize of `cells` to `size` pixels, of which the first `pixels` are kept.
struct AxisTable {
  std::vector<int32_t> index, first;
  std::vector<float> weight;

  AxisTable(int64_t cells, int64_t size, int64_t pixels) : index(pixels), first(cells + 1), weight(pixels) {
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
            first.data()};
  }
};

// Pixels of a whole grid in the original image, rounded up.
inline int64_t resized(int64_t cells, int64_t stride, int64_t img, int64_t ori) {
  return (cells * stride * ori + img - 1) / img;
}

// Writes a column-major mask as a COCO RLE string, given the pixels at which it changes, in order. Two changes at one
// pixel are none.
class RunCoder {
 public:
  explicit RunCoder(std::vector<uint8_t>& string) : string_(string) {}

  void change(int64_t pixel) {
    if (pixel == pending_) {
      pending_ = kNone;
      return;
    }
    flush();
    pending_ = pixel;
  }

  void finish(int64_t pixels) {
    if (pending_ != pixels) flush();
    write(pixels - start_);
  }

 private:
  static constexpr int64_t kNone = -1;

  void flush() {
    if (pending_ == kNone) return;
    write(pending_ - start_);
    start_ = pending_;
  }

  // A count is stored as its difference from the one before the last (from the fourth on), five bits a character.
  void write(int64_t count) {
    int64_t rest = runs_ > 2 ? count - before_last_ : count;
    before_last_ = last_;
    last_ = count;
    ++runs_;
    bool more = true;
    while (more) {
      int64_t bits = rest & 0x1f;
      rest >>= 5;
      more = (bits & 0x10) ? rest != -1 : rest != 0;
      string_.push_back(static_cast<uint8_t>((more ? bits | 0x20 : bits) + 48));
    }
  }

  std::vector<uint8_t>& string_;
  int64_t pending_ = kNone, start_ = 0, runs_ = 0, last_ = 0, before_last_ = 0;
};

}  // namespace embedmask
