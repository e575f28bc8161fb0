// Element types of keys and values in pages: how rows of 16 are stored and read back.
//
// A page holds 16 tokens of one sequence. Inside it every key/value head is one contiguous piece:
//   K  [head_dim][16 tokens]            a column of 16 scores per step over head_dim
//   V  [v_head_dim / 16][16 tokens][16] one panel of 16 output columns after another
// bf16 and 8 bits interleave the summed index in pairs, K [head_dim/2][16][2] and V panels [16/2][16][2], the operand
// order of dot products of pairs. A last odd dimension or narrow panel is stored without padding. Behind the codes of 8
// bits come the scales of the 16 tokens, f32: what is held is code * scale (compiler/ir/ops/entries.py).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "float8.h"
#include "half.h"
#include "lanes.h"

namespace echoc {

struct i8_t {
  int8_t bits;
};

inline float to_float(i8_t value) { return value.bits; }

// The nearest integer, ties to even, at most 127 either way. The limits also keep a product from being fused with the
// sum, which would round it otherwise.
inline i8_t to_i8(float value) {
  const float magic = 12582912.0f;  // 1.5 * 2^23
  value = value < 127.0f ? value : 127.0f;
  value = value > -127.0f ? value : -127.0f;
  return {static_cast<int8_t>(std::bit_cast<int32_t>(value + magic))};
}

namespace attn {

using simd::BitsLoose;
using simd::fma;
using simd::kLanes;
using simd::kParts;
using simd::load;
using simd::splat;
using simd::store;
using simd::Vec;
using simd::VecBits;

inline constexpr int kPage = 16;  // tokens a page

typedef int32_t VecInts __attribute__((vector_size(kLanes * 4)));
typedef uint16_t WordsLoose __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

// e4m3 from the low byte of each lane. What is below the least normal value is its mantissa on top of 2^-6, less that.
inline Vec f8_lanes(VecBits bits) {
  const VecBits size = (bits & 0x7fu) << 20;
  const VecBits base = VecBits{} + (uint32_t{127 - 6} << 23);
  const Vec small = reinterpret_cast<Vec>(size + base) - reinterpret_cast<Vec>(base);
  const Vec normal = reinterpret_cast<Vec>(size + (uint32_t{127 - 7} << 23));
  const Vec value = size < (1u << 23) ? small : normal;
  return reinterpret_cast<Vec>(reinterpret_cast<VecBits>(value) | (bits & 0x80u) << 24);
}

template <class KV>
struct Store {
  static constexpr bool kScaled = std::is_same_v<KV, i8_t> || std::is_same_v<KV, f8_t>;
  static constexpr bool kPaired = kScaled || std::is_same_v<KV, bf16_t>;
  static constexpr float kGreatest = std::is_same_v<KV, i8_t> ? 127.0f : kLargestF8;

  // Elements of one head's piece of a page.
  static constexpr int64_t piece(int64_t dim) { return (dim + (kScaled ? sizeof(float) : 0)) * kPage; }
  // The scales of a piece's tokens.
  static void scales(const KV* piece, int64_t dim, float* to) {
    std::memcpy(to, piece + dim * kPage, kPage * sizeof(float));
  }

  static int64_t k_index(int D, int d, int slot) {
    if (kPaired && d < (D & ~1)) return int64_t{d / 2} * 32 + slot * 2 + (d & 1);
    return int64_t{d} * 16 + slot;
  }
  static int64_t v_index(int Dv, int slot, int c) {
    const int panel = c / 16, lane = c % 16, width = Dv - panel * 16 < 16 ? Dv - panel * 16 : 16;
    const int64_t base = int64_t{panel} * 256;
    if (kPaired) return base + int64_t{slot / 2} * (2 * width) + lane * 2 + (slot & 1);
    return base + int64_t{slot} * width + lane;
  }
  // Part `part` of two adjacent rows of 16: first and second as f32, without scales.
  static void load_two(const KV* rows, int part, Vec* first, Vec* second) {
    if constexpr (kScaled) {
      const auto words = *reinterpret_cast<const WordsLoose*>(rows + part * kLanes * 2);
      const VecBits bits = __builtin_convertvector(words, VecBits);
      if constexpr (std::is_same_v<KV, i8_t>) {
        *first = __builtin_convertvector(reinterpret_cast<VecInts>(bits << 24) >> 24, Vec);
        *second = __builtin_convertvector(reinterpret_cast<VecInts>(bits << 16) >> 24, Vec);
      } else {
        *first = f8_lanes(bits);
        *second = f8_lanes(bits >> 8);
      }
    } else if constexpr (kPaired) {
      const VecBits bits = *reinterpret_cast<const BitsLoose*>(rows + part * kLanes * 2);
      *first = reinterpret_cast<Vec>(bits << 16);
      *second = reinterpret_cast<Vec>(bits & 0xffff0000u);
    } else {
      *first = load_one(rows + part * kLanes);
      *second = load_one(rows + 16 + part * kLanes);
    }
  }
  // kLanes plain elements as f32.
  static Vec load_one(const KV* p) {
    if constexpr (std::is_same_v<KV, float>) {
      return load(p);
    } else {
#if defined(__AVX512F__)
      if constexpr (std::is_same_v<KV, f16_t>)
        return reinterpret_cast<Vec>(
            _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
      if constexpr (std::is_same_v<KV, f16_t>)
        return reinterpret_cast<Vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
      alignas(64) float wide[kLanes];
      for (int i = 0; i < kLanes; ++i) wide[i] = to_float(p[i]);
      return load(wide);
    }
  }

  // The scale of one head's entry, and what its values are multiplied by to become codes. Entries with a value that is
  // not finite have a scale that is not.
  static void scale_of(const float* entry, int64_t dim, float* scale, float* inverse) {
    uint32_t most = 0;  // the order of sizes is that of their bits, NaN last
    for (int64_t d = 0; d < dim; ++d) {
      const uint32_t size = std::bit_cast<uint32_t>(entry[d]) & 0x7fffffffu;
      most = size > most ? size : most;
    }
    const float size = std::bit_cast<float>(most);
    const bool small = most < uint32_t{127 - 100} << 23;
    *scale = small ? 0.0f : size * (1.0f / kGreatest);
    *inverse = small || most >= 0x7f800000u ? 0.0f : 1.0f / *scale;
  }
  // to[0, count) holds from[0, count), as codes of a scale whose inverse is given.
  static void write(const float* from, KV* to, int64_t count, [[maybe_unused]] float inverse) {
    if constexpr (std::is_same_v<KV, i8_t>) {
      for (int64_t i = 0; i < count; ++i) to[i] = to_i8(inverse == 0.0f ? 0.0f : from[i] * inverse);
    } else if constexpr (std::is_same_v<KV, f8_t>) {
      for (int64_t i = 0; i < count; ++i) to[i] = to_f8(inverse == 0.0f ? 0.0f : from[i] * inverse);
    } else {
      from_float(from, to, count);
    }
  }
};

}  // namespace attn
}  // namespace echoc
