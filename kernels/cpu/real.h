// Elementary functions of doubles, within about two units in the last place, that give the same bits on every device:
// additions, products, quotients and roots in the order that is written, fused only where that is written (compile with
// -ffp-contract=off), no library. Random numbers and rate laws are made of these, so that a run is the same wherever it
// is computed. NaN, infinities and domain errors come out as C says.
//
// Reductions: Cody and Waite, "Software Manual for the Elementary Functions" (1980); for large angles Payne and Hanek,
// "Radian reduction for trigonometric functions" (1983). Pairs of doubles: Dekker, "A floating-point technique for
// extending the available precision" (1971). The series are Taylor's.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__clang__)
#pragma clang fp contract(off)
#endif

namespace echoc::real {

inline constexpr double kInfinity = __builtin_huge_val();
inline constexpr double kNan = __builtin_nan("");

// a * b + c with one rounding. Machines without the instruction round twice, and have bits of their own.
inline double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__) || defined(__NVPTX__) || defined(__AMDGCN__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
inline double abs(double x) { return __builtin_fabs(x); }
inline double floor(double x) { return __builtin_floor(x); }
inline double ceil(double x) { return __builtin_ceil(x); }
inline double sqrt(double x) { return __builtin_sqrt(x); }
inline double min(double a, double b) { return a < b || b != b ? a : b; }  // of a number and NaN, the number
inline double max(double a, double b) { return a > b || b != b ? a : b; }

namespace detail {

inline constexpr double kLog2High = 0x1.62e42feep-1, kLog2Low = 0x1.a39ef35793c76p-33;  // k times the first is exact
inline constexpr double kLog2Rest = 0x1.cc01f97b57a08p-87;
inline constexpr double kHalfPi = 0x1.921fb54442d18p+0, kHalfPiLow = 0x1.1a62633145c07p-54;

/// A number as the sum of two, the second below half a unit in the last place of the first.
struct Pair {
  double high, low;
};

inline Pair ordered(double large, double small) {
  const double sum = large + small;
  return {sum, small - (sum - large)};
}
inline Pair add(double a, double b) {
  const double sum = a + b, part = sum - a;
  return {sum, (a - (sum - part)) + (b - part)};
}
inline Pair multiply(double a, double b) {  // exact while nothing overflows or becomes subnormal
  constexpr double kSplit = 0x1.0000002p27;
  const double p = kSplit * a, ah = p - (p - a), al = a - ah, q = kSplit * b, bh = q - (q - b), bl = b - bh;
  const double product = a * b;
  return {product, ((ah * bh - product) + ah * bl + al * bh) + al * bl};
}
inline Pair multiply(Pair a, Pair b) {
  const Pair p = multiply(a.high, b.high);
  return ordered(p.high, p.low + (a.high * b.low + a.low * b.high));
}
inline Pair add(Pair a, Pair b) {
  const Pair s = add(a.high, b.high);
  return ordered(s.high, s.low + (a.low + b.low));
}

/// 1/first! + x / (first + 1)! + ... + x^(last - first) / last!.
template <int first, int last>
double series(double x) {
  double factorial = 1;
  for (int i = 2; i <= last; ++i) factorial *= i;
  double p = 1.0 / factorial;
#pragma GCC unroll 32
  for (int i = last; i > first; --i) {
    factorial /= i;
    p = fma(p, x, 1.0 / factorial);
  }
  return p;
}

/// sum of (-1)^i z^i / (start + 2 i)! and of (sign)^i z^i / (start + 2 i), `terms` of them.
template <int start, int terms>
double alternating(double z) {
  double factorial = 1;
  for (int i = 2; i <= start + 2 * (terms - 1); ++i) factorial *= i;
  double p = 1.0 / factorial;
#pragma GCC unroll 32
  for (int i = start + 2 * (terms - 1); i > start; i -= 2) {
    factorial /= i * (i - 1);
    p = fma(-p, z, 1.0 / factorial);
  }
  return p;
}
template <int start, int terms, int sign>
double harmonic(double z) {
  double p = 1.0 / (start + 2 * (terms - 1));
#pragma GCC unroll 32
  for (int i = start + 2 * (terms - 2); i >= start; i -= 2) p = fma(sign * p, z, 1.0 / i);
  return p;
}

/// x * 2^n, for results that may be subnormal.
inline double scale(double x, int64_t n) {
  const int64_t half = n / 2, rest = n - half;
  return x * std::bit_cast<double>((half + 1023) << 52) * std::bit_cast<double>((rest + 1023) << 52);
}

/// x = 2^exponent * m, m in [sqrt(1/2), sqrt(2)); of a positive, finite number.
struct Split {
  double m, exponent;
};
inline Split split(double x) {
  int64_t shift = 0;
  if (x < 0x1p-1022) {
    x *= 0x1p54;
    shift = -54;
  }
  const auto bits = std::bit_cast<int64_t>(x);
  const int64_t exponent = (bits - 0x3FE6A09E667F3BCD) >> 52;  // of sqrt(1/2)
  return {std::bit_cast<double>(bits - (exponent << 52)), static_cast<double>(exponent + shift)};
}

/// e^(x + low), x neither NaN nor out of range: x = k log 2 + r.
inline double exp(double x, double low) {
  const double k = __builtin_rint(x * 0x1.71547652b82fep+0);
  const double first = x - k * kLog2High, second = k * kLog2Low;
  const Pair reduced = add(first, low - second);
  const double r = reduced.high;
  const double p = 1.0 + (r + (r * r * series<2, 14>(r) + reduced.low));
  return scale(p, static_cast<int64_t>(k));
}

/// log x of a positive, finite number: s = (m - 1) / (m + 1), log m = 2 (s + s^3 / 3 + s^5 / 5 + ...).
inline Pair log(double x) {
  const Split parts = split(x);
  const double f = parts.m - 1.0;
  const Pair den = add(parts.m, 1.0);
  const double s = f / den.high;
  const Pair back = multiply(s, den.high);
  const Pair t = ordered(s, ((f - back.high) - back.low - s * den.low) / den.high);
  const Pair z = multiply(t, t);
  const Pair cube = multiply(multiply(t, z), Pair{0x1.5555555555555p-1, 0x1.5555555555555p-55});
  const double rest = z.high * z.high * t.high * (2.0 * harmonic<5, 11, 1>(z.high));
  const Pair m = add(Pair{2.0 * t.high, 2.0 * t.low}, add(cube, Pair{rest, 0}));
  const double e = parts.exponent;
  return add(add(Pair{e * kLog2High, 0}, Pair{e * kLog2Low, e * kLog2Rest}), m);
}

/// An angle less the nearest multiple of pi/2, and which of the four that was.
struct Angle {
  double high, low;
  int quadrant;
};

// 2 / pi in words of 64 bits, behind one of zeros.
inline constexpr uint64_t kTwoOverPi[] = {0,
                                          0xA2F9836E4E441529,
                                          0xFC2757D1F534DDC0,
                                          0xDB6295993C439041,
                                          0xFE5163ABDEBBC561,
                                          0xB7246E3A424DD2E0,
                                          0x06492EEA09D1921C,
                                          0xFE1DEB1CB129A73E,
                                          0xE88235F52EBB4484,
                                          0xE99C7026B45F7E41,
                                          0x3991D639835339F4,
                                          0x9C845F8BBDF9283B,
                                          0x1FF897FFDE05980F,
                                          0xEF2F118B5A0A6D1F,
                                          0x6D367ECF27CB09B7,
                                          0x4F463F669E5FEA2D,
                                          0x7527BAC7EBE5F17B,
                                          0x3D0739F78A5292EA,
                                          0x6BFB5FB11F8D5D08,
                                          0x56033046FC7B6BAB,
                                          0xF0CFBC209AF4361D};

/// For |x| of 2^20 and more: of x * 2 / pi only what is left below 4 is computed, in 192 bits.
inline Angle reduce_large(double x) {
  const auto bits = std::bit_cast<int64_t>(x);
  const int exponent = static_cast<int>((bits >> 52) & 0x7FF) - 1075;
  const uint64_t m = (static_cast<uint64_t>(bits) & 0xFFFFFFFFFFFFF) | 0x10000000000000;
  const int at = exponent - 2 + 64, word = at / 64, shift = at % 64;
  uint64_t window[3];
  for (int i = 0; i < 3; ++i) {
    const uint64_t upper = kTwoOverPi[word + i] << shift;
    window[i] = shift ? upper | kTwoOverPi[word + i + 1] >> (64 - shift) : upper;
  }
  const auto low = static_cast<unsigned __int128>(m) * window[2];
  const auto middle = static_cast<unsigned __int128>(m) * window[1] + static_cast<uint64_t>(low >> 64);
  const uint64_t high = m * window[0] + static_cast<uint64_t>(middle >> 64);
  const unsigned __int128 product = static_cast<unsigned __int128>(high) << 64 | static_cast<uint64_t>(middle);
  const auto fraction = static_cast<__int128>(product << 2);
  const int quadrant = static_cast<int>(high >> 62) + (fraction < 0 ? 1 : 0);
  constexpr int64_t kMask = (int64_t{1} << 43) - 1;
  const auto first = static_cast<int64_t>(fraction >> 85);
  const int64_t second = static_cast<int64_t>(fraction >> 42) & kMask,
                third = static_cast<int64_t>(fraction) & kMask >> 1;
  const Pair rest = ordered(static_cast<double>(second) * 0x1p-86, static_cast<double>(third) * 0x1p-128);
  const Pair turn = add(Pair{static_cast<double>(first) * 0x1p-43, 0}, rest);
  const Pair r = multiply(turn, Pair{kHalfPi, kHalfPiLow});
  return x < 0 ? Angle{-r.high, -r.low, -quadrant & 3} : Angle{r.high, r.low, quadrant & 3};
}

inline Angle reduce(double x) {
  if (!(__builtin_fabs(x) < 0x1p20)) return reduce_large(x);
  const double n = __builtin_rint(x * 0x1.45f306dc9c883p-1);
  const Pair most = add(x - n * 0x1.921fb544p+0, -n * 0x1.0b4611a6p-34);  // parts of pi/2 of 33 bits
  const Pair r = add(most.high, (most.low - n * 0x1.3198a2ep-69) - n * 0x1.b839a252049c1p-104);
  return {r.high, r.low, static_cast<int>(static_cast<int64_t>(n) & 3)};
}

inline double sin_near(const Angle& a) {
  const double z = a.high * a.high;
  return a.high - (a.high * z * alternating<3, 9>(z) - a.low * (1.0 - 0.5 * z));
}
inline double cos_near(const Angle& a) {
  const double z = a.high * a.high, half = 0.5 * z, most = 1.0 - half;
  return most + (((1.0 - most) - half) + (z * z * alternating<4, 9>(z) - a.high * a.low));
}

/// Whether y is a whole number, and an odd one.
inline bool whole(double y) { return __builtin_fabs(y) < kInfinity && __builtin_floor(y) == y; }
inline bool odd(double y) { return whole(y) && __builtin_fabs(y) < 0x1p53 && (static_cast<int64_t>(y) & 1); }

}  // namespace detail

inline double exp(double x) {
  if (x != x) return x;
  if (x > 709.79) return kInfinity;
  if (x < -745.2) return 0;
  return detail::exp(x, 0);
}

inline double log(double x) {
  if (!(x > 0)) return x == 0 ? -kInfinity : kNan;
  if (x == kInfinity) return x;
  const detail::Split parts = detail::split(x);
  const double f = parts.m - 1.0, s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
  const double p = 2.0 * detail::harmonic<3, 11, 1>(z);
  return parts.exponent * detail::kLog2High - ((half - (s * (half + p * z) + parts.exponent * detail::kLog2Low)) - f);
}

inline double log1p(double x) {  // Kahan's correction of the rounding of 1 + x
  const double u = 1.0 + x;
  if (u == 1.0) return x;
  if (!(u > 0) || u == kInfinity) return log(u);
  return log(u) + (x - (u - 1.0)) / u;
}

inline double pow(double x, double y) {
  if (x == 1 || y == 0) return 1;
  if (x != x || y != y) return kNan;
  const double size = __builtin_fabs(x);
  const double sign = __builtin_signbit(x) && detail::odd(y) ? -1.0 : 1.0;
  if (size == 0 || size == kInfinity) return (size == 0) == (y < 0) ? sign * kInfinity : sign * 0.0;
  if (__builtin_fabs(y) == kInfinity) return size == 1 ? 1.0 : (size > 1) == (y > 0) ? kInfinity : 0.0;
  if (x < 0 && !detail::whole(y)) return kNan;
  if (!(__builtin_fabs(y) < 0x1p64)) y = __builtin_copysign(0x1p64, y);  // its products decide nothing but the side
  const detail::Pair l = detail::log(size);
  const double rough = l.high * y;
  if (rough > 709.79) return sign * kInfinity;
  if (rough < -745.2) return sign * 0.0;
  const detail::Pair exact = detail::multiply(l.high, y);
  return sign * detail::exp(exact.high, exact.low + l.low * y);
}

inline double sin(double x) {
  if (!(__builtin_fabs(x) < kInfinity)) return kNan;
  if (__builtin_fabs(x) < 0x1p-27) return x;
  const detail::Angle a = detail::reduce(x);
  const double value = a.quadrant & 1 ? detail::cos_near(a) : detail::sin_near(a);
  return a.quadrant & 2 ? -value : value;
}

inline double cos(double x) {
  if (!(__builtin_fabs(x) < kInfinity)) return kNan;
  const detail::Angle a = detail::reduce(x);
  const double value = a.quadrant & 1 ? detail::sin_near(a) : detail::cos_near(a);
  return (a.quadrant + 1) & 2 ? -value : value;
}

inline double tan(double x) {
  if (!(__builtin_fabs(x) < kInfinity)) return kNan;
  if (__builtin_fabs(x) < 0x1p-27) return x;
  const detail::Angle a = detail::reduce(x);
  const double s = detail::sin_near(a), c = detail::cos_near(a);
  return a.quadrant & 1 ? -c / s : s / c;
}

inline double tanh(double x) {
  const double size = __builtin_fabs(x);
  if (!(size >= 0x1p-27)) return x;
  double value = 1;
  if (size < 0.35) {
    const double y = 2.0 * size, u = y + y * y * detail::series<2, 18>(y);  // e^y - 1
    value = u / (u + 2.0);
  } else if (size < 22) {
    value = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
  }
  return __builtin_copysign(value, x);
}

/// atan t = pi/2 - atan(1/t) = pi/4 + atan((t - 1) / (t + 1)), then its series for |t| <= tan(pi/8).
inline double atan(double x) {
  if (x != x) return x;
  double t = __builtin_fabs(x), base = 0, low = 0, side = 1;
  if (t > 0x1.3504f333f9de6p+1) {  // tan(3 pi / 8)
    t = 1.0 / t;
    base = detail::kHalfPi;
    low = detail::kHalfPiLow;
    side = -1;
  } else if (t > 0x1.a827999fcef34p-2) {
    t = (t - 1.0) / (t + 1.0);
    base = 0.5 * detail::kHalfPi;
    low = 0.5 * detail::kHalfPiLow;
  }
  const double z = t * t, value = t - t * z * detail::harmonic<3, 22, -1>(z);
  return __builtin_copysign(base + (low + side * value), x);
}

}  // namespace echoc::real
