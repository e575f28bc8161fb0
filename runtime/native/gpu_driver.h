// The driver of a GPU as one table of functions, resolved from its library when somebody asks for a device.
//
// CUDA and HIP share signatures, so that both libraries fill the same table; nothing is linked and no header of theirs
// is needed. Signatures and numbers: CUDA Driver API reference (docs.nvidia.com/cuda/cuda-driver-api, modules "Device
// Management" to "Graph Management", struct CUlaunchConfig); HIP runtime API reference
// (rocm.docs.amd.com/projects/HIP).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace echoc::gpu {

enum class Vendor { cuda, rocm };

using Address = uint64_t;  // CUdeviceptr, hipDeviceptr_t
using Handle = void*;      // a context, module, function, stream, event or graph

/// CUlaunchAttribute: 4 bytes of id, padding to 8, a value of 64 bytes.
struct LaunchAttribute {
  int id;
  int padding;
  alignas(8) int value;
  char rest[60];
};
static_assert(sizeof(LaunchAttribute) == 72);

/// CUlaunchConfig.
struct LaunchConfig {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  Handle stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};
static_assert(sizeof(LaunchConfig) == 56);

/// CUtensorMap: how the device copies boxes of a matrix.
struct alignas(64) TensorMap {
  std::byte opaque[128];
};
static_assert(sizeof(TensorMap) == 128);

/// What a driver call of ours came to. Raised in Python as echoc.errors.DeviceError.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& message, int status = 0) : std::runtime_error(message), status(status) {}
  const int status;  // the driver's number, 0 where no call failed

  /// Whether the context is lost with it: every later call of the process fails too.
  bool sticky() const;

  bool out_of_memory() const;
};

/// Finds functions by name in an opened driver library.
class Lookup {
 public:
  Lookup(Vendor vendor, const std::string& path);

  /// Throws Failure where the library lacks the name; returns null for a null name.
  void* find(const char* name) const;
  void* find_if_any(const char* name) const;

  const Vendor vendor;
  const std::string path;

 private:
  void* library_;  // stays open until the process ends: drivers do not unload cleanly
};

template <typename... P>
class Function {
 public:
  Function(const Lookup& lookup, const char* cuda, const char* rocm, bool required = true)
      : name(lookup.vendor == Vendor::cuda ? cuda : rocm),
        pointer(reinterpret_cast<int (*)(P...)>(required ? lookup.find(name) : lookup.find_if_any(name))) {}

  explicit operator bool() const { return pointer != nullptr; }
  int operator()(P... parameters) const { return pointer(parameters...); }

  const char* const name;
  int (*const pointer)(P...);
};

/// The functions. Those that only one vendor has are null for the other.
struct Api {
  explicit Api(const Lookup& found) : lookup(found) {}
  const Lookup lookup;

  Function<unsigned> init{lookup, "cuInit", "hipInit"};
  Function<int*> driver_version{lookup, "cuDriverGetVersion", "hipDriverGetVersion"};
  Function<int, const char**> error_name{lookup, "cuGetErrorName", "hipDrvGetErrorName"};
  Function<int, const char**> error_string{lookup, "cuGetErrorString", "hipDrvGetErrorString"};

  Function<int*> device_count{lookup, "cuDeviceGetCount", "hipGetDeviceCount"};
  Function<int*, int> device_get{lookup, "cuDeviceGet", "hipDeviceGet"};
  Function<char*, int, int> device_name{lookup, "cuDeviceGetName", "hipDeviceGetName"};
  Function<size_t*, int> device_memory{lookup, "cuDeviceTotalMem_v2", "hipDeviceTotalMem"};
  Function<int*, int, int> device_attribute{lookup, "cuDeviceGetAttribute", "hipDeviceGetAttribute"};
  Function<void*, int> device_properties{lookup, nullptr, "hipGetDevicePropertiesR0600"};

  Function<Handle*, int> context_retain{lookup, "cuDevicePrimaryCtxRetain", nullptr};
  Function<int> context_release{lookup, "cuDevicePrimaryCtxRelease_v2", nullptr};
  Function<Handle> context_set{lookup, "cuCtxSetCurrent", nullptr};
  Function<int> device_set{lookup, nullptr, "hipSetDevice"};

  Function<Handle*, const void*> module_load{lookup, "cuModuleLoadData", "hipModuleLoadData"};
  Function<Handle> module_unload{lookup, "cuModuleUnload", "hipModuleUnload"};
  Function<Handle*, Handle, const char*> module_function{lookup, "cuModuleGetFunction", "hipModuleGetFunction"};
  Function<Handle, int, int> function_set{lookup, "cuFuncSetAttribute", nullptr};

