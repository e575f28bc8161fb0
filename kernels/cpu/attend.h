// Attention over paged keys and values.
//
// Softmax runs over blocks of 64 tokens that start at multiples of 64 in the sequence, with a running maximum and sum
// (Milakov and Gimelshein 2018; Dao et al. 2022). Both routines below, the direct one for few queries and the packed
// one for many, do the same arithmetic in the same order for a query, so a result does not depend on which queries
// share the call, on how a prompt was cut into chunks, or on the number of threads. Two exceptions are switched off by
// `deterministic`: bf16 products for many queries (attend_dot.h), and the split of long contexts between threads, which
// needs a workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "abi.h"
#include "attend_dot.h"
#include "attend_pages.h"
#include "attend_pairs.h"
#include "attend_plan.h"
#include "half.h"
#include "lanes.h"
#include "math.h"

namespace echoc {

// The score of plain attention: nothing is added.
struct PlainScore {
  float operator()(float score, int, int64_t, int64_t) const { return score; }
};

namespace attn {

#if defined(__AVX512F__)
inline constexpr int kRowTile = 6, kColTile = 4, kAccumulators = 16;
#elif defined(__AVX__)
inline constexpr int kRowTile = 6, kColTile = 2, kAccumulators = 8;
#else
inline constexpr int kRowTile = 4, kColTile = 4, kAccumulators = 8;
#endif
static_assert(kMaxRows % kRowTile == 0);

// 2^t for t <= 0 (or barely above), 0 below -126.5; NaN stays. 2^0 is exactly 1.
inline Vec exp2_nonpositive(Vec t) {
  t = t < -127.0f ? splat(-127.0f) : t;
  const Vec biased = t + m::detail::kMagic;
  const Vec r = t - (biased - m::detail::kMagic);
  Vec p = fma(splat(0x1.444e70p-13f), r, splat(0x1.5f10a2p-10f));
  p = fma(p, r, splat(0x1.3b2a22p-7f));
  p = fma(p, r, splat(0x1.c6af70p-5f));
  p = fma(p, r, splat(0x1.ebfbe0p-3f));
  p = fma(p, r, splat(0x1.62e430p-1f));
  p = fma(p, r, splat(1.0f));
  const VecBits power = (reinterpret_cast<VecBits>(biased) - (0x4b400000u - 127u)) << 23;
  return p * reinterpret_cast<Vec>(power);
}

// Divide a row by its sum, a sink's logit included, and write it out. A row that saw no key gives zeros.
inline void write_row(const AttendShape& shape, const float* sinks, int head, float maximum, float sum,
                      const float* from, float* to) {
  float factor = 1.0f / sum;
  if (sinks) {
    const float sink = sinks[head] * m::detail::kLog2e;
    const float top = sink > maximum ? sink : maximum;
    const float weight = m::exp2(maximum - top);
    factor = weight / m::fma(sum, weight, m::exp2(sink - top));
  }
  if (sum == 0.0f) factor = 0.0f;
  for (int c = 0; c < shape.v_head_dim; ++c) to[c] = from[c] * factor;
}

// Where the pieces of the scratch memory lie, in floats.
struct Layout {
  int64_t dim, v_dim;  // padded to 16
  int64_t q, out, k, v, scores, weights, narrow_q, maximum, sum, low, high, k_scale, v_scale, q_scale, size;

  constexpr Layout(int head_dim, int v_head_dim)
      : dim(round_up(head_dim, 16)),
        v_dim(round_up(v_head_dim, 16)),
        q(0),
        out(q + kMaxRows * dim),
        k(out + kMaxRows * v_dim),
        v(k + kBlock * dim),
        scores(v + kBlock * v_dim),
        weights(scores + kTallRows * kBlock),
        narrow_q(weights + kTallRows * kBlock / 2),
        maximum(narrow_q + kMaxRows * (dim + 16) / 2),
        sum(maximum + kMaxRows),
        low(sum + kMaxRows),
        high(low + kMaxRows * 2),
        k_scale(high + kMaxRows * 2),
        v_scale(k_scale + kBlock),
        q_scale(v_scale + kBlock),
        size(q_scale + kMaxRows) {}

