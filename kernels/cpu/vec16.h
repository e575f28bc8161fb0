// Sixteen lanes of f32, whatever the registers of the target: one AVX-512 register, two AVX2 ones, or an array.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "float8.h"
#include "half.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define ECHOC_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ECHOC_AVX2 1
#endif
#if defined(ECHOC_AVX512) && defined(__AVX512BF16__)
#define ECHOC_BF16_DOT 1
#endif
#if defined(ECHOC_AVX512) && defined(__AVX512VNNI__)
#define ECHOC_VNNI 1
#endif
#if defined(ECHOC_BF16_DOT) && defined(ECHOC_VNNI) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && \
    defined(__AMX_INT8__) && defined(__linux__)
#define ECHOC_AMX 1
#endif

#if defined(ECHOC_AVX512) || defined(ECHOC_AVX2)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own AVX-512 headers read deliberately undefined registers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define ECHOC_INLINE inline __attribute__((always_inline))
#define ECHOC_INLINE_LAMBDA __attribute__((always_inline))

namespace echoc::vec16 {

// f(0), ..., f(N - 1) with constant arguments: written out before arrays are taken apart, so that arrays of vectors
// indexed by them live in registers. Loops unrolled by a pragma come too late for that.
template <class F, int... I>
ECHOC_INLINE void unroll(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
ECHOC_INLINE void unroll(F&& f) {
  unroll(f, std::make_integer_sequence<int, N>{});
}
// f(i, j) for i < N, j < M.
template <int N, int M, class F>
ECHOC_INLINE void unroll(F&& f) {
  unroll<N>([&](auto i) ECHOC_INLINE_LAMBDA { unroll<M>([&](auto j) ECHOC_INLINE_LAMBDA { f(i, j); }); });
}

// Panels read once are prefetched by blocks of at least so many rows. One row gains a fifth by it on
// Intel's AMX cores and loses on Zen 4; more rows gain on both.
#if defined(ECHOC_AMX)
inline constexpr int kPrefetchRows = 1;
#else
inline constexpr int kPrefetchRows = 2;
#endif

// Keeps the loads before it before those after it.
ECHOC_INLINE void in_order() { asm volatile("" ::: "memory"); }

template <class T>
ECHOC_INLINE T read(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

#if defined(ECHOC_AVX512)

using f32x16 = __m512;
ECHOC_INLINE f32x16 zero() { return _mm512_setzero_ps(); }
ECHOC_INLINE f32x16 splat(float value) { return _mm512_set1_ps(value); }
ECHOC_INLINE f32x16 load(const float* from) { return _mm512_load_ps(from); }
ECHOC_INLINE void store(float* to, f32x16 value) { _mm512_store_ps(to, value); }
ECHOC_INLINE f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
ECHOC_INLINE f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
ECHOC_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
ECHOC_INLINE f32x16 load_f16(const void* from) {
  return _mm512_cvtph_ps(_mm256_load_si256(static_cast<const __m256i*>(from)));
}
// bf16 pairs [16][2] as two f32 vectors.
ECHOC_INLINE f32x16 even_bf16(const void* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_load_si512(from), 16));
}
ECHOC_INLINE f32x16 odd_bf16(const void* from) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_load_si512(from), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
// f8 pairs [16][2] as bf16 pairs. What is below the least normal value has its bf16 in a table: hardware that
// multiplies bf16 takes subnormals for zero.
ECHOC_INLINE __m512i bf16_of_f8(const void* from) {
  const __m512i table =
      _mm512_castsi128_si512(_mm_set_epi16(0x3c60, 0x3c40, 0x3c20, 0x3c00, 0x3bc0, 0x3b80, 0x3b00, 0));
  const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  const __m512i placed = _mm512_slli_epi16(wide, 4);  // exponent and mantissa from bit 10 on, copies of the sign above
  const __m512i normal =
      _mm512_add_epi16(_mm512_and_si512(placed, _mm512_set1_epi16(0x07f0)), _mm512_set1_epi16((127 - 7) << 7));
  const __mmask32 small = _mm512_testn_epi16_mask(wide, _mm512_set1_epi16(0x78));
  const __m512i size = _mm512_mask_permutexvar_epi16(normal, small, wide, table);
  constexpr int kOrAnd = 0xf8;  // size | (placed & sign)
  return _mm512_ternarylogic_epi32(size, placed, _mm512_set1_epi16(static_cast<int16_t>(0x8000)), kOrAnd);
}

#elif defined(ECHOC_AVX2)

struct f32x16 {
  __m256 low, high;
};
ECHOC_INLINE f32x16 splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
ECHOC_INLINE f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
ECHOC_INLINE f32x16 load(const float* from) { return {_mm256_load_ps(from), _mm256_load_ps(from + 8)}; }
ECHOC_INLINE void store(float* to, f32x16 value) {
  _mm256_store_ps(to, value.low);
  _mm256_store_ps(to + 8, value.high);
}
ECHOC_INLINE f32x16 add(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
ECHOC_INLINE f32x16 mul(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
ECHOC_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
ECHOC_INLINE f32x16 load_f16(const void* from) {
  const auto* half = static_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_load_si128(half)), _mm256_cvtph_ps(_mm_load_si128(half + 1))};
}
ECHOC_INLINE f32x16 even_bf16(const void* from) {
  const auto* pairs = static_cast<const __m256i*>(from);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(pairs), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(pairs + 1), 16))};
}
ECHOC_INLINE f32x16 odd_bf16(const void* from) {
  const auto* pairs = static_cast<const __m256i*>(from);
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(pairs), mask)),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(pairs + 1), mask))};
}

