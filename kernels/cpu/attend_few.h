// Attention of few rows: keys and values are read where they lie, as f32 or by products of pairs (attend_paired.h).
#pragma once

#include <cstdint>
#include <type_traits>

#include "attend_paired.h"
#include "attend_pairs.h"
#include "attend_rows.h"

namespace echoc::attn {

template <class Rows>
struct Few {
  using KV = typename Rows::Element;
  using Kv = typename Rows::Kv;
  using Pages = typename Rows::Pages;

  const Rows& base;

  // R rows against P pages of keys read in place.
  template <int R, int P>
  void direct_scores(const KV* const* pages, const KV* const* next, int64_t piece, int64_t ahead, int64_t row,
                     float* s) const {
    Vec acc[R][P][kParts] = {};
    const float* const query = base.scratch + base.at.q + row * base.at.dim;
    for (int d = 0; d < base.shape.head_dim; d += 2) {
      Vec first[P][kParts], second[P][kParts];
      for (int p = 0; p < P; ++p) {
        fetch_two(next[p] + ahead + d * 16);
        for (int i = 0; i < kParts; ++i) Kv::load_two(pages[p] + piece + d * 16, i, &first[p][i], &second[p][i]);
      }
      for (int r = 0; r < R; ++r) {
        const Vec x = splat(query[r * base.at.dim + d]), y = splat(query[r * base.at.dim + d + 1]);
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < kParts; ++i) acc[r][p][i] = fma(x, first[p][i], acc[r][p][i]);
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < kParts; ++i) acc[r][p][i] = fma(y, second[p][i], acc[r][p][i]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p)
        for (int i = 0; i < kParts; ++i) store(s + r * kBlock + p * kPage + i * kLanes, acc[r][p][i]);
  }