  static constexpr int kTallRows = 32;  // rows of scores at a time
};

template <class KV, class Score>
struct Worker {
  using Kv = Store<KV>;

  const AttendShape& shape;
  const float* q;
  int64_t ldq;
  float* out;
  const KV* k_base;
  const KV* v_base;
  const float* sinks;
  const int32_t* pos;
  const Score& score;
  float* scratch;
  bool dots;  // dot products of 16 bits may be used: faster, but not the arithmetic of f32
  Layout at{shape.head_dim, shape.v_head_dim};

  int group() const { return shape.heads / shape.kv_heads; }
  const KV* k_page(const Item& item, int64_t page) const {
    const int64_t piece = Kv::piece(shape.head_dim);
    return k_base + (int64_t{item.run.table[page]} * shape.kv_heads + item.kv_head) * piece;
  }
  const KV* v_page(const Item& item, int64_t page) const {
    const int64_t piece = Kv::piece(shape.v_head_dim);
    return v_base + (int64_t{item.run.table[page]} * shape.kv_heads + item.kv_head) * piece;
  }
  int64_t token(const Item& item, int64_t row) const {
    return item.run.begin + (item.row0 + row % item.per_head()) / group();
  }
  int head(const Item& item, int64_t row) const {
    const int64_t inside = (item.row0 + row % item.per_head()) % group();
    return (item.kv_head + static_cast<int>(row / item.per_head())) * group() + static_cast<int>(inside);
  }

  // Gather and scale the queries, note each row's visible keys, clear the running state.
  void begin(const Item& item) const {
    const int64_t rows = item.rows();
    int64_t* const low = reinterpret_cast<int64_t*>(scratch + at.low);
    int64_t* const high = reinterpret_cast<int64_t*>(scratch + at.high);
    const int64_t padded = round_up(rows, kRowTile);
    for (int64_t r = 0; r < padded; ++r) {
      float* const to = scratch + at.q + r * at.dim;
      const bool real = r < rows;
      const int64_t t = real ? token(item, r) : 0;
      const float* const from = real ? q + t * ldq + int64_t{head(item, r)} * shape.head_dim : nullptr;
      for (int d = 0; d < shape.head_dim; ++d) to[d] = real ? from[d] * shape.scale : 0.0f;
      const Span span = real ? visible(shape, pos[t], item.run.length) : Span{0, 0};
      low[r] = span.low;
      high[r] = span.high;
      scratch[at.maximum + r] = -m::kInfinity;
      scratch[at.sum + r] = 0.0f;
    }
    for (int64_t i = 0; i < padded * at.v_dim; ++i) scratch[at.out + i] = 0.0f;
  }

  // Soft cap, score functor and visibility of one row of scores.
  void shape_scores(const Item& item, int64_t row, int64_t key0, float* s) const {
    const int64_t low = reinterpret_cast<const int64_t*>(scratch + at.low)[row] - key0;
    const int64_t high = reinterpret_cast<const int64_t*>(scratch + at.high)[row] - key0;
    if (shape.softcap != 0.0f) {
      const float cap = shape.softcap, inverse = 1.0f / shape.softcap;
      for (int j = 0; j < kBlock; ++j) s[j] = cap * m::tanh(s[j] * inverse);
    }
    if constexpr (!std::is_same_v<Score, PlainScore>) {
      const int h = head(item, row);
      const int64_t qpos = pos[token(item, row)];
      for (int j = 0; j < kBlock; ++j) s[j] = score(s[j], h, qpos, key0 + j);
    }
    if (low > 0 || high < kBlock) {
      const int from = low > 0 ? static_cast<int>(low < kBlock ? low : kBlock) : 0;
      const int to = high < kBlock ? static_cast<int>(high > 0 ? high : 0) : kBlock;
      for (int j = 0; j < kBlock; ++j) {
        const float kept = j < to ? s[j] : -m::kInfinity;
        s[j] = j >= from ? kept : -m::kInfinity;
      }
    }
  }

  // Pages of the block that hold keys some row of the item sees.
  Span pages_of(Span keys, int64_t block) const {
    const int64_t first = block * kPages;
    const int64_t low = keys.low / kPage > first ? keys.low / kPage : first;
    const int64_t end = (keys.high + kPage - 1) / kPage;
    return {low, end < first + kPages ? end : first + kPages};
  }

