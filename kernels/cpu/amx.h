// Intel AMX: multiplies blocks of up to 32 rows and 2 panels in tile registers.
//
// Tiles 0 to 3 hold results (0 and 1 of the first 16 rows, 2 and 3 of the second), 4 and 5 rows of x, 6 and 7 panels of
// w. A packed bf16 panel is a sequence of tiles as it lies, and so is an i8 one.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "layout.h"
#include "vec16.h"

namespace echoc::amx {

using layout::kAhead;
using vec16::f32x16;

// Whether the system lets this process use tiles; asks for it on first use.
inline bool available() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

// Shapes the tiles for blocks of first + second rows and `depth` bytes of k a tile. Leaves the tiles zero.
inline void configure(int64_t first, int64_t second, int64_t depth) {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const auto shape = [&](int tile, int64_t rows, int64_t column_bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.column_bytes[tile] = static_cast<uint16_t>(rows > 0 ? column_bytes : 0);
  };
  for (int i = 0; i < 2; ++i) {
    shape(i, first, 64);
    shape(2 + i, second, 64);
    shape(6 + i, depth / 4, 64);
  }
  shape(4, first, depth);
  shape(5, second, depth);
  _tile_loadconfig(&config);
}

// Frees the tile state, so that the core can sleep deeply and switches stay cheap.
inline void release() { _tile_release(); }

// The compiler's tile instructions do not all say that they read memory.
ECHOC_INLINE void fence() { asm volatile("" ::: "memory"); }

// Where a block lies: x at its first row and k, panels at the same k.
struct Block {
  const std::byte* x;
  int64_t x_stride;
  const std::byte* w[2];
  int64_t steps;  // of 32 k
  float* acc[2];
  int64_t ld;
  bool resume;  // add to what acc holds
  // What later blocks read, to be brought into the second-level cache meanwhile, a share of it every step.
  const std::byte* next_w[2];
  int64_t next_lines;  // of each next_w a step
  const std::byte* next_x;
  int64_t next_rows;
};

ECHOC_INLINE void prefetch_next(const Block& b, int64_t step) {
  for (int64_t i = 0; i < b.next_lines; ++i) {
    __builtin_prefetch(b.next_w[0] + (step * b.next_lines + i) * 64, 0, 2);
    __builtin_prefetch(b.next_w[1] + (step * b.next_lines + i) * 64, 0, 2);
  }
  for (int64_t i = 0; i < b.next_rows; ++i) __builtin_prefetch(b.next_x + i * b.x_stride + step * 64, 0, 2);
}

// One block of bf16: rows of tile 0 (and of tile 2 when Tall) times one panel (two when Wide). k ascends in steps of
// 32 in one chain, through memory or not, so that a result does not depend on how blocks were cut.
template <bool Tall, bool Wide>
void block_bf16(const Block& b) {
  const int64_t acc_stride = b.ld * static_cast<int64_t>(sizeof(float));
  fence();
  if (b.resume) {
    _tile_loadd(0, b.acc[0], acc_stride);
    if constexpr (Wide) _tile_loadd(1, b.acc[1], acc_stride);
    if constexpr (Tall) _tile_loadd(2, b.acc[0] + 16 * b.ld, acc_stride);
    if constexpr (Tall && Wide) _tile_loadd(3, b.acc[1] + 16 * b.ld, acc_stride);
  } else {
    _tile_zero(0);
    if constexpr (Wide) _tile_zero(1);
    if constexpr (Tall) _tile_zero(2);
    if constexpr (Tall && Wide) _tile_zero(3);
  }
  const std::byte* x = b.x;
  for (int64_t s = 0; s < b.steps; ++s, x += 64) {
    _tile_loadd(4, x, b.x_stride);
    _tile_loadd(6, b.w[0] + s * 1024, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Tall && Wide) {
      prefetch_next(b, s);
    } else {
      vec16::unroll<16>([&](auto i) ECHOC_INLINE_LAMBDA { __builtin_prefetch(b.w[0] + s * 1024 + kAhead + i * 64); });
    }
    if constexpr (Wide) {
      _tile_loadd(7, b.w[1] + s * 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (Tall) {
      _tile_loadd(5, x + 16 * b.x_stride, b.x_stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (Tall && Wide) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, b.acc[0], acc_stride);
  if constexpr (Wide) _tile_stored(1, b.acc[1], acc_stride);
  if constexpr (Tall) _tile_stored(2, b.acc[0] + 16 * b.ld, acc_stride);
  if constexpr (Tall && Wide) _tile_stored(3, b.acc[1] + 16 * b.ld, acc_stride);
  fence();
}

// Multiplies num_rows bf16 rows with num_panels panels. `panels` knows where they are:
// panels.read(p, step, steps, slot) returns [step, step + steps) of panel p as bf16 tiles, valid until the slot is
// read again; panels.at(p, step) is where the packed bytes of that part begin and panels.bytes(steps) their number.
// place(p) is where panel p's results go.
template <class Panels, class Place>
void multiply_bf16(const std::byte* x, int64_t x_stride, int64_t num_rows, int64_t num_panels, int64_t steps,
                   int64_t ld, const Panels& panels, Place&& place) {
  // Many rows: 16 KiB of a panel at a time, which all row blocks then find close by.
  constexpr int64_t kChunk = 16;
  const int64_t chunk = num_rows > 32 ? kChunk : steps;
  const int64_t width = num_rows > 16 ? 2 : 1;
  const auto sweep = [&](int64_t begin, int64_t end) {  // rows, in blocks of 32 or fewer of one height
    const int64_t height = std::min<int64_t>(32, end - begin);
    const int64_t blocks = (end - begin) / height;
    const int64_t pairs = (num_panels + width - 1) / width;
    configure(std::min<int64_t>(16, height), std::max<int64_t>(0, height - 16), 64);
    for (int64_t s = 0; s < steps; s += chunk) {
      for (int64_t p = 0; p < num_panels; p += width) {
        const bool wide = width == 2 && p + 1 < num_panels;
        const bool last = p + width >= num_panels;
        const int64_t next_s = s + chunk < steps ? s + chunk : 0;
        const int64_t next_p = last ? (next_s == 0 ? num_panels : 0) : p + width;
        Block b{};
        b.x_stride = x_stride;
        b.steps = std::min(chunk, steps - s);
        b.ld = ld;
        b.resume = s > 0;
        b.w[0] = panels.read(p, s, b.steps, 0);
        b.w[1] = wide ? panels.read(p + 1, s, b.steps, 1) : nullptr;
        b.next_lines = (panels.bytes(b.steps) / 64 + blocks * b.steps - 1) / (blocks * b.steps);
        b.next_rows = next_s == s ? 0 : std::max<int64_t>(1, height / pairs);
        for (int64_t i = 0; i < blocks; ++i) {
          const int64_t r = begin + i * height;
          b.x = x + r * x_stride + s * 64;
          b.acc[0] = place(p) + r * ld;
          b.acc[1] = wide ? place(p + 1) + r * ld : nullptr;
          for (int side = 0; side < 2; ++side)
            b.next_w[side] = panels.at(next_p + side, last ? next_s : s) + i * b.next_lines * b.steps * 64;
          b.next_x = x + (r + p / width * b.next_rows) * x_stride + next_s * 64;
          if (height > 16) {
            wide ? block_bf16<true, true>(b) : block_bf16<true, false>(b);
          } else {
            wide ? block_bf16<false, true>(b) : block_bf16<false, false>(b);
          }
        }
      }
    }
  };
  const int64_t whole = num_rows / 32 * 32;
  if (whole > 0) sweep(0, whole);
  if (whole < num_rows) sweep(whole, num_rows);
}

// Panels that are bf16 as they lie.
struct Bf16Panels {
  const std::byte* panels;
  int64_t panel_bytes;

  const std::byte* at(int64_t p, int64_t step) const { return panels + p * panel_bytes + step * 1024; }
  int64_t bytes(int64_t steps) const { return steps * 1024; }
  const std::byte* read(int64_t p, int64_t step, int64_t, int) const { return at(p, step); }
};

// Panels of f8, turned to bf16 as they are read; without their scales.
struct F8Panels {
  static constexpr int64_t kMostSteps = 16;

  const std::byte* panels;
  int64_t panel_bytes;
  std::byte* slots;  // 2 x kMostSteps KiB

  const std::byte* at(int64_t p, int64_t step) const { return panels + p * panel_bytes + step * 512; }
  int64_t bytes(int64_t steps) const { return steps * 512; }
  const std::byte* read(int64_t p, int64_t step, int64_t steps, int slot) const {
    std::byte* to = slots + slot * kMostSteps * 1024;
    const std::byte* from = at(p, step);
    for (int64_t i = 0; i < steps * 16; ++i) _mm512_store_si512(to + i * 64, vec16::bf16_of_f8(from + i * 32));
    return to;
  }
};

// Panels of i8 or i4, turned to bf16 as they are read. For many rows: the tiles then add up the whole of K by
// themselves, where integer groups would have to leave them, one by one, to be scaled.
template <int Bits>
struct DequantisedPanels {
  static constexpr int64_t kMostSteps = 16;

  const std::byte* panels;
  int64_t panel_bytes;
  int group;
  std::byte* slots;  // 2 x kMostSteps KiB

  const std::byte* at(int64_t p, int64_t step) const {
    return panels + p * panel_bytes + step * 32 / (2 * group) * layout::block_bytes(Bits, group);
  }
  int64_t bytes(int64_t steps) const { return steps * 32 / (2 * group) * layout::block_bytes(Bits, group); }

  const std::byte* read(int64_t p, int64_t step, int64_t steps, int slot) const {
    std::byte* to = slots + slot * kMostSteps * 1024;
    const std::byte* block = at(p, step);
    const int64_t group_bytes = layout::group_bytes(Bits, group);
    std::byte* out = to;
    for (int64_t g = 0; g < steps * 32 / group; ++g) {
      const std::byte* values = block + g % 2 * group_bytes;
      const f32x16 scale = vec16::load_f16(block + 2 * group_bytes + g % 2 * 32);
      const f32x16 zero = vec16::mul(scale, vec16::splat(static_cast<float>(-layout::offset_of(Bits))));
      for (int64_t i = 0; i < group_bytes; i += 64, out += 1024 / Bits)
        widen(_mm512_load_si512(values + i), scale, zero, out);
      if (g % 2 == 1) block += layout::block_bytes(Bits, group);
    }
    return to;
  }

 private:
  // The bf16 of stored * scale + zero for the bytes of a [16][4] vector, or for its low and then its high nibbles.
  static ECHOC_INLINE void widen(__m512i packed, f32x16 scale, f32x16 zero, std::byte* out) {
    const __m512i mask = _mm512_set1_epi32(Bits == 8 ? 0xff : 0xf);
    const auto value = [&](auto shift) ECHOC_INLINE_LAMBDA {
      const __m512i stored = _mm512_and_si512(_mm512_srli_epi32(packed, shift), mask);
      return vec16::fma(_mm512_cvtepi32_ps(stored), scale, zero);
    };
    vec16::unroll<16 / Bits>([&](auto pair) ECHOC_INLINE_LAMBDA {
      constexpr int kShift = Bits == 8 ? pair * 16 : pair % 2 * 16 + pair / 2 * 4;
      store_pairs(value(std::integral_constant<int, kShift>{}), value(std::integral_constant<int, kShift + 8>{}),
                  out + pair * 64);
    });
  }

  // [16][2] bf16 of even and odd k, rounded half up: as near as rounding to even, and cheaper.
  static ECHOC_INLINE void store_pairs(f32x16 even, f32x16 odd, std::byte* out) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    const __m512i top = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    _mm512_store_si512(out, _mm512_or_si512(low, _mm512_and_si512(high, top)));
  }
};

// Rows of int8 with their scales, and one panel of i8 or i4.
struct IntJob {
  const std::byte* rows;
  int64_t row_stride;
  int64_t scales;  // offsets in a row
  int64_t sums;
  const std::byte* panel;
  int64_t blocks;  // of two groups
  int group;
  float* acc;
  int64_t ld;
};

// [group/8][16][4] bytes of nibbles to [group/4][16][4] signed bytes.
ECHOC_INLINE void unpack_i4(const std::byte* from, int group, std::byte* to) {
  const __m512i mask = _mm512_set1_epi8(0x0f);
  const __m512i eight = _mm512_set1_epi8(8);
  for (int s = 0; s < group / 8; ++s) {
    const __m512i packed = _mm512_load_si512(from + s * 64);
    const __m512i low = _mm512_and_si512(packed, mask);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
    _mm512_store_si512(to + s * 128, _mm512_sub_epi8(low, eight));
    _mm512_store_si512(to + s * 128 + 64, _mm512_sub_epi8(high, eight));
  }
}

// The tiles' half of a block of two groups: exact sums of both groups into dots[2][16][16].
template <int Bits>
ECHOC_INLINE void sum_groups(const IntJob& job, int64_t b, int32_t* dots, std::byte* unpacked) {
  const int64_t group_bytes = layout::group_bytes(Bits, job.group);
  const int64_t depth = std::min(job.group, 64);
  const std::byte* block = job.panel + b * layout::block_bytes(Bits, job.group);
  vec16::unroll<2>([&](auto h) ECHOC_INLINE_LAMBDA {
    const std::byte* w = block + h * group_bytes;
    for (int64_t i = 0; i < group_bytes; i += 64) __builtin_prefetch(w + kAhead + i);
    if constexpr (Bits == 4) {
      unpack_i4(w, job.group, unpacked + h * 128 * layout::kPanel);
      w = unpacked + h * 128 * layout::kPanel;
    }
    fence();
    _tile_zero(0);
    const std::byte* x = job.rows + (2 * b + h) * job.group;
    for (int64_t part = 0; part < job.group; part += depth) {
      _tile_loadd(4, x + part, job.row_stride);
      _tile_loadd(6, w + part * layout::kPanel, 64);
      if constexpr (Bits == 4) {
        _tile_dpbssd(0, 4, 6);
      } else {
        _tile_dpbsud(0, 4, 6);
      }
    }
    _tile_stored(0, dots + h * 256, 64);
    fence();
  });
}

// Up to M rows times one panel, M <= 16; the tiles are configured for the rows and for min(group, 64) bytes.
// Exact group sums from the tiles, then the same scaling, in the same order, as without AMX. Scaling lags the tiles by
// a block: a vector load waits for a tile's store to leave the core, and everything after it would wait along.
template <int Bits, int M>
void block_int(const IntJob& job, int num_rows) {
  const int64_t block_bytes = layout::block_bytes(Bits, job.group);
  alignas(64) int32_t dots[2][2 * 256];
  alignas(64) std::byte unpacked[2][Bits == 4 ? 2 * 128 * 16 : 1];
  const std::byte* row[M];
  vec16::unroll<M>(
      [&](auto r) ECHOC_INLINE_LAMBDA { row[r] = job.rows + std::min<int64_t>(r, num_rows - 1) * job.row_stride; });
  f32x16 sum[M];
  vec16::unroll<M>([&](auto r) ECHOC_INLINE_LAMBDA { sum[r] = vec16::zero(); });
  sum_groups<Bits>(job, 0, dots[0], unpacked[0]);
  for (int64_t b = 0; b < job.blocks; ++b) {
    if (b + 1 < job.blocks) sum_groups<Bits>(job, b + 1, dots[(b + 1) % 2], unpacked[(b + 1) % 2]);
    const std::byte* scales = job.panel + (b + 1) * block_bytes - layout::kLine;
    const int32_t* done = dots[b % 2];
    vec16::unroll<2>([&](auto h) ECHOC_INLINE_LAMBDA {
      const int64_t g = 2 * b + h;
      const f32x16 scale = vec16::load_f16(scales + h * 32);
      vec16::unroll<M>([&](auto r) ECHOC_INLINE_LAMBDA {
        __m512i dot = _mm512_load_si512(done + h * 256 + r * 16);
        if constexpr (Bits == 8)
          dot = _mm512_add_epi32(dot, _mm512_set1_epi32(vec16::read<int32_t>(row[r] + job.sums + g * 4)));
        const f32x16 row_scale = vec16::splat(vec16::read<float>(row[r] + job.scales + g * 4));
        sum[r] = vec16::fma(_mm512_cvtepi32_ps(dot), vec16::mul(scale, row_scale), sum[r]);
      });
    });
  }
  vec16::unroll<M>([&](auto r) ECHOC_INLINE_LAMBDA {
    if (r < num_rows) vec16::store(job.acc + r * job.ld, sum[r]);
  });
}

// Rows in blocks of 16 times one panel after another. place(p) is where panel p's results go.
template <int Bits, class Place>
void multiply_int(IntJob job, int64_t panel_stride, int64_t num_rows, int64_t num_panels, Place&& place) {
  const std::byte* const rows = job.rows;
  const std::byte* const panels = job.panel;
  const auto sweep = [&](int64_t begin, int64_t end) {
    const int64_t height = std::min<int64_t>(16, end - begin);
    configure(height, 0, std::min(job.group, 64));
    for (int64_t p = 0; p < num_panels; ++p) {
      job.panel = panels + p * panel_stride;
      for (int64_t r = begin; r < end; r += height) {
        job.rows = rows + r * job.row_stride;
        job.acc = place(p) + r * job.ld;
        if (height > 8) {
          block_int<Bits, 16>(job, static_cast<int>(height));
        } else {
          block_int<Bits, 8>(job, static_cast<int>(height));
        }
      }
    }
  };
  const int64_t whole = num_rows / 16 * 16;
  if (whole > 0) sweep(0, whole);
  if (whole < num_rows) sweep(whole, num_rows);
}

}  // namespace echoc::amx