  Function<size_t*, size_t*> memory_info{lookup, "cuMemGetInfo_v2", "hipMemGetInfo"};
  Function<Address*, size_t> memory_allocate{lookup, "cuMemAlloc_v2", "hipMalloc"};
  Function<Address*, size_t, unsigned> memory_managed{lookup, "cuMemAllocManaged", "hipMallocManaged", false};
  Function<Address> memory_free{lookup, "cuMemFree_v2", "hipFree"};
  Function<void**, size_t, unsigned> host_allocate{lookup, "cuMemHostAlloc", "hipHostMalloc"};
  Function<void*> host_free{lookup, "cuMemFreeHost", "hipHostFree"};
  Function<Address, const void*, size_t, Handle> copy_in{lookup, "cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync"};
  Function<void*, Address, size_t, Handle> copy_out{lookup, "cuMemcpyDtoHAsync_v2", "hipMemcpyDtoHAsync"};
  Function<Address, Address, size_t, Handle> copy{lookup, "cuMemcpyDtoDAsync_v2", "hipMemcpyDtoDAsync"};
  Function<Address, unsigned char, size_t, Handle> fill{lookup, "cuMemsetD8Async", "hipMemsetD8Async"};

  Function<Handle*, unsigned> stream_create{lookup, "cuStreamCreate", "hipStreamCreateWithFlags"};
  Function<Handle> stream_destroy{lookup, "cuStreamDestroy_v2", "hipStreamDestroy"};
  Function<Handle> stream_synchronize{lookup, "cuStreamSynchronize", "hipStreamSynchronize"};
  Function<Handle*, unsigned> event_create{lookup, "cuEventCreate", "hipEventCreateWithFlags"};
  Function<Handle> event_destroy{lookup, "cuEventDestroy_v2", "hipEventDestroy"};
  Function<Handle, Handle> event_record{lookup, "cuEventRecord", "hipEventRecord"};
  Function<Handle, Handle, unsigned> event_record_in_graph{lookup, "cuEventRecordWithFlags", "hipEventRecordWithFlags",
                                                           false};
  Function<Handle> event_synchronize{lookup, "cuEventSynchronize", "hipEventSynchronize"};
  Function<float*, Handle, Handle> event_elapsed{lookup, "cuEventElapsedTime", "hipEventElapsedTime"};

  Function<Handle, int> capture_begin{lookup, "cuStreamBeginCapture_v2", "hipStreamBeginCapture"};
  Function<Handle, Handle*> capture_end{lookup, "cuStreamEndCapture", "hipStreamEndCapture"};
  Function<Handle*, Handle, unsigned long long> graph_instantiate{lookup, "cuGraphInstantiateWithFlags",
                                                                  "hipGraphInstantiateWithFlags"};
  Function<Handle, Handle> graph_launch{lookup, "cuGraphLaunch", "hipGraphLaunch"};
  Function<Handle> graph_destroy{lookup, "cuGraphDestroy", "hipGraphDestroy"};
  Function<Handle> graph_exec_destroy{lookup, "cuGraphExecDestroy", "hipGraphExecDestroy"};

  Function<const LaunchConfig*, Handle, void**, void**> launch{lookup, "cuLaunchKernelEx", nullptr};
  Function<Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**, void**>
      launch_plain{lookup, nullptr, "hipModuleLaunchKernel"};
  Function<Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**>
      launch_together{lookup, nullptr, "hipModuleLaunchCooperativeKernel", false};
  Function<TensorMap*, int, unsigned, Address, const uint64_t*, const uint64_t*, const unsigned*, const unsigned*, int,
           int, int, int>
      encode_tiled{lookup, "cuTensorMapEncodeTiled", nullptr, false};
  Function<int*, Handle, int, size_t> occupancy{lookup, "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                                                "hipModuleOccupancyMaxActiveBlocksPerMultiprocessor", false};
};

/// One device as its driver describes it. Sizes in bytes.
struct DeviceInfo {
  std::string name;
  std::string architecture;  // "sm_90", "gfx942"
  int64_t memory;
  int multiprocessors;
  int warp_size;
  int64_t shared_memory;  // most that a block can have
  int64_t l2_cache;
};

/// An initialised driver. Every failing call throws Failure with the call, the driver's error and what to do.
class Driver {
 public:
  /// `path` names the library; empty means the vendor's own name, found where the system looks for libraries.
  Driver(Vendor vendor, const std::string& path);

  const Api api;

  Vendor vendor() const { return api.lookup.vendor; }
  const char* vendor_name() const { return vendor() == Vendor::cuda ? "cuda" : "rocm"; }
  int version() const;
  int num_devices() const;
  DeviceInfo info(int index) const;

  template <typename... P, typename... A>
  void call(const Function<P...>& function, A... arguments) const {
    if (const int status = function(arguments...); status != 0) fail(status, function.name);
  }

  [[noreturn]] void fail(int status, const std::string& what) const;

  /// "CUDA_ERROR_OUT_OF_MEMORY (out of memory)".
  std::string describe(int status) const;

 private:
  int attribute(int device, int cuda, int rocm) const;
};

}  // namespace echoc::gpu
