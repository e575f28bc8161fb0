// A team of threads that runs one function together; spins between regions, then parks.
#pragma once

#include <atomic>
#include <cstdint>
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

/// `size` threads including the caller of run(). One region at a time; run() is called from one thread at a time.
class Team {
 public:
  using Region = void (*)(void* context, int tid);

  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  /// Calls region(context, tid) on every thread and returns when all have come back.
  /// Throws std::runtime_error in a forked child, where the threads do not exist.
  void run(Region region, void* context);

  /// Every thread of the region meets here. Writes made before are visible to all threads after.
  void barrier() {
    if (size_ > 1) meet();
  }

 private:
  void meet();
  void serve(int tid);
  void shut_down();

  const int size_;
  const int64_t owner_pid_;
  Region region_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::vector<std::thread> workers_;
};

}  // namespace echoc
