// Populations: runs of one compiled P system side by side, in one pool of pages, on one team of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/population.h"
#include "runtime/native/instance.h"
#include "runtime/native/library.h"
#include "runtime/native/population_device.h"
#include "runtime/native/team.h"

namespace echoc::population {

constexpr uint64_t kSpare = 1 << 20;  // entries of mail and candidates that a small table may have

/// The start of a run: one row a membrane, parents first; contents as offsets into objects and counts.
struct Start {
  std::span<const uint16_t> labels;
  std::span<const int8_t> charges;
  std::span<const int32_t> parents;
  std::span<const int64_t> offsets;
  std::span<const uint32_t> objects;
  std::span<const int64_t> counts;
  std::span<const int64_t> environment;
  std::span<const int32_t> links;  // pairs of rows
};

/// `max_bytes` bound pages and rows of all instances; each, with its forks, has an equal share of them.
struct Sizes {
  int64_t objects;
  int64_t groups;
  int64_t rules;
  int64_t max_bytes;
  int64_t instances;
};

/// What `advance` is to do with an instance, and what came of it.
struct Task {
  int64_t instance;
  int64_t steps;  // that are still to be taken
  int64_t done;
  Status status;
};

class Population {
 public:
  Population(const std::string& library, const std::string& entry, int num_threads, const Sizes& sizes);

  /// On a GPU: its threads are the team, the tables lie where both see them.
  Population(std::unique_ptr<DeviceKernel> device, const Sizes& sizes);

  /// The start of all instances, once. kDone, or what does not fit.
  Status load(const Start& start);

  /// The four verbs. `create` puts an instance back to the start, whose pages it shares.
  Status create(int64_t instance, uint64_t seed, uint64_t number);
  /// A new instance that stands where `instance` does: every multiset has one holder more. -1 where its rows do not
  /// fit.
  int64_t fork(int64_t instance);
  /// Objects come into the membrane with an id (-1: the environment) between two steps. Unless kDone, nothing changed.
  Status append(int64_t instance, int64_t id, std::span<const uint32_t> objects, std::span<const int64_t> counts);
  void release(int64_t instance);

  /// Steps all that are named until each has taken its steps, halted or failed, or for `seconds`. A step that fails or
  /// finds nothing applicable leaves its instance as it was and does not count; the others go on.
  void advance(std::span<Task> tasks, bool record, double seconds);

  /// Takes all of some objects out of the environment between two steps; returns how many there were of each.
  std::vector<int64_t> take(int64_t instance, std::span<const uint32_t> objects);

  const Instance& find(int64_t instance) const;
  const Pool& pool() const { return pool_; }
  int64_t num_objects() const { return objects_; }
  int64_t num_instances() const { return static_cast<int64_t>(instances_.size()); }
  int64_t pages_held() const;
  int64_t peak_bytes() const;
  static int64_t bytes(int64_t num_pages, int64_t rows);
  const DeviceKernel* device() const { return device_.get(); }
  std::atomic_flag& busy() { return busy_; }

 private:
  class Hands;
  struct Context;

  /// How large what one thread works with is.
  struct Room {
    uint64_t rows;     // that it may have to do with
    uint64_t spare;    // entries of mail and candidates that a small table may have
    uint64_t pages;    // that it may take out of a configuration
    uint32_t at_hand;  // pages that it keeps
  };

  void set_up(int num_threads, const Sizes& sizes);
  template <class T>
  T* reserve(uint64_t count, bool zeros = false);
  template <class T>
  Vec<T> reserve_vec(uint64_t count);
  void reserve_shared(Shared& shared);
  void reserve_workspaces(Workspace* out, uint64_t count, const Room& room, int64_t num_groups);
  void check(const Start& start) const;

  Instance& own(int64_t instance) { return const_cast<Instance&>(std::as_const(*this).find(instance)); }
  bool copy(Instance& to, const Instance& from);
  void give_back(Instance& instance);
  bool grow(Instance& instance, Table& table, uint64_t wanted) const;

  bool is_large(const Task& task) const;
  void alone(Task& task, int thread, bool record);
  void together(Task& task, bool record);
  Status step(Instance& instance, int thread, int num_threads, bool record);
  Status attempt(Instance& instance, int thread, int num_threads, bool record);
  void keep(Instance& instance, const Shared& shared, int64_t applied);
  void list(Instance& instance, std::span<const Workspace> workspaces);

  std::unique_ptr<DeviceKernel> device_;
  std::optional<Library> library_;
  void (*kernel_)(const StepCall*) = nullptr;
  Team team_;
  std::unique_ptr<Memory> own_memory_;
  Memory* memory_;
  int64_t objects_;
  int64_t num_rules_;
  int64_t num_shares_;
  int64_t all_pages_ = 0, all_rows_ = 0;
  uint32_t rows_ = 0;  // that one instance may have
  uint64_t num_pages_ = 0;
  std::deque<Piece> pieces_;
  Pool pool_{};
  std::vector<std::unique_ptr<Shared>> shared_;  // one a thread; the first serves the team
  std::vector<Workspace> workspaces_;            // of the threads of this process
  std::span<Workspace> on_device_;
  Instance start_;
  std::vector<std::unique_ptr<Instance>> instances_;
  std::vector<int64_t> released_;
  std::atomic_flag busy_;
};

}  // namespace echoc::population
