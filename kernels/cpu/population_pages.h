// Chains of pages: taking, writing, sharing and giving back.
#pragma once

#include "kernels/cpu/population.h"

namespace echoc::population {

/// One holder of a chain less; its pages are given back with the last one.
inline void release(Pool& pool, Workspace& work, uint32_t head) {
  if (head == 0 || !pages::drop(pool.pages[head].holders)) return;
  while (head != 0) {
    const uint32_t next = pool.pages[head].next;
    pages::give(pool.taken, work.cache, head);
    head = next;
  }
}

/// One holder of a chain more: a fork.
inline void share(Pool& pool, uint32_t head) {
  if (head != 0) pages::share(pool.pages[head].holders);
}

/// Writes a new chain entry by entry.
class Writer {
 public:
  Writer(Pool& pool, Workspace& work) : pool_(pool), work_(work) {}

  bool put(uint32_t object, int64_t count) {
    if (used_ == kPageEntries || page_ == nullptr) {
      const uint32_t taken = pages::take(pool_.taken, work_.cache);
      if (taken == pages::kNone) return false;
      Page* page = pool_.pages + taken;
      page->next = 0;
      page->holders = 1;
      if (page_ != nullptr) {
        page_->next = taken;
        page_->used = used_;
      } else {
        head_ = taken;
      }
      page_ = page;
      used_ = 0;
    }
    page_->entries[used_++] = {count, object, 0};
    return true;
  }

  uint32_t finish() {
    if (page_ != nullptr) page_->used = used_;
    return head_;
  }

  /// Gives back what was written.
  void abandon() {
    const uint32_t head = finish();
    release(pool_, work_, head);
    page_ = nullptr;
    head_ = 0;
    used_ = 0;
  }

 private:
  Pool& pool_;
  Workspace& work_;
  Page* page_ = nullptr;
  uint32_t head_ = 0;
  uint32_t used_ = 0;
};

/// Asks for the memory of a page before it is needed.
inline void foresee(const Pool& pool, uint32_t page) {
  const char* at = reinterpret_cast<const char*>(pool.pages + page);
  for (size_t line = 0; line < sizeof(Page); line += 64) __builtin_prefetch(at + line);
}

template <class F>
inline void each_entry(const Pool& pool, uint32_t head, F&& f) {
  while (head != 0) {
    const Page& page = pool.pages[head];
    foresee(pool, page.next);
    for (uint32_t i = 0; i < page.used; ++i) f(page.entries[i].object, page.entries[i].count);
    head = page.next;
  }
}

inline int64_t count_of(const Pool& pool, uint32_t head, uint32_t object) {
  while (head != 0) {
    const Page& page = pool.pages[head];
    for (uint32_t i = 0; i < page.used; ++i) {
      if (page.entries[i].object == object) return page.entries[i].count;
    }
    head = page.next;
  }
  return 0;
}

}  // namespace echoc::population
