// Vectors of 32 bytes as a compiler extension, and functions compiled once for each instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#define EMBEDMASK_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define EMBEDMASK_AVX2 __attribute__((target("avx2,fma")))
#define EMBEDMASK_HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define EMBEDMASK_AVX2
#define EMBEDMASK_HAS_AVX2 false
#endif

// Define `name`, which calls the always-inlined `body` as compiled for the instruction set of this machine.
#define EMBEDMASK_DISPATCH(name, body, parameters, arguments)                 \
  EMBEDMASK_AVX2 void name##_avx2 parameters { body arguments; }              \
  void name##_any parameters { body arguments; }                              \
  void name parameters {                                                      \
    static const auto chosen = EMBEDMASK_HAS_AVX2 ? name##_avx2 : name##_any; \
    chosen arguments;                                                         \
  }

#pragma GCC diagnostic ignored "-Wpsabi"

namespace embedmask {

template <typename T>
struct Simd {
  typedef T Vec __attribute__((vector_size(32)));
  static constexpr int64_t kLanes = 32 / sizeof(T);
};

template <typename T>
EMBEDMASK_INLINE typename Simd<T>::Vec load(const T* from) {
  typename Simd<T>::Vec vec;
  std::memcpy(&vec, from, sizeof(vec));
  return vec;
}

template <typename T>
EMBEDMASK_INLINE void store(T* to, const typename Simd<T>::Vec& vec) {
  std::memcpy(to, &vec, sizeof(vec));
}

EMBEDMASK_INLINE Simd<float>::Vec exp_of(Simd<float>::Vec values) {
  for (int i = 0; i < Simd<float>::kLanes; ++i) values[i] = std::exp(values[i]);
  return values;
}

// Return a bit for each lane of a comparison, the lowest for the first lane.
EMBEDMASK_INLINE uint64_t bits_of(const Simd<int32_t>::Vec& lanes) {
#if defined(__x86_64__)
  __m128 halves[2];
  std::memcpy(halves, &lanes, sizeof(halves));
  return static_cast<uint64_t>(_mm_movemask_ps(halves[0]) | _mm_movemask_ps(halves[1]) << 4);
#else
  uint64_t bits = 0;
  for (int i = 0; i < Simd<int32_t>::kLanes; ++i) bits |= static_cast<uint64_t>(lanes[i] & 1) << i;
  return bits;
#endif
}

EMBEDMASK_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace embedmask
