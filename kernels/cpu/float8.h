// 8-bit floats e4m3fn (OCP Open Compute 8-bit Floating Point Specification, 1.0): 4 bits of exponent with bias 7, no
// infinities, the largest value 448. Conversions are branch-free integer code, so that loops over them vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "half.h"

namespace echoc {

struct f8_t {
  uint8_t bits;
};

inline constexpr float kLargestF8 = 448.0f;

// Sign and magnitude lie as those of an f16 2^8 times smaller, subnormals included. NaN (0x7f, 0xff) is not looked for.
inline f16_t to_f16_below(f8_t value) {
  return {static_cast<uint16_t>((value.bits & 0x80u) << 8 | (value.bits & 0x7fu) << 7)};
}

inline float to_float(f8_t value) { return to_float(to_f16_below(value)) * 256.0f; }

// To the nearest, ties to even; beyond the largest value, that. NaN becomes the largest value.
inline f8_t to_f8(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  float size = std::bit_cast<float>(bits & 0x7fffffffu);
  size = size < kLargestF8 ? size : kLargestF8;
  const uint32_t wide = std::bit_cast<uint32_t>(size);
  const uint32_t normal = ((wide + 0x7ffffu + (wide >> 20 & 1u)) >> 20) - (uint32_t{127 - 7} << 3);
  // Adding 2^14 puts the unit of the sum at 2^-9, the unit of subnormals.
  const uint32_t small = std::bit_cast<uint32_t>(size + 16384.0f) - std::bit_cast<uint32_t>(16384.0f);
  const uint32_t magnitude = size < 0.015625f ? small : normal;
  return {static_cast<uint8_t>(magnitude | (bits >> 24 & 0x80u))};
}

}  // namespace echoc
