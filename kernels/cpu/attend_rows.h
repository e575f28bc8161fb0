// The rows of one item of attention: their queries, the pages they see, the softmax over a block of 64 tokens.
//
// attend_few.h and attend_many.h make scores and add values; what they share is here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "attend_pages.h"
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

// Ask for the cache lines of two rows of 16: the pages of a block are scattered, so the next ones are asked for early.
template <class KV>
void fetch_two(const KV* rows) {
  __builtin_prefetch(rows, 0, 2);
  if constexpr (sizeof(KV) == 4) __builtin_prefetch(rows + 16, 0, 2);
}

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
struct Rows {
  using Element = KV;
  using Kv = Store<KV>;
  static constexpr bool kPlain = std::is_same_v<Score, PlainScore>;

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

  // Those of the keys that lie in the item's pages.
  static Span inside(const Item& item, Span keys) {
    const int64_t low = item.page0 * kPage, high = item.page1 * kPage;
    return {keys.low > low ? keys.low : low, keys.high < high ? keys.high : high};
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
      if (real)
        for (int d = 0; d < shape.head_dim; ++d) to[d] = from[d] * shape.scale;
      else
        for (int d = 0; d < shape.head_dim; ++d) to[d] = 0.0f;
      const Span span = real ? inside(item, visible(shape, pos[t], item.run.length)) : Span{0, 0};
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
    if constexpr (!kPlain) {
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
    return inside(item, {first.low, last.high});
  }

  // Whether one of `count` rows sees a key of the block.
  bool seen(int64_t block, int64_t row, int64_t count) const {
    const int64_t* const low = reinterpret_cast<const int64_t*>(scratch + at.low);
    const int64_t* const high = reinterpret_cast<const int64_t*>(scratch + at.high);
    bool any = false;
    for (int64_t r = row; r < row + count; ++r) any |= low[r] < (block + 1) * kBlock && high[r] > block * kBlock;
    return any;
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
};

}  // namespace attn
}  // namespace echoc
