// Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3;
// SC'11): the numbers are a function of a key and a counter, with no state in between.
#pragma once

#include <cstdint>

namespace echoc::random {

constexpr uint32_t kMultiply0 = 0xD2511F53, kMultiply1 = 0xCD9E8D57;  // table 2 of the paper
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;          // golden ratio, sqrt(3) - 1
constexpr int kRounds = 10;

struct Block {
  uint32_t word[4];
};

inline Block philox(Block counter, uint32_t key0, uint32_t key1) {
  auto [a, b, c, d] = counter.word;
  for (int i = 0; i < kRounds; ++i) {
    const uint64_t left = uint64_t{kMultiply0} * a, right = uint64_t{kMultiply1} * c;
    const uint32_t old_b = b, old_d = d;
    a = uint32_t(right >> 32) ^ old_b ^ key0;
    b = uint32_t(right);
    c = uint32_t(left >> 32) ^ old_d ^ key1;
    d = uint32_t(left);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return {{a, b, c, d}};
}

}  // namespace echoc::random
