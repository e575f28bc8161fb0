// Attention of few rows by products of pairs (attend_pairs.h), for which scores and weights stay in registers.
#pragma once

#include <cstdint>

#include "attend_pairs.h"
#include "attend_rows.h"

namespace echoc::attn {

template <class Rows>
struct Paired;

#if defined(ECHOC_AVX512)

// 2^t within 2e-7 of itself; exactly 1 for 0, 0 for -inf; NaN stays.
inline __m512 exp2(__m512 t) {
  const __m512 r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // t - floor(t)
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0x1.e974fap-10f), r, _mm512_set1_ps(0x1.277856p-7f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.c91ce6p-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ebdb56p-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62e4bap-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, t);
}

template <class Rows>
struct Paired {
  using KV = typename Rows::Element;
  using Kv = typename Rows::Kv;
  using Pages = typename Rows::Pages;
  using Dot = Pairs<KV>;
  using Sum = typename Dot::Sum;

  const Rows& base;

  static __mmask16 lanes(int64_t count) {
    return count <= 0 ? __mmask16{0} : count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1);
  }

  // Scales of a block's tokens in one head of keys or values; 0 where no row sees any.
  void scales_of(const Pages& pages, const KV* const* pieces, int64_t offset, int dim, __m512* to) const {
    for (int p = 0; p < kPages; ++p) {
      const int count = p < pages.first || p >= pages.end ? 0 : p + 1 < pages.end ? kPage : pages.last_count;
      to[p] = _mm512_maskz_loadu_ps(lanes(count), pieces[p] + offset + int64_t{dim} * kPage);
    }
  }

  // Not inlined, as the next two: what lies around would take the registers of their pointers.
  template <int R, bool Ask>
  [[gnu::noinline]] void scores(const KV* const* pages, const KV* const* next, int64_t piece, int64_t ahead,
                                const int16_t* query, Sum (*sums)[kPages]) const {
    Sum acc[R][kPages];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < kPages; ++p) acc[r][p] = Dot::zero();
    const KV *from[kPages], *soon[kPages];
    for (int p = 0; p < kPages; ++p) {
      from[p] = pages[p] + piece;
      soon[p] = next[p] + ahead;
    }
    const int64_t end = base.shape.head_dim;
    for (int64_t d = 0; d < end; d += 2, query += 2 * R) {
      __m512i w[kPages];
      for (int p = 0; p < kPages; ++p) {
        if constexpr (Ask) fetch_two(soon[p] + d * 16);
        w[p] = Dot::load(from[p] + d * 16);
      }
      for (int r = 0; r < R; ++r) {
        const auto x = vec16::read<int32_t>(query + 2 * r);
        for (int p = 0; p < kPages; ++p) acc[r][p] = Dot::add(acc[r][p], w[p], x);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < kPages; ++p) sums[r][p] = acc[r][p];
  }

  // R rows of sums become weights in 16 bits, to be multiplied by the scale returned; factor[r] is for what row r
  // accumulated before.
  template <int R>
  [[gnu::noinline]] float softmax(const Item& item, const Pages& pages, int64_t head, int64_t row, int64_t key0,
                                  const Sum (*acc)[kPages], int16_t* weights, __m512* factor) const {
    __m512 k_scale[kPages], v_scale[kPages];
    float scale = 1.0f;
    if constexpr (Kv::kScaled) {
      scales_of(pages, pages.k, head * Kv::piece(base.shape.head_dim), base.shape.head_dim, k_scale);
      scales_of(pages, pages.v, head * Kv::piece(base.shape.v_head_dim), base.shape.v_head_dim, v_scale);
      scale = Dot::share_scale(v_scale);
    }
    __m512 s[R][kPages], top[R];
    for (int r = 0; r < R; ++r) {
      const float q_scale = base.scratch[base.at.q_scale + row + r];
      for (int p = 0; p < kPages; ++p) {
        s[r][p] = Dot::value(acc[r][p], q_scale);
        if constexpr (Kv::kScaled) s[r][p] = _mm512_mul_ps(s[r][p], k_scale[p]);
      }
      shape_scores(item, row + r, key0, s[r]);
      top[r] = _mm512_max_ps(_mm512_max_ps(s[r][0], s[r][1]), _mm512_max_ps(s[r][2], s[r][3]));
    }
    const __m512 log2e = _mm512_set1_ps(m::detail::kLog2e);
    for (int r = 0; r < R; ++r) {
      const float before = base.scratch[base.at.maximum + row + r];
      const float now = _mm512_reduce_max_ps(top[r]) * m::detail::kLog2e;
      const float larger = now > before ? now : before;
      const __m512 safe = _mm512_set1_ps(larger == -m::kInfinity ? 0.0f : larger);
      factor[r] = exp2(_mm512_sub_ps(_mm512_set1_ps(before), safe));
      __m512 total = _mm512_setzero_ps();
      for (int p = 0; p < kPages; ++p) {
        const __m512 weight = exp2(_mm512_fmsub_ps(s[r][p], log2e, safe));
        total = _mm512_add_ps(total, weight);
        Dot::store_weights(Kv::kScaled ? _mm512_mul_ps(weight, v_scale[p]) : weight, weights + r * kBlock + p * kPage);
      }
      base.scratch[base.at.maximum + row + r] = larger;
      float& sum = base.scratch[base.at.sum + row + r];
      sum = m::fma(sum, _mm512_cvtss_f32(factor[r]), _mm512_reduce_add_ps(total));
    }
    return scale;
  }

  // Soft cap, score functor and visibility of one row.
  void shape_scores(const Item& item, int64_t row, int64_t key0, __m512* s) const {
    if (!Rows::kPlain || base.shape.softcap != 0.0f) {
      float* const room = base.scratch + base.at.scores;
      for (int p = 0; p < kPages; ++p) _mm512_storeu_ps(room + p * kPage, s[p]);
      base.shape_scores(item, row, key0, room);
      for (int p = 0; p < kPages; ++p) s[p] = _mm512_loadu_ps(room + p * kPage);
      return;
    }
    const int64_t low = reinterpret_cast<const int64_t*>(base.scratch + base.at.low)[row] - key0;
    const int64_t high = reinterpret_cast<const int64_t*>(base.scratch + base.at.high)[row] - key0;
    if (low <= 0 && high >= kBlock) return;
    const __m512 hidden = _mm512_set1_ps(-m::kInfinity);
    for (int p = 0; p < kPages; ++p) {
      const auto seen = static_cast<__mmask16>(lanes(high - p * kPage) & ~lanes(low - p * kPage));
      s[p] = _mm512_mask_mov_ps(hidden, seen, s[p]);
    }
  }

  // R rows: C panels of output columns = what they were times factor, and weights * values read in place.
  template <int R, int C, bool Ask>
  [[gnu::noinline]] void values(const Pages& pages, const Pages& next, int64_t piece, int64_t piece_ahead, int64_t row,
                                int panel, const int16_t* weights, float scale, const __m512* factor) const {
    Sum acc[R][C];
    for (auto& sums : acc)
      for (auto& sum : sums) sum = Dot::zero();
    for (int page = pages.first; page < pages.end; ++page) {
      const KV* const from = pages.v[page] + piece + panel * 256;
      const KV* const ahead = next.v[page] + piece_ahead + panel * 256;
      const int16_t* const weight = weights + page * kPage;
      const int count = page + 1 < pages.end ? kPage : pages.last_count;
      const auto pair = [&](int j, bool whole) __attribute__((always_inline)) {
        __m512i w[C];
        for (int c = 0; c < C; ++c) {
          if constexpr (Ask) fetch_two(ahead + c * 256 + j * 16);
          w[c] = Dot::load(from + c * 256 + j * 16);
          if (!whole) w[c] = _mm512_and_si512(w[c], _mm512_set1_epi32(0xffff));
        }
        for (int r = 0; r < R; ++r) {
          const auto x = vec16::read<int32_t>(weight + r * kBlock + j);
          for (int c = 0; c < C; ++c) acc[r][c] = Dot::add(acc[r][c], w[c], x);
        }
      };
      int j = 0;
      for (; j + 2 <= count; j += 2) pair(j, true);
      if (j < count) pair(j, false);
    }
    float* const o = base.scratch + base.at.out + row * base.at.v_dim + panel * 16;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) {
        float* const to = o + r * base.at.v_dim + c * 16;
        const __m512 more = Dot::value(acc[r][c], scale);
        _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_loadu_ps(to), factor[r], more));
      }
  }

  // Where `count` rows from `row` on lie in 16 bits, their pairs of dimensions beside each other.
  int16_t* query(int64_t row) const {
    return reinterpret_cast<int16_t*>(base.scratch + base.at.narrow_q) + row * base.at.dim;
  }

  // Rows of queries are narrowed in their places and then interleaved.
  void narrow_queries(int64_t row, int count) const {
    const int dim = base.shape.head_dim;
    int16_t* const to = query(row);
    for (int r = 0; r < count; ++r) {
      float* const wide = base.scratch + base.at.q + (row + r) * base.at.dim;
      auto* const from = reinterpret_cast<int16_t*>(wide);
      base.scratch[base.at.q_scale + row + r] = Dot::narrow(wide, dim, dim, from);
      for (int d = 0; d < dim; d += 2) __builtin_memcpy(to + d * count + 2 * r, from + d, 2 * sizeof(int16_t));
    }
  }

  // R rows of a block; the first ones of a head also ask for what comes next.
  template <int R, bool Ask>
  void run(const Item& item, const Pages& pages, const Pages& next, int64_t block, int64_t row) const {
    const int64_t k_size = Kv::piece(base.shape.head_dim), v_size = Kv::piece(base.shape.v_head_dim);
    const int64_t head = row / item.per_head();
    // What comes next: the neighbouring head of these pages, then the first head of the next ones.
    const bool stay = head + 1 < item.heads;
    const Pages& soon = stay ? pages : next;
    const int64_t soon_head = stay ? head + 1 : 0;
    Sum acc[R][kPages];
    scores<R, Ask>(pages.k, soon.k, head * k_size, soon_head * k_size, query(row), acc);
    int16_t* const weights = reinterpret_cast<int16_t*>(base.scratch + base.at.weights);
    __m512 factor[R];
    const float scale = softmax<R>(item, pages, head, row, block * kBlock, acc, weights, factor);
    const int panels = base.shape.v_head_dim / 16;
    int c = 0;
    for (; c + 4 <= panels; c += 4)
      values<R, 4, Ask>(pages, soon, head * v_size, soon_head * v_size, row, c, weights, scale, factor);
    for (; c < panels; ++c)
      values<R, 1, Ask>(pages, soon, head * v_size, soon_head * v_size, row, c, weights, scale, factor);
  }
};

#endif

}  // namespace echoc::attn
