// Attention over paged keys and values: append_k, append_v and attend.
//
// A page holds 16 tokens of one sequence; block_table[sequence][position / 16] names it, and page p lies at
// base + p * bytes_per_page. Inside a page every key/value head is one contiguous piece:
//   K  [kv_head][head_dim][16 tokens]                 a column of 16 scores per step over head_dim
//   V  [kv_head][v_head_dim / 16][16 tokens][16]      one panel of 16 output columns after another
// bf16 interleaves the summed index in pairs, K [head_dim/2][16][2] and V panels [16/2][16][2], the operand order of
// bf16 dot products; widening is then a shift and a mask. A last odd dimension or narrow panel is stored without
// padding, so bytes_per_page is always kv_heads * dim * 16 * sizeof(element).
//
// Softmax runs over blocks of 64 tokens that start at multiples of 64 in the sequence, with a running maximum and sum
// (Milakov and Gimelshein 2018; Dao et al. 2022). Both routines below, the direct one for few queries and the packed
// one for many, do the same arithmetic in the same order for a query, so a result does not depend on which queries
// share the call, on how a prompt was cut into chunks, or on the number of threads. The one exception is the optional
// split of long contexts over threads, which `deterministic` switches off.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "abi.h"
#include "half.h"
#include "lanes.h"
#include "math.h"

namespace echoc {

struct AttendShape {
  int heads, kv_heads, head_dim, v_head_dim;
  float scale;
  float softcap;  // 0: off; else scores become cap * tanh(score / cap)
  int window;     // 0: off; else only keys with kpos > qpos - window are seen
  bool causal;    // only keys with kpos <= qpos are seen
};

// The score of plain attention: nothing is added.
struct PlainScore {
  float operator()(float score, int, int64_t, int64_t) const { return score; }
};

namespace attn {

inline constexpr int kPage = 16;               // tokens a page
inline constexpr int kBlock = 64;              // tokens a softmax step
inline constexpr int kPages = kBlock / kPage;  // pages a softmax step
inline constexpr int kMaxRows = 96;            // (query, head) rows a packed item
inline constexpr int kDirectRows = 8;          // at most so many rows take the direct routine

#if defined(__AVX512F__)
inline constexpr int kRowTile = 6, kColTile = 4, kAccumulators = 16;
#elif defined(__AVX__)
inline constexpr int kRowTile = 6, kColTile = 2, kAccumulators = 8;
#else
inline constexpr int kRowTile = 4, kColTile = 4, kAccumulators = 8;
#endif

using simd::BitsLoose;
using simd::fma;
using simd::kLanes;
using simd::kParts;
using simd::load;
using simd::splat;
using simd::store;
using simd::Vec;
using simd::VecBits;

inline constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

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

// One sequence's tokens in this call: t in [begin, end), and its cached length including them.
struct Run {
  int64_t begin, end;
  int64_t length;
  const int32_t* table;
};

// What a thread is asked to do: rows [row0, row1) of (query, head in group) of one run and one kv head, over the
// softmax blocks [block0, block1).
struct Item {
  Run run;
  int kv_head;
  int64_t row0, row1;
  int64_t block0, block1;
};

struct Span {
  int64_t low, high;  // visible keys [low, high)
};

inline Span visible(const AttendShape& shape, int64_t qpos, int64_t length) {
  const int64_t low = shape.window > 0 && qpos - shape.window + 1 > 0 ? qpos - shape.window + 1 : 0;
  const int64_t high = shape.causal && qpos + 1 < length ? qpos + 1 : length;
  return {low, high};
}

// Where the pieces of the scratch memory lie, in floats.
struct Layout {
  int64_t dim, v_dim;  // padded to 16
  int64_t q, scores, out, k, v, maximum, sum, low, high, size;

  constexpr Layout(int head_dim, int v_head_dim)
      : dim(round_up(head_dim, 16)),
        v_dim(round_up(v_head_dim, 16)),
        q(0),
        scores(q + kMaxRows * dim),
        out(scores + kRowTileMax * kBlock),
        k(out + kMaxRows * v_dim),
        v(k + kBlock * dim),
        maximum(v + kBlock * v_dim),
        sum(maximum + kMaxRows),
        low(sum + kMaxRows),
        high(low + kMaxRows * 2),
        size(high + kMaxRows * 2) {}