  Span keys_of(const Item& item) const {
    const Span first = visible(shape, pos[token(item, 0)], item.run.length);
    const Span last = visible(shape, pos[token(item, item.per_head() - 1)], item.run.length);
    return {first.low, last.high};
  }

  // Where a block's pages lie. A page nobody sees is not read: another stands in for it and its scores are masked.
  struct Pages {
    const KV* k[kPages];
    const KV* v[kPages];
    int first, end;  // pages with a key that some row sees
    int last_count;  // tokens in page end - 1
  };

  Pages gather(const Item& item, Span keys, int64_t block) const {
    const Span span = pages_of(keys, block);
    Pages pages;
    pages.first = static_cast<int>(span.low - block * kPages);
    pages.end = static_cast<int>(span.high - block * kPages);
    const int64_t left = item.run.length - (span.high - 1) * kPage;
    pages.last_count = left < kPage ? static_cast<int>(left) : kPage;
    for (int i = 0; i < kPages; ++i) {
      const int seen = i < pages.first ? pages.first : i >= pages.end ? pages.end - 1 : i;
      pages.k[i] = k_page(item, block * kPages + seen);
      pages.v[i] = v_page(item, block * kPages + seen);
    }
    return pages;
  }

  static void scale_row(float* s, const float* scales) {
    for (int j = 0; j < kBlock; j += kLanes) store(s + j, load(s + j) * load(scales + j));
  }

  // The scales of a block's keys and values, 0 where no row sees any: a weight of 0 stays 0 whatever lies there.
  void note_scales([[maybe_unused]] const Pages& pages, [[maybe_unused]] int64_t head) const {
    if constexpr (Kv::kScaled) {
      for (int i = 0; i < kPages; ++i) {
        float* const k = scratch + at.k_scale + i * kPage;
        float* const v = scratch + at.v_scale + i * kPage;
        const int count = i < pages.first || i >= pages.end ? 0 : i + 1 < pages.end ? kPage : pages.last_count;
        Kv::scales(pages.k[i] + head * Kv::piece(shape.head_dim), shape.head_dim, k);
        Kv::scales(pages.v[i] + head * Kv::piece(shape.v_head_dim), shape.v_head_dim, v);
        for (int j = count; j < kPage; ++j) k[j] = v[j] = 0.0f;
      }
    }
  }

