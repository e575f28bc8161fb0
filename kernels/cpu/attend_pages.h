// append_k and append_v put keys and values into pages; attend_entries.h says how they lie there.
//
// block_table[sequence][position / 16] names the page of 16 tokens that a position lies in; page p lies at base + p *
// bytes_per_page, the pieces of its kv heads one after another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "abi.h"
#include "attend_entries.h"

namespace echoc {

namespace attn {

// Keys of `count` tokens, rows of `from` with stride ld, into the slots of one page from `first` on. A row in pairs is
// a row of words, so that a page is a transposition.
template <class KV>
void append_keys(KV* to, const float* from, int64_t ld, int first, int count, int dim, const float* inverse) {
  constexpr int kWide = Store<KV>::kPaired ? 32 : 16;  // dimensions at a time, 16 words or elements
  using Pair = std::conditional_t<Store<KV>::kScaled, uint16_t, uint32_t>;
  using Word = std::conditional_t<Store<KV>::kPaired, Pair, KV>;
  int d = 0;
  for (; d + kWide <= dim; d += kWide) {
    alignas(64) Word words[kPage][16];
    for (int i = 0; i < count; ++i)
      Store<KV>::write(from + i * ld + d, reinterpret_cast<KV*>(words[i]), kWide, inverse[i]);
    std::byte* out = reinterpret_cast<std::byte*>(to + int64_t{d} * kPage) + first * sizeof(Word);
    for (int w = 0; w < 16; ++w, out += kPage * sizeof(Word))
      for (int i = 0; i < count; ++i) std::memcpy(out + i * sizeof(Word), &words[i][w], sizeof(Word));
  }
  for (; d < dim; ++d)
    for (int i = 0; i < count; ++i)
      Store<KV>::write(from + i * ld + d, to + Store<KV>::k_index(dim, d, first + i), 1, inverse[i]);
}

// The same of values: rows of 16 columns, in pairs the columns of two tokens beside each other.
template <class KV>
void append_values(KV* to, const float* from, int64_t ld, int first, int count, int dim, const float* inverse) {
  for (int i = 0; i < count; ++i) {
    const int slot = first + i;
    const bool both = Store<KV>::kPaired && slot % 2 == 0 && i + 1 < count;
    const float* row = from + i * ld;
    int c = 0;
    for (; c + 16 <= dim; c += 16) {
      KV* out = to + Store<KV>::v_index(dim, slot, c);
      if constexpr (Store<KV>::kPaired) {
        KV low[16], high[16];
        Store<KV>::write(row + c, low, 16, inverse[i]);
        if (both) {
          Store<KV>::write(row + ld + c, high, 16, inverse[i + 1]);
          for (int l = 0; l < 16; ++l) {
            out[2 * l] = low[l];
            out[2 * l + 1] = high[l];
          }
        } else {
          for (int l = 0; l < 16; ++l) out[2 * l] = low[l];
        }
      } else {
        Store<KV>::write(row + c, out, 16, inverse[i]);
      }
    }
    for (; c < dim; ++c) {
      Store<KV>::write(row + c, to + Store<KV>::v_index(dim, slot, c), 1, inverse[i]);
      if (both) Store<KV>::write(row + ld + c, to + Store<KV>::v_index(dim, slot + 1, c), 1, inverse[i + 1]);
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
    KV* to = static_cast<KV*>(base) + page * kv_heads * Store<KV>::piece(dim);
    const float* from = x + t * ld;
    for (int h = 0; h < kv_heads; ++h, to += Store<KV>::piece(dim), from += dim) {
      float scale[kPage], inverse[kPage] = {};
      if constexpr (Store<KV>::kScaled) {
        for (int i = 0; i < count; ++i) Store<KV>::scale_of(from + i * ld, dim, scale + i, inverse + i);
        std::memcpy(reinterpret_cast<std::byte*>(to + int64_t{dim} * kPage) + slot * sizeof(float), scale,
                    count * sizeof(float));
      }
      if constexpr (Value)
        append_values(to, from, ld, slot, count, dim, inverse);
      else
        append_keys(to, from, ld, slot, count, dim, inverse);
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
