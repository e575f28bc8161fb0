// Native float vectors through the compiler's vector extensions: 16, 8 or 4 lanes as the target has them.
//
// Rows of 16 floats are the unit everywhere; kParts native vectors make one. Sums keep one lane per index modulo 16 and
// add the lanes in a fixed tree, so results depend neither on the vector width nor on alignment.
#pragma once

#include <cstdint>

namespace echoc::simd {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif
inline constexpr int kRow = 16;               // floats a row
inline constexpr int kParts = kRow / kLanes;  // native vectors a row

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * 4)));
typedef float VecLoose __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));
typedef uint32_t BitsLoose __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const VecLoose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<VecLoose*>(p) = v; }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // contracted to one rounding where the target has it

// lane[0] + ... + lane[15], halves upon halves; `lane` is used up.
inline float add_lanes(float* lane) {
  for (int width = kRow / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

inline float add_lanes(const Vec (&row)[kParts]) {
  float lane[kRow];
  for (int i = 0; i < kParts; ++i) store(lane + i * kLanes, row[i]);
  return add_lanes(lane);
}

}  // namespace echoc::simd