  static constexpr int kRowTileMax = 8;
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
  Layout at{shape.head_dim, shape.v_head_dim};

  int group() const { return shape.heads / shape.kv_heads; }
  const KV* k_page(const Item& item, int64_t page) const {
    const int64_t piece = int64_t{shape.head_dim} * kPage;
    return k_base + (int64_t{item.run.table[page]} * shape.kv_heads + item.kv_head) * piece;
  }
  const KV* v_page(const Item& item, int64_t page) const {
    const int64_t piece = int64_t{shape.v_head_dim} * kPage;
    return v_base + (int64_t{item.run.table[page]} * shape.kv_heads + item.kv_head) * piece;
  }
  int64_t token(const Item& item, int64_t row) const { return item.run.begin + (item.row0 + row) / group(); }
  int head(const Item& item, int64_t row) const {
    return item.kv_head * group() + static_cast<int>((item.row0 + row) % group());
  }

  // Gather and scale the queries, note each row's visible keys, clear the running state.
  void begin(const Item& item, int64_t rows) const {
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

  // Scores of one row for one block become weights; returns the factor for what was accumulated before.
  float softmax(const Item& item, int64_t row, int64_t key0, float* s) const {
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
      for (int j = 0; j < kBlock; ++j) s[j] = j >= from && j < to ? s[j] : -m::kInfinity;
    }
    Vec top = load(s);
    for (int j = kLanes; j < kBlock; j += kLanes) {
      const Vec x = load(s + j);
      top = top > x ? top : x;
    }
    float highest = top[0];
    for (int i = 1; i < kLanes; ++i) highest = highest > top[i] ? highest : top[i];
    highest *= m::detail::kLog2e;
    const float before = scratch[at.maximum + row];
    const float now = highest > before ? highest : before;
    const float base = now == -m::kInfinity ? 0.0f : now;
    Vec total[kParts] = {};
    for (int j = 0; j < kBlock; j += kPage)
      for (int i = 0; i < kParts; ++i) {
        float* const at_s = s + j + i * kLanes;
        const Vec p = exp2_nonpositive(fma(load(at_s), splat(m::detail::kLog2e), splat(-base)));
        store(at_s, p);
        total[i] += p;
      }
    const float factor = m::exp2(before - base);
    scratch[at.maximum + row] = now;
    scratch[at.sum + row] = m::fma(scratch[at.sum + row], factor, simd::add_lanes(total));
    return factor;
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

  // Pages of the block that hold keys some row of the item sees.
  Span pages_of(Span keys, int64_t block) const {
    const int64_t first = block * kPages;
    const int64_t low = keys.low / kPage > first ? keys.low / kPage : first;
    const int64_t end = (keys.high + kPage - 1) / kPage;
    return {low, end < first + kPages ? end : first + kPages};
  }

  Span keys_of(const Item& item) const {
    const Span first = visible(shape, pos[token(item, 0)], item.run.length);
    const Span last = visible(shape, pos[token(item, item.row1 - item.row0 - 1)], item.run.length);
    return {first.low, last.high};
  }

  // Many rows: a block's keys and values are widened once and reused by all rows, six at a time.
  void packed(const Item& item) const {
    const int64_t rows = item.row1 - item.row0;
    const int64_t* const low = reinterpret_cast<const int64_t*>(scratch + at.low);
    const int64_t* const high = reinterpret_cast<const int64_t*>(scratch + at.high);
    const Span keys = keys_of(item);
    float factor[Layout::kRowTileMax];
    for (int64_t block = item.block0; block < item.block1; ++block) {
      const int64_t key0 = block * kBlock;
      const Span pages = pages_of(keys, block);
      for (int64_t page = block * kPages; page < (block + 1) * kPages; ++page) {
        const int at_page = static_cast<int>(page - block * kPages);
        const bool used = page >= pages.low && page < pages.high;
        const int64_t left = item.run.length - page * kPage;
        if (used) pack_k(k_page(item, page), scratch + at.k + at_page * at.dim * kPage);
        pack_v(used ? v_page(item, page) : nullptr,
               !used          ? 0
               : left < kPage ? static_cast<int>(left)
                              : kPage,
               scratch + at.v, at_page * kPage);
      }
      for (int64_t r = 0; r < rows; r += kRowTile) {
        bool seen = false;
        for (int i = 0; i < kRowTile; ++i) seen |= low[r + i] < key0 + kBlock && high[r + i] > key0;
        if (!seen) continue;
        float* const s = scratch + at.scores;
        multiply_all(scratch + at.q + r * at.dim, at.dim, scratch + at.k, at.dim * kPage, shape.head_dim, s, kBlock,
                     kPages, nullptr);
        for (int i = 0; i < kRowTile; ++i) factor[i] = r + i < rows ? softmax(item, r + i, key0, s + i * kBlock) : 0.0f;
        multiply_all(s, kBlock, scratch + at.v, kBlock * 16, kBlock, scratch + at.out + r * at.v_dim, at.v_dim,
                     at.v_dim / 16, factor);
      }
    }
  }

  // R rows against `count` pages of keys read in place.
  template <int R, int P>
  void direct_scores(const KV* const* pages, int64_t row, float* s) const {
    Vec acc[R][P][kParts] = {};
    const float* const query = scratch + at.q + row * at.dim;
    for (int d = 0; d < shape.head_dim; d += 2)
      for (int p = 0; p < P; ++p)
        for (int i = 0; i < kParts; ++i) {
          Vec first, second;
          Kv::load_two(pages[p] + d * 16, i, &first, &second);
          for (int r = 0; r < R; ++r) {
            acc[r][p][i] = fma(splat(query[r * at.dim + d]), first, acc[r][p][i]);
            acc[r][p][i] = fma(splat(query[r * at.dim + d + 1]), second, acc[r][p][i]);
          }
        }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p)
        for (int i = 0; i < kParts; ++i) store(s + r * kBlock + p * kPage + i * kLanes, acc[r][p][i]);
  }

