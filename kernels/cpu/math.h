// Elementary functions on float that compilers vectorise inside plain loops.
//
// Every function is branch-free (selects only), so `for (i) y[i] = m::exp(x[i])` becomes vector code under
// -O3 -fno-math-errno -fno-trapping-math. Do not compile with -ffast-math: the argument reductions rely on IEEE
// arithmetic. Errors stay within about 2 units in the last place of the exact value over the whole range, subnormal
// results included; NaN, infinities and domain errors give what C's libm gives. Polynomials are minimax fits
// (iteratively reweighted least squares at Chebyshev nodes, coefficients rounded one after another); the argument
// reductions are those of Cody and Waite, "Software Manual for the Elementary Functions" (1980).
//
// This file shares its name with libc's: put the folder on the quote path only (-iquote, not -I), so that <math.h>,
// which some standard libraries' <cmath> asks for, stays libc's.
#pragma once

#include <bit>
#include <cstdint>

namespace echoc::m {

inline constexpr float kInfinity = __builtin_huge_valf();

// a * b + c, fused where the target has the instruction (a library call per element would be far too slow elsewhere).
inline float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__) || defined(__NVPTX__) || defined(__AMDGCN__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
inline double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__) || defined(__NVPTX__) || defined(__AMDGCN__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

inline float abs(float x) { return __builtin_fabsf(x); }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float floor(float x) { return __builtin_floorf(x); }
inline float ceil(float x) { return __builtin_ceilf(x); }
inline float trunc(float x) { return __builtin_truncf(x); }
inline float round(float x) { return __builtin_rintf(x); }  // half to even, as numpy and torch
inline float copysign(float magnitude, float sign) { return __builtin_copysignf(magnitude, sign); }
inline float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }  // NaN and zeros stay

// NaN wins over any number, as in numpy.maximum and torch.maximum.
inline float max(float a, float b) { return a > b || a != a ? a : b; }
inline float min(float a, float b) { return a < b || a != a ? a : b; }

// Remainder with the sign of the divisor, as Python's %.
inline float remainder(float a, float b) {
  const float r = fma(-__builtin_truncf(a / b), b, a);
  return r != 0.0f && (r < 0.0f) != (b < 0.0f) ? r + b : r;
}

namespace detail {

inline float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t to_bits(float value) { return std::bit_cast<uint32_t>(value); }

inline constexpr float kLog2e = 0x1.715476p+0f;
inline constexpr float kLn2High = 0x1.62e400p-1f;  // 15 bits: products with small integers are exact without an fma
inline constexpr float kLn2Low = 0x1.7f7d1cp-20f;
inline constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer and leaves that in the low bits

// 2^n for n in [-126, 127].
inline float pow2(int32_t n) { return from_bits(static_cast<uint32_t>(n + 127) << 23); }

// value * 2^n for n in [-252, 254]: two factors, so that results may be subnormal or overflow.
inline float scale(float value, int32_t n) {
  const int32_t half = n >> 1;
  return value * pow2(half) * pow2(n - half);
}

struct Reduced {
  float r;  // |r| <= ln(2)/2, x = n ln(2) + r
  int32_t n;
};

inline Reduced reduce_exp(float x) {
  const float t = fma(x, kLog2e, kMagic);
  const float n = t - kMagic;
  const float r = fma(n, -kLn2Low, fma(n, -kLn2High, x));
  return {r, static_cast<int32_t>(to_bits(t) - to_bits(kMagic))};
}

// exp(r) - 1 for |r| <= 0.35: r + r^2 Q(r), error 2^-33.
inline float expm1_poly(float r) {
  float q = fma(0x1.a2433cp-13f, r, 0x1.6d5286p-10f);
  q = fma(q, r, 0x1.111004p-7f);
  q = fma(q, r, 0x1.5554e4p-5f);
  q = fma(q, r, 0x1.555556p-3f);
  q = fma(q, r, 0.5f);
  return fma(q * r, r, r);
}

inline float clamp(float x, float low, float high) {  // NaN passes
  x = x < low ? low : x;
  return x > high ? high : x;
}

// log(1 + f) - f for f in [sqrt(1/2) - 1, sqrt(2) - 1], error 2^-30 of log(1 + f).
inline float log1p_tail(float f) {
  float p = fma(0x1.148408p-4f, f, -0x1.de1004p-4f);
  p = fma(p, f, 0x1.e6c03ep-4f);
  p = fma(p, f, -0x1.fc26acp-4f);
  p = fma(p, f, 0x1.233b78p-3f);
  p = fma(p, f, -0x1.555c4ep-3f);
  p = fma(p, f, 0x1.99a478p-3f);
  p = fma(p, f, -0x1.000006p-2f);
  p = fma(p, f, 0x1.555548p-2f);
  const float square = f * f;
  return fma(p * f, square, -0.5f * square);
}

// log(x) for finite x > 0, plus a small correction `extra`.
inline float log_positive(float x, float extra) {
  const bool tiny = x < 0x1p-126f;
  const float y = tiny ? x * 0x1p23f : x;
  const uint32_t shifted = to_bits(y) - 0x3f3504f3u;  // the mantissa lands in [sqrt(1/2), sqrt(2))
  const int32_t exponent = (static_cast<int32_t>(shifted) >> 23) - (tiny ? 23 : 0);
  const float f = from_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float n = static_cast<float>(exponent);
  const float low = fma(n, kLn2Low, log1p_tail(f) + extra);
  return fma(n, kLn2High, f + low);
}

}  // namespace detail

