// The steps of a population: who steps which run, and what becomes of it.
#include <algorithm>
#include <chrono>
#include <new>

#include "kernels/cpu/population_pages.h"
#include "runtime/native/hands.h"
#include "runtime/native/population.h"

namespace echoc::population {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kRowsPerThread = 256;  // fewer are not worth waking another thread for
constexpr uint64_t kPiece = 1 << 14;      // rows stepped between two looks at the clock and at what else there is to do

}  // namespace

bool Population::is_large(const Task& task) const {
  return device_ == nullptr && team_.size() > 1 && find(task.instance).now.cells.count >= kRowsPerThread;
}

void Population::advance(std::span<Task> tasks, bool record, double seconds) {
  for (Task& task : tasks) {
    if (find(task.instance).halted) task.status = kHalted;
  }
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  std::vector<Task*> live;
  do {
    live.clear();
    for (Task& task : tasks) {
      if (task.status == kDone && task.steps > 0) live.push_back(&task);
    }
    const size_t large =
        static_cast<size_t>(std::count_if(live.begin(), live.end(), [&](Task* t) { return is_large(*t); }));
    const bool spread =
        live.size() > 1 && team_.size() > 1 && (live.size() >= static_cast<size_t>(team_.size()) || large == 0);
    if (!spread) {  // one after another, each on all threads if it is worth it
      for (Task* task : live) is_large(*task) ? together(*task, record) : alone(*task, 0, record);
      continue;
    }
    struct Queue {
      Population& population;
      const std::vector<Task*>& live;
      const bool record;
      std::atomic<size_t> next{0};
    } queue{*this, live, record};
    team_.run(
        [](void* context, int thread) {
          auto& q = *static_cast<Queue*>(context);
          for (size_t i = q.next++; i < q.live.size(); i = q.next++) q.population.alone(*q.live[i], thread, q.record);
        },
        &queue);
  } while (!live.empty() && Clock::now() < deadline);
}

/// A piece of an instance's steps on one thread.
void Population::alone(Task& task, int thread, bool record) {
  Instance& instance = own(task.instance);
  Hands hands(*this, instance, thread, 1);
  for (uint64_t stepped = 0; task.steps > 0 && stepped < kPiece; stepped += instance.now.cells.count + 1) {
    task.status = step(instance, thread, 1, record);
    hands.note_peak();
    if (task.status != kDone) return;
    --task.steps;
    ++task.done;
  }
}

/// One step of an instance on all threads.
void Population::together(Task& task, bool record) {
  Instance& instance = own(task.instance);
  Hands hands(*this, instance, 0, team_.size());
  task.status = step(instance, 0, team_.size(), record);
  hands.note_peak();
  if (task.status != kDone) return;
  --task.steps;
  ++task.done;
}

Status Population::step(Instance& instance, int thread, int num_threads, bool record) try {
  const uint32_t rows = instance.now.cells.count;
  instance.next.cells.count = 0;
  if (instance.next.cells.limit < rows && !grow(instance, instance.next, rows)) return kOutOfCells;
  if (instance.next_links.links.limit < instance.links.links.size) instance.next_links.grow(instance.links.links.limit);
  while (true) {  // a step that fails has changed nothing: with more room it is taken again
    const Status status = attempt(instance, thread, num_threads, record);
    Table& next = instance.next;
    Vec<Link>& links = instance.next_links.links;
    if (status == kOutOfCells && next.cells.limit < rows_ &&
        grow(instance, next, std::min<uint64_t>(2 * uint64_t{next.cells.limit}, rows_))) {
      continue;
    }
    if (status == kOutOfLinks && links.limit < 4 * uint64_t{rows_} + kSpare) {
      instance.next_links.grow(2 * links.limit + 16);
      continue;
    }
    return status;
  }
} catch (const std::bad_alloc&) {
  return kOutOfWorkspace;
}

struct Population::Context {
  Population* population;
  StepCall call;
};

Status Population::attempt(Instance& instance, int thread, int num_threads, bool record) {
  Shared& shared = *shared_[static_cast<size_t>(thread)];
  shared.status.store(kDone);
  shared.has_mail = false;
  shared.next_id = instance.next_id;
  const auto meet = [](void* team) { static_cast<Team*>(team)->barrier(); };
  const auto pass = [](void*) {};
  const std::span<Workspace> workspaces =
      device_ ? on_device_
              : std::span(workspaces_).subspan(static_cast<size_t>(thread), static_cast<size_t>(num_threads));
  Context context{this,
                  {&instance.now.cells, &instance.next.cells, &pool_, workspaces.data(), &shared,
                   instance.environment.data(), instance.next_environment.data(), &instance.links.links,
                   &instance.next_links.links, instance.seed, instance.number, instance.step, record, 0, num_threads,
                   num_threads > 1 ? static_cast<void (*)(void*)>(meet) : pass, &team_}};
  int64_t applied = 0, held = 0;
  if (device_) {
    const DeviceKernel::Outcome outcome = device_->step(context.call, instance.means->pages);
    applied = outcome.applied;
    held = outcome.held;
  } else if (num_threads > 1) {
    team_.run(
        [](void* c, int tid) {
          StepCall call = static_cast<Context*>(c)->call;
          call.tid = tid;
          static_cast<Context*>(c)->population->kernel_(&call);
        },
        &context);
  } else {
    kernel_(&context.call);
  }
  for (const Workspace& work : device_ ? std::span<Workspace>() : workspaces) {
    applied += work.applied + work.possible;
    held += work.held;
  }
  instance.held = held;
  const auto status = static_cast<Status>(shared.status.load());
  if (status == kDone) {
    keep(instance, shared, applied);
    if (record) list(instance, workspaces);
    return instance.halted ? kHalted : kDone;
  }
  const int32_t row = shared.failed_cell;
  instance.failed_id =
      row < 0 || static_cast<uint32_t>(row) >= instance.now.cells.count ? -1 : instance.now.cells.id[row];
  instance.failed_object = shared.failed_object;
  return status;
}

/// The next configuration becomes that of now. Where nothing was applied both say the same, and the step does not
/// count.
void Population::keep(Instance& instance, const Shared& shared, int64_t applied) {
  const Cells& before = instance.now.cells;
  const auto waits = [&] {
    return std::any_of(before.closed, before.closed + before.count, [](int32_t c) { return c > 0; });
  };
  instance.halted = applied == 0 && !waits();
  instance.most_rows = std::max({instance.most_rows, before.count, instance.next.cells.count});
  std::swap(instance.now, instance.next);
  std::swap(instance.environment, instance.next_environment);
  if (instance.links.links.size > 0 || instance.next_links.links.size > 0)
    std::swap(instance.links, instance.next_links);
  instance.next_id = shared.next_id;
  instance.forks += shared.divided;
  instance.releases += shared.dissolved;
  if (!instance.halted) ++instance.step;
}

/// What the threads of the last step have written of their applications.
void Population::list(Instance& instance, std::span<const Workspace> workspaces) {
  instance.applications.clear();
  for (const Workspace& work : workspaces) {
    const Vec<int64_t>& list = work.applications;
    instance.applications.insert(instance.applications.end(), list.data, list.data + list.size);
  }
}

}  // namespace echoc::population