  // R rows: C panels of output columns += weights * values read in place.
  template <int R, int C>
  void direct_values(const Item& item, Span pages, int64_t block, int64_t row, int panel, const float* s,
                     const float* factor) const {
    Vec acc[R][C][kParts];
    float* const o = scratch + at.out + row * at.v_dim + panel * 16;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        for (int i = 0; i < kParts; ++i) acc[r][c][i] = load(o + r * at.v_dim + c * 16 + i * kLanes) * splat(factor[r]);
    for (int64_t page = pages.low; page < pages.high; ++page) {
      const KV* const from = v_page(item, page) + int64_t{panel} * 256;
      const float* const weight = s + (page - block * kPages) * kPage;
      const int64_t left = item.run.length - page * kPage;
      const int count = left < kPage ? static_cast<int>(left) : kPage;
      for (int j = 0; j < count; j += 2)
        for (int c = 0; c < C; ++c)
          for (int i = 0; i < kParts; ++i) {
            Vec first, second;
            Kv::load_two(from + c * 256 + j * 16, i, &first, &second);
            second = j + 1 < count ? second : Vec{};
            for (int r = 0; r < R; ++r) {
              acc[r][c][i] = fma(splat(weight[r * kBlock + j]), first, acc[r][c][i]);
              acc[r][c][i] = fma(splat(weight[r * kBlock + j + 1]), second, acc[r][c][i]);
            }
          }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        for (int i = 0; i < kParts; ++i) store(o + r * at.v_dim + c * 16 + i * kLanes, acc[r][c][i]);
  }

  template <int R>
  void direct_rows(const Item& item, Span pages, int64_t block, int64_t row) const {
    constexpr int kRoom = kAccumulators / (R * kParts);
    constexpr int kWide = kRoom >= 4 ? 4 : kRoom >= 2 ? 2 : 1;
    float* const s = scratch + at.scores;
    const KV* table[kPages];
    for (int i = 0; i < kPages; ++i) {
      // A page nobody sees is not read; another stands in for it and its scores are masked.
      int64_t page = block * kPages + i;
      page = page < pages.low ? pages.low : page >= pages.high ? pages.high - 1 : page;
      table[i] = k_page(item, page);
    }
    for (int p = 0; p < kPages; p += kWide) direct_scores<R, kWide>(table + p, row, s + p * kPage);
    float factor[R];
    for (int r = 0; r < R; ++r) factor[r] = softmax(item, row + r, block * kBlock, s + r * kBlock);
    const int panels = shape.v_head_dim / 16;
    int c = 0;
    for (; c + kWide <= panels; c += kWide) direct_values<R, kWide>(item, pages, block, row, c, s, factor);
    if constexpr (kWide > 1)
      for (; c < panels; ++c) direct_values<R, 1>(item, pages, block, row, c, s, factor);
  }

  // Few rows: keys and values are read where they lie, once from memory and again from the nearest cache.
  void direct(const Item& item) const {
    const int64_t rows = item.row1 - item.row0;
    const Span keys = keys_of(item);
    for (int64_t block = item.block0; block < item.block1; ++block) {
      const Span pages = pages_of(keys, block);
      if (pages.low >= pages.high) continue;
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) direct_rows<4>(item, pages, block, r);
      if (rows - r == 3) direct_rows<3>(item, pages, block, r);
      if (rows - r == 2) direct_rows<2>(item, pages, block, r);
      if (rows - r == 1) direct_rows<1>(item, pages, block, r);
    }
  }