inline float exp(float x) {
  const auto [r, n] = detail::reduce_exp(detail::clamp(x, -105.0f, 90.0f));
  return detail::scale(1.0f + detail::expm1_poly(r), n);
}

inline float exp2(float x) {
  x = detail::clamp(x, -151.0f, 129.0f);
  const float t = x + detail::kMagic;
  const float r = x - (t - detail::kMagic);
  float p = fma(0x1.444e70p-13f, r, 0x1.5f10a2p-10f);  // (2^r - 1) / r, error 2^-28
  p = fma(p, r, 0x1.3b2a22p-7f);
  p = fma(p, r, 0x1.c6af70p-5f);
  p = fma(p, r, 0x1.ebfbe0p-3f);
  p = fma(p, r, 0x1.62e430p-1f);
  const auto n = static_cast<int32_t>(detail::to_bits(t) - detail::to_bits(detail::kMagic));
  return detail::scale(fma(p, r, 1.0f), n);
}

inline float expm1(float x) {
  const auto [r, n] = detail::reduce_exp(detail::clamp(x, -20.0f, 90.0f));
  const float p = detail::expm1_poly(r);
  const float power = detail::pow2(n < 127 ? n : 127);
  const float near = fma(p, power, power - 1.0f);  // exact scaling first: no cancellation for small |x|
  const float large = detail::scale(1.0f + p, n);
  return n > 30 ? large : x == 0.0f ? x : near;
}

inline float log(float x) {
  float y = detail::log_positive(x, 0.0f);
  y = x == kInfinity || x != x ? x : y;
  y = x == 0.0f ? -kInfinity : y;
  return x < 0.0f ? __builtin_nanf("") : y;
}

inline float log2(float x) {
  // The exponent stays exact; only the mantissa's part is multiplied.
  const bool tiny = x < 0x1p-126f;
  const float y = tiny ? x * 0x1p23f : x;
  const uint32_t shifted = detail::to_bits(y) - 0x3f3504f3u;
  const int32_t exponent = (static_cast<int32_t>(shifted) >> 23) - (tiny ? 23 : 0);
  const float f = detail::from_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float tail = detail::log1p_tail(f);
  const float product = f * 0x1.715476p+0f;
  const float rest = fma(f, 0x1.715476p+0f, -product) + fma(tail, 0x1.715476p+0f, f * 0x1.4ae0c0p-26f);
  float r = static_cast<float>(exponent) + (product + rest);
  r = x == kInfinity || x != x ? x : r;
  r = x == 0.0f ? -kInfinity : r;
  return x < 0.0f ? __builtin_nanf("") : r;
}

inline float log10(float x) { return log(x) * 0x1.bcb7b2p-2f; }

inline float log1p(float x) {
  // log(u) + c / u, where u = fl(1 + x) and c is what the sum lost.
  const float u = 1.0f + x;
  const float lost = x < 1.0f ? x - (u - 1.0f) : 1.0f - (u - x);
  float y = detail::log_positive(u, lost / u);
  y = x == 0.0f || x == kInfinity || x != x ? x : y;
  y = x == -1.0f ? -kInfinity : y;
  return x < -1.0f ? __builtin_nanf("") : y;
}

