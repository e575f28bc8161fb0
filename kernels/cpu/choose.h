// The best few values of each row that a product hands out in segments: of a row of logits, all that greedy and top-k
// sampling need. Each thread keeps a list for each row; who reads the lists joins those of a row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "abi.h"

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

  Candidate* candidates() { return reinterpret_cast<Candidate*>(this + 1); }
  const Candidate* candidates() const { return reinterpret_cast<const Candidate*>(this + 1); }
};

// The memory of a step: i32 [rows], how many are wanted of each, then [threads][rows] lists of at most `most`
// candidates, each in cache lines of its own.
struct BestLayout {
  int64_t rows;
  int64_t most;

  constexpr int64_t list_bytes() const { return round_up((most + 1) * int64_t{sizeof(Candidate)}); }
  constexpr int64_t bytes(int64_t threads) const { return round_up(rows * 4) + threads * rows * list_bytes(); }

  template <class Byte>
  auto* list(Byte* memory, int64_t thread, int64_t row) const {
    using List = std::conditional_t<std::is_const_v<Byte>, const BestOfRow, BestOfRow>;
    return reinterpret_cast<List*>(memory + round_up(rows * 4) + (thread * rows + row) * list_bytes());
  }

 private:
  static constexpr int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }
};

// A thread's part of the lists of a launch. Segments may come in any order.
class Chooser {
 public:
  static constexpr int64_t kSegment = 256;  // of values that come at once, at most
  static constexpr int64_t kLanes = 16;

  Chooser(const Call& call, std::byte* memory, int64_t rows, int64_t most)
      : wanted_(reinterpret_cast<const int32_t*>(memory)), memory_(memory), layout_{rows, most}, thread_(call.tid) {
    for (int64_t row = 0; row < rows; ++row) *list(row) = {0, 0};
  }

  // Takes up values [first, first + count) of a row: values[i] belongs to first + i. Overwrites values[count...] up to
  // a multiple of kLanes.
  void take(int64_t row, int64_t first, int64_t count, float* values) {
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    BestOfRow& best = *list(row);
    const auto wanted = static_cast<int32_t>(std::min<int64_t>(wanted_[row], layout_.most));
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(values + count, values + padded, kLowest);
    float highest[kLanes];
    int32_t unbounded[kLanes] = {};
    std::fill(highest, highest + kLanes, kLowest);
    for (int64_t i = 0; i < padded; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float value = values[i + lane];
        highest[lane] = value > highest[lane] ? value : highest[lane];
        unbounded[lane] |= !(value < std::numeric_limits<float>::infinity());
      }
    }
    if (any(unbounded)) best.unbounded = 1;
    const float bound = least(best, wanted);
    if (wanted < 1 || !reaches(highest, bound)) return;
    for (int64_t i = 0; i < padded; i += kLanes) {
      if (reaches(values + i, least(best, wanted))) insert(best, wanted, first + i, values + i);
    }
  }

 private:
  BestOfRow* list(int64_t row) const { return layout_.list(memory_, thread_, row); }

  // What a value must reach to be among the best so far.
  static float least(const BestOfRow& best, int32_t wanted) {
    return best.count < wanted ? std::numeric_limits<float>::lowest() : best.candidates()->value;
  }

  static bool any(const int32_t* flags) {
    int32_t found = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) found |= flags[lane];
    return found != 0;
  }

  static bool reaches(const float* values, float bound) {
    int32_t found = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) found |= values[lane] >= bound;
    return found != 0;
  }

  // The list is a heap with the worst of it in front.
  static void insert(BestOfRow& best, int32_t wanted, int64_t first, const float* values) {
    Candidate* const heap = best.candidates();
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const Candidate fresh{values[lane], static_cast<int32_t>(first + lane)};
      if (!(fresh.value >= least(best, wanted))) continue;
      if (best.count == wanted) {
        if (!better(fresh, heap[0])) continue;
        std::pop_heap(heap, heap + best.count--, better);
      }
      heap[best.count++] = fresh;
      std::push_heap(heap, heap + best.count, better);
    }
  }

  const int32_t* wanted_;
  std::byte* memory_;
  BestLayout layout_;
  int64_t thread_;
};

}  // namespace echoc