  // Divide by the sum, a sink's logit included, and write the rows out. A row that saw no key gives zeros.
  void finish(const Item& item) const {
    for (int64_t r = 0; r < item.row1 - item.row0; ++r) {
      const int h = head(item, r);
      float* const to = out + (token(item, r) * shape.heads + h) * shape.v_head_dim;
      const float* const from = scratch + at.out + r * at.v_dim;
      const float maximum = scratch[at.maximum + r], sum = scratch[at.sum + r];
      float factor = 1.0f / sum;
      if (sinks) {
        const float sink = sinks[h] * m::detail::kLog2e;
        const float top = sink > maximum ? sink : maximum;
        const float weight = m::exp2(maximum - top);
        factor = weight / m::fma(sum, weight, m::exp2(sink - top));
      }
      if (sum == 0.0f) factor = 0.0f;
      for (int c = 0; c < shape.v_head_dim; ++c) to[c] = from[c] * factor;
    }
  }

  void run(const Item& item) const {
    begin(item, item.row1 - item.row0);
    const bool aligned = shape.v_head_dim % 16 == 0 && shape.head_dim % 2 == 0;
    if (aligned && item.row1 - item.row0 <= kDirectRows)
      direct(item);
    else
      packed(item);
    finish(item);
  }
};

// The cut of a call into items: every run, kv head by kv head, in blocks of `block_rows` rows.
struct Plan {
  const AttendShape& shape;
  int64_t tokens;
  const int32_t* seq;
  const int32_t* pos;
  const int32_t* block_table;
  int64_t max_blocks;
  int64_t block_rows;

  Plan(const AttendShape& s, int64_t T, const int32_t* seq_, const int32_t* pos_, const int32_t* table, int64_t blocks,
       int nthreads)
      : shape(s), tokens(T), seq(seq_), pos(pos_), block_table(table), max_blocks(blocks), block_rows(kMaxRows) {
    // Large items reuse keys best; smaller ones spread over the threads.
    while (block_rows > 2 * kRowTile && items() < 8 * nthreads) block_rows /= 2;
  }

  template <class Visit>
  void runs(Visit&& visit) const {
    for (int64_t t = 0; t < tokens;) {
      int64_t end = t + 1;
      while (end < tokens && seq[end] == seq[t]) ++end;
      visit(Run{t, end, int64_t{pos[end - 1]} + 1, block_table + int64_t{seq[t]} * max_blocks});
      t = end;
    }
  }

