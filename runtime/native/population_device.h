// The kernel of a population on one GPU: its memory, and one launch a step.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "kernels/gpu/population.h"
#include "runtime/native/gpu_launch.h"
#include "runtime/native/gpu_memory.h"
#include "runtime/native/population_memory.h"

namespace echoc::population {

/// Memory that one device and the host address alike.
class ManagedPieces : public Memory {
 public:
  ManagedPieces(const gpu::Context& context, gpu::Handle stream) : context_(context), stream_(stream) {}

  void* take(uint64_t bytes, bool zeros) override;
  void give(void* memory, uint64_t bytes) noexcept override;

 private:
  const gpu::Context& context_;
  gpu::Handle stream_;
  std::map<void*, gpu::ManagedMemory> pieces_;
};

class DeviceKernel {
 public:
  /// Throws gpu::Failure where the device or the kernel is not to be had, std::runtime_error for a kernel of another
  /// version.
  DeviceKernel(std::shared_ptr<const gpu::Driver> driver, int index, std::span<const std::byte> image,
               const std::string& entry, int threads);
  ~DeviceKernel();

  Memory& memory() { return memory_; }
  const gpu::DeviceInfo& info() const { return context_.info; }
  std::pair<int64_t, int64_t> free_memory() const;

  /// Threads of the largest grid.
  int num_threads() const { return static_cast<int>(most_blocks_ * kernel_.threads); }

  /// Makes the device the calling thread's. Throws Failure once a kernel has failed: then its memory is lost.
  void enter() const;

  /// What a step of an instance came to on the device, next to what it left in the tables.
  struct Outcome {
    int64_t applied;  // whether a rule was applied, or could have been
    int64_t held;     // pages, by all threads
  };

  /// One step; `call` as for a thread of the host. What it points to is read before and written after.
  Outcome step(const StepCall& call, pages::Account& account);

 private:
  void transfer(bool in);
  [[noreturn]] void lose(const gpu::Failure& failure);

  gpu::Context context_;
  gpu::Stream stream_;
  gpu::Module module_;
  gpu::Kernel kernel_;
  unsigned most_blocks_ = 1;
  ManagedPieces memory_;
  gpu::DeviceMemory control_;
  gpu::HostMemory mirror_;
  std::string lost_;
};

}  // namespace echoc::population
