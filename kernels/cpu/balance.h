// Items of one launch that the threads of a team do in near-equal time, though memory serves one quicker than another.
#pragma once

#include <algorithm>
#include <cstdint>

#include "abi.h"

namespace echoc {

namespace detail {

inline constexpr int kCountBits = 20;
inline constexpr int64_t kMostItems = int64_t{1} << kCountBits;  // of a thread
inline constexpr int kMostNeighbours = 3;                        // whose lines a thread without items reads

struct Left {
  int64_t front, back;  // taken

  explicit Left(uint64_t word)
      : front(static_cast<int64_t>(word) & (kMostItems - 1)),
        back(static_cast<int64_t>(word >> kCountBits) & (kMostItems - 1)) {}
};

inline bool replace(Pile& pile, uint64_t& seen, uint64_t wanted) {
  return __atomic_compare_exchange_n(&pile.word, &seen, wanted, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

}  // namespace detail

// Calls work(range) until all of `count` items are done, by this thread or others of the team: each has a contiguous
// share and takes most of what is left of it from the front; whoever is done takes half of what a neighbour has left,
// from the back. Ranges are of `least` items or more where there are so many. All threads call it once in a launch.
template <class Work>
void share_out(const Call& call, int64_t count, int64_t least, Work&& work) {
  const Range mine = share(count, call.tid, call.nthreads);
  if (call.piles == nullptr || call.nthreads == 1 || count >= detail::kMostItems) {
    if (mine.begin < mine.end) work(mine);
    return;
  }
  const uint64_t ticket = static_cast<uint64_t>(call.ticket) << (2 * detail::kCountBits);
  Pile& own = call.piles[call.tid];
  __atomic_store_n(&own.word, ticket, __ATOMIC_RELEASE);
  for (uint64_t seen = ticket;;) {
    const detail::Left taken(seen);
    const int64_t left = mine.end - mine.begin - taken.front - taken.back;
    if (left <= 0) break;
    const int64_t some = std::max(std::min(left, least), left * 3 / 4);
    if (!detail::replace(own, seen, seen + static_cast<uint64_t>(some))) continue;
    work(Range{mine.begin + taken.front, mine.begin + taken.front + some});
    seen = __atomic_load_n(&own.word, __ATOMIC_ACQUIRE);
  }
  for (int i = 1; i <= std::min(call.nthreads - 1, detail::kMostNeighbours); ++i) {
    const int other = (call.tid + i) % call.nthreads;
    const Range theirs = share(count, other, call.nthreads);
    Pile& pile = call.piles[other];
    for (uint64_t seen = __atomic_load_n(&pile.word, __ATOMIC_ACQUIRE);;) {
      const detail::Left taken(seen);
      const int64_t left = theirs.end - theirs.begin - taken.front - taken.back;
      if ((seen ^ ticket) >> (2 * detail::kCountBits) != 0 || left <= 0) break;
      const int64_t some = std::max(std::min(left, least), left / 2);
      if (!detail::replace(pile, seen, seen + (static_cast<uint64_t>(some) << detail::kCountBits))) continue;
      work(Range{theirs.end - taken.back - some, theirs.end - taken.back});
      seen = __atomic_load_n(&pile.word, __ATOMIC_ACQUIRE);
    }
  }
}

}  // namespace echoc
