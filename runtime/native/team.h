// A team of threads that runs one function together; spins between regions, then parks.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace echoc {

/// Spins politely: tells the core that this is a wait loop.
inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Asks Linux for the AMX tile registers, once per process. Returns whether they may be used.
bool request_amx();

/// `size` threads including the caller of run(). One region at a time; it is started from one thread at a time.
class Team {
 public:
  using Region = void (*)(void* context, int tid);
  using Task = void (*)(void* context, uint32_t stage, int tid);

  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  /// Calls region(context, tid) on every thread and returns when all have come back.
  /// Throws std::runtime_error in a forked child, where the threads do not exist.
  void run(Region region, void* context);

  /// Calls task(context, stage, tid) for each of `stages` stages and each tid, a stage once the one before is done.
  /// Every thread takes its own task of a stage, and that of a thread which has not come for it because somebody else
  /// has its core: nobody waits for a thread that holds no task. Returns when all is done; throws as run() does.
  void run_stages(uint32_t stages, Task task, void* context);

  /// Every thread of the region meets here. Writes made before are visible to all threads after.
  void barrier() {
    if (size_ > 1) meet();
  }

 private:
  struct alignas(64) Claim {
    std::atomic<uint32_t> next{0};  // the stage whose task of this tid is to be taken next
  };

  void check_process() const;
  void wake(bool staged);
  void meet();
  void serve(int tid);
  void work(int tid);
  bool take(uint32_t stage, int tid);
  void shut_down();

  const int size_;
  const int64_t owner_pid_;
  Region region_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  // Stages are numbered through the team's life, modulo 2^32. A task's fields are read by whoever has claimed one, so
  // that they stay until the stage is done.
  Task task_ = nullptr;
  void* task_context_ = nullptr;
  uint32_t first_stage_ = 0;
  std::unique_ptr<Claim[]> claims_;
  alignas(64) std::atomic<uint32_t> generation_{0};  // of regions: twice their count, odd when the last is staged
  alignas(64) std::atomic<uint32_t> end_{0};         // the first stage that does not exist yet
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int32_t> done_{0};  // tasks of this stage
  alignas(64) std::atomic<uint32_t> stage_{0};
  std::vector<std::thread> workers_;
};

}  // namespace echoc
