// Weight rows in the formats of the artifact, and how tensor cores get them: of every 32 columns a lane owns 8, which
// it turns into four words of two bf16 each. Which 8 and in what order differs by format (`quad` of the four lanes of a
// row, `place` among its 8); rows of x are laid out in the same order, so that it costs nothing.
#pragma once

#include "values.cuh"

namespace echoc {

template <int kBits>
struct Eight;

template <>
struct Eight<16> {
  static constexpr int kBytes = 16;
  static constexpr int quad(int k) { return k / 8; }
  static constexpr int place(int k) { return k % 8; }
  static void load(uint32_t (&out)[4], const char* p) { memcpy(out, __builtin_assume_aligned(p, 16), 16); }
};

// Two's complement: the low 7 bits less 128 where the sign is set. 0x4300 is 128 as bf16, its mantissa counts in ones,
// and the bit above makes it 256.
template <>
struct Eight<8> {
  static constexpr int kBytes = 8;
  static constexpr int quad(int k) { return k / 8; }
  static constexpr int place(int k) { return (k & 4) | (k & 1) << 1 | (k >> 1 & 1); }
  static uint32_t pair(uint32_t w) {
    return sub_bf16x2((w & 0x007f007fu) | 0x43004300u, (w & 0x00800080u) | 0x43004300u);
  }
  static void load(uint32_t (&out)[4], const char* p) {
    uint32_t w[2];
    memcpy(w, __builtin_assume_aligned(p, 8), 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[2 * i] = pair(w[i]);
      out[2 * i + 1] = pair(w[i] >> 8);
    }
  }
};

// Nibbles with an offset of 8; the byte of column k < 16 holds column k + 16 in its upper half. 128 + nibble - 136.
template <>
struct Eight<4> {
  static constexpr int kBytes = 4;
  static constexpr int quad(int k) { return k % 16 / 4; }
  static constexpr int place(int k) { return (k & 1) << 2 | (k & 16) >> 3 | (k & 2) >> 1; }
  static void load(uint32_t (&out)[4], const char* p) {
    uint32_t w;
    memcpy(&w, __builtin_assume_aligned(p, 4), 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = sub_bf16x2((w >> 4 * i & 0x000f000fu) | 0x43004300u, 0x43084308u);
  }
};

}  // namespace echoc
