// Launch of a body: body(n, i) is the i-th of body.size(n) pieces of work of row n.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>

namespace embedmask {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65535;  // along one side of a grid

template <typename Body>
__global__ void run_body(Body body, int64_t rows) {
  for (int64_t n = blockIdx.y; n < rows; n += gridDim.y) {
    const int64_t size = body.size(n);
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
      body(n, i);
    }
  }
}

// Run the work of all rows, of which none has more than `max_size` pieces.
template <typename Body>
void launch(const Body& body, int64_t rows, int64_t max_size) {
  if (rows == 0 || max_size == 0) return;
  const dim3 grid(static_cast<unsigned>(std::min((max_size + kThreads - 1) / kThreads, kMaxBlocks)),
                  static_cast<unsigned>(std::min(rows, kMaxBlocks)));
  run_body<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(body, rows);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace embedmask