  // R rows of scores (of which `rows` are real) become weights; factor[r] is for what row r accumulated before.
  template <int R>
  void softmax(const Item& item, int64_t row, int rows, int64_t key0, float* s, float* factor) const {
    constexpr int kRound = R <= kLanes ? kLanes : 2 * kLanes;
    float now[kRound] = {}, before[kRound] = {};
    for (int r = 0; r < R; ++r) {
      if (r >= rows) continue;
      if constexpr (Kv::kScaled) scale_row(s + r * kBlock, scratch + at.k_scale);
      shape_scores(item, row + r, key0, s + r * kBlock);
      Vec top[kParts];
      for (int i = 0; i < kParts; ++i) {
        top[i] = load(s + r * kBlock + i * kLanes);
        for (int j = kPage; j < kBlock; j += kPage) {
          const Vec x = load(s + r * kBlock + j + i * kLanes);
          top[i] = top[i] > x ? top[i] : x;
        }
      }
      now[r] = simd::join_lanes(top, [](Vec a, Vec b) { return a > b ? a : b; });
      before[r] = scratch[at.maximum + row + r];
    }
    float base[kRound];
    for (int i = 0; i < kRound; i += kLanes) {
      const Vec old = load(before + i), scaled = load(now + i) * m::detail::kLog2e;
      const Vec larger = scaled > old ? scaled : old;
      const Vec safe = larger == -m::kInfinity ? Vec{} : larger;
      store(now + i, larger);
      store(base + i, safe);
      store(before + i, exp2_nonpositive(old - safe));
    }
    for (int r = 0; r < R; ++r) {
      factor[r] = before[r];
      if (r >= rows) continue;
      Vec total[kParts] = {};
      const Vec offset = splat(-base[r]);
      for (int j = 0; j < kBlock; j += kPage)
        for (int i = 0; i < kParts; ++i) {
          float* const at_s = s + r * kBlock + j + i * kLanes;
          const Vec p = exp2_nonpositive(fma(load(at_s), splat(m::detail::kLog2e), offset));
          store(at_s, p);
          total[i] += p;
        }
      if constexpr (Kv::kScaled) scale_row(s + r * kBlock, scratch + at.v_scale);
      scratch[at.maximum + row + r] = now[r];
      scratch[at.sum + row + r] = m::fma(scratch[at.sum + row + r], before[r], simd::add_lanes(total));
    }
  }

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
    const int D = shape.head_dim;
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
    const int Dv = shape.v_head_dim;
    for (int c = 0; c < at.v_dim; c += 16) {
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
    const int64_t* const low = reinterpret_cast<const int64_t*>(scratch + at.low);
    const int64_t* const high = reinterpret_cast<const int64_t*>(scratch + at.high);
    const Span keys = keys_of(item);
    float factor[kRowTile];
    for (int64_t block = item.block0; block < item.block1; ++block) {
      const int64_t key0 = block * kBlock;
      const Pages pages = gather(item, keys, block);
      note_scales(pages, 0);
      for (int i = 0; i < kPages; ++i) {
        const bool used = i >= pages.first && i < pages.end;
        if (used) pack_k(pages.k[i], scratch + at.k + i * at.dim * kPage);
        pack_v(pages.v[i], !used ? 0 : i + 1 < pages.end ? kPage : pages.last_count, scratch + at.v, i * kPage);
      }
      for (int64_t r = 0; r < rows; r += kRowTile) {
        bool seen = false;
        for (int i = 0; i < kRowTile; ++i) seen |= low[r + i] < key0 + kBlock && high[r + i] > key0;
        if (!seen) continue;
        float* const s = scratch + at.scores;
        multiply_all(scratch + at.q + r * at.dim, at.dim, scratch + at.k, at.dim * kPage, shape.head_dim, s, kBlock,
                     kPages, nullptr);
        softmax<kRowTile>(item, r, static_cast<int>(rows - r < kRowTile ? rows - r : kRowTile), key0, s, factor);
        multiply_all(s, kBlock, scratch + at.v, kBlock * 16, kBlock, scratch + at.out + r * at.v_dim, at.v_dim,
                     at.v_dim / 16, factor);
      }
    }
  }

#if defined(ECHOC_ATTEND_DOT)
  // A block's values as they lie, but with the tokens from the sequence's end on and the columns past v_head_dim zero.
  void copy_v(const KV* page, int count, bf16_t* to, int from) const {
    const int Dv = shape.v_head_dim;
    for (int c = 0; c < at.v_dim; c += 16) {
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
    const int D = shape.head_dim;
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
    const int64_t rows = item.rows(), steps = round_up(shape.head_dim, kStep) / kStep, depth = steps * kStep;
    const int64_t* const low = reinterpret_cast<const int64_t*>(scratch + at.low);
    const int64_t* const high = reinterpret_cast<const int64_t*>(scratch + at.high);
    const Span keys = keys_of(item);
    float* const s = scratch + at.scores;
    bf16_t* const weights = reinterpret_cast<bf16_t*>(scratch + at.weights);
    bf16_t* const queries = reinterpret_cast<bf16_t*>(scratch + at.narrow_q);
    bf16_t* const k = reinterpret_cast<bf16_t*>(scratch + at.k);
    bf16_t* const v = reinterpret_cast<bf16_t*>(scratch + at.v);
    for (int64_t r = 0; r < round_up(rows, 16); ++r)
      for (int64_t d = 0; d < depth; ++d)
        queries[r * depth + d] = r < rows && d < shape.head_dim ? to_bf16(scratch[at.q + r * at.dim + d]) : bf16_t{0};
    begin_tiles();
    for (int64_t block = item.block0; block < item.block1; ++block) {
      const int64_t key0 = block * kBlock;
      const Pages pages = gather(item, keys, block);
      note_scales(pages, 0);
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
          softmax<8>(item, r + i, some, key0, s + i * kBlock, factor);
          narrow(s + i * kBlock, weights + i * kBlock, 8 * kBlock);
          for (int j = 0; j < some; ++j) {
            if (factor[j] == 1.0f) continue;
            float* const o = scratch + at.out + (r + i + j) * at.v_dim;
            for (int64_t c = 0; c < at.v_dim; c += kLanes) store(o + c, load(o + c) * splat(factor[j]));
          }
        }
        for (int64_t c = 0; c < at.v_dim; c += 32) {
          const bf16_t* const v_panels[2] = {v + c * kBlock, v + (c + 16) * kBlock};
          product(weights, kBlock, v_panels, c + 16 < at.v_dim ? 2 : 1, kBlock / kStep,
                  scratch + at.out + r * at.v_dim + c, at.v_dim, tall, true);
        }
      }
    }
    end_tiles();
  }
#endif

