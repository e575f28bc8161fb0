// Attention of single rows over paged context, in parts: a block takes the heads of one row that share a kv head, and a
// share of the row's context, 64 positions at a time through shared memory.
//
// The block makes q itself, and k and v of its row and of the rows before it that belong to the same sequence, since
// another block may just be writing them: `vector` computes one head's vector by a warp. A page holds [heads][16][dim],
// of 8 bits [heads] of the codes [16][dim] and their scales, [16] f32 (compiler/ir/ops/entries.py).
// A part leaves the sum of its values unnormalised with the greatest score and the sum of weights, scores in units of
// log 2; parts without positions leave nothing. Flash-decoding: Dao et al., 2023.
//
// With `kEarly` the context is fetched while the launches before this one still run: that is for those that are too far
// behind the start of a step, and behind the last launch that wrote any of it, for either to be running.
#pragma once

#include "values.cuh"

namespace echoc {

inline constexpr int kPage = 16;
inline constexpr int kTilePositions = 64;

// The positions first..end-1 of a row's context that one part takes: whole tiles, the same whatever else is in a batch.
struct Share {
  int begin, end;

  Share(int position, int window, int split, int splits) {
    const int first = window && position >= window ? (position - window + 1) / kTilePositions : 0;
    const int tiles = position / kTilePositions + 1 - first;
    const int share = (tiles + splits - 1) / splits;
    begin = (first + split * share) * kTilePositions;
    end = begin + share * kTilePositions < position + 1 ? begin + share * kTilePositions : position + 1;
  }
};

// How many parts have positions.
inline int used_parts(int position, int window, int splits) {
  const int first = window && position >= window ? (position - window + 1) / kTilePositions : 0;
  const int tiles = position / kTilePositions + 1 - first;
  const int share = (tiles + splits - 1) / splits;
  return (tiles + share - 1) / share;
}

// How entries are held: `kScaled` ones as codes, of which the greatest is `kGreatest`, `kUnit` times smaller than what
// `value` gives times their scale.
template <class KV>
struct Entry {
  static constexpr bool kScaled = false;
  static constexpr float kGreatest = 1.0f, kUnit = 1.0f;
  static bf16_t code(float x, bf16_t) { return to_bf16(x); }
  static f16_t code(float x, f16_t) { return to_f16(x); }
  static float code(float x, float) { return x; }
  static float value(KV x) { return to_float(x); }
};

template <>
struct Entry<i8_t> {
  static constexpr bool kScaled = true;
  static constexpr float kGreatest = 127.0f, kUnit = 1.0f;
  // The nearest integer; the limits keep the product before them from being fused with the sum.
  static i8_t code(float x, i8_t) {
    x = x < 127.0f ? x : 127.0f;
    x = x > -127.0f ? x : -127.0f;
    return i8_t{static_cast<int8_t>(__builtin_bit_cast(int, x + 12582912.0f))};
  }
  static float value(i8_t x) { return x.bits; }
};

template <>
struct Entry<f8_t> {
  static constexpr bool kScaled = true;
  static constexpr float kGreatest = 448.0f, kUnit = 256.0f;
  static f8_t code(float x, f8_t) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    float size = bits_to_float(bits & 0x7fffffffu);
    size = size < 448.0f ? size : 448.0f;
    const uint32_t wide = __builtin_bit_cast(uint32_t, size);
    const uint32_t normal = ((wide + 0x7ffffu + (wide >> 20 & 1u)) >> 20) - 960u;
    const uint32_t small = __builtin_bit_cast(uint32_t, size + 16384.0f) - 0x46800000u;
    return f8_t{static_cast<uint8_t>((size < 0.015625f ? small : normal) | (bits >> 24 & 0x80u))};
  }
  // Its bits are those of an f16 2^8 times smaller.
  static float value(f8_t x) {
    const uint32_t b = x.bits;
    return to_float(f16_t{static_cast<uint16_t>((b & 0x80u) << 8 | (b & 0x7fu) << 7)});
  }
};

