// Functions of doubles that devices without a C library lack, within an ulp or two of the exact value.
#pragma once

#include <bit>
#include <cstdint>

namespace echoc::scalar {

constexpr double kLog2High = 6.93147180369123816490e-01;  // log 2 without its last 21 bits, so that k times it is exact
constexpr double kLog2Low = 1.90821492927058770002e-10;

/// e^x: x = k log 2 + r, |r| <= log(2) / 2, by Taylor's series.
inline double exp(double x) {
  if (x != x) return x;
  if (x > 709.79) return __builtin_huge_val();
  if (x < -745.2) return 0;
  const double k = __builtin_rint(x * 1.44269504088896340736);
  const double r = (x - k * kLog2High) - k * kLog2Low;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = 1.0 + (r + r * r * p);
  const int64_t first = static_cast<int64_t>(k) / 2, second = static_cast<int64_t>(k) - first;  // 2^k may be subnormal
  return p * std::bit_cast<double>((first + 1023) << 52) * std::bit_cast<double>((second + 1023) << 52);
}

/// x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = f - f^2/2 + s (f^2/2 + R), s = f / (2 + f), R the
/// series of 2 atanh(s) behind its first term, over s.
inline double log(double x) {
  if (!(x > 0)) return x == 0 ? -__builtin_huge_val() : __builtin_nan("");
  if (x == __builtin_huge_val()) return x;
  int64_t scale = 0;
  if (x < 0x1p-1022) {
    x *= 0x1p54;
    scale = -54;
  }
  const auto bits = std::bit_cast<int64_t>(x);
  const int64_t exponent = (bits - 0x3FE6A09E667F3BCD) >> 52;  // of sqrt(1/2)
  const double f = std::bit_cast<double>(bits - (exponent << 52)) - 1.0;
  const double s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
  double p = 2.0 / 23;
  p = p * z + 2.0 / 21;
  p = p * z + 2.0 / 19;
  p = p * z + 2.0 / 17;
  p = p * z + 2.0 / 15;
  p = p * z + 2.0 / 13;
  p = p * z + 2.0 / 11;
  p = p * z + 2.0 / 9;
  p = p * z + 2.0 / 7;
  p = p * z + 2.0 / 5;
  p = p * z + 2.0 / 3;
  const double e = static_cast<double>(exponent + scale);
  return e * kLog2High - ((half - (s * (half + p * z) + e * kLog2Low)) - f);
}

/// log(1 + x), by Kahan's correction of the rounding of 1 + x.
inline double log1p(double x) {
  const double u = 1.0 + x;
  if (u == 1.0) return x;
  if (!(u > 0) || u == __builtin_huge_val()) return log(u);
  return log(u) + (x - (u - 1.0)) / u;
}

inline double next_after(double x, double to) {
  if (x != x || to != to) return x + to;
  if (x == to) return to;
  if (x == 0) return __builtin_copysign(0x1p-1074, to);
  return std::bit_cast<double>(std::bit_cast<int64_t>(x) + ((x < to) == (x > 0) ? 1 : -1));
}

}  // namespace echoc::scalar