  // Ask for the cache lines of two rows of 16; the pages of a block are scattered, so the next ones are asked for
  // early.
  static void fetch_two(const KV* rows) {
    __builtin_prefetch(rows, 0, 2);
    if constexpr (sizeof(KV) == 4) __builtin_prefetch(rows + 16, 0, 2);
  }

  // R rows against P pages of keys read in place.
  template <int R, int P>
  void direct_scores(const KV* const* pages, const KV* const* next, int64_t piece, int64_t ahead, int64_t row,
                     float* s) const {
    Vec acc[R][P][kParts] = {};
    const float* const query = scratch + at.q + row * at.dim;
    for (int d = 0; d < shape.head_dim; d += 2) {
      Vec first[P][kParts], second[P][kParts];
      for (int p = 0; p < P; ++p) {
        fetch_two(next[p] + ahead + d * 16);
        for (int i = 0; i < kParts; ++i) Kv::load_two(pages[p] + piece + d * 16, i, &first[p][i], &second[p][i]);
      }
      for (int r = 0; r < R; ++r) {
        const Vec x = splat(query[r * at.dim + d]), y = splat(query[r * at.dim + d + 1]);
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
    float* const o = scratch + at.out + row * at.v_dim + panel * 16;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        for (int i = 0; i < kParts; ++i) acc[r][c][i] = load(o + r * at.v_dim + c * 16 + i * kLanes) * splat(factor[r]);
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
        for (int i = 0; i < kParts; ++i) store(o + r * at.v_dim + c * 16 + i * kLanes, acc[r][c][i]);
  }

  template <int R>
  void direct_rows(const Item& item, const Pages& pages, const Pages& next, int64_t block, int64_t row) const {
    constexpr int kRoom = kAccumulators / (R * kParts);
    constexpr int kWide = kRoom >= 4 ? 4 : kRoom >= 2 ? 2 : 1;
    const int64_t k_size = Kv::piece(shape.head_dim), v_size = Kv::piece(shape.v_head_dim);
    const int64_t head = row / item.per_head();
    // What comes next: the neighbouring head of these pages, then the first head of the next ones.
    const bool stay = head + 1 < item.heads;
    const Pages& soon = stay ? pages : next;
    const int64_t soon_head = stay ? head + 1 : 0;
    float* const s = scratch + at.scores;
    for (int p = 0; p < kPages; p += kWide)
      direct_scores<R, kWide>(pages.k + p, soon.k + p, head * k_size, soon_head * k_size, row, s + p * kPage);
    float factor[R];
    note_scales(pages, head);
    softmax<R>(item, row, R, block * kBlock, s, factor);
    const int panels = shape.v_head_dim / 16;
    int c = 0;
    for (; c + kWide <= panels; c += kWide)
      direct_values<R, kWide>(pages, soon, head * v_size, soon_head * v_size, row, c, s, factor);
    if constexpr (kWide > 1)
      for (; c < panels; ++c) direct_values<R, 1>(pages, soon, head * v_size, soon_head * v_size, row, c, s, factor);
  }

#if defined(ECHOC_AVX512)
  // The same with products of pairs.
  template <int R, int P>
  void paired_scores(const KV* const* pages, const KV* const* next, int64_t piece, int64_t ahead, int64_t row,
                     float* s) const {
    using Dot = Pairs<KV>;
    typename Dot::Sum acc[R][P];
    for (auto& sums : acc)
      for (auto& sum : sums) sum = Dot::zero();
    const int16_t* const query = narrow_row(row);
    for (int d = 0; d < shape.head_dim; d += 2) {
      __m512i w[P];
      for (int p = 0; p < P; ++p) {
        fetch_two(next[p] + ahead + d * 16);
        w[p] = Dot::load(pages[p] + piece + d * 16);
      }
      for (int r = 0; r < R; ++r) {
        const auto x = vec16::read<int32_t>(query + r * at.dim + d);
        for (int p = 0; p < P; ++p) acc[r][p] = Dot::add(acc[r][p], w[p], x);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p)
        _mm512_storeu_ps(s + r * kBlock + p * kPage, Dot::value(acc[r][p], scratch[at.q_scale + row + r]));
  }

  template <int R, int C>
  void paired_values(const Pages& pages, const Pages& next, int64_t piece, int64_t piece_ahead, int64_t row, int panel,
                     const int16_t* weights, const float* scale, const float* factor) const {
    using Dot = Pairs<KV>;
    typename Dot::Sum acc[R][C];
    for (auto& sums : acc)
      for (auto& sum : sums) sum = Dot::zero();
    for (int page = pages.first; page < pages.end; ++page) {
      const KV* const from = pages.v[page] + piece + panel * 256;
      const KV* const ahead = next.v[page] + piece_ahead + panel * 256;
      const int16_t* const weight = weights + page * kPage;
      const int count = page + 1 < pages.end ? kPage : pages.last_count;
      for (int j = 0; j < count; j += 2) {
        __m512i w[C];
        for (int c = 0; c < C; ++c) {
          fetch_two(ahead + c * 256 + j * 16);
          w[c] = Dot::load(from + c * 256 + j * 16);
          if (j + 1 == count) w[c] = _mm512_and_si512(w[c], _mm512_set1_epi32(0xffff));
        }
        for (int r = 0; r < R; ++r) {
          const auto x = vec16::read<int32_t>(weight + r * kBlock + j);
          for (int c = 0; c < C; ++c) acc[r][c] = Dot::add(acc[r][c], w[c], x);
        }
      }
    }
    float* const o = scratch + at.out + row * at.v_dim + panel * 16;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) {
        float* const to = o + r * at.v_dim + c * 16;
        const __m512 before = _mm512_loadu_ps(to), more = Dot::value(acc[r][c], scale[r]);
        _mm512_storeu_ps(to, _mm512_fmadd_ps(before, _mm512_set1_ps(factor[r]), more));
      }
  }

  template <int R>
  void paired_rows(const Item& item, const Pages& pages, const Pages& next, int64_t block, int64_t row) const {
    const int64_t k_size = Kv::piece(shape.head_dim), v_size = Kv::piece(shape.v_head_dim);
    const int64_t head = row / item.per_head();
    const bool stay = head + 1 < item.heads;
    const Pages& soon = stay ? pages : next;
    const int64_t soon_head = stay ? head + 1 : 0;
    float* const s = scratch + at.scores;
    paired_scores<R, kPages>(pages.k, soon.k, head * k_size, soon_head * k_size, row, s);
    float factor[R], scale[R];
    note_scales(pages, head);
    softmax<R>(item, row, R, block * kBlock, s, factor);
    int16_t* const weights = reinterpret_cast<int16_t*>(scratch + at.weights);
    for (int r = 0; r < R; ++r) scale[r] = Pairs<KV>::narrow(s + r * kBlock, kBlock, kBlock, weights + r * kBlock);
    const int panels = shape.v_head_dim / 16;
    int c = 0;
    for (; c + 4 <= panels; c += 4)
      paired_values<R, 4>(pages, soon, head * v_size, soon_head * v_size, row, c, weights, scale, factor);
    for (; c < panels; ++c)
      paired_values<R, 1>(pages, soon, head * v_size, soon_head * v_size, row, c, weights, scale, factor);
  }

#endif

  int16_t* narrow_row(int64_t row) const { return reinterpret_cast<int16_t*>(scratch + at.narrow_q) + row * at.dim; }

  template <int R>
  void few_rows(const Item& item, const Pages& pages, const Pages& next, int64_t block, int64_t row) const {
    if constexpr (Pairs<KV>::kUsed) {
      if (dots && R >= Pairs<KV>::kLeast) return paired_rows<R>(item, pages, next, block, row);
    }
    direct_rows<R>(item, pages, next, block, row);
  }

  // Few rows: keys and values are read where they lie, once from memory and again from the nearest cache.
  void direct(const Item& item) const {
    if (item.block0 >= item.block1) return;
    const Span keys = keys_of(item);
    const int64_t rows = item.rows(), per_head = item.per_head();
    if constexpr (Pairs<KV>::kUsed)
      for (int64_t r = 0; r < rows && dots; ++r)
        scratch[at.q_scale + r] =
            Pairs<KV>::narrow(scratch + at.q + r * at.dim, shape.head_dim, shape.head_dim, narrow_row(r));
    Pages next = gather(item, keys, item.block0);
    for (int64_t block = item.block0; block < item.block1; ++block) {
      const Pages pages = next;
      if (block + 1 < item.block1) next = gather(item, keys, block + 1);
      for (int64_t first = 0; first < rows; first += per_head) {
        int64_t r = first;
        for (; r + 4 <= first + per_head; r += 4) few_rows<4>(item, pages, next, block, r);
        const int64_t left = first + per_head - r;
        if (left == 3) few_rows<3>(item, pages, next, block, r);
        if (left == 2) few_rows<2>(item, pages, next, block, r);
        if (left == 1) few_rows<1>(item, pages, next, block, r);
      }
    }
  }

  void finish(const Item& item) const {
    for (int64_t r = 0; r < item.rows(); ++r) {
      const int h = head(item, r);
      write_row(shape, sinks, h, scratch[at.maximum + r], scratch[at.sum + r], scratch + at.out + r * at.v_dim,
                out + (token(item, r) * shape.heads + h) * shape.v_head_dim);
    }
  }

  // Leave the running state of an unfinished item where attend_merge finds it.
  void leave(const Item& item, float* partial) const {
    for (int64_t r = 0; r < item.rows(); ++r) {
      partial[r] = scratch[at.maximum + r];
      partial[kMaxRows + r] = scratch[at.sum + r];
    }
    const float* const from = scratch + at.out;
    for (int64_t i = 0; i < item.rows() * at.v_dim; ++i) partial[2 * kMaxRows + i] = from[i];
  }

  void many(const Item& item) const {
#if defined(ECHOC_ATTEND_DOT)
    if constexpr (Kv::kPaired) {
      if (dots && has_dots()) return dotted(item);
    }
#endif
    packed(item);
  }

  void run(const Item& item, float* partial) const {
    begin(item);
    if (direct_shape(shape) && item.per_head() <= kDirectRows)
      direct(item);
    else
      many(item);
    if (partial)
      leave(item, partial);
    else
      finish(item);
  }
};

inline constexpr int64_t partial_floats(int v_head_dim) { return kMaxRows * (2 + round_up(v_head_dim, 16)); }

// One row from the partial results of `slots`: the sums meet at the largest maximum.
inline void merge_row(const Plan& plan, const float* partials, const int64_t* slots, int64_t count, int64_t row,
                      const float* sinks, int head, float* to) {
  const int64_t size = partial_floats(plan.shape.v_head_dim), v_dim = round_up(plan.shape.v_head_dim, 16);
  float maximum = -m::kInfinity, sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) maximum = m::max(maximum, partials[slots[i] * size + row]);
  for (int c = 0; c < plan.shape.v_head_dim; ++c) to[c] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float* const partial = partials + slots[i] * size;
    const float weight = maximum == -m::kInfinity ? 0.0f : m::exp2(partial[row] - maximum);
    const float* const from = partial + 2 * kMaxRows + row * v_dim;
    sum = m::fma(partial[kMaxRows + row], weight, sum);
    for (int c = 0; c < plan.shape.v_head_dim; ++c) to[c] = m::fma(from[c], weight, to[c]);
  }
  write_row(plan.shape, sinks, head, maximum, sum, to, to);
}

// Every row of every split item, shared out by row.
inline void merge(const Call& call, const Plan& plan, const float* partials, const float* sinks, float* out) {
  const int group = plan.group();
  int64_t done = 0, seen = 0;
  plan.each([&](const Item& item) {
    int64_t slots[kMaxSplit], count = 0;
    for (int64_t tid = 0; tid < call.nthreads; ++tid) {
      const Span blocks = plan.share_of(item, done, tid);
      if (blocks.low < blocks.high) slots[count++] = plan.slot_of(done, tid);
    }
    done += Plan::cost(item);
    if (count < 2) return;
    for (int64_t r = 0; r < item.rows(); ++r, ++seen) {
      if (seen % call.nthreads != call.tid) continue;
      const int64_t inside = item.row0 + r % item.per_head();
      const int head =
          (item.kv_head + static_cast<int>(r / item.per_head())) * group + static_cast<int>(inside % group);
      const int64_t t = item.run.begin + inside / group;
      merge_row(plan, partials, slots, count, r, sinks, head,
                out + (t * plan.shape.heads + head) * plan.shape.v_head_dim);
    }
  });
}

}  // namespace attn

