// Storage types for 16-bit floats and their conversions.
//
// The scalar conversions are branch-free integer code, so loops over them vectorise on every target. The array forms
// use the conversion instructions where the target has them. Rounding is to nearest even; NaN stays NaN, infinities
// stay infinite, f16 overflow becomes infinite, f16 subnormals are exact.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace echoc {

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};
static_assert(sizeof(bf16_t) == 2 && sizeof(f16_t) == 2);

inline float to_float(float value) { return value; }

inline float to_float(bf16_t value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

inline float to_float(f16_t value) {
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;  // exponent and mantissa in f32's places
  const uint32_t exponent = magnitude & (0x1fu << 23);
  const uint32_t rebias = uint32_t{127 - 15} << 23;
  const uint32_t normal = magnitude + rebias + (exponent == (0x1fu << 23) ? rebias : 0u);
  // A subnormal is its mantissa on top of 2^-14, less 2^-14: exact, and free of f32 subnormals.
  const uint32_t base = uint32_t{127 - 14} << 23;
  const float small = std::bit_cast<float>(magnitude + base) - std::bit_cast<float>(base);
  const uint32_t bits = exponent == 0 ? std::bit_cast<uint32_t>(small) : normal;
  return std::bit_cast<float>(bits | (uint32_t{value.bits} & 0x8000u) << 16);
}

inline bf16_t to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>((nan ? bits | 0x00400000u : rounded) >> 16)};
}

inline f16_t to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal: rebias the exponent, round the 13 dropped bits to even.
  const uint32_t normal = (magnitude - (uint32_t{127 - 15} << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal: adding 1/2 puts the unit of the sum at 2^-24, the unit of f16 subnormals.
  const float half = 0.5f;
  const uint32_t small =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + half) - std::bit_cast<uint32_t>(half);
  uint32_t result = magnitude < (uint32_t{127 - 14} << 23) ? small : normal;
  result = magnitude >= (uint32_t{127 + 16} << 23) ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : result;
  return {static_cast<uint16_t>(sign | result)};
}

template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline bf16_t from_float<bf16_t>(float value) {
  return to_bf16(value);
}
template <>
inline f16_t from_float<f16_t>(float value) {
  return to_f16(value);
}

// out[i] = in[i] as f32, i < count. The arrays do not overlap.
template <class T>
inline void to_float(const T* in, float* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = to_float(in[i]);
}

inline void to_float(const f16_t* in, float* __restrict out, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
#endif
  for (; i < count; ++i) out[i] = to_float(in[i]);
}

// out[i] = in[i] rounded to T, i < count. The arrays do not overlap.
template <class T>
inline void from_float(const float* in, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = from_float<T>(in[i]);
}

inline void from_float(const float* in, f16_t* __restrict out, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), 0));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
#endif
  for (; i < count; ++i) out[i] = from_float<f16_t>(in[i]);
}

}  // namespace echoc
