// Weight rows in the formats of the artifact, and how tensor cores get them: of every 32 columns a lane owns 8. Which 8
// and in what order differs by format; rows of x are laid out in the same order, so that it costs nothing.
//
// Floats become four words of two bf16 each. Integers are multiplied as the bytes they are with x in bytes.
#pragma once

#include "values.cuh"

namespace echoc {

template <int kBits, bool kInteger>
struct Eight;

struct alignas(8) Two {
  uint32_t a, c;
};
inline void store_two(uint32_t* to, uint32_t a, uint32_t c) { *reinterpret_cast<Two*>(to) = Two{a, c}; }

template <>
struct Eight<16, false> {
  static constexpr int kBytes = 16;
  static void put(uint32_t* words, int k, const float (&v)[4]) {
    store_two(words + k / 2, pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]));
  }
  static void load(uint32_t (&out)[4], const char* p) { memcpy(out, __builtin_assume_aligned(p, 16), 16); }
};

// e4m3fn: sign, exponent and mantissa go where bf16 has them, which makes a value 2^120 times smaller.
template <>
struct Eight<8, false> {
  static constexpr int kBytes = 8;
  static void put(uint32_t* words, int k, const float (&v)[4]) {
    store_two(words + k / 2, pack_bf16x2(v[0], v[2]), pack_bf16x2(v[1], v[3]));
  }
  static uint32_t pair(uint32_t sign, uint32_t size) {
    return mul_bf16x2((sign & 0x80008000u) | (size & 0x07f007f0u), 0x7b807b80u);
  }
  static void load(uint32_t (&out)[4], const char* p) {
    uint32_t w[2];
    memcpy(w, __builtin_assume_aligned(p, 8), 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[2 * i] = pair(w[i] << 8, w[i] << 4);
      out[2 * i + 1] = pair(w[i], w[i] >> 4);
    }
  }
};

// Two's complement.
template <>
struct Eight<8, true> {
  static constexpr int kBytes = 8, kOffset = 0;
  static int word(int k) { return k / 4; }  // where four columns of x lie
  static void load(uint32_t (&out)[2], const char* p) { memcpy(out, __builtin_assume_aligned(p, 8), 8); }
  static void multiply(int32_t (&acc)[4], const uint32_t (&p)[2], const uint32_t (&q)[2], const uint32_t (&x)[2]) {
    mma_s8(acc, p[0], q[0], p[1], q[1], x[0], x[1]);
  }
};

// Nibbles with an offset of 8; the byte of column k < 16 holds column k + 16 in its upper half.
template <>
struct Eight<4, true> {
  static constexpr int kBytes = 4, kOffset = 8;
  static int word(int k) { return k % 16 / 4 * 2 + k / 16; }
  static void load(uint32_t (&out)[2], const char* p) {
    uint32_t w;
    memcpy(&w, __builtin_assume_aligned(p, 4), 4);
    out[0] = w & 0x0f0f0f0fu;
    out[1] = w >> 4 & 0x0f0f0f0fu;
  }
  static void multiply(int32_t (&acc)[4], const uint32_t (&p)[2], const uint32_t (&q)[2], const uint32_t (&x)[2]) {
    mma_u8(acc, p[0], q[0], p[1], q[1], x[0], x[1]);
  }
};

}  // namespace echoc
