// Dot products of 8-bit activations with packed 8- and 4-bit weights, sixteen rows of a panel at a time.
//
// ByteDot<Bits> per level:
//   Vector          the weights of four k and sixteen rows, ready to multiply
//   load(from, v)   fills kVectors vectors from 64 packed bytes
//   Sum             running sums; start(offset) begins a group, `offset` being -stored offset * sum of activations
//   step(sum, v, x) adds four products a lane, x being four consecutive int8 activations
//   flush(sum)      called after every 8 steps, before narrow intermediate sums can overflow
//   finish(sum)     the exact integer sum of the group as f32
// All levels give the same integers, hence the same results to the bit.
#pragma once

#include "vec16.h"

namespace echoc::vec16 {

#if defined(ECHOC_VNNI)

template <int Bits>
struct ByteDot {
  static constexpr int kVectors = 8 / Bits;
  using Vector = __m512i;
  using Sum = __m512i;
  static ECHOC_INLINE void load(const std::byte* from, Vector* v) {
    const __m512i packed = _mm512_load_si512(from);
    if constexpr (Bits == 8) {
      v[0] = packed;
    } else {
      const __m512i mask = _mm512_set1_epi8(0x0f);
      v[0] = _mm512_and_si512(packed, mask);
      v[1] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
    }
  }
  static ECHOC_INLINE Sum start(int32_t offset) { return _mm512_set1_epi32(offset); }
  static ECHOC_INLINE void step(Sum& sum, Vector v, const void* x) {
    sum = _mm512_dpbusd_epi32(sum, v, _mm512_set1_epi32(read<int32_t>(x)));
  }
  static ECHOC_INLINE void flush(Sum&) {}
  static ECHOC_INLINE f32x16 finish(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

#elif defined(ECHOC_AVX512)

// 8 bits: |w| times x with w's sign, so that pairs stay below 2^15. 4 bits: eight steps of pairs stay below 2^15.
template <int Bits>
struct ByteDot {
  static constexpr int kVectors = 8 / Bits;
  struct Vector {
    __m512i magnitude;
    __mmask64 negative;
  };
  struct Sum {
    __m512i wide, narrow;
  };
  static ECHOC_INLINE void load(const std::byte* from, Vector* v) {
    const __m512i packed = _mm512_load_si512(from);
    if constexpr (Bits == 8) {
      const __m512i value = _mm512_xor_si512(packed, _mm512_set1_epi8(static_cast<char>(0x80)));
      v[0] = {_mm512_abs_epi8(value), _mm512_movepi8_mask(value)};
    } else {
      const __m512i mask = _mm512_set1_epi8(0x0f);
      v[0] = {_mm512_and_si512(packed, mask), 0};
      v[1] = {_mm512_and_si512(_mm512_srli_epi16(packed, 4), mask), 0};
    }
  }
  static ECHOC_INLINE Sum start(int32_t offset) {
    return {_mm512_set1_epi32(Bits == 8 ? 0 : offset), _mm512_setzero_si512()};
  }
  static ECHOC_INLINE void step(Sum& sum, const Vector& v, const void* from) {
    const __m512i x = _mm512_set1_epi32(read<int32_t>(from));
    const __m512i one = _mm512_set1_epi16(1);
    if constexpr (Bits == 8) {
      const __m512i signed_x = _mm512_mask_sub_epi8(x, v.negative, _mm512_setzero_si512(), x);
      sum.wide = _mm512_add_epi32(sum.wide, _mm512_madd_epi16(_mm512_maddubs_epi16(v.magnitude, signed_x), one));
    } else {
      sum.narrow = _mm512_add_epi16(sum.narrow, _mm512_maddubs_epi16(v.magnitude, x));
    }
  }
  static ECHOC_INLINE void flush(Sum& sum) {
    if constexpr (Bits == 4) {
      sum.wide = _mm512_add_epi32(sum.wide, _mm512_madd_epi16(sum.narrow, _mm512_set1_epi16(1)));
      sum.narrow = _mm512_setzero_si512();
    }
  }
  static ECHOC_INLINE f32x16 finish(const Sum& sum) { return _mm512_cvtepi32_ps(sum.wide); }
};

#elif defined(ECHOC_AVX2)

template <int Bits>
struct ByteDot {
  static constexpr int kVectors = 8 / Bits;
  struct Vector {
    __m256i half[2];
  };
  struct Sum {
    __m256i wide[2], narrow[2];
  };
  static ECHOC_INLINE void load(const std::byte* from, Vector* v) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    unroll<2>([&](auto h) ECHOC_INLINE_LAMBDA {
      const __m256i packed = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + 32 * h));
      if constexpr (Bits == 8) {
        v[0].half[h] = _mm256_xor_si256(packed, _mm256_set1_epi8(static_cast<char>(0x80)));
      } else {
        v[0].half[h] = _mm256_and_si256(packed, mask);
        v[1].half[h] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
      }
    });
  }
  static ECHOC_INLINE Sum start(int32_t offset) {
    const __m256i wide = _mm256_set1_epi32(Bits == 8 ? 0 : offset);
    return {{wide, wide}, {_mm256_setzero_si256(), _mm256_setzero_si256()}};
  }
  static ECHOC_INLINE void step(Sum& sum, const Vector& v, const void* from) {
    const __m256i x = _mm256_set1_epi32(read<int32_t>(from));
    unroll<2>([&](auto h) ECHOC_INLINE_LAMBDA {
      if constexpr (Bits == 8) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(v.half[h]), _mm256_sign_epi8(x, v.half[h]));
        sum.wide[h] = _mm256_add_epi32(sum.wide[h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      } else {
        sum.narrow[h] = _mm256_add_epi16(sum.narrow[h], _mm256_maddubs_epi16(v.half[h], x));
      }
    });
  }
  static ECHOC_INLINE void flush(Sum& sum) {
    if constexpr (Bits == 4) {
      unroll<2>([&](auto h) ECHOC_INLINE_LAMBDA {
        const __m256i sums = _mm256_madd_epi16(sum.narrow[h], _mm256_set1_epi16(1));
        sum.wide[h] = _mm256_add_epi32(sum.wide[h], sums);
        sum.narrow[h] = _mm256_setzero_si256();
      });
    }
  }
  static ECHOC_INLINE f32x16 finish(const Sum& sum) {
    return {_mm256_cvtepi32_ps(sum.wide[0]), _mm256_cvtepi32_ps(sum.wide[1])};
  }
};

#else

template <int Bits>
struct ByteDot {
  static constexpr int kVectors = 8 / Bits;
  struct Vector {
    uint8_t byte[64];
  };
  struct Sum {
    int32_t lane[16];
  };
  static ECHOC_INLINE void load(const std::byte* from, Vector* v) {
    for (int i = 0; i < 64; ++i) {
      const auto packed = static_cast<uint8_t>(from[i]);
      v[0].byte[i] = Bits == 8 ? packed : packed & 15;
      if constexpr (Bits == 4) v[1].byte[i] = packed >> 4;
    }
  }
  static ECHOC_INLINE Sum start(int32_t offset) {
    Sum sum;
    for (int i = 0; i < 16; ++i) sum.lane[i] = offset;
    return sum;
  }
  static ECHOC_INLINE void step(Sum& sum, const Vector& v, const void* from) {
    const auto* x = static_cast<const int8_t*>(from);
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 4; ++j) sum.lane[i] += v.byte[4 * i + j] * x[j];
  }
  static ECHOC_INLINE void flush(Sum&) {}
  static ECHOC_INLINE f32x16 finish(const Sum& sum) {
    return each([&](int i) { return static_cast<float>(sum.lane[i]); });
  }
};

#endif

}  // namespace echoc::vec16
