// The best few values of each row that a product hands out in segments: of a row of logits, all that greedy and top-k
// sampling need. Each thread keeps a list for each row; who reads the lists joins those of a row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "abi.h"
#include "vec16.h"

namespace echoc {

struct Candidate {
  float value;
  int32_t id;
};

// Of equal values the one with the lower id is better.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// What one thread found in its part of a row. The candidates follow, none of them -infinity or NaN.
struct BestOfRow {
  int32_t count;
  int32_t unbounded;  // a value is NaN or +infinity
  int32_t wanted;
  float bound;  // what a value must reach to be among them

  Candidate* candidates() { return reinterpret_cast<Candidate*>(this + 1); }
  const Candidate* candidates() const { return reinterpret_cast<const Candidate*>(this + 1); }
};

// The memory of a step: i32 [rows], how many are wanted of each, then [threads][rows] lists of at most `most`
// candidates, each in cache lines of its own.
struct BestLayout {
  int64_t rows;
  int64_t most;

  constexpr int64_t list_bytes() const {
    return round_up(int64_t{sizeof(BestOfRow)} + most * int64_t{sizeof(Candidate)});
  }
  constexpr int64_t bytes(int64_t threads) const { return round_up(rows * 4) + threads * rows * list_bytes(); }

  template <class Byte>
  auto* list(Byte* memory, int64_t thread, int64_t row) const {
    using List = std::conditional_t<std::is_const_v<Byte>, const BestOfRow, BestOfRow>;
    return reinterpret_cast<List*>(memory + round_up(rows * 4) + (thread * rows + row) * list_bytes());
  }

 private:
  static constexpr int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }
};

namespace detail {

// Which of 16 values are not below `bound`: NaN is not.
ECHOC_INLINE uint32_t not_below(const float* values, float bound) {
#if defined(ECHOC_AVX512)
  return _mm512_cmp_ps_mask(_mm512_load_ps(values), _mm512_set1_ps(bound), _CMP_NLT_UQ);
#elif defined(ECHOC_AVX2)
  const auto half = [&](const float* from) {
    return static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(from), _mm256_set1_ps(bound), _CMP_NLT_UQ)));
  };
  return half(values) | half(values + 8) << 8;
#else
  uint32_t found = 0;
  for (int lane = 0; lane < 16; ++lane) found |= uint32_t{!(values[lane] < bound)} << lane;
  return found;
#endif
}

}  // namespace detail

// A thread's part of the lists of a launch. Segments may come in any order.
class Chooser {
 public:
  static constexpr int64_t kSegment = 256;  // of values that come at once, at most
  static constexpr int64_t kLanes = 16;

  Chooser(const Call& call, std::byte* memory, int64_t rows, int64_t most) {
    const BestLayout layout{rows, most};
    const auto* wanted = reinterpret_cast<const int32_t*>(memory);
    lists_ = reinterpret_cast<std::byte*>(layout.list(memory, call.tid, 0));
    list_bytes_ = layout.list_bytes();
    for (int64_t row = 0; row < rows; ++row) {
      const auto number = static_cast<int32_t>(std::clamp<int64_t>(wanted[row], 0, most));
      *list(row) = {0, 0, number, number > 0 ? kLowest : kInfinity};
    }
  }

  // Takes up values [first, first + count) of a row: values[i] belongs to first + i. `values` is 64-byte aligned;
  // values[count...] are overwritten up to a multiple of kLanes.
  void take(int64_t row, int64_t first, int64_t count, float* values) {
    BestOfRow& best = *list(row);
    for (int64_t i = count; i % kLanes != 0; ++i) values[i] = -kInfinity;
    for (int64_t i = 0; i < count; i += kLanes) {
      const uint32_t found = detail::not_below(values + i, best.bound);
      if (found != 0) insert(best, found, static_cast<int32_t>(first + i), values + i);
    }
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static constexpr float kLowest = std::numeric_limits<float>::lowest();

  BestOfRow* list(int64_t row) const { return reinterpret_cast<BestOfRow*>(lists_ + row * list_bytes_); }

  static __attribute__((noinline)) void insert(BestOfRow& best, uint32_t lanes, int32_t first, const float* values) {
    Candidate* const heap = best.candidates();  // the worst is in front
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      const Candidate fresh{values[lane], first + lane};
      if (!(fresh.value < kInfinity)) best.unbounded = 1;
      if (!(fresh.value >= best.bound) || best.wanted == 0) continue;
      if (best.count < best.wanted) {
        heap[best.count++] = fresh;
        std::push_heap(heap, heap + best.count, better);
      } else if (better(fresh, heap[0])) {
        replace_worst(heap, best.count, fresh);
      }
      if (best.count == best.wanted) best.bound = heap[0].value;
    }
  }

  static void replace_worst(Candidate* heap, int32_t count, Candidate fresh) {
    int32_t at = 0;
    for (int32_t child = 1; child < count; child = 2 * at + 1) {
      if (child + 1 < count && better(heap[child], heap[child + 1])) ++child;
      if (!better(fresh, heap[child])) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = fresh;
  }

  std::byte* lists_;
  int64_t list_bytes_;
};

}  // namespace echoc
