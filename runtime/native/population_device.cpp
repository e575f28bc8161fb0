#include "runtime/native/population_device.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace echoc::population {
namespace {

constexpr unsigned kMostThreads =
    1 << 13;                            // of a grid: each has arrays of its own, and some phases look at all of them
constexpr uint32_t kRowsPerThread = 1;  // fewer are not worth a block more

/// Bytes of what holds an atomic, which is not copied while anybody else looks at it.
template <class T>
void copy_bytes(T& to, const T& from) {
  std::memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), sizeof(T));
}

}  // namespace

void* ManagedPieces::take(uint64_t bytes, bool zeros) {
  context_.enter();
  gpu::ManagedMemory piece(context_, static_cast<int64_t>(bytes), "a population");
  if (zeros) {
    context_.driver->call(context_.api.fill, piece.address(), static_cast<unsigned char>(0), size_t{bytes}, stream_);
    context_.driver->call(context_.api.stream_synchronize, stream_);
  }
  void* at = piece.data();
  pieces_.emplace(at, std::move(piece));
  return at;
}

void ManagedPieces::give(void* memory, uint64_t) noexcept {
  try {
    context_.enter();
    pieces_.erase(memory);
  } catch (const std::exception&) {  // a lost device, or a forked process, gives nothing back
  }
}

DeviceKernel::DeviceKernel(std::shared_ptr<const gpu::Driver> driver, int index, std::span<const std::byte> image,
                           const std::string& entry, int threads)
    : context_(std::move(driver), index),
      stream_(gpu::make_stream(context_)),
      module_(gpu::load_module(context_, image, entry)),
      memory_(context_, stream_.get()),
      control_(context_, sizeof(Control), "the control block of a population"),
      mirror_(context_, sizeof(Control)) {
  const auto find = [&](const std::string& name) {
    gpu::Kernel kernel{name, nullptr, static_cast<unsigned>(threads), 0, 0};
    const int status = context_.api.module_function(&kernel.function, module_.get(), name.c_str());
    if (status != 0) context_.driver->fail(status, "entry " + name);
    return kernel;
  };
  kernel_ = find(entry);
  const unsigned wanted = std::max(kMostThreads / kernel_.threads, 1u);
  most_blocks_ = std::min(gpu::resident_blocks(context_, kernel_), wanted);
  std::memset(mirror_.data(), 0, sizeof(Control));
  transfer(true);
  gpu::Address address = control_.address();
  void* parameters[] = {&address};
  const gpu::Kernel abi = find(entry + "_abi");
  gpu::start(context_, stream_.get(), abi, {1, 1, 1}, parameters, false);
  transfer(false);
  if (reinterpret_cast<const Control*>(mirror_.data())->abi != kAbi) {
    throw std::runtime_error("the kernels were compiled for another version of echoc");
  }
}

DeviceKernel::~DeviceKernel() {
  try {
    context_.enter();
    context_.api.stream_synchronize(stream_.get());
  } catch (const std::exception&) {  // a lost device gives nothing back
  }
}

std::pair<int64_t, int64_t> DeviceKernel::free_memory() const {
  context_.enter();
  return context_.memory();
}

void DeviceKernel::enter() const {
  if (!lost_.empty()) throw gpu::Failure("the device was lost: " + lost_ + "; load the system again in a new process");
  context_.enter();
}

/// The control block to the device, or back from it; what is behind in the stream then has ended.
void DeviceKernel::transfer(bool in) {
  const gpu::Driver& driver = *context_.driver;
  if (in) {
    driver.call(context_.api.copy_in, control_.address(), static_cast<const void*>(mirror_.data()), sizeof(Control),
                stream_.get());
  } else {
    driver.call(context_.api.copy_out, static_cast<void*>(mirror_.data()), control_.address(), sizeof(Control),
                stream_.get());
    driver.call(context_.api.stream_synchronize, stream_.get());
  }
}

DeviceKernel::Outcome DeviceKernel::step(const StepCall& call, pages::Account& account) try {
  enter();
  const uint64_t rows = call.before->count, block = uint64_t{kernel_.threads} * kRowsPerThread;
  const auto blocks = static_cast<unsigned>(std::clamp<uint64_t>((rows + block - 1) / block, 1, most_blocks_));
  auto& control = *reinterpret_cast<Control*>(mirror_.data());
  auto& device = *reinterpret_cast<Control*>(control_.address());  // taken addresses of, never read
  control.meeting = {};
  control.blocks = blocks;
  control.before = *call.before;
  control.after = *call.after;
  control.pool = *call.pool;
  control.account = account;
  control.links_before = *call.links_before;
  control.links = *call.links;
  copy_bytes(control.shared, *call.shared);
  control.applied = control.held = 0;
  control.call = call;
  control.call.before = &device.before;
  control.call.after = &device.after;
  control.call.pool = &device.pool;
  control.call.shared = &device.shared;
  control.call.links_before = &device.links_before;
  control.call.links = &device.links;
  control.call.barrier = nullptr;
  control.call.team = nullptr;
  control.call.nthreads = static_cast<int32_t>(blocks * kernel_.threads);
  transfer(true);
  gpu::Address address = control_.address();
  void* parameters[] = {&address};
  gpu::start_together(context_, stream_.get(), kernel_, blocks, parameters);
  transfer(false);
  call.after->count = control.after.count;
  call.after->family = control.after.family;
  *call.pool = control.pool;
  account.left = control.account.left;
  call.links->size = control.links.size;
  copy_bytes(*call.shared, control.shared);
  return {control.applied, control.held};
} catch (const gpu::Failure& failure) {
  lose(failure);
}

void DeviceKernel::lose(const gpu::Failure& failure) {
  const std::string what = "kernel " + kernel_.name + " on " + context_.info.name + ": " + failure.what();
  if (failure.sticky()) lost_ = what;
  throw gpu::Failure(what, failure.status);
}

}  // namespace echoc::population