// Memory that all threads of a call share, in which contexts split between threads leave their partial results.
struct AttendWorkspace {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Bytes of a workspace with which a team of nthreads may split contexts. A smaller one is left unused.
constexpr int64_t attend_workspace_bytes(int v_head_dim, int nthreads) {
  return 2 * nthreads * attn::partial_floats(v_head_dim) * 4;
}

// Bytes of call.scratch that attend needs, per thread.
constexpr int64_t attend_scratch_bytes(int head_dim, int v_head_dim) {
  return attn::round_up(attn::Layout(head_dim, v_head_dim).size * 4, 64);
}

namespace attn {

inline bool may_split(const Call& call, const AttendShape& shape, bool deterministic,
                      const AttendWorkspace& workspace) {
  return !deterministic && workspace.data && call.nthreads <= kMaxSplit &&
         workspace.bytes >= attend_workspace_bytes(shape.v_head_dim, call.nthreads);
}

}  // namespace attn

// Attention of T new tokens over their sequences' pages, in which their own keys and values already lie.
//   q     [T][heads][head_dim] f32, row stride ldq      out  [T][heads][v_head_dim] f32, dense
//   seq, pos  [T] i32: tokens of one sequence are adjacent with ascending positions
//   sinks [heads] f32 or null: a logit that enters only the softmax denominator
//   score (float s, int head, int64 qpos, int64 kpos) -> float: after scale and soft cap; -inf hides a key
//   deterministic: a query's result has the same bits whatever shares the call and however the work is cut; over bf16
//                  pages its queries and weights then stay f32, at the price of the bf16 products of attend_dot.h
// With a workspace, attend_merge must follow with the same arguments after a barrier: it completes what was split.
template <class KV, class Score = PlainScore>
void attend(const Call& call, const AttendShape& shape, const float* q, int64_t ldq, float* out, const void* k_base,
            const void* v_base, const float* sinks, int64_t T, const int32_t* seq, const int32_t* pos,
            const int32_t* block_table, int64_t max_blocks, bool deterministic, Score&& score = Score{},
            AttendWorkspace workspace = {}) {
  const attn::Plan plan(shape, T, seq, pos, block_table, max_blocks, call.nthreads,
                        attn::may_split(call, shape, deterministic, workspace));
  const attn::Worker<KV, std::remove_cvref_t<Score>> worker{shape,
                                                            q,
                                                            ldq,
                                                            out,
                                                            static_cast<const KV*>(k_base),
                                                            static_cast<const KV*>(v_base),
                                                            sinks,
                                                            pos,
                                                            score,
                                                            reinterpret_cast<float*>(call.scratch),
                                                            !deterministic};
  plan.mine(call.tid, [&](const attn::Item& item, int64_t slot) {
    float* const partials = static_cast<float*>(workspace.data);
    worker.run(item, slot < 0 ? nullptr : partials + slot * attn::partial_floats(shape.v_head_dim));
  });
}

// Joins the partial results that attend left in the workspace and writes those rows of out.
inline void attend_merge(const Call& call, const AttendShape& shape, float* out, const float* sinks, int64_t T,
                         const int32_t* seq, const int32_t* pos, bool deterministic, AttendWorkspace workspace) {
  if (!attn::may_split(call, shape, deterministic, workspace)) return;
  const attn::Plan plan(shape, T, seq, pos, nullptr, 0, call.nthreads, true);
  if (plan.split) attn::merge(call, plan, static_cast<const float*>(workspace.data), sinks, out);
}

}  // namespace echoc
