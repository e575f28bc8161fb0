// Products of a few rows of x with a weight [N, K], the weight streamed through a ring of stages in shared memory.
//
// A block owns a range of units (a unit is one row of each sister weight) and takes them in tiles of up to 16 weight
// rows. A stage is a tile's rows by `kWidth` columns. `kWarps` warps share each stage, every one taking every so
// many'th block of 32 columns; tensor cores multiply 16 weight rows by 8 columns: up to four rows of x, each as the
// bf16 nearest it and, where `kSplit`, as the bf16 nearest the rest, so that x keeps 16 bits of mantissa. For integer
// weights x is integer too: every 32 columns of a row have a scale, and a value is two bytes, the second counting 254
// times less, so that x keeps 15 bits of the block's largest. Partial sums of the warps meet in shared memory, and
// `epilogue(t, unit, sums of the sisters, what ahead(t, unit) read)` runs once for every row of x and unit.
//
// From sm_90 on further warps feed the ring with bulk copies, at most `kInFlight` stages at a time: deeper queues delay
// the small reads that the next launch waits for. Before that, the warps copy for themselves.
#pragma once

#include "weights.cuh"

namespace echoc {

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

template <class S>
struct Gemv {
  static constexpr int kWarps = S::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTile = S::kHeight / S::kSisters;  // units
  static constexpr int kStages = (S::kK + S::kWidth - 1) / S::kWidth;
  static constexpr bool kIntegers = S::kGroup != 0;
  using Weights = Eight<S::kBits, kIntegers>;
  static constexpr int kColumns = S::kSplit || kIntegers ? 2 * S::kRows : S::kRows;
  static constexpr int kLane = Weights::kBytes;
  // Rows of a stage lie so far apart that the lanes of one access fall into different banks.
  static constexpr int kPitch = round_up(S::kWidth * S::kBits / 8, 128) + 4 * kLane;
  static constexpr int kRowBytes = S::kK * S::kBits / 8;
  static constexpr int kScales = S::kGroup ? S::kK / S::kGroup : 0;
  static constexpr int kScalePitch = S::kGroup ? round_up(S::kWidth / S::kGroup * 2, 16) : 0;
  static constexpr int kSlot = round_up(S::kHeight * (kPitch + kScalePitch), 128);
  static constexpr int kSums = S::kHeight * S::kRows;

  struct Block {  // of 32 columns of a row of x
    float scale;
    int32_t offset;  // what the weights' offset adds to a sum, negative
  };
  static constexpr int kBlockBytes = kIntegers ? round_up(S::kK / 32 * S::kRows * 8, 128) : 0;
  static constexpr int kXBytes = round_up(S::kK * kColumns * (kIntegers ? 1 : 2), 128) + kBlockBytes;
  static constexpr int kSumBytes = round_up(2 * kWarps * kSums * 4, 128);
  static constexpr int kBytes = kXBytes + kSumBytes + 256 + S::kSlots * kSlot;

  static_assert(S::kHeight <= 16 && S::kHeight % S::kSisters == 0 && S::kRows <= 4 && S::kK % 32 == 0);
  static_assert(kWarps <= 16 && S::kWidth % 32 == 0 && S::kSlots >= 2 && S::kSlots <= 12);
  static_assert(!S::kGroup || (S::kGroup % 32 == 0 && S::kWidth % (8 * S::kGroup) == 0 && kScales % 8 == 0));

  char* x;
  float* sums;
  float* scratch;  // a float a warp
  uint64_t* full;
  uint64_t* empty;
  char* slots;
  int begin, end;  // units of this block

  explicit Gemv(char* shared)
      : x(shared),
        sums(reinterpret_cast<float*>(shared + kXBytes)),
        scratch(reinterpret_cast<float*>(shared + kXBytes + kSumBytes)),
        full(reinterpret_cast<uint64_t*>(shared + kXBytes + kSumBytes + 64)),
        empty(full + S::kSlots),
        slots(shared + kXBytes + kSumBytes + 256) {
    begin = static_cast<int>(static_cast<int64_t>(S::kUnits) * blockIdx.x / gridDim.x);
    end = static_cast<int>(static_cast<int64_t>(S::kUnits) * (blockIdx.x + 1) / gridDim.x);
  }

