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

// A step of a small model leaves its workers idle for the host's share of the loop, some tens of microseconds; between
// barriers the threads are a few microseconds apart. Beyond these budgets somebody else has the core, and a parked
// thread lets the scheduler move its late partner over to the free one.
constexpr auto kRegionSpin = std::chrono::microseconds(200);
constexpr auto kBarrierSpin = std::chrono::microseconds(50);
constexpr int kPollsPerClock = 64;

/// Waits until `word` is no longer `seen`: spins for `budget`, then parks in the kernel.
void await_change(const std::atomic<uint32_t>& word, uint32_t seen, Clock::duration budget) {
  for (int i = 0; i < kPollsPerClock; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return;
    cpu_relax();
  }
  const auto deadline = Clock::now() + budget;
  do {
    for (int i = 0; i < kPollsPerClock; ++i) {
      if (word.load(std::memory_order_acquire) != seen) return;
      cpu_relax();
    }
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
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Team::run(Region region, void* context) {
  if (size_ == 1) return region(context, 0);
  if (getpid() != owner_pid_) {
    throw std::runtime_error("this process was forked from the one that made the thread team; load the artifact again");
  }
  region_ = region;
  context_ = context;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  region(context, 0);
  meet();
}

void Team::serve(int tid) {
  uint32_t seen = 0;
  while (true) {
    await_change(generation_, seen, kRegionSpin);
    ++seen;  // the next region starts only after this thread has met the others, so none is skipped
    if (stop_) return;
    region_(context_, tid);
    meet();
  }
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