template <class S, class KV>
struct Attend {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = 8;
  static constexpr int kEach = 16 / sizeof(KV);  // elements of one access
  // Rows of a tile lie so far apart that the lanes of one access fall into different banks.
  static constexpr int kKeyPitch = (S::kDim * int(sizeof(KV)) + 127) / 128 * 128 + 64;
  static constexpr int kValuePitch = S::kValueDim * int(sizeof(KV));
  static constexpr int kKeyBytes = kTilePositions * kKeyPitch;
  static constexpr bool kScaled = Entry<KV>::kScaled;
  static constexpr int kCodeBytes = kKeyBytes + kTilePositions * kValuePitch;
  static constexpr int kScaleBytes = kScaled ? 2 * kTilePositions * 4 : 0;  // of keys, then of values
  static constexpr int kTileBytes = (kCodeBytes + kScaleBytes + 127) / 128 * 128;
  static constexpr int kPairs = S::kValueDim / 2;
  static constexpr int kTeams = kThreads / kPairs;  // of threads that share out positions
  static constexpr int kMade = S::kRows * (S::kDim + S::kValueDim + (kScaled ? 4 : 0));
  static constexpr int kSums = kTeams * S::kGroup * S::kValueDim;
  static constexpr int kFloats = S::kGroup * (S::kDim + kTilePositions + 3) + kMade;
  static constexpr int kWork = (kFloats * 4 + 127) / 128 * 128;
  static constexpr int kAhead = S::kBuffers - 1;  // tiles on their way
  static constexpr int kBytes = kWork + (S::kBuffers * kTileBytes > kSums * 4 ? S::kBuffers * kTileBytes : kSums * 4);

  static_assert(S::kDim % kEach == 0 && S::kValueDim % kEach == 0 && S::kValueDim <= 512 && S::kGroup <= 16);

  float* q;       // [group][dim], scaled
  float* scores;  // [group][64]
  float* top;     // [group]
  float* total;   // [group]
  float* keep;    // [group]
  float* keys;    // [rows][dim], made here
  float* values;  // [rows][value dim]
  float* scales;  // [rows][2], of keys and values made here
  float* inverses;
  char* tiles;

  explicit Attend(char* shared) {
    q = reinterpret_cast<float*>(shared);
    scores = q + S::kGroup * S::kDim;
    top = scores + S::kGroup * kTilePositions;
    total = top + S::kGroup;
    keep = total + S::kGroup;
    keys = keep + S::kGroup;
    values = keys + S::kRows * S::kDim;
    scales = values + S::kRows * S::kValueDim;
    inverses = scales + 2 * S::kRows;
    tiles = shared + kWork;
  }

  // Entries of `head` in a page, in elements.
  static int64_t piece(int page, int head, int dim) {
    return (int64_t(page) * S::kKvHeads + head) * kPage * (dim + (kScaled ? 4 : 0));
  }
  static int64_t place(int page, int slot, int head, int dim) { return piece(page, head, dim) + slot * dim; }

  // The pages of one tile.
  struct Pages {
    int id[kTilePositions / kPage];

    int of(int position) const {
      int out = id[0];
#pragma unroll
      for (int i = 1; i < kTilePositions / kPage; ++i) out = position / kPage == i ? id[i] : out;
      return out;
    }
  };

  // Asked for a tile before they are needed: a copy that waits for its page makes the block wait.
  template <class Table>
  static Pages pages(const Table& table, int64_t row, int start, const Share& share) {
    Pages out;
#pragma unroll
    for (int i = 0; i < kTilePositions / kPage; ++i)
      out.id[i] = start + i * kPage < share.end ? table[row + start / kPage + i] : 0;
    return out;
  }

  void fetch(int buffer, int start, const Share& share, const Pages& pages, int head, const KV* k, const KV* v) {
    if (start < share.end) {
      char* to = tiles + buffer * kTileBytes;
      constexpr int kKeys = S::kDim / kEach, kValues = S::kValueDim / kEach;
      const int count = share.end - start < kTilePositions ? share.end - start : kTilePositions;
#pragma unroll 4
      for (int i = threadIdx.x; i < count * kKeys; i += kThreads) {
        const int p = i / kKeys, e = i % kKeys;
        async_copy16(to + p * kKeyPitch + e * 16, k + place(pages.of(p), p % kPage, head, S::kDim) + e * kEach);
      }
#pragma unroll 4
      for (int i = threadIdx.x; i < count * kValues; i += kThreads) {
        const int p = i / kValues, e = i % kValues;
        async_copy16(to + kKeyBytes + p * kValuePitch + e * 16,
                     v + place(pages.of(p), p % kPage, head, S::kValueDim) + e * kEach);
      }
      if constexpr (kScaled) {  // four copies for the scales of a page's keys, four for those of its values
        const int i = threadIdx.x, at = i / 8, part = i % 4;
        const bool second = i / 4 % 2;
        if (at * kPage < count) {
          const int page = pages.of(at * kPage);
          const KV* from = second ? v + piece(page, head, S::kValueDim) + kPage * S::kValueDim
                                  : k + piece(page, head, S::kDim) + kPage * S::kDim;
          async_copy16(to + kCodeBytes + (second ? kTilePositions * 4 : 0) + at * 64 + part * 16, from + part * 16);
        }
      }
    }
    async_commit();
  }