  // R rows: C panels of output columns += weights * values read in place.
  template <int R, int C>
  void direct_values(const Pages& pages, const Pages& next, int64_t piece, int64_t piece_ahead, int64_t row, int panel,
                     const float* s, const float* factor) const {
    Vec acc[R][C][kParts];
    float* const o = base.scratch + base.at.out + row * base.at.v_dim + panel * 16;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        for (int i = 0; i < kParts; ++i)
          acc[r][c][i] = load(o + r * base.at.v_dim + c * 16 + i * kLanes) * splat(factor[r]);
    for (int page = pages.first; page < pages.end; ++page) {
      const KV* const from = pages.v[page] + piece + panel * 256;
      const KV* const ahead = next.v[page] + piece_ahead + panel * 256;
      const float* const weight = s + page * kPage;
      const int count = page + 1 < pages.end ? kPage : pages.last_count;
      for (int j = 0; j < count; j += 2) {
        Vec first[C][kParts], second[C][kParts];
        for (int c = 0; c < C; ++c) {
          fetch_two(ahead + c * 256 + j * 16);
          for (int i = 0; i < kParts; ++i) {
            Kv::load_two(from + c * 256 + j * 16, i, &first[c][i], &second[c][i]);
            second[c][i] = j + 1 < count ? second[c][i] : Vec{};
          }
        }
        for (int r = 0; r < R; ++r) {
          const Vec x = splat(weight[r * kBlock + j]), y = splat(weight[r * kBlock + j + 1]);
          for (int c = 0; c < C; ++c)
            for (int i = 0; i < kParts; ++i) acc[r][c][i] = fma(x, first[c][i], acc[r][c][i]);
          for (int c = 0; c < C; ++c)
            for (int i = 0; i < kParts; ++i) acc[r][c][i] = fma(y, second[c][i], acc[r][c][i]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        for (int i = 0; i < kParts; ++i) store(o + r * base.at.v_dim + c * 16 + i * kLanes, acc[r][c][i]);
  }

  template <int R>
  void direct_rows(const Item& item, const Pages& pages, const Pages& next, int64_t block, int64_t row) const {
    constexpr int kRoom = kAccumulators / (R * kParts);
    constexpr int kWide = kRoom >= 4 ? 4 : kRoom >= 2 ? 2 : 1;
    const int64_t k_size = Kv::piece(base.shape.head_dim), v_size = Kv::piece(base.shape.v_head_dim);
    const int64_t head = row / item.per_head();
    // What comes next: the neighbouring head of these pages, then the first head of the next ones.
    const bool stay = head + 1 < item.heads;
    const Pages& soon = stay ? pages : next;
    const int64_t soon_head = stay ? head + 1 : 0;
    float* const s = base.scratch + base.at.scores;
    for (int p = 0; p < kPages; p += kWide)
      direct_scores<R, kWide>(pages.k + p, soon.k + p, head * k_size, soon_head * k_size, row, s + p * kPage);
    float factor[R];
    base.note_scales(pages, head);
    base.template softmax<R>(item, row, R, block * kBlock, s, factor);
    const int panels = base.shape.v_head_dim / 16;
    int c = 0;
    for (; c + kWide <= panels; c += kWide)
      direct_values<R, kWide>(pages, soon, head * v_size, soon_head * v_size, row, c, s, factor);
    if constexpr (kWide > 1)
      for (; c < panels; ++c) direct_values<R, 1>(pages, soon, head * v_size, soon_head * v_size, row, c, s, factor);
  }

  // Whether a group of R rows is multiplied in pairs.
  template <int R>
  bool paired() const {
    if constexpr (Pairs<KV>::kUsed) return base.dots && R >= Pairs<KV>::kLeast;
    return false;
  }

  // Whether many rows are served so as well: integers need no widening, which takes an eighth of the time of others.
  bool suits_many() const {
#if defined(ECHOC_ATTEND_DOT) && defined(ECHOC_AMX)
    if (has_dots()) return false;
#endif
    return std::is_same_v<KV, i8_t> && paired<4>();
  }

  template <int R>
  void few_rows(const Item& item, const Pages& pages, const Pages& next, int64_t block, int64_t row) const {
    if constexpr (Pairs<KV>::kUsed) {
      if (paired<R>() && row % item.per_head() == 0)
        return Paired<Rows>{base}.template run<R, true>(item, pages, next, block, row);
      if (paired<R>()) return Paired<Rows>{base}.template run<R, false>(item, pages, next, block, row);
    }
    direct_rows<R>(item, pages, next, block, row);
  }

  // Up to four rows of one kv head at a time: visit(number of rows as a constant, first of them).
  template <class Visit>
  static void groups(int64_t first, int64_t count, Visit&& visit) {
    int64_t r = first;
    for (; r + 4 <= first + count; r += 4) visit(std::integral_constant<int, 4>{}, r);
    const int64_t left = first + count - r;
    if (left == 3) visit(std::integral_constant<int, 3>{}, r);
    if (left == 2) visit(std::integral_constant<int, 2>{}, r);
    if (left == 1) visit(std::integral_constant<int, 1>{}, r);
  }

  // Few rows: keys and values are read where they lie, once from memory and again from the nearest cache.
  void run(const Item& item) const {
    if (item.page0 >= item.page1) return;
    const Span keys = base.keys_of(item);
    const int64_t rows = item.rows(), per_head = item.per_head();
    if constexpr (Pairs<KV>::kUsed)
      for (int64_t first = 0; first < rows; first += per_head)
        groups(first, per_head, [&](auto some, int64_t r) {
          if (paired<some>()) Paired<Rows>{base}.narrow_queries(r, some);
        });
    Pages next = base.gather(item, keys, item.block0());
    for (int64_t block = item.block0(); block < item.block1(); ++block) {
      const Pages pages = next;
      if (block + 1 < item.block1()) next = base.gather(item, keys, block + 1);
      for (int64_t first = 0; first < rows; first += per_head)
        groups(first, per_head, [&](auto some, int64_t r) {
          if (base.seen(block, r, some)) few_rows<some>(item, pages, next, block, r);
        });
    }
  }
};

}  // namespace echoc::attn
