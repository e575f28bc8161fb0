// How keys and values lie in pages, and append_k and append_v, which put them there.
//
// A page holds 16 tokens of one sequence; block_table[sequence][position / 16] names it, and page p lies at base + p *
// bytes_per_page. Inside a page every key/value head is one contiguous piece:
//   K  [kv_head][head_dim][16 tokens]                 a column of 16 scores per
//   step over head_dim V  [kv_head][v_head_dim / 16][16 tokens][16]      one
//   panel of 16 output columns after another
// bf16 interleaves the summed index in pairs, K [head_dim/2][16][2] and V panels [16/2][16][2], the operand order of
// bf16 dot products; widening is then a shift and a mask. A last odd dimension or narrow panel is stored without
// padding, so bytes_per_page is always kv_heads * dim * 16 * sizeof(element).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "abi.h"
#include "half.h"
#include "lanes.h"

namespace echoc {

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

// Element types: how two rows of 16 (keys of two dimensions, or columns of two tokens) are stored and read back.
template <class KV>
struct Store {
  static constexpr bool kPaired = std::is_same_v<KV, bf16_t>;

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
  // Part `part` of two adjacent rows of 16: first and second as f32.
  static void load_two(const KV* rows, int part, Vec* first, Vec* second) {
    if constexpr (kPaired) {
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
};

// Keys of `count` tokens, rows of `from` with stride ld, into the slots of one page from `first` on. A row in pairs is
// a row of words, so that a page is a transposition.
template <class KV>
void append_keys(KV* to, const float* from, int64_t ld, int first, int count, int dim) {
  constexpr int kWide = Store<KV>::kPaired ? 32 : 16;  // dimensions at a time, 16 words or elements
  using Word = std::conditional_t<Store<KV>::kPaired, uint32_t, KV>;
  int d = 0;
  for (; d + kWide <= dim; d += kWide) {
    alignas(64) Word words[kPage][16];
    for (int i = 0; i < count; ++i) from_float(from + i * ld + d, reinterpret_cast<KV*>(words[i]), kWide);
    std::byte* out = reinterpret_cast<std::byte*>(to + int64_t{d} * kPage) + first * sizeof(Word);
    for (int w = 0; w < 16; ++w, out += kPage * sizeof(Word))
      for (int i = 0; i < count; ++i) std::memcpy(out + i * sizeof(Word), &words[i][w], sizeof(Word));
  }
  for (; d < dim; ++d)
    for (int i = 0; i < count; ++i) to[Store<KV>::k_index(dim, d, first + i)] = from_float<KV>(from[i * ld + d]);
}

// The same of values: rows of 16 columns, in pairs the columns of two tokens beside each other.
template <class KV>
void append_values(KV* to, const float* from, int64_t ld, int first, int count, int dim) {
  for (int i = 0; i < count; ++i) {
    const int slot = first + i;
    const bool both = Store<KV>::kPaired && slot % 2 == 0 && i + 1 < count;
    const float* row = from + i * ld;
    int c = 0;
    for (; c + 16 <= dim; c += 16) {
      KV* out = to + Store<KV>::v_index(dim, slot, c);
      if constexpr (Store<KV>::kPaired) {
        KV low[16], high[16];
        from_float(row + c, low, 16);
        if (both) {
          from_float(row + ld + c, high, 16);
          for (int l = 0; l < 16; ++l) {
            out[2 * l] = low[l];
            out[2 * l + 1] = high[l];
          }
        } else {
          for (int l = 0; l < 16; ++l) out[2 * l] = low[l];
        }
      } else {
        from_float(row + c, out, 16);
      }
    }
    for (; c < dim; ++c) {
      to[Store<KV>::v_index(dim, slot, c)] = from_float<KV>(row[c]);
      if (both) to[Store<KV>::v_index(dim, slot + 1, c)] = from_float<KV>(row[ld + c]);
    }
    i += both ? 1 : 0;
  }
}

template <class KV, bool Value>
void append(const Call& call, void* base, const float* x, int64_t ld, int64_t T, int kv_heads, int dim,
            const int32_t* seq, const int32_t* pos, const int32_t* block_table, int64_t max_blocks) {
  const Range range = share(T, call.tid, call.nthreads);
  for (int64_t t = range.begin; t < range.end;) {
    const int slot = pos[t] % kPage;
    int count = 1;  // tokens of one sequence that follow each other in one page
    const auto follows = [&](int64_t u) { return seq[u] == seq[t] && pos[u] == pos[t] + (u - t); };
    while (t + count < range.end && slot + count < kPage && follows(t + count)) ++count;
    const int64_t page = block_table[int64_t{seq[t]} * max_blocks + pos[t] / kPage];
    KV* to = static_cast<KV*>(base) + page * kv_heads * dim * kPage;
    const float* from = x + t * ld;
    for (int h = 0; h < kv_heads; ++h, to += int64_t{dim} * kPage, from += dim) {
      if constexpr (Value)
        append_values(to, from, ld, slot, count, dim);
      else
        append_keys(to, from, ld, slot, count, dim);
    }
    t += count;
  }
}

}  // namespace attn

// Write T tokens' keys [T][kv_heads][head_dim] (f32, row stride ld) into their pages. Tokens are shared out by thread.
template <class KV>
void append_k(const Call& call, void* base, const float* k, int64_t ld, int64_t T, int kv_heads, int head_dim,
              const int32_t* seq, const int32_t* pos, const int32_t* block_table, int64_t max_blocks) {
  attn::append<KV, false>(call, base, k, ld, T, kv_heads, head_dim, seq, pos, block_table, max_blocks);
}

template <class KV>
void append_v(const Call& call, void* base, const float* v, int64_t ld, int64_t T, int kv_heads, int v_head_dim,
              const int32_t* seq, const int32_t* pos, const int32_t* block_table, int64_t max_blocks) {
  attn::append<KV, true>(call, base, v, ld, T, kv_heads, v_head_dim, seq, pos, block_table, max_blocks);
}

}  // namespace echoc
