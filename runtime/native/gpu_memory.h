// What a program owns on a GPU: its context, memory, streams, events, modules and graphs, given back with the objects.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "runtime/native/gpu_driver.h"

namespace echoc::gpu {

/// The primary context of one device, kept while this lives. Every call is made in a thread that has entered it.
class Context {
 public:
  Context(std::shared_ptr<const Driver> driver, int index);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  /// Makes it the calling thread's. Throws Failure in a forked child, where the device does not exist.
  void enter() const;

  /// Whether this is the process that opened the device; in a forked child nothing can be given back.
  bool here() const;

  /// (free, total) bytes of the device.
  std::pair<int64_t, int64_t> memory() const;

  const std::shared_ptr<const Driver> driver;
  const Api& api;
  const DeviceInfo info;

 private:
  Handle handle_ = nullptr;  // null where the vendor has devices instead of contexts
  int device_ = 0;
  int64_t owner_pid_;
};

/// A handle that is given back by one function of the driver. Errors of that are ignored: the device may be lost.
template <const Function<Handle> Api::* kFree>
class Owned {
 public:
  Owned() = default;
  Owned(const Context& context, Handle handle) : context_(&context), handle_(handle) {}
  Owned(Owned&& other) noexcept : context_(other.context_), handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ && context_->here()) (context_->api.*kFree)(handle_);
  }

  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  const Context* context_ = nullptr;
  Handle handle_ = nullptr;
};

using Stream = Owned<&Api::stream_destroy>;
using Event = Owned<&Api::event_destroy>;
using Module = Owned<&Api::module_unload>;
using Graph = Owned<&Api::graph_exec_destroy>;

Stream make_stream(const Context& context);
Event make_event(const Context& context);

/// Loads a cubin or hsaco after checking that it is a whole ELF file; `name` says in errors which one it is.
Module load_module(const Context& context, std::span<const std::byte> image, const std::string& name);

/// Where things begin in the device's memory: at multiples of this many bytes.
constexpr int64_t kAlignment = 256;
constexpr int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Memory of the device; `what` says in errors what it was for.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const Context& context, int64_t bytes, const std::string& what);
  DeviceMemory(DeviceMemory&& other) noexcept
      : context_(other.context_), address_(std::exchange(other.address_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory();

  Address address() const { return address_; }
  int64_t bytes() const { return bytes_; }

 private:
  const Context* context_ = nullptr;
  Address address_ = 0;
  int64_t bytes_ = 0;
};

/// Memory that the host and the device address alike; its pages go where they are touched. Not cleared. `what` says in
/// errors what it was for.
class ManagedMemory {
 public:
  ManagedMemory() = default;
  ManagedMemory(const Context& context, int64_t bytes, const std::string& what);
  ManagedMemory(ManagedMemory&& other) noexcept
      : context_(other.context_), address_(std::exchange(other.address_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}
  ManagedMemory& operator=(ManagedMemory&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~ManagedMemory();

  Address address() const { return address_; }
  void* data() const { return reinterpret_cast<void*>(address_); }
  int64_t bytes() const { return bytes_; }

 private:
  const Context* context_ = nullptr;
  Address address_ = 0;
  int64_t bytes_ = 0;
};

/// Page-locked memory of the host, which the device copies from and to while the host goes on.
class HostMemory {
 public:
  HostMemory() = default;
  HostMemory(const Context& context, int64_t bytes);
  HostMemory(HostMemory&& other) noexcept
      : context_(other.context_), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  HostMemory& operator=(HostMemory&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~HostMemory();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  const Context* context_ = nullptr;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// Copies to the device through page-locked chunks that several threads fill; ends when all has arrived.
void upload(const Context& context, Handle stream, const HostMemory& chunks, Address to,
            std::span<const std::byte> from);
constexpr int kUploadThreads = 4;
constexpr int64_t kUploadChunk = int64_t{4} << 20;
constexpr int64_t kUploadBytes = 2 * kUploadThreads * kUploadChunk;  // what `chunks` has

}  // namespace echoc::gpu