  int tiles() const { return (end - begin + kTile - 1) / kTile; }
  static int width(int stage) { return stage + 1 < kStages || S::kK % S::kWidth == 0 ? S::kWidth : S::kK % S::kWidth; }

#if __CUDA_ARCH__ >= 900
  void start() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < S::kSlots; ++i) {
        mbarrier_init(full + i, S::kFeeders);
        mbarrier_init(empty + i, kWarps);
      }
      mbarrier_publish();
    }
    block_sync();
  }

  // The warps behind the others: each takes every `kFeeders`th row, a lane a row. `row(unit, sister)` points to a
  // weight row, `scales(unit, sister)` to its scales.
  template <class Row, class Scales>
  void produce(Row row, Scales scales) {
    const int lane = threadIdx.x % 32, feeder = threadIdx.x / 32 - kWarps;
    const int r = lane % 16 * S::kFeeders + feeder;
    const bool scaling = lane >= 16;
    const uint64_t policy = read_once();
    int slot = 0, oldest = 0, issued = 0;
    uint32_t phase = 0, oldest_phase = 0;
    for (int first = begin; first < end; first += kTile) {
      const int units = end - first < kTile ? end - first : kTile;
      const int unit = first + r % kTile, sister = r / kTile;
      const bool mine = r < S::kHeight && r % kTile < units && (S::kGroup || !scaling);
      const char* from = mine ? scaling ? scales(unit, sister) : row(unit, sister) : nullptr;
      int rows = 0;  // of this warp
#pragma unroll
      for (int i = 0; i < S::kHeight; ++i) rows += i % S::kFeeders == feeder && i % kTile < units;
      for (int stage = 0; stage < kStages; ++stage) {
        const int bytes = width(stage) * S::kBits / 8;
        const int scale_bytes = S::kGroup ? width(stage) / (S::kGroup ? S::kGroup : 1) * 2 : 0;
        if (issued++ >= S::kInFlight) {
          mbarrier_wait(full + oldest, oldest_phase);
          if (++oldest == S::kSlots) oldest = 0, oldest_phase ^= 1;
        }
        mbarrier_wait(empty + slot, phase ^ 1);
        if (lane == 0) mbarrier_expect(full + slot, rows * (bytes + scale_bytes));
        warp_sync();
        char* to = slots + slot * kSlot;
        if (mine && !scaling)
          bulk_copy(to + r * kPitch, from + stage * (S::kWidth * S::kBits / 8), bytes, full + slot, policy);
        if (S::kGroup && mine && scaling)
          bulk_copy(to + S::kHeight * kPitch + r * kScalePitch,
                    from + stage * (S::kWidth / (S::kGroup ? S::kGroup : 1) * 2), scale_bytes, full + slot, policy);
        if (++slot == S::kSlots) slot = 0, phase ^= 1;
      }
    }
  }
#else
  // One stage of the ring by all threads, 16 bytes each; every call is one group.
  template <class Row, class Scales>
  void fetch(int step, Row row, Scales scales) {
    if (step < tiles() * kStages) {
      const int first = begin + step / kStages * kTile, stage = step % kStages;
      const int units = end - first < kTile ? end - first : kTile;
      const int pieces = width(stage) * S::kBits / 128;
      char* to = slots + step % S::kSlots * kSlot;
      for (int i = threadIdx.x; i < S::kHeight * pieces; i += kThreads) {
        const int r = i / pieces, piece = i % pieces;
        if (r % kTile < units)
          async_copy16(to + r * kPitch + piece * 16,
                       row(first + r % kTile, r / kTile) + stage * (S::kWidth * S::kBits / 8) + piece * 16);
      }
      if constexpr (S::kGroup != 0) {
        const int parts = width(stage) / S::kGroup / 8;
        for (int i = threadIdx.x; i < S::kHeight * parts; i += kThreads) {
          const int r = i / parts, part = i % parts;
          if (r % kTile < units)
            async_copy16(to + S::kHeight * kPitch + r * kScalePitch + part * 16,
                         scales(first + r % kTile, r / kTile) + stage * (S::kWidth / S::kGroup * 2) + part * 16);
        }
      }
    }
    async_commit();
  }

  template <class Row, class Scales>
  void start(Row row, Scales scales) {
    for (int i = 0; i + 1 < S::kSlots; ++i) fetch(i, row, scales);
  }
#endif

  // Four neighbours of row t of x, from column k (a multiple of four) on, to where tensor cores read them.
  void put(int t, int k, const float (&v)[4]) {
    if constexpr (kIntegers)
      quantise(t, k, v);
    else
      split(t, k, v);
  }

  void split(int t, int k, const float (&v)[4]) {
    auto* words = reinterpret_cast<uint32_t*>(x) + k / 32 * kColumns * 16;
    if constexpr (S::kSplit) {
      float rest[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) rest[j] = v[j] - to_float(to_bf16(v[j]));
      Weights::put(words + (2 * t + 1) * 16, k % 32, rest);
    }
    Weights::put(words + (S::kSplit ? 2 * t : t) * 16, k % 32, v);
  }

  Block* blocks() const { return reinterpret_cast<Block*>(x + kXBytes - kBlockBytes); }

  // The same in bytes, by all lanes of a warp together. Sizes are compared as integers: a NaN is the largest.
  void quantise(int t, int k, const float (&v)[4]) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: in a sum with it the low bits are the nearest integer
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t size = float_to_bits(v[j]) & 0x7fffffffu;
      most = most < size ? size : most;
    }
