// Attention of many rows: a block's keys and values are widened once and reused by all rows, or multiplied in bf16
// where that is faster (attend_dot.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "attend_dot.h"
#include "attend_rows.h"

namespace echoc::attn {

template <class Rows>
struct Many {
  using KV = typename Rows::Element;
  using Kv = typename Rows::Kv;
  using Pages = typename Rows::Pages;

  const Rows& base;

  // c[r][...] = (c[r][...] * factor[r] or 0) + a[r][0..count) * b, b in panels [count][16] `stride` floats apart.
  template <int Panels>
  static void multiply(const float* a, int64_t lda, const float* b, int64_t stride, int64_t count, float* c,
                       int64_t ldc, const float* factor) {
    constexpr int kCols = Panels * kParts;
    Vec acc[kRowTile][kCols];
    for (int r = 0; r < kRowTile; ++r)
      for (int i = 0; i < kCols; ++i) acc[r][i] = factor ? load(c + r * ldc + i * kLanes) * splat(factor[r]) : Vec{};
    for (int64_t k = 0; k < count; ++k) {
      Vec column[kCols];
      for (int i = 0; i < kCols; ++i) column[i] = load(b + (i / kParts) * stride + k * 16 + (i % kParts) * kLanes);
      for (int r = 0; r < kRowTile; ++r) {
        const Vec x = splat(a[r * lda + k]);
        for (int i = 0; i < kCols; ++i) acc[r][i] = fma(x, column[i], acc[r][i]);
      }
    }
    for (int r = 0; r < kRowTile; ++r)
      for (int i = 0; i < kCols; ++i) store(c + r * ldc + i * kLanes, acc[r][i]);
  }

  static void multiply_all(const float* a, int64_t lda, const float* b, int64_t stride, int64_t count, float* c,
                           int64_t ldc, int64_t panels, const float* factor) {
    constexpr int kWide = kColTile / kParts > 0 ? kColTile / kParts : 1;
    int64_t p = 0;
    for (; p + kWide <= panels; p += kWide)
      multiply<kWide>(a, lda, b + p * stride, stride, count, c + p * 16, ldc, factor);
    if constexpr (kWide > 1)
      for (; p < panels; ++p) multiply<1>(a, lda, b + p * stride, stride, count, c + p * 16, ldc, factor);
  }

  // Widen one page's keys to [head_dim][16] f32.
  void pack_k(const KV* page, float* to) const {
    const int D = base.shape.head_dim;
    int d = 0;
    for (; d + 2 <= D; d += 2)
      for (int i = 0; i < kParts; ++i) {
        Vec first, second;
        Kv::load_two(page + d * 16, i, &first, &second);
        store(to + d * 16 + i * kLanes, first);
        store(to + d * 16 + 16 + i * kLanes, second);
      }
    if (d < D)
      for (int j = 0; j < 16; ++j) to[d * 16 + j] = to_float(page[d * 16 + j]);
  }

  // Widen one page's values to panels [64][16] f32, `from` tokens into the block; tokens from `count` on are zero,
  // whatever the page holds there, and so are the columns past v_head_dim.
  void pack_v(const KV* page, int count, float* to, int from) const {
    const int Dv = base.shape.v_head_dim;
    for (int c = 0; c < base.at.v_dim; c += 16) {
      float* const panel = to + int64_t{c / 16} * kBlock * 16 + from * 16;
      const int width = Dv - c < 16 ? Dv - c : 16;
      if (width == 16 && count == kPage) {
        for (int j = 0; j < kPage; j += 2)
          for (int i = 0; i < kParts; ++i) {
            Vec first, second;
            Kv::load_two(page + c * 16 + j * 16, i, &first, &second);
            store(panel + j * 16 + i * kLanes, first);
            store(panel + j * 16 + 16 + i * kLanes, second);
          }
      } else {
        for (int j = 0; j < kPage; ++j)
          for (int i = 0; i < 16; ++i)
            panel[j * 16 + i] = j < count && i < width ? to_float(page[Kv::v_index(Dv, j, c + i)]) : 0.0f;
      }
    }
  }

  // Many rows: a block's keys and values are widened once and reused by all rows, six at a time.
  void packed(const Item& item) const {
    const int64_t rows = item.rows();
    const int64_t* const low = reinterpret_cast<const int64_t*>(base.scratch + base.at.low);
    const int64_t* const high = reinterpret_cast<const int64_t*>(base.scratch + base.at.high);
    const Span keys = base.keys_of(item);
    float factor[kRowTile];
    for (int64_t block = item.block0(); block < item.block1(); ++block) {
      const int64_t key0 = block * kBlock;
      const Pages pages = base.gather(item, keys, block);
      base.note_scales(pages, 0);
      for (int i = 0; i < kPages; ++i) {
        const bool used = i >= pages.first && i < pages.end;
        if (used) pack_k(pages.k[i], base.scratch + base.at.k + i * base.at.dim * kPage);
        pack_v(pages.v[i],
               !used               ? 0
               : i + 1 < pages.end ? kPage
                                   : pages.last_count,
               base.scratch + base.at.v, i * kPage);
      }
      for (int64_t r = 0; r < rows; r += kRowTile) {
        bool seen = false;
        for (int i = 0; i < kRowTile; ++i) seen |= low[r + i] < key0 + kBlock && high[r + i] > key0;
        if (!seen) continue;
        float* const s = base.scratch + base.at.scores;
        multiply_all(base.scratch + base.at.q + r * base.at.dim, base.at.dim, base.scratch + base.at.k,
                     base.at.dim * kPage, base.shape.head_dim, s, kBlock, kPages, nullptr);
        base.template softmax<kRowTile>(item, r, static_cast<int>(rows - r < kRowTile ? rows - r : kRowTile), key0, s,
                                        factor);
        multiply_all(s, kBlock, base.scratch + base.at.v, kBlock * 16, kBlock,
                     base.scratch + base.at.out + r * base.at.v_dim, base.at.v_dim, base.at.v_dim / 16, factor);
      }
    }
  }

#if defined(ECHOC_ATTEND_DOT)
  // A block's values as they lie, but with the tokens from the sequence's end on and the columns past v_head_dim zero.
  void copy_v(const KV* page, int count, bf16_t* to, int from) const {
    const int Dv = base.shape.v_head_dim;
    for (int c = 0; c < base.at.v_dim; c += 16) {
      bf16_t* const panel = to + int64_t{c / 16} * kBlock * 16 + from * 16;
      const int width = Dv - c < 16 ? Dv - c : 16;
      if (width == 16 && count == kPage) {
        to_pairs(page + c * 16, panel, 256);
        continue;
      }
      for (int j = 0; j < kPage; ++j)
        for (int i = 0; i < 16; ++i)
          panel[(j / 2) * 32 + i * 2 + (j & 1)] =
              j < count && i < width ? exact_bf16(page[Kv::v_index(Dv, j, c + i)]) : bf16_t{0};
    }
  }