  // `vector(which, r, head, out)` has a warp compute q (0), k (1) or v (2) of row r; `weigh(score, head, kpos)` gives
  // the score in units of log 2; `result(head, d, sum)` and `bounds(head, top, total)` take the part.
  template <class Row, class Table, class Vector, class Weigh, class Result, class Bounds>
  void run(const Row& sequences, const Row& positions, const Table& table, int blocks, void* k_state, void* v_state,
           Vector vector, Weigh weigh, Result result, Bounds bounds) {
    KV* const k = static_cast<KV*>(k_state);
    KV* const v = static_cast<KV*>(v_state);
    const int head = blockIdx.x, split = blockIdx.y, t = blockIdx.z, warp = threadIdx.x / 32;
    if constexpr (!S::kEarly) wait_dependencies();
    const int sequence = sequences[t], position = positions[t];
    const Share share(position, S::kWindow, split, S::kSplits);
    const int64_t row = int64_t(sequence) * blocks;
    {
      Pages first[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) first[i] = pages(table, row, share.begin + i * kTilePositions, share);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) fetch(i, share.begin + i * kTilePositions, share, first[i], head, k, v);
    }
    Pages soon = pages(table, row, share.begin + kAhead * kTilePositions, share);
    if constexpr (S::kEarly) wait_dependencies();
    if (share.begin >= share.end) return;
    int at[S::kRows];  // positions of the rows of this sequence up to this one, else -1
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
      at[r] = r <= t && sequences[r <= t ? r : t] == sequence ? positions[r <= t ? r : t] : -1;
    for (int i = warp; i < S::kGroup + 2 * S::kRows; i += kWarps) {
      if (i < S::kGroup) {
        vector(0, t, head * S::kGroup + i, q + i * S::kDim);
      } else {
        const int r = (i - S::kGroup) / 2, which = (i - S::kGroup) % 2;
        if (r > t || at_row(at, r) < 0) continue;
        if (which == 0)
          vector(1, r, head, keys + r * S::kDim);
        else
          vector(2, r, head, values + r * S::kValueDim);
        if constexpr (kScaled)
          measure(i - S::kGroup, which == 0 ? keys + r * S::kDim : values + r * S::kValueDim,
                  which == 0 ? S::kDim : S::kValueDim);
      }
    }
    for (int i = threadIdx.x; i < S::kGroup; i += kThreads)
      top[i] = -std::numeric_limits<float>::infinity(), total[i] = 0;
    block_sync();
    if (split == 0) {
      const int page = table[row + position / kPage], slot = position % kPage;
      for (int d = threadIdx.x; d < S::kDim; d += kThreads)
        k[place(page, slot, head, S::kDim) + d] = code(keys[t * S::kDim + d], 2 * t);
      for (int d = threadIdx.x; d < S::kValueDim; d += kThreads)
        v[place(page, slot, head, S::kValueDim) + d] = code(values[t * S::kValueDim + d], 2 * t + 1);
      if constexpr (kScaled) {
        if (threadIdx.x < 2) {
          const int dim = threadIdx.x ? S::kValueDim : S::kDim;
          auto* at_scales = reinterpret_cast<float*>((threadIdx.x ? v : k) + piece(page, head, dim) + kPage * dim);
          at_scales[slot] = scales[2 * t + threadIdx.x];
        }
      }
    }
    const int pair = threadIdx.x % kPairs, team = threadIdx.x / kPairs;
    float acc[S::kGroup][2] = {};
    int buffer = 0, free = kAhead;
    for (int start = share.begin; start < share.end; start += kTilePositions) {
      async_wait<kAhead - 1>();
      block_sync();
      const int next = start + kAhead * kTilePositions;
      fetch(free, next, share, soon, head, k, v);
      soon = pages(table, row, next + kTilePositions, share);
      char* tile = tiles + buffer * kTileBytes;
      insert(tile, start, share.end, at);
      block_sync();
      score(tile, start, share.end, position, head, weigh);
      block_sync();
      soften(reinterpret_cast<const float*>(tile + kCodeBytes) + kTilePositions,
             share.end - start < kTilePositions ? share.end - start : kTilePositions);
      block_sync();
      const int count = share.end - start < kTilePositions ? share.end - start : kTilePositions;
      if (team < kTeams) {
#pragma unroll
        for (int g = 0; g < S::kGroup; ++g) acc[g][0] *= keep[g], acc[g][1] *= keep[g];
        for (int p = team; p < count; p += kTeams) {
          const KV* from = reinterpret_cast<const KV*>(tile + kKeyBytes + p * kValuePitch) + pair * 2;
          const float a = Entry<KV>::value(from[0]), c = Entry<KV>::value(from[1]);
#pragma unroll
          for (int g = 0; g < S::kGroup; ++g) {
            const float w = scores[g * kTilePositions + p];
            acc[g][0] += w * a;
            acc[g][1] += w * c;
          }
        }
      }
      buffer = buffer + 1 < S::kBuffers ? buffer + 1 : 0;
      free = free + 1 < S::kBuffers ? free + 1 : 0;
    }
    async_wait<0>();
    block_sync();
    auto* sums = reinterpret_cast<float*>(tiles);
    if (team < kTeams)
#pragma unroll
      for (int g = 0; g < S::kGroup; ++g)
        for (int j = 0; j < 2; ++j) sums[(team * S::kGroup + g) * S::kValueDim + pair * 2 + j] = acc[g][j];
    block_sync();
    for (int i = threadIdx.x; i < S::kGroup * S::kValueDim; i += kThreads) {
      float sum = 0;
      for (int m = 0; m < kTeams; ++m) sum += sums[m * S::kGroup * S::kValueDim + i];
      result(head * S::kGroup + i / S::kValueDim, i % S::kValueDim, sum);
    }
    for (int g = threadIdx.x; g < S::kGroup; g += kThreads) bounds(head * S::kGroup + g, top[g], total[g]);
  }

  static int at_row(const int (&at)[S::kRows], int r) {
    int out = -1;
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) out = i == r ? at[i] : out;
    return out;
  }

  // The entries made here, rounded as the state rounds them, over what the tile has in their places.
  void insert(char* tile, int start, int end, const int (&at)[S::kRows]) {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int p = at[r] - start;
      if (at[r] < start || at[r] >= end || p >= kTilePositions) continue;
      for (int d = threadIdx.x; d < S::kDim; d += kThreads)
        reinterpret_cast<KV*>(tile + p * kKeyPitch)[d] = code(keys[r * S::kDim + d], 2 * r);
      for (int d = threadIdx.x; d < S::kValueDim; d += kThreads)
        reinterpret_cast<KV*>(tile + kKeyBytes + p * kValuePitch)[d] = code(values[r * S::kValueDim + d], 2 * r + 1);
      if constexpr (kScaled) {
        if (threadIdx.x < 2)
          reinterpret_cast<float*>(tile + kCodeBytes)[threadIdx.x * kTilePositions + p] = scales[2 * r + threadIdx.x];
      }
    }
  }

  KV code(float x, int made) const {
    if constexpr (kScaled) {
      const float inverse = inverses[made];
      x = inverse == 0.0f ? 0.0f : x * inverse;
    }
    return Entry<KV>::code(x, KV());
  }

  // The scale of a vector that this warp has just made.
  void measure(int made, const float* vector, int dim) {
    warp_sync();
    uint32_t most = 0;  // the order of sizes is that of their bits, NaN last
    for (int d = threadIdx.x % 32; d < dim; d += 32) {
      const uint32_t size = __builtin_bit_cast(uint32_t, vector[d]) & 0x7fffffffu;
      most = size > most ? size : most;
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      const uint32_t other = __builtin_bit_cast(uint32_t, shuffle_xor(bits_to_float(most), o));
      most = other > most ? other : most;
    }
    if (threadIdx.x % 32 == 0) {
      const bool small = most < 0x0d800000u;
      const float scale = small ? 0.0f : bits_to_float(most) * (1.0f / Entry<KV>::kGreatest);
      scales[made] = scale;
      inverses[made] = small || most >= 0x7f800000u ? 0.0f : 1.0f / scale;
    }
  }

  // Four lanes a position.
  template <class Weigh>
  void score(const char* tile, int start, int end, int position, int head, Weigh weigh) {
    const int p = threadIdx.x / 4, lane = threadIdx.x % 4, kpos = start + p;
    float acc[S::kGroup] = {};
    for (int i = lane; i < S::kDim / kEach; i += 4) {
      KV piece[kEach];
      memcpy(piece, __builtin_assume_aligned(tile + p * kKeyPitch + i * 16, 16), 16);
#pragma unroll
      for (int g = 0; g < S::kGroup; ++g)
#pragma unroll
        for (int j = 0; j < kEach; ++j) acc[g] += Entry<KV>::value(piece[j]) * q[g * S::kDim + i * kEach + j];
    }
    const float unit = kScaled ? reinterpret_cast<const float*>(tile + kCodeBytes)[p] * Entry<KV>::kUnit : 1.0f;
#pragma unroll
    for (int g = 0; g < S::kGroup; ++g) {
      acc[g] += shuffle_xor(acc[g], 1);
      acc[g] += shuffle_xor(acc[g], 2);
      if constexpr (kScaled) acc[g] *= unit;
      if (g % 4 == lane) {
        const bool seen = kpos < end && (!S::kWindow || kpos > position - S::kWindow);
        scores[g * kTilePositions + p] =
            seen ? weigh(acc[g], head * S::kGroup + g, kpos) : -std::numeric_limits<float>::infinity();
      }
    }
  }

  // Scores of a tile become weights, those of its first `count` values times their scales; `keep` is what earlier sums
  // count from now on. A warp a head.
  void soften([[maybe_unused]] const float* scale, [[maybe_unused]] int count) {
    const int lane = threadIdx.x % 32;
    for (int g = threadIdx.x / 32; g < S::kGroup; g += kWarps) {
      float* s = scores + g * kTilePositions;
      const float a = s[lane], c = s[lane + 32], before = top[g];
      float most = a > c ? a : c;
#pragma unroll
      for (int o = 16; o; o >>= 1) {
        const float other = shuffle_xor(most, o);
        most = most > other ? most : other;
      }
      most = most > before ? most : before;
      const float base = most == -std::numeric_limits<float>::infinity() ? 0.0f : most;
      const float p = exp2f(a - base), r = exp2f(c - base), sum = warp_sum(p + r), factor = exp2f(before - base);
      if constexpr (kScaled) {
        s[lane] = lane < count ? p * (scale[lane] * Entry<KV>::kUnit) : 0.0f;
        s[lane + 32] = lane + 32 < count ? r * (scale[lane + 32] * Entry<KV>::kUnit) : 0.0f;
      } else {
        s[lane] = p;
        s[lane + 32] = r;
      }
      warp_sync();
      if (lane == 0) {
        top[g] = most;
        keep[g] = factor;
        total[g] = total[g] * factor + sum;
      }
    }
  }
};