#pragma unroll
    for (int o = 1; o < 8; o <<= 1) {
      const uint32_t size = float_to_bits(shuffle_xor(bits_to_float(most), o));
      most = most < size ? size : most;
    }
    const float size = bits_to_float(most), inverse = size > 1e-30f ? 127.0f / size : 0.0f;
    uint32_t high = 0, low = 0;
    float total = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float value = v[j] * inverse, whole = value + kRound, rest = (value - (whole - kRound)) * 254.0f + kRound;
      high |= (float_to_bits(whole) & 0xffu) << 8 * j;
      low |= (float_to_bits(rest) & 0xffu) << 8 * j;
      total += (whole - kRound) * 254.0f + (rest - kRound);
    }
    auto* words = reinterpret_cast<uint32_t*>(x) + (k / 32 * kColumns + 2 * t) * 8 + Weights::word(k % 32);
    words[0] = high;
    words[8] = low;
    if constexpr (Weights::kOffset != 0) {
#pragma unroll
      for (int o = 1; o < 8; o <<= 1) total += shuffle_xor(total, o);
    }
    if (threadIdx.x % 8 == 0)
      blocks()[k / 32 * S::kRows + t] = {size / (127.0f * 254.0f), -Weights::kOffset * static_cast<int32_t>(total)};
  }

  // All threads but those that feed: the sum over the block.
  float block_sum(float v) {
    v = warp_sum(v);
    barrier(1, kThreads);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    barrier(1, kThreads);
    float out = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) out += scratch[i];
    return out;
  }

  void multiply(const char* slot, int stage, float (&acc)[4]) {
    if constexpr (kIntegers)
      multiply_integers(slot, stage, acc);
    else
      multiply_floats(slot, stage, acc);
  }

  void multiply_floats(const char* slot, int stage, float (&acc)[4]) {
    const int lane = threadIdx.x % 32, quad = lane % 4;
    const int upper = lane / 4 < S::kHeight ? lane / 4 : S::kHeight - 1;
    const int lower = lane / 4 + 8 < S::kHeight ? lane / 4 + 8 : S::kHeight - 1;
    const char* a = slot + upper * kPitch + quad * kLane;
    const char* c = slot + lower * kPitch + quad * kLane;
    const int column = S::kSplit ? lane / 4 % kColumns : lane / 8 % kColumns;
    const bool zero = !S::kSplit && lane / 4 % 2;
    const char* b = x + stage * (S::kWidth / 32) * kColumns * 64 + (column * 4 + quad) * 16;
    const int blocks = width(stage) / 32;
#pragma unroll 4
    for (int i = threadIdx.x / 32; i < blocks; i += kWarps) {
      uint32_t p[4], q[4] = {0, 0, 0, 0}, v[4];
      Weights::load(p, a + i * (4 * kLane));
      if constexpr (S::kHeight > 8) Weights::load(q, c + i * (4 * kLane));
      memcpy(v, __builtin_assume_aligned(b + i * (kColumns * 64), 16), 16);
      if (zero) v[0] = v[1] = v[2] = v[3] = 0;
      mma_bf16(acc, p[0], q[0], p[1], q[1], v[0], v[1]);
      mma_bf16(acc, p[2], q[2], p[3], q[3], v[2], v[3]);
    }
  }

  // A lane's column of sums is of first bytes, the next one of second bytes of the same row of x.
  void multiply_integers(const char* slot, int stage, float (&acc)[4]) {
    const int lane = threadIdx.x % 32, quad = lane % 4;
    const int upper = lane / 4 < S::kHeight ? lane / 4 : S::kHeight - 1;
    const int lower = lane / 4 + 8 < S::kHeight ? lane / 4 + 8 : S::kHeight - 1;
    const char* a = slot + upper * kPitch + quad * kLane;
    const char* c = slot + lower * kPitch + quad * kLane;
    const auto* scale = reinterpret_cast<const f16_t*>(slot + S::kHeight * kPitch);
    const auto* s = scale + upper * (kScalePitch / 2);
    const auto* r = scale + lower * (kScalePitch / 2);
    const int first = stage * (S::kWidth / 32);
    const char* b = x + (first * kColumns + lane / 4 % kColumns) * 32 + quad * 8;
    const Block* block = blocks() + first * S::kRows + (quad < S::kRows ? quad : S::kRows - 1);
    const int count = width(stage) / 32;
#pragma unroll 4
    for (int i = threadIdx.x / 32; i < count; i += kWarps) {
      uint32_t p[2], q[2] = {0, 0}, v[2];
      int32_t sum[4] = {0, 0, 0, 0};
      Weights::load(p, a + i * (4 * kLane));
      if constexpr (S::kHeight > 8) Weights::load(q, c + i * (4 * kLane));
      memcpy(v, __builtin_assume_aligned(b + i * (kColumns * 32), 8), 8);
      Weights::multiply(sum, p, q, v);
      const Block of = block[i * S::kRows];
      const int g = i / (S::kGroup / 32);
      acc[0] += static_cast<float>(sum[0] * 254 + sum[1] + of.offset) * (to_float(s[g]) * of.scale);
      if constexpr (S::kHeight > 8)
        acc[2] += static_cast<float>(sum[2] * 254 + sum[3] + of.offset) * (to_float(r[g]) * of.scale);
    }
  }

  // What the epilogue of a tile will read from memory is read before the tile is.
  template <class Ahead>
  void look_ahead(int tile, int rows, float (&early)[S::kEarly + 1], Ahead ahead) {
    const int i = threadIdx.x, row = i / kTile, unit = begin + tile * kTile + i % kTile;
    if (S::kEarly && row < rows && i < kTile * S::kRows && unit < end) ahead(row, unit, early);
  }

  // The partial sums of a tile by all warps, then its epilogue; sums are kept twice, so that one barrier a tile will
  // do.
  template <class Epilogue>
  void finish(int tile, int rows, const float (&acc)[4], const float (&early)[S::kEarly + 1], Epilogue epilogue) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4, r = lane / 4;
    float* mine = sums + (tile % 2 * kWarps + warp) * kSums;
    if (t < S::kRows) {
      if (r < S::kHeight) mine[r * S::kRows + t] = acc[0] + acc[1];
      if (r + 8 < S::kHeight) mine[(r + 8) * S::kRows + t] = acc[2] + acc[3];
    }
    barrier(1, kThreads);
    const int i = threadIdx.x, row = i / kTile, unit = begin + tile * kTile + i % kTile;
    if (row < rows && i < kTile * S::kRows && unit < end) {
      float total[S::kSisters];
#pragma unroll
      for (int s = 0; s < S::kSisters; ++s) {
        const float* part = sums + tile % 2 * kWarps * kSums + (s * kTile + i % kTile) * S::kRows + row;
        total[s] = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total[s] += part[w * kSums];
      }
      epilogue(row, unit, total, early);
    }
  }

