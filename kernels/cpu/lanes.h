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

// lane[0] + ... + lane[15], halves upon halves; the lanes are used up.
inline float add_lanes(float* lane) {
  for (int width = kRow / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// The other half of a vector's first `width` lanes, in place: lane i gets lane i + width / 2.
template <int Width>
inline Vec upper_half(Vec v) {
#if defined(__AVX512F__)
  if constexpr (Width == 16)
    return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
  if constexpr (Width == 8) return __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if constexpr (Width == 4) return __builtin_shufflevector(v, v, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if constexpr (Width == 2) return __builtin_shufflevector(v, v, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX__)
  if constexpr (Width == 8) return __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7);
  if constexpr (Width == 4) return __builtin_shufflevector(v, v, 2, 3, 2, 3, 4, 5, 6, 7);
  if constexpr (Width == 2) return __builtin_shufflevector(v, v, 1, 1, 2, 3, 4, 5, 6, 7);
#else
  if constexpr (Width == 4) return __builtin_shufflevector(v, v, 2, 3, 2, 3);
  if constexpr (Width == 2) return __builtin_shufflevector(v, v, 1, 1, 2, 3);
#endif
}

// join(lane, lane + half) until one lane is left; the tree is that of add_lanes(float*).
template <class Join>
inline float join_lanes(Vec (&row)[kParts], Join&& join) {
  for (int parts = kParts / 2; parts > 0; parts /= 2)
    for (int i = 0; i < parts; ++i) row[i] = join(row[i], row[i + parts]);
  Vec v = row[0];
  if constexpr (kLanes >= 16) v = join(v, upper_half<16>(v));
  if constexpr (kLanes >= 8) v = join(v, upper_half<8>(v));
  v = join(v, upper_half<4>(v));
  v = join(v, upper_half<2>(v));
  return v[0];
}

inline float add_lanes(Vec (&row)[kParts]) {
  return join_lanes(row, [](Vec a, Vec b) { return a + b; });
}

}  // namespace echoc::simd