// Four columns of a row of merged parts: `row` counts heads of all rows, `d` is a multiple of four, `used` parts are
// there. A sink is one more logit, in natural units.
template <int kSplits, int kValueDim>
inline void merge_parts(float (&out)[4], const float* partial, const float* bounds, int64_t row, int d, int used,
                        float sink) {
  struct alignas(8) Bound {
    float top, total;
  };
  Bound each[kSplits];
  Four<float> parts[kSplits];
#pragma unroll
  for (int s = 0; s < kSplits; ++s) {
    each[s] = Bound{-std::numeric_limits<float>::infinity(), 0.0f};
    parts[s] = Four<float>{{0.0f, 0.0f, 0.0f, 0.0f}};
    if (s < used) {
      each[s] = load_fresh(reinterpret_cast<const Bound*>(bounds) + row * kSplits + s);
      parts[s] = load_fresh(reinterpret_cast<const Four<float>*>(partial + (row * kSplits + s) * kValueDim + d));
    }
  }
  float most = sink * 1.4426950408889634f;
#pragma unroll
  for (int s = 0; s < kSplits; ++s) most = most > each[s].top ? most : each[s].top;
  const float base = most == -std::numeric_limits<float>::infinity() ? 0.0f : most;
  float total = exp2f(sink * 1.4426950408889634f - base);
#pragma unroll
  for (int j = 0; j < 4; ++j) out[j] = 0;
#pragma unroll
  for (int s = 0; s < kSplits; ++s) {
    const float weight = exp2f(each[s].top - base);
    total += each[s].total * weight;
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j] += parts[s].at[j] * weight;
  }
  const float inverse = total == 0 ? 0.0f : 1.0f / total;
#pragma unroll
  for (int j = 0; j < 4; ++j) out[j] *= inverse;
}

}  // namespace echoc