  // A page's keys in bf16, with head_dim padded to whole steps.
  const bf16_t* whole_k(const KV* page, bf16_t* to) const {
    const int D = base.shape.head_dim;
    if (D % kStep == 0) {
      if constexpr (std::is_same_v<KV, bf16_t>) return page;
      to_pairs(page, to, int64_t{D} * kPage);
      return to;
    }
    for (int64_t d = 0; d < round_up(D, kStep); ++d)
      for (int j = 0; j < kPage; ++j)
        to[(d / 2) * 32 + j * 2 + (d & 1)] = d < D ? exact_bf16(page[Kv::k_index(D, d, j)]) : bf16_t{0};
    return to;
  }

  // Many rows with bf16 dot products: queries and weights are rounded to bf16, sums stay in f32.
  void dotted(const Item& item) const {
    const int64_t rows = item.rows(), steps = round_up(base.shape.head_dim, kStep) / kStep, depth = steps * kStep;
    const int64_t* const low = reinterpret_cast<const int64_t*>(base.scratch + base.at.low);
    const int64_t* const high = reinterpret_cast<const int64_t*>(base.scratch + base.at.high);
    const Span keys = base.keys_of(item);
    float* const s = base.scratch + base.at.scores;
    bf16_t* const weights = reinterpret_cast<bf16_t*>(base.scratch + base.at.weights);
    bf16_t* const queries = reinterpret_cast<bf16_t*>(base.scratch + base.at.narrow_q);
    bf16_t* const k = reinterpret_cast<bf16_t*>(base.scratch + base.at.k);
    bf16_t* const v = reinterpret_cast<bf16_t*>(base.scratch + base.at.v);
    for (int64_t r = 0; r < round_up(rows, 16); ++r) {
      const int64_t count = r < rows ? base.shape.head_dim : 0;
      from_float(base.scratch + base.at.q + r * base.at.dim, queries + r * depth, count);
      std::fill(queries + r * depth + count, queries + (r + 1) * depth, bf16_t{0});
    }
    begin_tiles();
    for (int64_t block = item.block0(); block < item.block1(); ++block) {
      const int64_t key0 = block * kBlock;
      const Pages pages = base.gather(item, keys, block);
      base.note_scales(pages, 0);
      const bf16_t* k_panels[kPages];
      for (int i = 0; i < kPages; ++i) {
        const bool used = i >= pages.first && i < pages.end;
        k_panels[i] = whole_k(pages.k[i], k + i * depth * kPage);
        copy_v(pages.v[i], !used ? 0 : i + 1 < pages.end ? kPage : pages.last_count, v, i * kPage);
      }
      for (int64_t r = 0; r < rows; r += kDotRows) {
        const int64_t count = rows - r < kDotRows ? rows - r : kDotRows;
        const bool tall = count > 16;
        bool seen = false;
        for (int64_t i = r; i < r + count; ++i) seen |= low[i] < key0 + kBlock && high[i] > key0;
        if (!seen) continue;
        product(queries + r * depth, depth, k_panels, kPages, steps, s, kBlock, tall, false);
        for (int64_t i = 0; i < count; i += 8) {
          float factor[8];
          const int some = static_cast<int>(count - i < 8 ? count - i : 8);
          base.template softmax<8>(item, r + i, some, key0, s + i * kBlock, factor);
          narrow(s + i * kBlock, weights + i * kBlock, 8 * kBlock);
          for (int j = 0; j < some; ++j) {
            if (factor[j] == 1.0f) continue;
            float* const o = base.scratch + base.at.out + (r + i + j) * base.at.v_dim;
            for (int64_t c = 0; c < base.at.v_dim; c += kLanes) store(o + c, load(o + c) * splat(factor[j]));
          }
        }
        for (int64_t c = 0; c < base.at.v_dim; c += 32) {
          const bf16_t* const v_panels[2] = {v + c * kBlock, v + (c + 16) * kBlock};
          product(weights, kBlock, v_panels, c + 16 < base.at.v_dim ? 2 : 1, kBlock / kStep,
                  base.scratch + base.at.out + r * base.at.v_dim + c, base.at.v_dim, tall, true);
        }
      }
    }
    end_tiles();
  }
#endif

  void run(const Item& item) const {
#if defined(ECHOC_ATTEND_DOT)
    if constexpr (Kv::kPaired) {
      if (base.dots && has_dots()) return dotted(item);
    }
#endif
    packed(item);
  }
};

}  // namespace echoc::attn
