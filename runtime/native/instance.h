// One run of a population: its rows, its environment, its links, and what it may hold.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/cpu/population.h"

namespace echoc::population {

/// Rows that grow without losing what they hold. Columns lie one behind another in one piece of memory.
class Table {
 public:
  Cells cells{};

  /// Whether there was memory for so many rows.
  bool grow(uint32_t rows) {
    constexpr size_t kRow = sizeof(int64_t) + 4 * sizeof(int32_t) + sizeof(uint16_t) + 2;
    void* memory = std::calloc(std::max<size_t>(rows, 1), kRow);  // cells that no step closes are open
    if (memory == nullptr) return false;
    std::byte* at = static_cast<std::byte*>(memory);
    const auto column = [&]<class T>(T*& data) {
      T* moved = reinterpret_cast<T*>(at);
      if (cells.count > 0) std::copy_n(data, cells.count, moved);
      data = moved;
      at += rows * sizeof(T);
    };
    column(cells.id);
    column(cells.parent);
    column(cells.content);
    column(cells.closed);
    column(cells.pending);
    column(cells.label);
    column(cells.charge);
    column(cells.idle);
    cells.limit = rows;
    memory_.reset(memory);
    return true;
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
};

/// Edges that grow without losing what they hold.
class Edges {
 public:
  Vec<Link> links{};

  void grow(uint64_t limit) {
    memory_.resize(limit);
    links.data = memory_.data();
    links.limit = limit;
  }

 private:
  std::vector<Link> memory_;
};

/// What a run and its forks may hold together: pages, and rows of their tables.
struct Means {
  pages::Account pages{};
  std::atomic<int64_t> rows_left{0};

  bool take_rows(int64_t rows) {
    if (rows_left.fetch_sub(rows) >= rows) return true;
    rows_left.fetch_add(rows);
    return false;
  }
};

struct Instance {
  Table now, next;
  Edges links, next_links;
  std::vector<int64_t> environment, next_environment;
  std::shared_ptr<Means> means;
  uint64_t seed = 0, number = 0;  // what is random is a function of these, the step and a membrane's id
  int64_t step = 0;
  int64_t next_id = 0;
  bool alive = false, halted = false;
  int64_t forks = 0, releases = 0;
  uint32_t most_rows = 0;
  int64_t most_pages = 0;
  int64_t failed_id = -1;  // where a count passed its limit in the last step that failed, -1 the environment
  uint32_t failed_object = 0;
  std::vector<int64_t> applications;  // of the last recorded step, as kernels list them
};

}  // namespace echoc::population
