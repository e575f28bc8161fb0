// Products of a few rows with keys or values where they lie, by instructions that add two products of 16 bits to each
// lane: bf16 where they have twice the rate of an f32 fma (attend_dot.h), integers for int8.
//
// Pairs<KV>::kUsed says whether the target has them for pages of KV, kLeast how many rows they pay for: fewer wait for
// memory anyway, or for sums that depend on each other. Rows are narrowed to 16 bits, with a scale.
#pragma once

#include <cstdint>

#include "attend_dot.h"
#include "attend_entries.h"
#include "half.h"
#include "vec16.h"

#if defined(ECHOC_ATTEND_DOT) && !defined(ECHOC_AMX)
#define ECHOC_ATTEND_PAIRS 1
#endif

namespace echoc::attn {

template <class KV>
struct Pairs {
  static constexpr bool kUsed = false;
};

#if defined(ECHOC_ATTEND_PAIRS)

struct FloatPairs {
  static constexpr bool kUsed = true;
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum add(Sum sum, __m512i w, int32_t pair) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), reinterpret_cast<__m512bh>(w));
  }
  static __m512 value(Sum sum, float) { return sum; }
  // Weights of values are stored as they are, without a scale.
  static float share_scale(__m512*) { return 1.0f; }
  static void store_weights(__m512 weights, int16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weights)));
  }
  // to[0, count) holds from[0, count) without the scale that is returned; `depth` products are to be added.
  static float narrow(const float* from, int64_t count, int64_t, int16_t* to) {
    for (int64_t i = 0; i < count; i += 16) {
      const __mmask16 there = count - i < 16 ? static_cast<__mmask16>((1u << (count - i)) - 1) : __mmask16{0xffff};
      const __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from + i));
      _mm256_mask_storeu_epi16(to + i, there, reinterpret_cast<__m256i>(half));
    }
    return 1.0f;
  }
};

template <>
struct Pairs<bf16_t> : FloatPairs {
  static constexpr int kLeast = 3;
  static __m512i load(const bf16_t* from) { return _mm512_loadu_si512(from); }
};
template <>
struct Pairs<f8_t> : FloatPairs {
  static constexpr int kLeast = 1;
  static __m512i load(const f8_t* from) { return vec16::bf16_of_f8(from); }
};

#endif

#if defined(ECHOC_AVX512)

template <>
struct Pairs<i8_t> {
  static constexpr bool kUsed = true;
  static constexpr int kLeast = 1;
  using Sum = __m512i;
  static __m512i load(const i8_t* from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum add(Sum sum, __m512i w, int32_t pair) {
#if defined(ECHOC_VNNI)
    // As assembly: GCC 12 copies every sum back and forth around the intrinsic.
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(_mm512_set1_epi32(pair)));
    return sum;
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, _mm512_set1_epi32(pair)));
#endif
  }
  static __m512 value(Sum sum, float scale) { return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale)); }
  // The scales of 64 values become what weights up to 1 are multiplied with to be held in 16 bits, and what their sums
  // are multiplied with in turn is returned.
  static float share_scale(__m512* scales) {
    __m512i sizes = _mm512_setzero_si512();  // the order of sizes is that of their bits, NaN last
    for (int i = 0; i < 4; ++i) sizes = _mm512_max_epi32(sizes, _mm512_castps_si512(scales[i]));
    const auto most = static_cast<uint32_t>(_mm512_reduce_max_epi32(sizes));
    const bool small = most < uint32_t{127 - 100} << 23;
    const float scale = small ? 0.0f : std::bit_cast<float>(most) * (1.0f / INT16_MAX);
    const __m512 inverse = _mm512_set1_ps(small ? 0.0f : 1.0f / scale);
    for (int i = 0; i < 4; ++i) scales[i] = _mm512_mul_ps(scales[i], inverse);
    return scale;
  }
  static void store_weights(__m512 weights, int16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(weights)));
  }
  // As large as the sum of `depth` products with int8 allows.
  static float narrow(const float* from, int64_t count, int64_t depth, int16_t* to) {
    __m512i sizes = _mm512_setzero_si512();
    const auto there = [&](int64_t i) {
      return count - i < 16 ? static_cast<__mmask16>((1u << (count - i)) - 1) : __mmask16{0xffff};
    };
    for (int64_t i = 0; i < count; i += 16) {
      const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(there(i), from + i));
      sizes = _mm512_max_epi32(sizes, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    const auto most = static_cast<uint32_t>(_mm512_reduce_max_epi32(sizes));  // NaN last
    const int64_t room = int64_t{INT32_MAX} / (127 * depth);
    const float greatest = static_cast<float>(room < INT16_MAX ? room : INT16_MAX);
    const bool small = most < uint32_t{127 - 100} << 23;
    const float scale = small ? 0.0f : std::bit_cast<float>(most) / greatest;
    const __m512 inverse = _mm512_set1_ps(small ? 0.0f : 1.0f / scale);
    for (int64_t i = 0; i < count; i += 16) {
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(there(i), from + i), inverse));
      _mm512_mask_cvtsepi32_storeu_epi16(to + i, there(i), whole);
    }
    return scale;
  }
};

#endif

}  // namespace echoc::attn
