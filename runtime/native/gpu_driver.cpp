#include "runtime/native/gpu_driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <iterator>

namespace echoc::gpu {
namespace {

// CUresult and hipError_t agree on these.
enum Status {
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kDeinitialized = 4,
  kStubLibrary = 34,
  kInsufficientDriver = 35,
  kNewerDriverNeeded = 36,
  kDeviceUnavailable = 46,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kNoBinaryForGpu = 209,
  kUncorrectableEcc = 214,
  kInvalidPtx = 218,
  kUnsupportedPtx = 222,
  kNotFound = 500,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
  kLaunchTimeout = 702,
  kContextDestroyed = 709,
  kLaunchFailed = 719,
  kNotPermitted = 800,
  kDriverMismatch = 803,
  kNoCompatibility = 804,
};
// Uncorrectable memory, a contained fault, and what a kernel can do wrong: the context does not survive them.
constexpr int kSticky[] = {
    kUncorrectableEcc, 220, 226, kIllegalAddress, kLaunchTimeout, kContextDestroyed, 710, 714, 715, 716, 717, 718,
    kLaunchFailed,     721};

const char* advice(Vendor vendor, int status) {
  const bool cuda = vendor == Vendor::cuda;
  switch (status) {
    case kOutOfMemory:
      return "ask for fewer pages (num_pages or kv_cache_bytes), end other processes on the device, or compile with "
             "smaller weights";
    case kStubLibrary:
      return "the library is the stub for linking, not the driver: take the folder of stubs out of LD_LIBRARY_PATH";
    case kInsufficientDriver:
    case kNewerDriverNeeded:
    case kInvalidPtx:
    case kUnsupportedPtx:
    case kDriverMismatch:
    case kNoCompatibility:
      return cuda ? "the driver is too old for this: update the NVIDIA driver (nvidia-smi shows its version)"
                  : "the driver is too old for this: update ROCm (rocminfo shows its version)";
    case kInvalidImage:
    case kNoBinaryForGpu:
      return "the kernels were built for another architecture or by a newer compiler than the driver knows: compile "
             "the model for this device, or update the driver";
    case kDeviceUnavailable:
      return "another process has the device to itself: end it or choose another device";
    case kNoDevice:
    case kInvalidDevice:
      return cuda ? "see whether nvidia-smi lists the device, and CUDA_VISIBLE_DEVICES"
                  : "see whether rocminfo lists the device, and HIP_VISIBLE_DEVICES";
    case kNotInitialized:
    case kDeinitialized:
      return "the process is ending, or was forked after the device was opened: open the device in each process";
    case kNotFound:
      return "the artifact's kernels do not hold what its manifest names: compile the model again";
    case kLaunchOutOfResources:
      return "the kernel needs more registers or shared memory than the device has: compile the model for this device";
    case kNotPermitted:
      return cuda ? "this process may not use the device: see the permissions of /dev/nvidia*"
                  : "this process may not use the device: see the permissions of /dev/kfd";
    default:
      return nullptr;
  }
}

std::string no_driver(Vendor vendor, const std::string& path, const std::string& why) {
  const bool cuda = vendor == Vendor::cuda;
  return std::string(cuda ? "no NVIDIA driver: " : "no ROCm driver: ") + path + " does not load (" + why + "); " +
         (cuda ? "install the driver of the GPU and see that nvidia-smi runs"
               : "install ROCm 6 or newer and see that rocminfo runs") +
         ", or compile the model with --target cpu:native";
}

}  // namespace

bool Failure::out_of_memory() const { return status == kOutOfMemory; }

bool Failure::sticky() const { return std::find(std::begin(kSticky), std::end(kSticky), status) != std::end(kSticky); }

Lookup::Lookup(Vendor vendor, const std::string& path)
    : vendor(vendor),
      path(!path.empty()            ? path
           : vendor == Vendor::cuda ? "libcuda.so.1"
                                    : "libamdhip64.so") {
  library_ = dlopen(this->path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const std::string why = library_ ? "" : dlerror();
  if (!library_ && path.empty() && vendor == Vendor::rocm) {  // without the development package the link is missing
    for (const char* name : {"libamdhip64.so.7", "libamdhip64.so.6"}) {
      if (!library_) library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
  }
  if (!library_) throw Failure(no_driver(vendor, this->path, why));
}

void* Lookup::find_if_any(const char* name) const { return name ? dlsym(library_, name) : nullptr; }

void* Lookup::find(const char* name) const {
  void* found = find_if_any(name);
  if (name && !found) {
    throw Failure(path + " has no function " + name + ": the driver is too old, " +
                  (vendor == Vendor::cuda ? "update it to 525 or newer" : "update ROCm to 6 or newer"));
  }
  return found;
}

Driver::Driver(Vendor vendor, const std::string& path) : api(Lookup(vendor, path)) { call(api.init, 0u); }

std::string Driver::describe(int status) const {
  const char *name = nullptr, *text = nullptr;
  api.error_name(status, &name);
  api.error_string(status, &text);
  std::string out = name ? name : "error " + std::to_string(status);
  if (text) out += std::string(" (") + text + ")";
  return out;
}

void Driver::fail(int status, const std::string& what) const {
  std::string message = what + ": " + describe(status);
  if (const char* hint = advice(vendor(), status)) message += std::string("; ") + hint;
  throw Failure(message, status);
}

int Driver::version() const {
  int version = 0;
  call(api.driver_version, &version);
  return version;
}

int Driver::num_devices() const {
  int count = 0;
  const int status = api.device_count(&count);
  if (status == kNoDevice) return 0;
  if (status != 0) fail(status, api.device_count.name);
  return count;
}

int Driver::attribute(int device, int cuda, int rocm) const {
  int value = 0;
  call(api.device_attribute, &value, vendor() == Vendor::cuda ? cuda : rocm, device);
  return value;
}

DeviceInfo Driver::info(int index) const {
  int device = 0;
  call(api.device_get, &device, index);
  DeviceInfo info;
  char name[256] = "";
  call(api.device_name, name, static_cast<int>(sizeof name) - 1, device);
  info.name = name;
  size_t memory = 0;
  call(api.device_memory, &memory, device);
  info.memory = static_cast<int64_t>(memory);
  // CUdevice_attribute and hipDeviceAttribute_t.
  info.warp_size = attribute(device, 10, 87);
  info.multiprocessors = attribute(device, 16, 63);
  info.l2_cache = attribute(device, 38, 19);
  info.shared_memory = attribute(device, 97, 74);
  if (vendor() == Vendor::cuda) {
    info.architecture = "sm_" + std::to_string(attribute(device, 75, 0)) + std::to_string(attribute(device, 76, 0));
  } else {
    constexpr size_t kNameAt = 1160, kNameSize = 256;  // hipDeviceProp_tR0600::gcnArchName, of a struct of 1472 bytes
    alignas(8) char properties[4096] = {};
    call(api.device_properties, static_cast<void*>(properties), device);
    const char* full = properties + kNameAt;  // "gfx90a:sramecc+:xnack-"
    info.architecture = std::string(full, std::min(strnlen(full, kNameSize), strcspn(full, ":")));
  }
  return info;
}

}  // namespace echoc::gpu
