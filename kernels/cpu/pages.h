// Pages: the one allocator under every kind of state. The keys and values of sequences (runtime/native/pager.h) and the
// multisets of membranes (population_pages.h) are taken, shared and given back here. A page is a number: what it holds,
// and where, is its owner's affair.
#pragma once

#include <sched.h>

#include <cstdint>
#include <cstring>

namespace echoc::pages {

constexpr uint32_t kNone = UINT32_MAX;

/// Pages 0 to limit - 1. Those given back are used again, the last one first, before one is touched that never was.
struct Pool {
  uint32_t* free;  // room for `limit`
  uint32_t num_free;
  uint32_t top;  // pages that have been touched: the most that were ever held at once
  uint32_t limit;
  int32_t lock;
};

/// A fork: a page or chain has one holder more. Returns how many there were.
inline int32_t share(int32_t& holders) { return __atomic_fetch_add(&holders, 1, __ATOMIC_RELAXED); }

/// A release: one holder less. Whether that was the last one, who must keep the page for others or give it back.
inline bool drop(int32_t& holders) { return __atomic_sub_fetch(&holders, 1, __ATOMIC_ACQ_REL) == 0; }

/// Holds the pool for a few instructions; threads meet here once for many pages (see Cache). Threads that go in step,
/// as those of a wavefront, would wait for one that has the pool and waits for them: `f` must lie inside of the loop,
/// and a compiler moves what leads only to the exit behind it, unless it cannot see that this does.
template <class F>
inline void alone(Pool& pool, F&& f) {
  int32_t waits = 1;
  while (waits != 0) {
    if (__atomic_load_n(&pool.lock, __ATOMIC_RELAXED) == 0 &&
        __atomic_exchange_n(&pool.lock, 1, __ATOMIC_ACQUIRE) == 0) {
      f();
      __atomic_store_n(&pool.lock, 0, __ATOMIC_RELEASE);
      waits = 0;
    } else {
      sched_yield();
    }
#if defined(__AMDGCN__)
    asm volatile("" : "+v"(waits));
#else
    asm volatile("" : "+r"(waits));
#endif
  }
}

/// At most `wanted` pages, to be used from the end of `out`. Returns how many there were.
inline uint32_t take_many(Pool& pool, uint32_t* out, uint32_t wanted) {
  uint32_t taken = 0;
  alone(pool, [&] {
    const uint32_t fresh_left = pool.limit - pool.top;
    const uint32_t used = wanted < pool.num_free ? wanted : pool.num_free;
    const uint32_t fresh = wanted - used < fresh_left ? wanted - used : fresh_left;
    for (uint32_t i = 0; i < fresh; ++i) out[i] = pool.top + fresh - 1 - i;
    pool.top += fresh;
    pool.num_free -= used;
    std::memcpy(out + fresh, pool.free + pool.num_free, used * sizeof(uint32_t));
    taken = used + fresh;
  });
  return taken;
}

inline void give_many(Pool& pool, const uint32_t* given, uint32_t count) {
  if (count == 0) return;
  alone(pool, [&] {
    std::memcpy(pool.free + pool.num_free, given, count * sizeof(uint32_t));
    pool.num_free += count;
  });
}

/// A page, or kNone when all are taken.
inline uint32_t take(Pool& pool) {
  uint32_t page;
  return take_many(pool, &page, 1) == 0 ? kNone : page;
}

inline void give(Pool& pool, uint32_t page) { give_many(pool, &page, 1); }

/// Pages that are neither free nor untouched.
inline uint32_t num_taken(const Pool& pool) { return pool.top - pool.num_free; }

/// How many pages a run may hold, on all its threads together.
struct Account {
  int64_t limit;
  int64_t left;
};

/// The pages at one thread's hand. While it works for a run they are on the run's account, used or not.
struct Cache {
  uint32_t* pages;
  uint32_t size;
  uint32_t limit;  // an even number
  Account* account;
  int64_t charged;  // since `open`
};

/// Pages taken since `open`, less those given back.
inline int64_t num_held(const Cache& cache) { return cache.charged - cache.size; }

/// Charges at most `wanted` pages, fewer near the end of the account, as other threads want some too. Many threads at
/// once take what they want without asking each other twice, and give back what was not there.
inline uint32_t charge(Cache& cache, uint32_t wanted) {
  int64_t* const all = &cache.account->left;
  while (true) {
    const int64_t left = __atomic_load_n(all, __ATOMIC_RELAXED);
    if (left <= 0) return 0;
    const int64_t charged = left / 8 < 1 ? 1 : left / 8 < wanted ? left / 8 : wanted;
    if (__atomic_fetch_sub(all, charged, __ATOMIC_RELAXED) >= charged) {
      cache.charged += charged;
      return static_cast<uint32_t>(charged);
    }
    __atomic_fetch_add(all, charged, __ATOMIC_RELAXED);
  }
}

inline void refund(Cache& cache, int64_t count) {
  __atomic_fetch_add(&cache.account->left, count, __ATOMIC_RELAXED);
  cache.charged -= count;
}

/// The thread begins to work for a run. What it has at hand beyond the run's means goes round.
inline void open(Pool& pool, Cache& cache, Account& account) {
  cache.account = &account;
  cache.charged = 0;
  if (cache.size == 0) return;
  const uint32_t kept = charge(cache, cache.size);
  give_many(pool, cache.pages + kept, cache.size - kept);
  cache.size = kept;
}

/// The thread has done what it had to do for the run.
inline void close(Cache& cache) { refund(cache, cache.size); }

[[gnu::noinline, gnu::cold]] inline bool refill(Pool& pool, Cache& cache) {
  const uint32_t some = pool.top / 16 < 64 ? 64 : pool.top / 16;  // little of what was ever needed lies idle
  const uint32_t charged = charge(cache, some < cache.limit / 2 ? some : cache.limit / 2);
  cache.size = take_many(pool, cache.pages, charged);
  if (cache.size < charged) refund(cache, charged - cache.size);
  return cache.size > 0;
}

[[gnu::noinline, gnu::cold]] inline void spill(Pool& pool, Cache& cache) {
  const uint32_t half = cache.limit / 2;  // the older one
  give_many(pool, cache.pages, half);
  std::memmove(cache.pages, cache.pages + half, half * sizeof(uint32_t));
  cache.size = half;
  refund(cache, half);
}

/// A page, or kNone when the account is used up.
inline uint32_t take(Pool& pool, Cache& cache) {
  if (cache.size == 0 && !refill(pool, cache)) [[unlikely]]
    return kNone;
  return cache.pages[--cache.size];
}

inline void give(Pool& pool, Cache& cache, uint32_t page) {
  if (cache.size == cache.limit) [[unlikely]]
    spill(pool, cache);
  cache.pages[cache.size++] = page;
}

}  // namespace echoc::pages