#if __CUDA_ARCH__ >= 900
  template <class Ahead, class Epilogue>
  void consume(int rows, Ahead ahead, Epilogue epilogue) {
    barrier(1, kThreads);  // x is complete
    int slot = 0;
    uint32_t phase = 0;
    for (int tile = 0; tile < tiles(); ++tile) {
      float acc[4] = {0, 0, 0, 0}, early[S::kEarly + 1];
      look_ahead(tile, rows, early, ahead);
      for (int stage = 0; stage < kStages; ++stage) {
        mbarrier_wait(full + slot, phase);
        multiply(slots + slot * kSlot, stage, acc);
        warp_sync();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + slot);
        if (++slot == S::kSlots) slot = 0, phase ^= 1;
      }
      finish(tile, rows, acc, early, epilogue);
    }
  }
#else
  template <class Row, class Scales, class Ahead, class Epilogue>
  void consume(int rows, Row row, Scales scales, Ahead ahead, Epilogue epilogue) {
    int step = 0;
    for (int tile = 0; tile < tiles(); ++tile) {
      float acc[4] = {0, 0, 0, 0}, early[S::kEarly + 1];
      look_ahead(tile, rows, early, ahead);
      for (int stage = 0; stage < kStages; ++stage, ++step) {
        async_wait<S::kSlots - 2>();
        block_sync();  // all have their part of this stage, and none reads the one before; x is complete
        fetch(step + S::kSlots - 1, row, scales);
        multiply(slots + step % S::kSlots * kSlot, stage, acc);
      }
      finish(tile, rows, acc, early, epilogue);
    }
    async_wait<0>();
  }
#endif
};

}  // namespace echoc
