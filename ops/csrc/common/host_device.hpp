// How functions are declared that run on the CPU and in CUDA kernels.
#pragma once

#ifdef __CUDACC__
#define EMBEDMASK_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define EMBEDMASK_HOST_DEVICE inline __attribute__((always_inline))
#else
#define EMBEDMASK_HOST_DEVICE inline
#endif