inline float tanh(float x) {
  const float a = abs(x);
  const float t = expm1(2.0f * (a > 10.0f ? 10.0f : a));
  return copysign(t / (t + 2.0f), x);
}

// tanh(x) = e / (e + 2) with e = exp(2|x|) - 1; within 2.2 units in the last place. NaN passes.
inline double tanh(double x) {
  double a = __builtin_fabs(x);
  a = a > 20.0 ? 20.0 : a;
  constexpr double kMagic = 0x1.8p52;
  const double t = fma(a, 2 * 0x1.71547652b82fep+0, kMagic);
  const double n = t - kMagic;
  const double r = fma(n, -0x1.abc9e3b39803fp-56, fma(n, -0x1.62e42fefa39efp-1, 2 * a));
  double q = 1.0 / 6227020800.0;  // Taylor's: |r| <= ln(2)/2, so the next term is below 2^-57
  q = fma(q, r, 1.0 / 479001600.0);
  q = fma(q, r, 1.0 / 39916800.0);
  q = fma(q, r, 1.0 / 3628800.0);
  q = fma(q, r, 1.0 / 362880.0);
  q = fma(q, r, 1.0 / 40320.0);
  q = fma(q, r, 1.0 / 5040.0);
  q = fma(q, r, 1.0 / 720.0);
  q = fma(q, r, 1.0 / 120.0);
  q = fma(q, r, 1.0 / 24.0);
  q = fma(q, r, 1.0 / 6.0);
  q = fma(q, r, 0.5);
  const double p = fma(q * r, r, r);
  const uint64_t bits = std::bit_cast<uint64_t>(t) - std::bit_cast<uint64_t>(kMagic) + 1023;
  const double s = std::bit_cast<double>(bits << 52);
  const double e = fma(p, s, s - 1.0);
  return __builtin_copysign(e / (e + 2.0), x);
}

