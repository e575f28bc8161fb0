// What generated expressions call: the op table's pointwise meanings by name, and reductions with a fixed order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "abi.h"
#include "half.h"
#include "math.h"
#include "philox.h"

namespace echoc::op {

#define ECHOC_UNARY(name)                           \
  inline float name(float x) { return m::name(x); } \
  inline double name(double x) { return std::name(x); }
ECHOC_UNARY(exp)
ECHOC_UNARY(log)
ECHOC_UNARY(log1p)
ECHOC_UNARY(expm1)
ECHOC_UNARY(sqrt)
ECHOC_UNARY(sin)
ECHOC_UNARY(cos)
ECHOC_UNARY(tanh)
ECHOC_UNARY(erf)
ECHOC_UNARY(floor)
ECHOC_UNARY(ceil)
ECHOC_UNARY(trunc)
#undef ECHOC_UNARY

inline float atan(float x) { return std::atan(x); }
inline double atan(double x) { return std::atan(x); }
inline float rsqrt(float x) { return m::rsqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float sigmoid(float x) { return m::sigmoid(x); }
inline double sigmoid(double x) { return 0.5 * (1.0 + std::tanh(0.5 * x)); }
inline float round(float x) { return m::round(x); }
inline double round(double x) { return std::nearbyint(x); }
inline float pow(float x, float y) { return m::pow(x, y); }
inline double pow(double x, double y) { return std::pow(x, y); }

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
  if constexpr (std::is_floating_point_v<T>) return x < 0 ? -x : x == 0 ? T(0) : x;
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

// floor(a / b); by integer zero it is 0.
template <class T>
inline T floordiv(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::floor(a / b);
  } else {
    if (b == 0) return 0;
    if (b == T(-1) && std::is_signed_v<T>) return neg(a);  // the least value has no negative: it wraps
    const T q = a / b;
    return T(q - (a % b != 0 && (a < 0) != (b < 0)));
  }
}

// a - b * floor(a / b), with the divisor's sign; by integer zero it is 0.
template <class T>
inline T mod(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    const T r = std::fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
  } else {
    return b == 0 ? T(0) : sub(a, mul(b, floordiv(a, b)));
  }
}

// Conversion to an integer: floats truncate; what does not fit becomes the least value, as the processor's does.
template <class T, class F>
inline T cast(F x) {
  if constexpr (std::is_floating_point_v<F>) {
    const bool fits = x > F(-9.2e18) && x < F(9.2e18);
    return static_cast<T>(fits ? static_cast<int64_t>(x) : std::numeric_limits<int64_t>::min());
  } else {
    return static_cast<T>(x);
  }
}

inline int64_t clamp_index(int64_t i, int64_t size) { return i < 0 ? 0 : i >= size ? size - 1 : i; }

// 32 uniform bits: word 0 of the Philox block that a key and a counter of two words name.
template <class T>
inline T random_bits(T key, T first, T second = 0) {
  const auto low = [](T x) { return static_cast<uint32_t>(x); };
  const auto high = [](T x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32); };
  return random::philox({{low(first), high(first), low(second), high(second)}}, low(key), high(key)).word[0];
}

// Reductions of term(i), low <= i < high, in 16 lanes whose order is fixed.
inline constexpr int kLanes = 16;

template <class T, class Combine, class Term>
inline T reduce(int64_t low, int64_t high, T start, Combine combine, Term term) {
  T lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = start;
  int64_t i = low;
  for (; i + kLanes <= high; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] = combine(lanes[l], term(i + l));
  for (int l = 0; i < high; ++i, ++l) lanes[l] = combine(lanes[l], term(i));
  for (int width = kLanes / 2; width; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] = combine(lanes[l], lanes[l + width]);
  return lanes[0];
}

template <class T>
inline T combine_sum(T a, T b) {
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) return add(a, b);
  return a + b;
}
template <class T>
inline T combine_max(T a, T b) {
  return maximum(a, b);
}
template <class T>
inline T combine_min(T a, T b) {
  return minimum(a, b);
}
template <class T>
inline T start_sum() {
  return T(0);
}
template <class T>
inline T start_max() {
  if constexpr (std::is_floating_point_v<T>) return -std::numeric_limits<T>::infinity();
  return std::numeric_limits<T>::lowest();
}
template <class T>
inline T start_min() {
  if constexpr (std::is_floating_point_v<T>) return std::numeric_limits<T>::infinity();
  return std::numeric_limits<T>::max();
}

template <class T, class Term>
inline T reduce_sum(int64_t low, int64_t high, Term term) {
  return reduce<T>(low, high, start_sum<T>(), [](T a, T b) { return combine_sum(a, b); }, term);
}
template <class T, class Term>
inline T reduce_max(int64_t low, int64_t high, Term term) {
  return reduce<T>(low, high, start_max<T>(), [](T a, T b) { return maximum(a, b); }, term);
}
template <class T, class Term>
inline T reduce_min(int64_t low, int64_t high, Term term) {
  return reduce<T>(low, high, start_min<T>(), [](T a, T b) { return minimum(a, b); }, term);
}

// Whether element a of x comes before element b: by value, then by place. NaN comes last.
template <class T>
inline bool before(const T* x, int64_t a, int64_t b, bool descending) {
  const T p = x[a], q = x[b];
  if (p != p || q != q) return (p == p) != (q == q) ? p == p : a < b;
  if (p != q) return descending ? p > q : p < q;
  return a < b;
}

// The first `count` places of x in order, by insertion into a sorted prefix; ties go to the lower place.
template <class T>
inline void select_indices(const T* x, int64_t length, int64_t count, bool descending, int64_t* out) {
  int64_t filled = 0;
  for (int64_t i = 0; i < length; ++i) {
    if (filled == count && !before(x, i, out[count - 1], descending)) continue;
    int64_t at = filled < count ? filled++ : count - 1;
    for (; at > 0 && before(x, i, out[at - 1], descending); --at) out[at] = out[at - 1];
    out[at] = i;
  }
}

// The same by values. Equal values are alike, so that only the order of values matters.
template <class T>
inline void select_values(const T* x, int64_t length, int64_t count, bool descending, T* out) {
  int64_t filled = 0;
  const auto first = [descending](T p, T q) {
    if (p != p || q != q) return p == p && q != q;
    return descending ? p > q : p < q;
  };
  for (int64_t i = 0; i < length; ++i) {
    if (filled == count && !first(x[i], out[count - 1])) continue;
    int64_t at = filled < count ? filled++ : count - 1;
    for (; at > 0 && first(x[i], out[at - 1]); --at) out[at] = out[at - 1];
    out[at] = x[i];
  }
}

}  // namespace echoc::op
