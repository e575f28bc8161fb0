// Weight rows in the formats of the artifact, and how tensor cores get them: of every 32 columns a lane owns 8, which
// it turns into four words of two bf16 each. Which 8 and in what order differs by format (`quad` of the four lanes of a
// row, `place` among its 8); rows of x are laid out in the same order, so that it costs nothing.
#pragma once

#include "values.cuh"

namespace echoc {

template <int kBits>
struct Eight;

struct alignas(8) Two {
  uint32_t a, c;
};
inline void store_two(uint32_t* to, uint32_t a, uint32_t c) { *reinterpret_cast<Two*>(to) = Two{a, c}; }

template <>
struct Eight<16> {
  static constexpr int kBytes = 16;
  static void put(uint32_t* words, int k, const float (&v)[4]) {
    store_two(words + k / 2, pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]));
  }
  static void load(uint32_t (&out)[4], const char* p) { memcpy(out, __builtin_assume_aligned(p, 16), 16); }
};

// Two's complement: the low 7 bits less 128 where the sign is set. 0x4300 is 128 as bf16, its mantissa counts in ones,
// and the bit above makes it 256.
template <>
struct Eight<8> {
  static constexpr int kBytes = 8;
  static void put(uint32_t* words, int k, const float (&v)[4]) {
    store_two(words + k / 2, pack_bf16x2(v[0], v[2]), pack_bf16x2(v[1], v[3]));
  }
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
  static void put(uint32_t* words, int k, const float (&v)[4]) {
    uint32_t* to = words + k % 16 + k / 16;
    to[0] = pack_bf16x2(v[0], v[2]);
    to[2] = pack_bf16x2(v[1], v[3]);
  }
  static void load(uint32_t (&out)[4], const char* p) {
    uint32_t w;
    memcpy(&w, __builtin_assume_aligned(p, 4), 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = sub_bf16x2((w >> 4 * i & 0x000f000fu) | 0x43004300u, 0x43084308u);
  }
};

}  // namespace echoc
