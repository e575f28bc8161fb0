// Reductions, selections and sorts of one contiguous row of float.
//
// Sums keep 16 lanes, lane i taking the elements with index i modulo 16 in ascending order, and add the lanes as a
// fixed tree: the result never depends on alignment or on the vector width of the target (a product and its sum are
// fused where the target has the instruction, as in all code around). Orders treat NaN as numpy and torch do: max, min
// and their indices give the first NaN, sorts and top_k place NaN above every number; -0 equals 0 and ties keep their
// order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "lanes.h"
#include "math.h"

namespace echoc::rows {

namespace detail {

// Fold rows of 16 through `step(acc, x)` (vectors, and floats for the tail), starting from `start`, into 16 lanes.
template <class Step>
inline void fold(const float* x, int64_t n, float start, float* lane, Step&& step) {
  using namespace simd;
  Vec acc[kParts];
  for (int i = 0; i < kParts; ++i) acc[i] = splat(start);
  int64_t j = 0;
  for (; j + kRow <= n; j += kRow)
    for (int i = 0; i < kParts; ++i) acc[i] = step(acc[i], load(x + j + i * kLanes));
  for (int i = 0; i < kParts; ++i) store(lane + i * kLanes, acc[i]);
  for (int i = 0; j + i < n; ++i) lane[i] = step(lane[i], x[j + i]);
}

// Ascending unsigned order of the result is ascending order of x, NaN last, -0 as 0.
inline uint32_t order_key(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  const uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return x != x ? 0xffffffffu : key;
}

}  // namespace detail

inline float sum(const float* x, int64_t n) {
  float lane[simd::kRow];
  detail::fold(x, n, 0.0f, lane, [](auto acc, auto v) { return acc + v; });
  return simd::add_lanes(lane);
}

inline float sum_squares(const float* x, int64_t n) {
  float lane[simd::kRow];
  detail::fold(x, n, 0.0f, lane, [](auto acc, auto v) { return v * v + acc; });
  return simd::add_lanes(lane);
}

// The sum of (x - centre)^2.
inline float sum_squares(const float* x, int64_t n, float centre) {
  float lane[simd::kRow];
  detail::fold(x, n, 0.0f, lane, [centre](auto acc, auto v) {
    const auto d = v - centre;
    return d * d + acc;
  });
  return simd::add_lanes(lane);
}

inline float dot(const float* a, const float* b, int64_t n) {
  using namespace simd;
  Vec acc[kParts] = {};
  float lane[kRow];
  int64_t j = 0;
  for (; j + kRow <= n; j += kRow)
    for (int i = 0; i < kParts; ++i) acc[i] = fma(load(a + j + i * kLanes), load(b + j + i * kLanes), acc[i]);
  for (int i = 0; i < kParts; ++i) store(lane + i * kLanes, acc[i]);
  for (int i = 0; j + i < n; ++i) lane[i] = m::fma(a[j + i], b[j + i], lane[i]);
  return add_lanes(lane);
}

// The largest element, NaN if there is one, -inf of an empty row.
inline float max(const float* x, int64_t n) {
  float lane[simd::kRow];
  detail::fold(x, n, -m::kInfinity, lane, [](auto acc, auto v) {
    const auto larger = acc > v ? acc : v;  // v when v is NaN
    return acc != acc ? acc : larger;
  });
  float result = lane[0];
  for (int i = 1; i < simd::kRow; ++i) result = m::max(result, lane[i]);
  return result;
}

// The smallest element, NaN if there is one, inf of an empty row.
inline float min(const float* x, int64_t n) {
  float lane[simd::kRow];
  detail::fold(x, n, m::kInfinity, lane, [](auto acc, auto v) {
    const auto smaller = acc < v ? acc : v;
    return acc != acc ? acc : smaller;
  });
  float result = lane[0];
  for (int i = 1; i < simd::kRow; ++i) result = m::min(result, lane[i]);
  return result;
}

inline float product(const float* x, int64_t n) {
  float lane[simd::kRow];
  detail::fold(x, n, 1.0f, lane, [](auto acc, auto v) { return acc * v; });
  for (int width = simd::kRow / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] *= lane[i + width];
  return lane[0];
}

// Index of the first element equal to `value`, or of the first NaN when `value` is NaN; n when there is none.
inline int64_t find(const float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i)
    if (x[i] == value || (value != value && x[i] != x[i])) return i;
  return n;
}

inline int64_t argmax(const float* x, int64_t n) { return find(x, n, max(x, n)); }
inline int64_t argmin(const float* x, int64_t n) { return find(x, n, min(x, n)); }

// y[i] = x[0] + ... + x[i], one element after another as numpy.cumsum. y may be x.
inline void cumulative_sum(const float* x, float* y, int64_t n) {
  float total = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    total = i == 0 ? x[0] : total + x[i];
    y[i] = total;
  }
}

// The k largest (or smallest) elements in order, ties to the lower index; needs k <= n. About n + k^2 steps on random
// rows: meant for small k; sort the row for a large one.
inline void top_k(const float* x, int64_t n, int64_t k, float* values, int32_t* indices, bool largest = true) {
  const uint32_t flip = largest ? 0u : 0xffffffffu;  // compare keys as "larger wins"
  int64_t held = 0;
  uint32_t worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = detail::order_key(x[i]) ^ flip;
    if (held == k && (key <= worst || k == 0)) continue;
    int64_t place = held < k ? held++ : k - 1;
    for (; place > 0 && (detail::order_key(values[place - 1]) ^ flip) < key; --place) {
      values[place] = values[place - 1];
      indices[place] = indices[place - 1];
    }
    values[place] = x[i];
    indices[place] = static_cast<int32_t>(i);
    worst = detail::order_key(values[held - 1]) ^ flip;
  }
}

// Stable argsort; `scratch` holds n words. Ascending has NaN last, descending has NaN first (as torch.sort).
inline void argsort(const float* x, int64_t n, bool descending, int32_t* indices, uint64_t* scratch) {
  const uint32_t flip = descending ? 0xffffffffu : 0u;
  for (int64_t i = 0; i < n; ++i)
    scratch[i] = uint64_t{detail::order_key(x[i]) ^ flip} << 32 | static_cast<uint32_t>(i);
  std::sort(scratch, scratch + n);  // the index in the low half makes every word different: the order is stable
  for (int64_t i = 0; i < n; ++i) indices[i] = static_cast<int32_t>(scratch[i]);
}

// Stable sort with its permutation: values[i] = x[indices[i]]. `values` is not `x`.
inline void sort(const float* x, int64_t n, bool descending, float* values, int32_t* indices, uint64_t* scratch) {
  argsort(x, n, descending, indices, scratch);
  for (int64_t i = 0; i < n; ++i) values[i] = x[indices[i]];
}

}  // namespace echoc::rows
