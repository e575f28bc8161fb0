#include "runtime/native/gpu_memory.h"

#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace echoc::gpu {
namespace {

constexpr unsigned kNonBlocking = 1;    // CU_STREAM_NON_BLOCKING: never waits for the default stream
constexpr uint16_t kMachineCuda = 190;  // e_machine of cubins (EM_CUDA)
constexpr uint16_t kMachineAmd = 224;   // e_machine of hsaco files (EM_AMDGPU)

std::string amount(int64_t bytes) {
  constexpr int64_t kGiB = 1 << 30, kMiB = 1 << 20;
  if (bytes < kMiB) return std::to_string(bytes) + " bytes";
  char text[32];
  std::snprintf(text, sizeof text, bytes < kGiB ? "%.1f MiB" : "%.2f GiB",
                static_cast<double>(bytes) / static_cast<double>(bytes < kGiB ? kMiB : kGiB));
  return text;
}

DeviceInfo device_info(const Driver& driver, int index) {
  const int count = driver.num_devices();
  const std::string name = driver.vendor_name();
  if (count == 0) {
    throw Failure("the " + name + " driver finds no device: " +
                  (driver.vendor() == Vendor::cuda ? "see nvidia-smi and CUDA_VISIBLE_DEVICES"
                                                   : "see rocminfo and HIP_VISIBLE_DEVICES"));
  }
  if (index < 0 || index >= count) {
    throw Failure("device_index is " + std::to_string(index) + ", the " + name + " driver finds " +
                  std::to_string(count) + (count == 1 ? " device (0)" : " devices (0 upwards)"));
  }
  return driver.info(index);
}

}  // namespace

Context::Context(std::shared_ptr<const Driver> driver_, int index)
    : driver(std::move(driver_)), api(driver->api), info(device_info(*driver, index)), owner_pid_(getpid()) {
  driver->call(api.device_get, &device_, index);
  if (api.context_retain) {
    Handle context = nullptr;
    driver->call(api.context_retain, &context, device_);
    handle_ = context;
  }
  enter();
}

Context::~Context() {
  if (handle_ && here()) api.context_release(device_);
}

bool Context::here() const { return getpid() == owner_pid_; }

void Context::enter() const {
  if (!here()) {
    throw Failure("the device was opened before this process was forked; open it in each process");
  }
  if (api.context_set) {
    driver->call(api.context_set, handle_);
  } else {
    driver->call(api.device_set, device_);
  }
}