#else

struct f32x16 {
  float lane[16];
};
template <class F>
ECHOC_INLINE f32x16 each(F&& f) {
  f32x16 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
  return out;
}
ECHOC_INLINE f32x16 splat(float value) {
  return each([&](int) { return value; });
}
ECHOC_INLINE f32x16 zero() { return splat(0.0f); }
ECHOC_INLINE f32x16 load(const float* from) {
  return each([&](int i) { return from[i]; });
}
ECHOC_INLINE void store(float* to, f32x16 value) { std::memcpy(to, value.lane, sizeof value.lane); }
ECHOC_INLINE f32x16 add(f32x16 a, f32x16 b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
ECHOC_INLINE f32x16 mul(f32x16 a, f32x16 b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
ECHOC_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
ECHOC_INLINE f32x16 load_f16(const void* from) {
  const auto* half = static_cast<const f16_t*>(from);
  return each([&](int i) { return to_float(half[i]); });
}
ECHOC_INLINE f32x16 even_bf16(const void* from) {
  const auto* pairs = static_cast<const bf16_t*>(from);
  return each([&](int i) { return to_float(pairs[2 * i]); });
}
ECHOC_INLINE f32x16 odd_bf16(const void* from) {
  const auto* pairs = static_cast<const bf16_t*>(from);
  return each([&](int i) { return to_float(pairs[2 * i + 1]); });
}

#endif

// f8 pairs [16][2] as two f32 vectors, times 2^-8.
#if defined(ECHOC_AVX512) || defined(ECHOC_AVX2)
ECHOC_INLINE f32x16 upper_f8(__m256i words) {
  const __m256i sign = _mm256_and_si256(words, _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
  const __m256i size = _mm256_srli_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x7f00)), 1);
  alignas(32) f16_t half[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(half), _mm256_or_si256(sign, size));
  return load_f16(half);
}
ECHOC_INLINE f32x16 even_f8(const void* from) {
  return upper_f8(_mm256_slli_epi16(_mm256_load_si256(static_cast<const __m256i*>(from)), 8));
}
ECHOC_INLINE f32x16 odd_f8(const void* from) { return upper_f8(_mm256_load_si256(static_cast<const __m256i*>(from))); }
#else
ECHOC_INLINE f32x16 even_f8(const void* from) {
  const auto* pairs = static_cast<const f8_t*>(from);
  return each([&](int i) { return to_float(to_f16_below(pairs[2 * i])); });
}
ECHOC_INLINE f32x16 odd_f8(const void* from) {
  const auto* pairs = static_cast<const f8_t*>(from);
  return each([&](int i) { return to_float(to_f16_below(pairs[2 * i + 1])); });
}
#endif

}  // namespace echoc::vec16
