// Vectors of 32 bytes in the compilers' own notation, and one build of a function for each instruction set.
#pragma once

#include <cstring>

#define EMBEDMASK_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define EMBEDMASK_AVX2 __attribute__((target("avx2,fma")))
#define EMBEDMASK_HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define EMBEDMASK_AVX2
#define EMBEDMASK_HAS_AVX2 false
#endif

// Defines `name`, which calls the always-inlined `body` as it was compiled for the machine it runs on.
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

EMBEDMASK_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace embedmask
