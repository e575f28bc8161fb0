// What generated expressions call: the op table's pointwise meanings by name, as kernels/cpu/ops.h has them.
#pragma once

#include "values.cuh"

namespace echoc::op {

#define ECHOC_UNARY(name, f, d)            \
  inline float name(float x) { return f; } \
  inline double name(double x) { return d; }
ECHOC_UNARY(exp, ::expf(x), ::exp(x))
ECHOC_UNARY(log, ::logf(x), ::log(x))
ECHOC_UNARY(log1p, ::log1pf(x), ::log1p(x))
ECHOC_UNARY(expm1, ::expm1f(x), ::expm1(x))
ECHOC_UNARY(sqrt, ::sqrtf(x), ::sqrt(x))
ECHOC_UNARY(rsqrt, 1.0f / ::sqrtf(x), 1.0 / ::sqrt(x))
ECHOC_UNARY(sin, ::sinf(x), ::sin(x))
ECHOC_UNARY(cos, ::cosf(x), ::cos(x))
ECHOC_UNARY(atan, ::atanf(x), ::atan(x))
ECHOC_UNARY(tanh, ::tanhf(x), ::tanh(x))
ECHOC_UNARY(erf, ::erff(x), ::erf(x))
ECHOC_UNARY(sigmoid, 1.0f / (1.0f + ::expf(-x)), 1.0 / (1.0 + ::exp(-x)))
ECHOC_UNARY(floor, ::floorf(x), ::floor(x))
ECHOC_UNARY(ceil, ::ceilf(x), ::ceil(x))
ECHOC_UNARY(trunc, ::truncf(x), ::trunc(x))
ECHOC_UNARY(round, ::rintf(x), ::rint(x))
#undef ECHOC_UNARY

inline float pow(float x, float y) { return ::powf(x, y); }
inline double pow(double x, double y) { return ::pow(x, y); }

template <class T>
inline constexpr bool is_real = false;
template <>
inline constexpr bool is_real<float> = true;
template <>
inline constexpr bool is_real<double> = true;

// Integers wrap around: computed as unsigned numbers, in which overflow has a meaning.
template <class T>
inline T add(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <class T>
inline T sub(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
}
template <class T>
inline T mul(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T>
inline T neg(T a) {
  return sub(T(0), a);
}

// x to the power y; negative powers of integers are cut towards zero, and of 0 are 0.
template <class T>
inline T pow(T x, T y) {
  T out = 1;
  if (y < 0) return x == 1 ? 1 : x == T(-1) ? (y % 2 ? T(-1) : T(1)) : 0;
  for (; y; y /= 2, x = mul(x, x))
    if (y % 2) out = mul(out, x);
  return out;
}

template <class T>
inline T abs(T x) {
  if constexpr (is_real<T>) return x < 0 ? -x : x == 0 ? T(0) : x;
  return x < 0 ? neg(x) : x;
}
template <class T>
inline T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}
template <class T>
inline T minimum(T a, T b) {
  return a < b || a != a ? a : b;
}

// floor(a / b); by integer zero it is 0, and the least value over -1 wraps.
template <class T>
inline T floordiv(T a, T b) {
  if constexpr (is_real<T>) {
    return floor(a / b);
  } else {
    if (b == 0) return 0;
    if (b == T(-1) && T(-1) < T(0)) return neg(a);
    const T q = a / b;
    return T(q - (a % b != 0 && (a < 0) != (b < 0)));
  }
}

// a - b * floor(a / b), with the divisor's sign; by integer zero it is 0.
template <class T>
inline T mod(T a, T b) {
  if constexpr (is_real<T>) {
    const T r = ::fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
  } else {
    return b == 0 ? T(0) : sub(a, mul(b, floordiv(a, b)));
  }
}

// Conversion to an integer: floats truncate; what does not fit becomes the least 64-bit value.
template <class T, class F>
inline T cast(F x) {
  if constexpr (is_real<F>) {
    const bool fits = x > F(-9.2e18) && x < F(9.2e18);
    return static_cast<T>(fits ? static_cast<int64_t>(x) : std::numeric_limits<int64_t>::min());
  } else {
    return static_cast<T>(x);
  }
}

inline int64_t clamp_index(int64_t i, int64_t size) { return i < 0 ? 0 : i >= size ? size - 1 : i; }

}  // namespace echoc::op