inline float sigmoid(float x) {
  const float e = exp(-abs(x));  // never overflows; both tails keep their relative accuracy
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

inline float silu(float x) { return x * sigmoid(x); }

inline float softplus(float x) { return (x > 0.0f ? x : 0.0f) + log1p(exp(-abs(x))); }

inline float erf(float x) {
  const float a = abs(x);
  // |x| < 0.94: x + x P(x^2), error 2^-30.
  const float u = a * a;
  float s = fma(0x1.4fa820p-14f, u, -0x1.a617e2p-11f);
  s = fma(s, u, 0x1.544b06p-8f);
  s = fma(s, u, -0x1.b80124p-6f);
  s = fma(s, u, 0x1.ce2d64p-4f);
  s = fma(s, u, -0x1.812740p-2f);
  s = fma(s, u, 0x1.06eba8p-3f);
  const float small = fma(s, x, x);
  // Beyond: 1 - exp(-P(|x|)), P = -log(erfc), error 2^-35; 1 from 3.92 on.
  const float b = a > 4.0f ? 4.0f : a;
  float p = fma(0x1.5a2892p-22f, b, 0x1.1f37a0p-16f);
  p = fma(p, b, -0x1.b1b5e8p-12f);
  p = fma(p, b, 0x1.0d619ep-8f);
  p = fma(p, b, -0x1.99ce36p-6f);
  p = fma(p, b, 0x1.bb097ep-4f);
  p = fma(p, b, 0x1.445022p-1f);
  p = fma(p, b, 0x1.212610p+0f);
  p = fma(p, b, -0x1.6577fep-13f);
  const float large = copysign(1.0f - exp(-p), x);
  return x != x ? x : a < 0.94f ? small : large;
}

namespace detail {

struct Quadrant {
  float r;         // |r| <= pi/4
  float quadrant;  // 0, 1, 2 or 3
};

// x = (4k + quadrant) pi/2 + r, in double: accurate for |x| up to 2^27 and bounded beyond.
inline Quadrant reduce_angle(float x) {
  const double wide = x;
  const double n = __builtin_rint(wide * 0x1.45f306dc9c883p-1);
  double r = fma(n, -0x1.921fb50000000p+0, wide);  // pi/2 in 26 + 26 + 53 bits: the first two products are exact
  r = fma(n, -0x1.110b460000000p-26, r);
  r = fma(n, -0x1.1a62633145c07p-54, r);
  const double q = n - 4.0 * __builtin_floor(n * 0.25);
  return {clamp(static_cast<float>(r), -0.8f, 0.8f), static_cast<float>(q)};
}

inline float sin_poly(float r) {
  const float u = r * r;
  float p = fma(0x1.7b20a8p-19f, u, -0x1.a05636p-13f);
  p = fma(p, u, 0x1.111172p-7f);
  p = fma(p, u, -0x1.555556p-3f);
  return fma(p * u, r, r);
}

inline float cos_poly(float r) {
  const float u = r * r;
  float p = fma(-0x1.352b4cp-22f, u, 0x1.a06ed6p-16f);
  p = fma(p, u, -0x1.6c175cp-10f);
  p = fma(p, u, 0x1.555556p-5f);
  return fma(p * u, u, fma(-0.5f, u, 1.0f));
}

// sin(r + quadrant pi/2), quadrant in 0..3.
inline float sin_quadrant(float r, float quadrant) {
  const bool odd = quadrant == 1.0f || quadrant == 3.0f;
  const float value = odd ? cos_poly(r) : sin_poly(r);
  return quadrant >= 2.0f ? -value : value;
}

}  // namespace detail

inline float sin(float x) {
  const auto [r, quadrant] = detail::reduce_angle(x);
  return x == 0.0f ? x : detail::sin_quadrant(r, quadrant);
}

inline float cos(float x) {
  const auto [r, quadrant] = detail::reduce_angle(x);
  return detail::sin_quadrant(r, quadrant == 3.0f ? 0.0f : quadrant + 1.0f);
}

inline float pow(float x, float y) {
  // 2^(y log2|x|), the logarithm in double: log2((1+s)/(1-s)) = 2/ln2 (s + s^3/3 + s^5/5 + ...), |s| < 0.172.
  const float magnitude = abs(x);
  const bool tiny = magnitude < 0x1p-126f;
  const float scaled = tiny ? magnitude * 0x1p23f : magnitude;
  const uint32_t shifted = detail::to_bits(scaled) - 0x3f3504f3u;
  const float exponent = static_cast<float>((static_cast<int32_t>(shifted) >> 23) - (tiny ? 23 : 0));
  const double mantissa = detail::from_bits((shifted & 0x007fffffu) + 0x3f3504f3u);
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double u = s * s;
  double p = fma(u, 1.0 / 15.0, 1.0 / 13.0);
  p = fma(p, u, 1.0 / 11.0);
  p = fma(p, u, 1.0 / 9.0);
  p = fma(p, u, 1.0 / 7.0);
  p = fma(p, u, 1.0 / 5.0);
  p = fma(p, u, 1.0 / 3.0);
  p = fma(p, u, 1.0);
  double power = static_cast<double>(y) * fma(p * s, 0x1.71547652b82fep+1, static_cast<double>(exponent));
  power = power < -160.0 ? -160.0 : power;
  power = power > 160.0 ? 160.0 : power;
  const double n = __builtin_rint(power);
  const float r = static_cast<float>(power - n);
  float q = fma(0x1.444e70p-13f, r, 0x1.5f10a2p-10f);
  q = fma(q, r, 0x1.3b2a22p-7f);
  q = fma(q, r, 0x1.c6af70p-5f);
  q = fma(q, r, 0x1.ebfbe0p-3f);
  q = fma(q, r, 0x1.62e430p-1f);
  const auto whole =
      static_cast<int32_t>(detail::to_bits(static_cast<float>(n) + detail::kMagic) - detail::to_bits(detail::kMagic));
  float result = detail::scale(fma(q, r, 1.0f), whole);
  // Special cases (C's Annex F), as a chain of single comparisons: GCC 12 does not vectorise logic on several.
  const float half = y * 0.5f;
  const float sign = abs(half - __builtin_truncf(half)) == 0.5f ? copysign(1.0f, x) : 1.0f;  // of odd powers
  const float limit = (magnitude - 1.0f) * y > 0.0f ? kInfinity : 0.0f;
  const float negative = y == __builtin_truncf(y) ? result : __builtin_nanf("");
  result = x < 0.0f ? negative : result;
  result = magnitude == 0.0f ? limit : result;
  result = magnitude == kInfinity ? limit : result;
  result = abs(y) == kInfinity ? (magnitude == 1.0f ? 1.0f : limit) : result;
  result *= sign;
  result = x == x ? result : x;
  result = y == y ? result : y;
  result = x == 1.0f ? 1.0f : result;
  return y == 0.0f ? 1.0f : result;
}

}  // namespace echoc::m
