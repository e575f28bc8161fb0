// bf16 without loss in 12 bits: sixteen exponents cover nearly all values of a weight.
//
// Exponents of trained and of random weights have an entropy of some 2.6 bits (Zhang et al., "70% Size, 100% Accuracy:
// Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length Float", 2025). Here a code has four bits, so
// that vectors are unpacked by table lookups, and every panel its own table. Code 15 is the exponent 0: zeros and
// denormals. A value whose exponent has no code is stored as zero, and listed at the panel's end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "layout.h"

namespace echoc::coded {

inline constexpr int kCodes = 16;
inline constexpr int kZeroCode = 15;
inline constexpr int64_t kStep = 8;         // k of a unit
inline constexpr int64_t kStepBytes = 192;  // two lines of signs and mantissas, one of codes: low nibbles for the first

// A value without a code.
struct Uncoded {
  uint32_t k;
  uint16_t lane;
  uint16_t bits;
};

struct Header {
  uint8_t exponents[kCodes];
  uint32_t uncoded;  // values in the list
};

inline Header header_of(const std::byte* panel) {
  Header header;
  std::memcpy(&header, panel, sizeof header);
  return header;
}

inline Uncoded uncoded_of(const std::byte* panel, int64_t K, int64_t i) {
  Uncoded value;
  std::memcpy(&value, panel + layout::uncoded_at(K) + i * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}

// Where of the 64 bytes of a line the value of k (of eight) and a lane is: interleaving the bytes of low and high
// halves within 16 bytes gives bf16 pairs.
constexpr int64_t place(int64_t k, int64_t lane) {
  const int64_t word = lane * 2 + k % 2;
  return word / 8 * 16 + k / 2 % 2 * 8 + word % 8;
}

// The bits of the value of k and a lane, but for those in the list.
inline uint16_t bits_at(const std::byte* panel, const Header& header, int64_t k, int64_t lane) {
  const std::byte* step = panel + layout::kLine + k / kStep * kStepBytes;
  const int64_t half = k % kStep / 4;
  const int64_t at = place(k, lane);
  const auto rest = static_cast<uint32_t>(step[half * 64 + at]);
  const uint32_t code = static_cast<uint32_t>(step[128 + at]) >> (4 * half) & 15;
  return static_cast<uint16_t>((rest & 0x80) << 8 | uint32_t{header.exponents[code]} << 7 | (rest & 0x7f));
}

}  // namespace echoc::coded
