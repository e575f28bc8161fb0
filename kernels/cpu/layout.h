// Where every byte of a packed weight and of a prepared activation row lies. Shared by the packer and the tiles; the
// same on every feature level, so that an artifact's weights do not depend on the level its kernels were built for.
//
// A weight [N, K] is cut into panels of 16 rows (N padded with zero rows); a panel is one forward stream over k:
//   f32   [K][16] f32
//   bf16  [K/2][16][2] bf16, K padded to 32
//   bf16c bf16 without loss in 12 bits, K padded to 32: a header line, then for eight k two lines of signs and
//   mantissas
//         and one of codes of exponents, then a list of the few values whose exponents have no code (coded.h)
//   f8    [K/2][16][2] f8, K padded to 32, then the scales of the rows, [16] f32: 8 bits without groups
//   i8    blocks of two groups: 2 x [group/4][16][4] u8 (value + 128), then 2 x [16] f16 scales
//   i4    blocks of two groups: 2 x [group/8][16][4] bytes, then 2 x [16] f16 scales. A byte holds (value + 8) of k in
//         its low nibble and of k + 4 in its high one: one 64-byte load gives two [16][4] vectors by mask and shift
// Two groups share a cache line of scales, which keeps every load of a panel aligned to 64 bytes. K is padded to whole
// blocks; padding holds the value zero with scale zero. The value of a weight is (stored - offset) * scale. Eight-bit
// floats have a scale a row: groups would not make them more exact, as their error is relative to each value.
#pragma once

#include <cstdint>

namespace echoc::layout {

inline constexpr int64_t kPanel = 16;
inline constexpr int64_t kLine = 64;
inline constexpr int64_t kAhead = 2048;   // bytes of a stream that are asked for beforehand
inline constexpr int64_t kBf16Step = 32;  // k covered by one AMX tile of bf16

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

constexpr int64_t offset_of(int bits) { return int64_t{1} << (bits - 1); }

// K as a weight of this format stores it.
constexpr int64_t padded_k(int bits, int group, int64_t K) {
  return bits == 32 ? K : round_up(K, group == 0 ? kBf16Step : 2 * int64_t{group});
}

constexpr int64_t groups(int group, int64_t K) { return padded_k(8, group, K) / group; }

// Where the scales of an f8 panel lie.
constexpr int64_t panel_scales(int64_t K) { return padded_k(8, 0, K) * kPanel; }

// Bytes of the quantised values of one group of one panel, without scales.
constexpr int64_t group_bytes(int bits, int group) { return int64_t{group} * kPanel * bits / 8; }

// Bytes of a block: two groups and their scales.
constexpr int64_t block_bytes(int bits, int group) { return 2 * group_bytes(bits, group) + kLine; }

// Of a panel of bf16c: most values in its list, and where the list lies.
inline constexpr int kCodedBits = 12;
constexpr int64_t most_uncoded(int64_t K) { return round_up(padded_k(kCodedBits, 0, K) * kPanel / 2048 + 1, 8); }
constexpr int64_t uncoded_at(int64_t K) { return kLine + padded_k(kCodedBits, 0, K) * kPanel * kCodedBits / 8; }

constexpr int64_t panel_bytes(int bits, int group, int64_t K) {
  if (bits == kCodedBits) return uncoded_at(K) + most_uncoded(K) * 8;
  if (group == 0) return padded_k(bits, group, K) * kPanel * bits / 8 + (bits == 8 ? kLine : 0);
  return padded_k(bits, group, K) / (2 * group) * block_bytes(bits, group);
}

constexpr int64_t panels(int64_t N) { return (N + kPanel - 1) / kPanel; }

// Bytes of `interleave` weights [N, K] packed together.
constexpr int64_t packed_bytes(int bits, int group, int64_t interleave, int64_t N, int64_t K) {
  return interleave * panels(N) * panel_bytes(bits, group, K);
}

// A prepared activation row, all parts 64-byte aligned and zero beyond K:
//   f32    f32 values
//   bf16   bf16 values where the level has a bf16 dot product, else f32 values; the same for bf16c and f8
//   i8, i4 int8 values, then one f32 scale a group, a power of two (as in MXINT8 of the OCP
//          Microscaling Formats, 2023), then one i32 a group: -offset * (sum of the group's int8 values),
//          then (read by the large AMX tiles only) the values in bf16
constexpr int64_t row_scales(int group, int64_t K) { return round_up(padded_k(8, group, K), kLine); }
constexpr int64_t row_sums(int group, int64_t K) {
  return row_scales(group, K) + round_up(groups(group, K) * 4, kLine);
}
constexpr int64_t row_bf16(int group, int64_t K) { return row_sums(group, K) + round_up(groups(group, K) * 4, kLine); }

// The stride of prepared rows: an odd number of cache lines, so that the same k of many rows lies in many cache sets.
// It does not depend on the feature level.
constexpr int64_t row_bytes(int bits, int group, int64_t K) {
  const int64_t used = group == 0 ? padded_k(bits, group, K) * 4 : row_bf16(group, K) + padded_k(8, group, K) * 2;
  const int64_t lines = round_up(used, kLine) / kLine;
  return (lines | 1) * kLine;
}

}  // namespace echoc::layout
