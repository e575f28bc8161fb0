// One step at a time: a second thread is refused instead of waiting in the middle of the first one's work.
#pragma once

#include <atomic>
#include <stdexcept>

namespace echoc {

/// Holds `busy` while it lives; refuses when somebody else does.
class Turn {
 public:
  explicit Turn(std::atomic_flag& busy) : busy_(busy) {
    if (busy.test_and_set(std::memory_order_acquire)) {
      throw std::runtime_error("a step of this program is running in another thread; give each thread a turn");
    }
  }
  ~Turn() { busy_.clear(std::memory_order_release); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic_flag& busy_;
};

}  // namespace echoc
