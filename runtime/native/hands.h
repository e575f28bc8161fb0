#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/native/population.h"

namespace echoc::population {

/// Threads that take and give pages for a run.
class Population::Hands {
 public:
  Hands(Population& population, Instance& instance, int first, int count)
      : work_(population.workspaces_.data() + first), count_(count), instance_(instance) {
    pages::Account& account = instance.means->pages;
    before_ = account.limit - __atomic_load_n(&account.left, __ATOMIC_RELAXED);
    for (int t = 0; t < count_; ++t) {
      pages::open(population.pool_.taken, work_[t].cache, account);
    }
  }
  ~Hands() {
    for (int t = 0; t < count_; ++t) pages::close(work_[t].cache);
  }
  Hands(const Hands&) = delete;
  Hands& operator=(const Hands&) = delete;

  /// Pages of the run, and of its forks, at the end of the last step, when both configurations are there.
  void note_peak() { instance_.most_pages = std::max(instance_.most_pages, before_ + instance_.held); }

 private:
  Workspace* work_;
  int count_;
  Instance& instance_;
  int64_t before_;
};

}  // namespace echoc::population
