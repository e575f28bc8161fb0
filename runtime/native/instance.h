// One run of a population: its rows, its environment, its links, and what it may hold.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "kernels/cpu/population.h"
#include "runtime/native/population_memory.h"

namespace echoc::population {

/// Rows that grow without losing what they hold. Columns lie one behind another in one piece of memory.
class Table {
 public:
  explicit Table(Memory& memory) : memory_(&memory) {}

  Cells cells{};

  /// Whether there was memory for so many rows.
  bool grow(uint32_t rows) try {
    constexpr size_t kRow = sizeof(int64_t) + 4 * sizeof(int32_t) + sizeof(uint16_t) + 2;
    Piece piece(*memory_, std::max<size_t>(rows, 1) * kRow, true);  // cells that no step closes are open
    std::byte* at = static_cast<std::byte*>(piece.data());
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
    piece_ = std::move(piece);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }

 private:
  Memory* memory_;
  Piece piece_;
};

/// Edges that grow without losing what they hold.
class Edges {
 public:
  explicit Edges(Memory& memory) : memory_(&memory) {}

  Vec<Link> links{};

  void grow(uint64_t limit) {
    if (limit <= links.limit) return;
    Piece piece(*memory_, limit * sizeof(Link), false);
    auto* moved = static_cast<Link*>(piece.data());
    if (links.size > 0) std::copy_n(links.data, links.size, moved);
    links.data = moved;
    links.limit = limit;
    piece_ = std::move(piece);
  }

  void assign(const Edges& from) {
    grow(from.links.limit);
    links.size = from.links.size;
    if (links.size > 0) std::copy_n(from.links.data, links.size, links.data);
  }

 private:
  Memory* memory_;
  Piece piece_;
};

/// One count an object: the environment.
class Counts {
 public:
  explicit Counts(Memory& memory) : memory_(&memory) {}

  void assign(std::span<const int64_t> from) {
    if (size_ != from.size()) {
      piece_ = Piece(*memory_, std::max<size_t>(from.size(), 1) * sizeof(int64_t), true);
      size_ = from.size();
    }
    std::copy(from.begin(), from.end(), data());
  }

  int64_t* data() const { return static_cast<int64_t*>(piece_.data()); }
  size_t size() const { return size_; }
  std::span<const int64_t> values() const { return {data(), size_}; }
  int64_t& operator[](size_t i) const { return data()[i]; }

 private:
  Memory* memory_;
  Piece piece_;
  size_t size_ = 0;
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
  explicit Instance(Memory& memory)
      : now(memory), next(memory), links(memory), next_links(memory), environment(memory), next_environment(memory) {}

  Table now, next;
  Edges links, next_links;
  Counts environment, next_environment;
  std::shared_ptr<Means> means;
  uint64_t seed = 0, number = 0;  // what is random is a function of these, the step and a membrane's id
  int64_t step = 0;
  int64_t next_id = 0;
  bool alive = false, halted = false;
  int64_t forks = 0, releases = 0;
  uint32_t most_rows = 0;
  int64_t most_pages = 0;
  int64_t held = 0;        // pages taken in the last step, when the old and the new configuration are both there
  int64_t failed_id = -1;  // where a count passed its limit in the last step that failed, -1 the environment
  uint32_t failed_object = 0;
  std::vector<int64_t> applications;  // of the last recorded step, as kernels list them
};

}  // namespace echoc::population
