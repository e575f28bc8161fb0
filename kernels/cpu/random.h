// Random numbers of runs, counter-based: a number is a function of (seed, run, step, how many were drawn in the step)
// alone: runs and steps can be taken in any order, on any thread, and give the same numbers.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cpu/philox.h"
#include "kernels/cpu/real.h"

#if (defined(__AVX512F__) || defined(__AVX2__)) && !defined(ECHOC_SINGLE_NUMBERS)
#include <immintrin.h>
#endif

namespace echoc::random {

// The blocks of counters (first + i, b, c, d) for i < kLanes as 64-bit words: low[i] from words 0 and 1 of block i,
// high[i] from 2 and 3. `first + kLanes` must not wrap.
constexpr int kLanes = 32;

// Where every thread is a run of its own, numbers are made one by one; elsewhere by the batch, in vectors.
#if (defined(__NVPTX__) || defined(__AMDGCN__)) && !defined(ECHOC_SINGLE_NUMBERS)
#define ECHOC_SINGLE_NUMBERS 1
#endif

#if defined(ECHOC_SINGLE_NUMBERS)
#elif defined(__AVX512F__)
namespace detail {
using Wide = __m512i;
constexpr int kWide = 8;
inline Wide broadcast(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline Wide multiply(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
inline Wide three(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Wide up(Wide a) { return _mm512_srli_epi64(a, 32); }
inline Wide down(Wide a) { return _mm512_slli_epi64(a, 32); }
inline Wide add(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
inline Wide either(Wide a, Wide b) { return _mm512_or_si512(a, b); }
inline Wide lower(Wide a) { return _mm512_and_si512(a, broadcast(0xFFFFFFFF)); }
inline Wide iota() { return _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0); }
inline void store(uint64_t* to, Wide a) { _mm512_storeu_si512(to, a); }
}  // namespace detail
#define ECHOC_WIDE_PHILOX 1
#elif defined(__AVX2__)
namespace detail {
using Wide = __m256i;
constexpr int kWide = 4;
inline Wide broadcast(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
inline Wide multiply(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
inline Wide three(Wide a, Wide b, Wide c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline Wide up(Wide a) { return _mm256_srli_epi64(a, 32); }
inline Wide down(Wide a) { return _mm256_slli_epi64(a, 32); }
inline Wide add(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
inline Wide either(Wide a, Wide b) { return _mm256_or_si256(a, b); }
inline Wide lower(Wide a) { return _mm256_and_si256(a, broadcast(0xFFFFFFFF)); }
inline Wide iota() { return _mm256_set_epi64x(3, 2, 1, 0); }
inline void store(uint64_t* to, Wide a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a); }
}  // namespace detail
#define ECHOC_WIDE_PHILOX 1
#endif

inline void philox_batch(uint32_t first, uint32_t b, uint32_t c, uint32_t d, uint32_t key0, uint32_t key1,
                         uint64_t* low, uint64_t* high) {
#if defined(ECHOC_WIDE_PHILOX)
  using namespace detail;
  constexpr int kChains = 4;  // independent chains hide the latency of the multiplications
  const Wide multiply0 = broadcast(kMultiply0), multiply1 = broadcast(kMultiply1);
  for (int lane = 0; lane < kLanes; lane += kChains * kWide) {
    Wide x[kChains][4];
    for (int i = 0; i < kChains; ++i) {
      x[i][0] = add(broadcast(uint64_t{first} + static_cast<uint64_t>(lane + i * kWide)), iota());
      x[i][1] = broadcast(b);
      x[i][2] = broadcast(c);
      x[i][3] = broadcast(d);
    }
    // The upper halves of the 64-bit lanes hold rubbish in words 1 and 3: a multiplication reads only the lower ones.
    for (int round = 0; round < kRounds; ++round) {
      const Wide k0 = broadcast(key0 + kWeyl0 * static_cast<uint32_t>(round));
      const Wide k1 = broadcast(key1 + kWeyl1 * static_cast<uint32_t>(round));
      for (auto& w : x) {
        const Wide left = multiply(w[0], multiply0), right = multiply(w[2], multiply1);
        w[0] = three(up(right), w[1], k0);
        w[2] = three(up(left), w[3], k1);
        w[1] = right;
        w[3] = left;
      }
    }
    for (int i = 0; i < kChains; ++i) {
      store(low + lane + i * kWide, either(lower(x[i][0]), down(x[i][1])));
      store(high + lane + i * kWide, either(lower(x[i][2]), down(x[i][3])));
    }
  }
#else
  for (int i = 0; i < kLanes; ++i) {
    const auto [w0, w1, w2, w3] = philox({{first + static_cast<uint32_t>(i), b, c, d}}, key0, key1).word;
    low[i] = uint64_t{w1} << 32 | w0;
    high[i] = uint64_t{w3} << 32 | w2;
  }
#endif
}

// Strictly between 0 and 1, 52 bits, symmetric.
inline double to_uniform(uint64_t bits) {
  return (static_cast<double>(static_cast<int64_t>(bits >> 12)) + 0.5) * 0x1p-52;
}

// log of a normal double in (0, 1], branch-free: m * 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1))
// by its series; the remainder after s^19 is below 1e-16 relative.
inline double log_uniform(double x) {
  const auto bits = std::bit_cast<int64_t>(x);
  const int64_t shifted = bits - 0x3FE6A09E667F3BCD;  // sqrt(1/2)
  const int64_t exponent = shifted >> 52;
  const double m = std::bit_cast<double>(bits - (exponent << 52));
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 2.0 / 19;
  p = p * z + 2.0 / 17;
  p = p * z + 2.0 / 15;
  p = p * z + 2.0 / 13;
  p = p * z + 2.0 / 11;
  p = p * z + 2.0 / 9;
  p = p * z + 2.0 / 7;
  p = p * z + 2.0 / 5;
  p = p * z + 2.0 / 3;
  return static_cast<double>(exponent) * 0.693147180559945309417 + (s * 2.0 + s * z * p);
}

// The numbers of one run: keyed by the seed, counted by (draw, step, run). Steps and runs below 2^48.
class Stream {
 public:
  Stream(uint64_t seed, uint64_t run)
      : key0_(static_cast<uint32_t>(seed)), key1_(static_cast<uint32_t>(seed >> 32)), run_(run) {}

  // Begins the numbers of a step.
  void at(uint64_t step) {
    step_ = step;
    block_ = 0;
    next_ = kBatch;
  }

  uint64_t bits() {
    if (next_ == kBatch) refill();
    return take(next_++);
  }

  double uniform() { return to_uniform(bits()); }
  double exponential() { return -log_uniform(uniform()); }

  // Uniform on 0 .. n - 1, n at least 1 and below 2^32 (Lemire 2019: rejects, so that it is exact).
  uint32_t below(uint32_t n) {
    uint64_t product = uint64_t{static_cast<uint32_t>(bits())} * n;
    if (static_cast<uint32_t>(product) < n) {
      const uint32_t threshold = -n % n;
      while (static_cast<uint32_t>(product) < threshold) product = uint64_t{static_cast<uint32_t>(bits())} * n;
    }
    return static_cast<uint32_t>(product >> 32);
  }

 private:
  static constexpr int kBatch = 2 * kLanes;

  uint32_t upper() const {
    return static_cast<uint32_t>(step_ >> 32) << 16 | (static_cast<uint32_t>(run_ >> 32) & 0xFFFF);
  }

#if defined(ECHOC_SINGLE_NUMBERS)
  void refill() {
    block_ += kLanes;
    next_ = 0;
  }
  uint64_t take(int place) const {
    const uint32_t block = block_ - kLanes + static_cast<uint32_t>(place % kLanes);
    const auto [w0, w1, w2, w3] =
        philox({{block, static_cast<uint32_t>(step_), static_cast<uint32_t>(run_), upper()}}, key0_, key1_).word;
    return place < kLanes ? uint64_t{w1} << 32 | w0 : uint64_t{w3} << 32 | w2;
  }
#else
  void refill() {
    philox_batch(block_, static_cast<uint32_t>(step_), static_cast<uint32_t>(run_), upper(), key0_, key1_, words_,
                 words_ + kLanes);
    block_ += kLanes;
    next_ = 0;
  }
  uint64_t take(int place) const { return words_[place]; }

  alignas(64) uint64_t words_[kBatch];
#endif

  uint32_t key0_, key1_;
  uint64_t run_, step_ = 0;
  uint32_t block_ = 0;
  int next_ = kBatch;
};

// A success probability with what the binomial generators need of it: p is at most 1/2, `flip` counts failures instead.
struct Chance {
  double p;
  double log_q;  // log(1 - p)
  double odds;   // p / (1 - p)
  bool flip;
};

inline Chance chance(double p) {
  const bool flip = p > 0.5;
  const double small = flip ? 1.0 - p : p;
  return {small, real::log1p(-small), small / (1.0 - small), flip};
}

namespace detail {

// log(k!) minus Stirling's formula without its series (Hormann 1993, table 1 and equation 9).
inline double stirling_tail(double k) {
  static constexpr double kTable[10] = {
      0.08106146679532726, 0.04134069595540929, 0.02767792568499834, 0.02079067210376509,  0.01664469118982119,
      0.01387612882307075, 0.01189670994589177, 0.01041126526197209, 0.009255462182712733, 0.008330563433362871};
  if (k < 10) return kTable[static_cast<int>(k)];
  const double r = 1.0 / (k + 1), z = r * r;
  return (1.0 / 12 - (1.0 / 360 - z / 1260) * z) * r;
}

// Sequential search from 0 (Kachitvichyanukul and Schmeiser 1988, algorithm BINV), for n p below 10.
inline int64_t invert(Stream& stream, int64_t n, const Chance& c) {
  constexpr int64_t kFar = 120;  // beyond it only by rounding: P(X > 120) < 1e-80 for a mean below 10
  const double start = real::exp(static_cast<double>(n) * c.log_q), m = static_cast<double>(n);
  while (true) {
    double u = stream.uniform(), f = start;
    for (int64_t k = 0; k <= kFar && k <= n; ++k) {
      if (u < f) return k;
      u -= f;
      f *= c.odds * (m - static_cast<double>(k)) / static_cast<double>(k + 1);
    }
  }
}

// Transformed rejection with squeeze (Hormann, The generation of binomial random variates, 1993, algorithm BTRS), for
// n p of 10 and more.
inline int64_t reject(Stream& stream, int64_t n, const Chance& chance) {
  const double count = static_cast<double>(n), p = chance.p;
  const double spread = real::sqrt(count * p * (1 - p));
  const double b = 1.15 + 2.53 * spread, a = -0.0873 + 0.0248 * b + 0.01 * p, c = count * p + 0.5;
  const double squeeze = 0.92 - 4.2 / b;
  while (true) {
    const double u = stream.uniform() - 0.5;
    double v = stream.uniform();
    const double us = 0.5 - real::abs(u), k = real::floor((2 * a / us + b) * u + c);
    if (k < 0 || k > count) continue;
    if (us >= 0.07 && v <= squeeze) return static_cast<int64_t>(k);
    const double alpha = (2.83 + 5.1 / b) * spread, m = real::floor((count + 1) * p);
    v = real::log(v * alpha / (a / (us * us) + b));
    const double bound = (m + 0.5) * real::log((m + 1) / (chance.odds * (count - m + 1))) +
                         (count + 1) * real::log((count - m + 1) / (count - k + 1)) +
                         (k + 0.5) * real::log(chance.odds * (count - k + 1) / (k + 1)) + stirling_tail(m) +
                         stirling_tail(count - m) - stirling_tail(k) - stirling_tail(count - k);
    if (v <= bound) return static_cast<int64_t>(k);
  }
}

}  // namespace detail

// How many of n trials succeed. Exact in distribution up to rounding in double; beyond n = 2^53 the low bits are
// coarse.
inline int64_t binomial(Stream& stream, int64_t n, const Chance& c) {
  if (n <= 0 || c.p <= 0) return c.flip && n > 0 ? n : 0;
  int64_t k = static_cast<double>(n) * c.p < 10 ? detail::invert(stream, n, c) : detail::reject(stream, n, c);
  if (k > n) k = n;
  return c.flip ? n - k : k;
}

}  // namespace echoc::random
