// Where a population lies: memory that kernels and the runtime address alike.
#pragma once

#include <cstdint>
#include <utility>

namespace echoc::population {

class Memory {
 public:
  virtual ~Memory() = default;

  /// Address space that costs memory where it is touched only; `zeros`: cleared. Throws std::bad_alloc, or a device's
  /// Failure.
  virtual void* take(uint64_t bytes, bool zeros) = 0;
  virtual void give(void* memory, uint64_t bytes) noexcept = 0;
};

/// Memory of this process.
class ProcessMemory : public Memory {
 public:
  void* take(uint64_t bytes, bool zeros) override;
  void give(void* memory, uint64_t bytes) noexcept override;
};

/// A piece of memory, given back with the object.
class Piece {
 public:
  Piece() = default;
  Piece(Memory& memory, uint64_t bytes, bool zeros)
      : memory_(&memory), data_(memory.take(bytes, zeros)), bytes_(bytes) {}
  Piece(Piece&& other) noexcept
      : memory_(other.memory_), data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  Piece& operator=(Piece&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Piece() {
    if (data_ != nullptr) memory_->give(data_, bytes_);
  }

  void* data() const { return data_; }

 private:
  Memory* memory_ = nullptr;
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace echoc::population