std::pair<int64_t, int64_t> Context::memory() const {
  size_t free = 0, total = 0;
  driver->call(api.memory_info, &free, &total);
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

Stream make_stream(const Context& context) {
  Handle stream = nullptr;
  context.driver->call(context.api.stream_create, &stream, kNonBlocking);
  return {context, stream};
}

Event make_event(const Context& context) {
  Handle event = nullptr;
  context.driver->call(context.api.event_create, &event, 0u);
  return {context, event};
}

Module load_module(const Context& context, std::span<const std::byte> image, const std::string& name) {
  Elf64_Ehdr header;
  bool whole = image.size() >= sizeof header;
  if (whole) {
    std::memcpy(&header, image.data(), sizeof header);
    const uint64_t size = image.size();
    const auto inside = [size](uint64_t at, uint64_t count, uint64_t each) {
      return at <= size && count * each <= size - at;
    };
    whole = std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_ident[EI_CLASS] == ELFCLASS64 &&
            header.e_machine == (context.driver->vendor() == Vendor::cuda ? kMachineCuda : kMachineAmd) &&
            inside(header.e_shoff, header.e_shnum, header.e_shentsize) &&
            inside(header.e_phoff, header.e_phnum, header.e_phentsize);
  }
  if (!whole) {
    throw Failure("kernel " + name + " is no whole object for a " + context.driver->vendor_name() +
                  " device; compile the model again");
  }
  Handle module = nullptr;
  const int status = context.api.module_load(&module, image.data());
  if (status != 0) {
    context.driver->fail(status, std::string(context.api.module_load.name) + " of kernel " + name + " on a " +
                                     context.info.architecture + " (" + context.info.name + ")");
  }
  return {context, module};
}

DeviceMemory::DeviceMemory(const Context& context, int64_t bytes, const std::string& what)
    : context_(&context), bytes_(bytes) {
  if (bytes <= 0) return;
  const int status = context.api.memory_allocate(&address_, static_cast<size_t>(bytes));
  if (status == 0) return;
  size_t free = 0, total = 0;
  context.api.memory_info(&free, &total);
  address_ = 0;
  context.driver->fail(status, std::string(context.api.memory_allocate.name) + " of " + amount(bytes) + " for " + what +
                                   ", with " + amount(static_cast<int64_t>(free)) + " of the device's " +
                                   amount(static_cast<int64_t>(total)) + " free");
}

DeviceMemory::~DeviceMemory() {
  if (address_ && context_->here()) context_->api.memory_free(address_);
}

ManagedMemory::ManagedMemory(const Context& context, int64_t bytes, const std::string& what)
    : context_(&context), bytes_(bytes) {
  if (bytes <= 0) return;
  constexpr unsigned kGlobal = 1;  // CU_MEM_ATTACH_GLOBAL, hipMemAttachGlobal
  if (!context.api.memory_managed) throw Failure("the driver has no managed memory; update it");
  const int status = context.api.memory_managed(&address_, static_cast<size_t>(bytes), kGlobal);
  if (status == 0) return;
  address_ = 0;
  context.driver->fail(status, std::string(context.api.memory_managed.name) + " of " + amount(bytes) + " for " + what);
}

ManagedMemory::~ManagedMemory() {
  if (address_ && context_->here()) context_->api.memory_free(address_);
}

HostMemory::HostMemory(const Context& context, int64_t bytes) : context_(&context), bytes_(bytes) {
  if (bytes <= 0) return;
  void* data = nullptr;
  const int status = context.api.host_allocate(&data, static_cast<size_t>(bytes), 0u);
  if (status != 0) {
    context.driver->fail(
        status, std::string(context.api.host_allocate.name) + " of " + amount(bytes) + " of page-locked host memory");
  }
  data_ = static_cast<std::byte*>(data);
}

HostMemory::~HostMemory() {
  if (data_ && context_->here()) context_->api.host_free(data_);
}

void upload(const Context& context, Handle stream, const HostMemory& chunks, Address to,
            std::span<const std::byte> from) {
  const auto size = static_cast<int64_t>(from.size());
  const int64_t count = (size + kUploadChunk - 1) / kUploadChunk;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  const auto work = [&](int worker) {
    try {
      context.enter();
      const Event sent[2] = {make_event(context), make_event(context)};
      for (int64_t turn = 0;; ++turn) {
        const int64_t chunk = next.fetch_add(1);
        if (chunk >= count) return;
        const Event& event = sent[turn % 2];
        std::byte* memory = chunks.data() + (2 * worker + turn % 2) * kUploadChunk;
        if (turn >= 2) context.driver->call(context.api.event_synchronize, event.get());
        const int64_t at = chunk * kUploadChunk;
        const auto bytes = static_cast<size_t>(std::min(kUploadChunk, size - at));
        std::memcpy(memory, from.data() + at, bytes);
        context.driver->call(context.api.copy_in, to + static_cast<Address>(at), memory, bytes, stream);
        context.driver->call(context.api.event_record, event.get(), stream);
      }
    } catch (...) {
      const std::lock_guard lock(guard);
      if (!error) error = std::current_exception();
      next = count;
    }
  };
  {
    std::vector<std::jthread> helpers;
    const int helping = static_cast<int>(std::min<int64_t>(count, kUploadThreads)) - 1;
    for (int i = 0; i < helping; ++i) helpers.emplace_back(work, i + 1);
    work(0);
  }
  const int status = context.api.stream_synchronize(stream);  // the chunks are free only when all has left them
  if (error) std::rethrow_exception(error);
  if (status != 0) context.driver->fail(status, context.api.stream_synchronize.name);
}

}  // namespace echoc::gpu
