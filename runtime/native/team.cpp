#include "runtime/native/team.h"

#include <chrono>
#include <stdexcept>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "runtime/native/bindings.h"

namespace echoc {
namespace {

using Clock = std::chrono::steady_clock;

// Between steps workers are idle for the host's share of the loop, 0.2 to 0.5 ms where weights took the caches; between
// barriers the threads are a few microseconds apart. Beyond these budgets somebody else has the core, and a parked
// thread lets the scheduler move its late partner over to the free one.
constexpr auto kRegionSpin = std::chrono::microseconds(500);
constexpr auto kBarrierSpin = std::chrono::microseconds(50);
constexpr int kPollsPerClock = 64;

/// Whether `word` is no longer `seen` within some hundred nanoseconds.
bool changes_soon(const std::atomic<uint32_t>& word, uint32_t seen) {
  for (int i = 0; i < kPollsPerClock; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return true;
    cpu_relax();
  }
  return false;
}

/// Waits until `word` is no longer `seen`: spins for `budget`, then parks in the kernel.
void await_change(const std::atomic<uint32_t>& word, uint32_t seen, Clock::duration budget) {
  const auto deadline = Clock::now() + budget;
  do {
    if (changes_soon(word, seen)) return;
  } while (Clock::now() < deadline);
  while (word.load(std::memory_order_acquire) == seen) word.wait(seen, std::memory_order_acquire);
}

bool ask_for_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kArchReqXcompPerm = 0x1023;  // Linux, Documentation/arch/x86/xstate.rst
  constexpr long kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool request_amx() {
  static const bool granted = ask_for_tiles();
  return granted;
}

Team::Team(int size) : size_(size), owner_pid_(getpid()) {
  if (size < 1) throw std::invalid_argument("a thread team needs at least one thread");
  claims_ = std::make_unique<Claim[]>(static_cast<size_t>(size));
  request_amx();  // before the workers start, so that they inherit the permission
  try {
    for (int tid = 1; tid < size; ++tid) workers_.emplace_back([this, tid] { serve(tid); });
  } catch (...) {
    shut_down();
    throw;
  }
}

Team::~Team() { shut_down(); }

void Team::shut_down() {
  if (getpid() != owner_pid_) {  // a forked child has no workers to join
    for (auto& worker : workers_) worker.detach();
    return;
  }
  stop_ = true;
  wake(false);
  for (auto& worker : workers_) worker.join();
}

void Team::check_process() const {
  if (getpid() == owner_pid_) return;
  throw std::runtime_error("this process was forked from the one that made the thread team; load the artifact again");
}

void Team::wake(bool staged) {
  const uint32_t before = generation_.load(std::memory_order_relaxed);
  generation_.store((before | 1) + 1 + (staged ? 1 : 0), std::memory_order_release);
  generation_.notify_all();
}

void Team::run(Region region, void* context) {
  if (size_ == 1) return region(context, 0);
  check_process();
  region_ = region;
  context_ = context;
  wake(false);
  region(context, 0);
  meet();
}

void Team::run_stages(uint32_t stages, Task task, void* context) {
  if (size_ == 1) {
    for (uint32_t stage = 0; stage < stages; ++stage) task(context, stage, 0);
    return;
  }
  check_process();
  task_ = task;
  task_context_ = context;
  first_stage_ = end_.load(std::memory_order_relaxed);
  end_.store(first_stage_ + stages, std::memory_order_release);
  wake(true);
  work(0);
}

void Team::serve(int tid) {
  uint32_t seen = 0;
  while (true) {
    await_change(generation_, seen, kRegionSpin);
    seen = generation_.load(std::memory_order_acquire);
    if (seen & 1) {
      work(tid);  // may come late, and find other stages or none
      continue;
    }
    if (stop_) return;  // neither this nor a region passes before this thread has met the others
    region_(context_, tid);
    meet();
  }
}

void Team::work(int tid) {
  uint32_t stage = stage_.load(std::memory_order_acquire);
  while (static_cast<int32_t>(end_.load(std::memory_order_acquire) - stage) > 0) {
    take(stage, tid);
    if (!changes_soon(stage_, stage)) {
      bool last = false;
      for (int other = 1; other < size_ && !last; ++other) last = take(stage, (tid + other) % size_);
      if (!last) await_change(stage_, stage, kBarrierSpin);
    }
    stage = stage_.load(std::memory_order_acquire);
  }
}

/// Does the task unless somebody has it, or has had it. Returns whether that was the stage's last.
bool Team::take(uint32_t stage, int tid) {
  Claim& claim = claims_[static_cast<size_t>(tid)];
  uint32_t wanted = stage;
  if (claim.next.load(std::memory_order_relaxed) != stage) return false;
  if (!claim.next.compare_exchange_strong(wanted, stage + 1, std::memory_order_acq_rel)) return false;
  task_(task_context_, stage - first_stage_, tid);
  if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 != size_) return false;
  done_.store(0, std::memory_order_relaxed);
  stage_.store(stage + 1, std::memory_order_release);
  stage_.notify_all();
  return true;
}

void Team::meet() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  await_change(phase_, phase, kBarrierSpin);
}

void bind_team(nanobind::module_& m) {
  m.def("request_amx", &request_amx,
        "Asks the kernel for AMX tiles once per process; returns whether it granted them.");
}

}  // namespace echoc