  int64_t items() const {
    const int64_t group = shape.heads / shape.kv_heads;
    int64_t count = 0;
    runs([&](const Run& run) {
      count += ((run.end - run.begin) * group + block_rows - 1) / block_rows * shape.kv_heads;
    });
    return count;
  }

  template <class Visit>
  void each(Visit&& visit) const {
    const int64_t group = shape.heads / shape.kv_heads;
    runs([&](const Run& run) {
      const int64_t rows = (run.end - run.begin) * group;
      for (int h = 0; h < shape.kv_heads; ++h)
        for (int64_t r = 0; r < rows; r += block_rows) {
          const int64_t end = r + block_rows < rows ? r + block_rows : rows;
          const Span first = visible(shape, pos[run.begin + r / group], run.length);
          const Span last = visible(shape, pos[run.begin + (end - 1) / group], run.length);
          visit(Item{run, h, r, end, first.low / kBlock, (last.high + kBlock - 1) / kBlock});
        }
    });
  }

  // Work in units of one row against one block; reading and widening a block costs about as much as a few rows.
  static int64_t cost(const Item& item) { return (item.block1 - item.block0) * (item.row1 - item.row0 + 4) + 1; }
};

template <class KV, bool Value>
void append(const Call& call, void* base, const float* x, int64_t ld, int64_t T, int kv_heads, int dim,
            const int32_t* seq, const int32_t* pos, const int32_t* block_table, int64_t max_blocks) {
  const Range range = share(T, call.tid, call.nthreads);
  for (int64_t t = range.begin; t < range.end; ++t) {
    const int slot = pos[t] % kPage;
    const int64_t page = block_table[int64_t{seq[t]} * max_blocks + pos[t] / kPage];
    KV* to = static_cast<KV*>(base) + page * kv_heads * dim * kPage;
    const float* from = x + t * ld;
    for (int h = 0; h < kv_heads; ++h, to += int64_t{dim} * kPage, from += dim)
      for (int d = 0; d < dim; ++d)
        to[Value ? Store<KV>::v_index(dim, slot, d) : Store<KV>::k_index(dim, d, slot)] = from_float<KV>(from[d]);
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

// Bytes of call.scratch that attend needs, per thread.
constexpr int64_t attend_scratch_bytes(int head_dim, int v_head_dim) {
  return attn::round_up(attn::Layout(head_dim, v_head_dim).size * 4, 64);
}

// Attention of T new tokens over their sequences' pages, in which their own keys and values already lie.
//   q     [T][heads][head_dim] f32, row stride ldq      out  [T][heads][v_head_dim] f32, dense
//   seq, pos  [T] i32: tokens of one sequence are adjacent with ascending positions
//   sinks [heads] f32 or null: a logit that enters only the softmax denominator
//   score (float s, int head, int64 qpos, int64 kpos) -> float: after scale and soft cap; -inf hides a key
template <class KV, class Score = PlainScore>
void attend(const Call& call, const AttendShape& shape, const float* q, int64_t ldq, float* out, const void* k_base,
            const void* v_base, const float* sinks, int64_t T, const int32_t* seq, const int32_t* pos,
            const int32_t* block_table, int64_t max_blocks, bool deterministic, Score&& score = Score{}) {
  (void)deterministic;
  const attn::Plan plan(shape, T, seq, pos, block_table, max_blocks, call.nthreads);
  const attn::Worker<KV, std::remove_cvref_t<Score>> worker{shape,
                                                            q,
                                                            ldq,
                                                            out,
                                                            static_cast<const KV*>(k_base),
                                                            static_cast<const KV*>(v_base),
                                                            sinks,
                                                            pos,
                                                            score,
                                                            reinterpret_cast<float*>(call.scratch)};
  int64_t total = 0;
  plan.each([&](const attn::Item& item) { total += attn::Plan::cost(item); });
  int64_t done = 0;
  plan.each([&](const attn::Item& item) {
    const int64_t cost = attn::Plan::cost(item);
    // An item belongs to the thread in whose share of the total cost its middle falls.
    if ((2 * done + cost) * call.nthreads / (2 * total) == call.tid) worker.run(item);
    done += cost;
  });
}

}  // namespace echoc
