// A driver of GPUs for tests: the functions that echoc asks of libcuda or (with FAKE_ROCM) of libamdhip64, over host
// memory. Work waits in its stream until somebody synchronises, so that what is read or freed too early shows. A kernel
// is a function of a shared object whose machine says GPU: int name(void** parameters, const unsigned* grid, unsigned
// threads), with the parameters' sizes in name_sizes, 0 behind the last; what it returns is the device's fault.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#ifdef FAKE_ROCM
#define API(cuda, rocm) extern "C" int rocm
#define NAMED(cuda, rocm) #rocm
#else
#define API(cuda, rocm) extern "C" int cuda
#define NAMED(cuda, rocm) #cuda
#endif
#define ENTER(cuda, rocm)            \
  const std::lock_guard lock(guard); \
  if (const int status = enter(NAMED(cuda, rocm))) return status

namespace {

using Work = std::function<int()>;

#ifdef FAKE_ROCM
constexpr long kMultiprocessors = 304;
#else
constexpr long kMultiprocessors = 132;
#endif

struct Stream {
  std::vector<Work> queue;
  std::vector<Work>* captured = nullptr;
};

struct Kernel {
  std::string name;
  int (*run)(void**, const unsigned*, unsigned);
  const int* sizes;
};

struct Event {
  double time = 0;
};

std::recursive_mutex guard;
std::vector<std::string> calls;
std::map<std::string, long> settings = {
    {"devices", 1},     {"memory", 1L << 30},  {"major", 9},    {"minor", 0},
    {"shared", 232448}, {"managed", 1L << 42}, {"resident", 1}, {"multiprocessors", kMultiprocessors}};
std::map<std::string, std::pair<int, int>> failures;  // function: (status, calls that still succeed)
std::map<uintptr_t, size_t> device_memory, managed_memory;
std::set<uintptr_t> host_memory;
std::set<Stream*> streams;
size_t used = 0;
int sticky = 0;
int contexts = 0;
thread_local bool current = false;

int enter(const char* name) {
  if (auto found = failures.find(name); found != failures.end()) {
    if (found->second.second-- <= 0) {
      const int status = found->second.first;
      failures.erase(found);
      return status;
    }
  }
  return 0;
}

int on_device() { return sticky ? sticky : current ? 0 : 201; }

void note(const std::string& text) { calls.push_back(text); }

int put(void* stream, Work work) {
  if (const int status = on_device()) return status;
  auto* s = static_cast<Stream*>(stream);
  (s->captured ? *s->captured : s->queue).push_back(std::move(work));
  return 0;
}

int drain(Stream* stream) {
  for (Work& work : std::exchange(stream->queue, {})) {
    if (!sticky) sticky = work();
  }
  return sticky;
}

bool inside(const std::map<uintptr_t, size_t>& memory, uint64_t at, size_t bytes) {
  auto next = memory.upper_bound(at);
  if (next == memory.begin()) return false;
  --next;
  return at + bytes <= next->first + next->second;
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e3 + time.tv_nsec * 1e-6;
}

int start(Kernel* kernel, const unsigned* grid, unsigned threads, unsigned shared, void* stream, void** parameters,
          bool dependent) {
  std::vector<std::vector<char>> copies;
  for (const int* size = kernel->sizes; *size; ++size) {
    const char* from = static_cast<const char*>(parameters[copies.size()]);
    copies.emplace_back(from, from + *size);
  }
  const std::vector<unsigned> blocks(grid, grid + 3);
  return put(stream, [=]() mutable {
    note("run " + kernel->name + " " + std::to_string(blocks[0]) + "," + std::to_string(blocks[1]) + "," +
         std::to_string(blocks[2]) + " threads " + std::to_string(threads) + " shared " + std::to_string(shared) +
         (dependent ? " dependent" : ""));
    std::vector<void*> pointers;
    for (auto& copy : copies) pointers.push_back(copy.data());
    return kernel->run(pointers.data(), blocks.data(), threads);
  });
}

}  // namespace

// --- what tests call ---

extern "C" void fake_set(const char* key, long value) { settings[key] = value; }
extern "C" long fake_used() {
  return static_cast<long>(used + managed_memory.size() + host_memory.size() + streams.size());
}
extern "C" void fake_fail(const char* function, int status, int after) { failures[function] = {status, after}; }
extern "C" void fake_reset() {
  calls.clear();
  failures.clear();
  sticky = 0;
  settings = {{"devices", 1},     {"memory", 1L << 30},  {"major", 9},    {"minor", 0},
              {"shared", 232448}, {"managed", 1L << 42}, {"resident", 1}, {"multiprocessors", kMultiprocessors}};
}
extern "C" const char* fake_calls() {
  static std::string text;
  text.clear();
  for (const std::string& call : calls) text += call + "\n";
  calls.clear();
  return text.c_str();
}

// --- the driver ---

API(cuInit, hipInit)(unsigned) {
  ENTER(cuInit, hipInit);
  return 0;
}
API(cuDriverGetVersion, hipDriverGetVersion)(int* out) {
  *out = 12040;
  return 0;
}
API(cuGetErrorName, hipDrvGetErrorName)(int status, const char** out) {
  static std::string name;
  name = "FAKE_ERROR_" + std::to_string(status);
  *out = name.c_str();
  return 0;
}
API(cuGetErrorString, hipDrvGetErrorString)(int, const char** out) {
  *out = "as the test says";
  return 0;
}
API(cuDeviceGetCount, hipGetDeviceCount)(int* out) {
  ENTER(cuDeviceGetCount, hipGetDeviceCount);
  *out = static_cast<int>(settings["devices"]);
  return *out ? 0 : 100;
}
API(cuDeviceGet, hipDeviceGet)(int* out, int index) {
  *out = index;
  return 0;
}
API(cuDeviceGetName, hipDeviceGetName)(char* out, int size, int) {
  strncpy(out, "Fake GPU", static_cast<size_t>(size));
  return 0;
}
API(cuDeviceTotalMem_v2, hipDeviceTotalMem)(size_t* out, int) {
  *out = static_cast<size_t>(settings["memory"]);
  return 0;
}
API(cuDeviceGetAttribute, hipDeviceGetAttribute)(int* out, int attribute, int) {
#ifdef FAKE_ROCM
  const std::map<int, int> values = {
      {87, 64}, {63, static_cast<int>(settings["multiprocessors"])}, {19, 1 << 22}, {74, 65536}};
#else
  const std::map<int, int> values = {{10, 32},
                                     {16, static_cast<int>(settings["multiprocessors"])},
                                     {38, 1 << 25},
                                     {97, static_cast<int>(settings["shared"])},
                                     {75, static_cast<int>(settings["major"])},
                                     {76, static_cast<int>(settings["minor"])}};
#endif
  if (!values.count(attribute)) return 1;
  *out = values.at(attribute);
  return 0;
}
#ifdef FAKE_ROCM
extern "C" int hipGetDevicePropertiesR0600(void* out, int) {
  strcpy(static_cast<char*>(out) + 1160, "gfx942:sramecc+:xnack-");
  return 0;
}
extern "C" int hipSetDevice(int) {
  current = true;
  return sticky;
}
#else
extern "C" int cuDevicePrimaryCtxRetain(void** out, int) {
  ENTER(cuDevicePrimaryCtxRetain, -);
  ++contexts;
  *out = &contexts;
  return 0;
}
extern "C" int cuDevicePrimaryCtxRelease_v2(int) {
  --contexts;
  return 0;
}
extern "C" int cuCtxSetCurrent(void* context) {
  current = context != nullptr;
  return sticky;
}
#endif

API(cuModuleLoadData, hipModuleLoadData)(void** out, const void* image) {
  ENTER(cuModuleLoadData, hipModuleLoadData);
  if (const int status = on_device()) return status;
  Elf64_Ehdr header;
  memcpy(&header, image, sizeof header);
  const size_t size = header.e_shoff + size_t{header.e_shnum} * header.e_shentsize;
  header.e_machine = EM_X86_64;
  const int file = memfd_create("kernels", 0);
  if (write(file, &header, sizeof header) < 0) return 1;
  if (write(file, static_cast<const char*>(image) + sizeof header, size - sizeof header) < 0) return 1;
  static std::string folder =
      "/proc/self/" NAMED(task, fdinfo) "/../fd/";  // neither the runtime's nor the other driver's
  folder += "./";  // a path never given before: under one that it knows dlopen gives the library that it has loaded
  *out = dlopen((folder + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  close(file);
  return *out ? 0 : 200;
}
API(cuModuleUnload, hipModuleUnload)(void* module) { return dlclose(module); }
API(cuModuleGetFunction, hipModuleGetFunction)(void** out, void* module, const char* name) {
  void* run = dlsym(module, name);
  void* sizes = dlsym(module, (std::string(name) + "_sizes").c_str());
  if (!run || !sizes) return 500;
  *out = new Kernel{name, reinterpret_cast<int (*)(void**, const unsigned*, unsigned)>(run), static_cast<int*>(sizes)};
  return 0;
}

#ifndef FAKE_ROCM
/// What a map says lies in it in plain sight: address, sizes, bytes of a row, box, swizzle.
struct Map {
  uint64_t address, sizes[2], row_bytes;
  unsigned box[2];
  int type, swizzle;
};
extern "C" int cuTensorMapEncodeTiled(void* out, int type, unsigned rank, uint64_t address, const uint64_t* sizes,
                                      const uint64_t* strides, const unsigned* box, const unsigned* every,
                                      int interleave, int swizzle, int, int fill) {
  ENTER(cuTensorMapEncodeTiled, -);
  const bool aligned = reinterpret_cast<uintptr_t>(out) % 64 == 0 && address % 16 == 0 && strides[0] % 16 == 0;
  if (!aligned || rank != 2 || interleave || fill || every[0] != 1 || every[1] != 1) return 1;
  if (!box[0] || !box[1] || box[0] > 256 || box[1] > 256) return 1;
  if (!inside(device_memory, address, sizes[1] * strides[0])) return 1;
  const Map map{address, {sizes[0], sizes[1]}, strides[0], {box[0], box[1]}, type, swizzle};
  memcpy(out, &map, sizeof map);
  return 0;
}
#endif

API(cuMemGetInfo_v2, hipMemGetInfo)(size_t* free, size_t* total) {
  *total = static_cast<size_t>(settings["memory"]);
  *free = *total - used;
  return on_device();
}
API(cuMemAlloc_v2, hipMalloc)(uint64_t* out, size_t bytes) {
  ENTER(cuMemAlloc_v2, hipMalloc);
  if (const int status = on_device()) return status;
  if (bytes == 0) return 1;
  if (used + bytes > static_cast<size_t>(settings["memory"])) return 2;
  void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(memory, 0xCD, bytes);
  *out = reinterpret_cast<uint64_t>(memory);
  device_memory[*out] = bytes;
  used += bytes;
  return 0;
}
API(cuMemAllocManaged, hipMallocManaged)(uint64_t* out, size_t bytes, unsigned flags) {
  ENTER(cuMemAllocManaged, hipMallocManaged);
  if (const int status = on_device()) return status;
  if (bytes == 0 || flags != 1) return 1;
  if (bytes > static_cast<size_t>(settings["managed"])) return 2;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return 2;
  memset(memory, 0xCD, bytes < 1 << 20 ? bytes : 1 << 20);  // not cleared, but not touched all over either
  *out = reinterpret_cast<uint64_t>(memory);
  managed_memory[*out] = bytes;
  device_memory[*out] = bytes;
  return 0;
}
API(cuMemFree_v2, hipFree)(uint64_t address) {
  const std::lock_guard lock(guard);
  for (Stream* stream : streams) drain(stream);
  if (auto found = managed_memory.find(address); found != managed_memory.end()) {
    munmap(reinterpret_cast<void*>(address), found->second);
    managed_memory.erase(found);
    device_memory.erase(address);
    return sticky;
  }
  used -= device_memory.at(address);
  device_memory.erase(address);
  free(reinterpret_cast<void*>(address));
  return sticky;
}
API(cuMemHostAlloc, hipHostMalloc)(void** out, size_t bytes, unsigned) {
  ENTER(cuMemHostAlloc, hipHostMalloc);
  *out = malloc(bytes);
  host_memory.insert(reinterpret_cast<uintptr_t>(*out));
  return on_device();
}
API(cuMemFreeHost, hipHostFree)(void* memory) {
  const std::lock_guard lock(guard);
  for (Stream* stream : streams) drain(stream);
  host_memory.erase(reinterpret_cast<uintptr_t>(memory));
  free(memory);
  return sticky;
}
API(cuMemcpyHtoDAsync_v2, hipMemcpyHtoDAsync)(uint64_t to, const void* from, size_t bytes, void* stream) {
  ENTER(cuMemcpyHtoDAsync_v2, hipMemcpyHtoDAsync);
  if (!inside(device_memory, to, bytes)) return 1;
  return put(stream, [=] {
    note("copy in " + std::to_string(bytes));
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return 0;
  });
}
API(cuMemcpyDtoHAsync_v2, hipMemcpyDtoHAsync)(void* to, uint64_t from, size_t bytes, void* stream) {
  ENTER(cuMemcpyDtoHAsync_v2, hipMemcpyDtoHAsync);
  if (!inside(device_memory, from, bytes)) return 1;
  return put(stream, [=] {
    note("copy out " + std::to_string(bytes));
    memcpy(to, reinterpret_cast<void*>(from), bytes);
    return 0;
  });
}
API(cuMemcpyDtoDAsync_v2, hipMemcpyDtoDAsync)(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  ENTER(cuMemcpyDtoDAsync_v2, hipMemcpyDtoDAsync);
  if (!inside(device_memory, from, bytes) || !inside(device_memory, to, bytes)) return 1;
  return put(stream, [=] {
    note("copy " + std::to_string(bytes));
    memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return 0;
  });
}
API(cuMemsetD8Async, hipMemsetD8Async)(uint64_t to, unsigned char value, size_t bytes, void* stream) {
  ENTER(cuMemsetD8Async, hipMemsetD8Async);
  if (!inside(device_memory, to, bytes)) return 1;
  return put(stream, [=] {
    memset(reinterpret_cast<void*>(to), value, bytes);
    return 0;
  });
}

API(cuStreamCreate, hipStreamCreateWithFlags)(void** out, unsigned) {
  ENTER(cuStreamCreate, hipStreamCreateWithFlags);
  auto* stream = new Stream;
  streams.insert(stream);
  *out = stream;
  return on_device();
}
API(cuStreamDestroy_v2, hipStreamDestroy)(void* stream) {
  const std::lock_guard lock(guard);
  drain(static_cast<Stream*>(stream));
  streams.erase(static_cast<Stream*>(stream));
  delete static_cast<Stream*>(stream);
  return sticky;
}
API(cuStreamSynchronize, hipStreamSynchronize)(void* stream) {
  ENTER(cuStreamSynchronize, hipStreamSynchronize);
  return drain(static_cast<Stream*>(stream));
}
API(cuEventCreate, hipEventCreateWithFlags)(void** out, unsigned) {
  *out = new Event;
  return on_device();
}
API(cuEventDestroy_v2, hipEventDestroy)(void* event) {
  const std::lock_guard lock(guard);
  for (Stream* stream : streams) drain(stream);
  delete static_cast<Event*>(event);
  return sticky;
}
API(cuEventRecord, hipEventRecord)(void* event, void* stream) {
  ENTER(cuEventRecord, hipEventRecord);
  if (static_cast<Stream*>(stream)->captured) return 907;  // such an event could not be read
  return put(stream, [=] {
    static_cast<Event*>(event)->time = now();
    return 0;
  });
}
API(cuEventRecordWithFlags, hipEventRecordWithFlags)(void* event, void* stream, unsigned flags) {
  ENTER(cuEventRecordWithFlags, hipEventRecordWithFlags);
  if (flags != 1) return 1;
  return put(stream, [=] {
    static_cast<Event*>(event)->time = now();
    return 0;
  });
}
API(cuEventSynchronize, hipEventSynchronize)(void*) {
  const std::lock_guard lock(guard);
  for (Stream* stream : streams) drain(stream);
  return sticky;
}
API(cuEventElapsedTime, hipEventElapsedTime)(float* out, void* from, void* to) {
  *out = static_cast<float>(static_cast<Event*>(to)->time - static_cast<Event*>(from)->time);
  return static_cast<Event*>(to)->time == 0 ? 600 : 0;
}

API(cuStreamBeginCapture_v2, hipStreamBeginCapture)(void* stream, int mode) {
  ENTER(cuStreamBeginCapture_v2, hipStreamBeginCapture);
  if (mode != 1) return 1;
  static_cast<Stream*>(stream)->captured = new std::vector<Work>;
  return on_device();
}
API(cuStreamEndCapture, hipStreamEndCapture)(void* stream, void** out) {
  ENTER(cuStreamEndCapture, hipStreamEndCapture);
  *out = std::exchange(static_cast<Stream*>(stream)->captured, nullptr);
  return on_device();
}
API(cuGraphInstantiateWithFlags, hipGraphInstantiateWithFlags)(void** out, void* graph, unsigned long long) {
  ENTER(cuGraphInstantiateWithFlags, hipGraphInstantiateWithFlags);
  note("instantiate");
  *out = new std::vector<Work>(*static_cast<std::vector<Work>*>(graph));
  return on_device();
}
API(cuGraphLaunch, hipGraphLaunch)(void* graph, void* stream) {
  ENTER(cuGraphLaunch, hipGraphLaunch);
  note("graph");
  for (const Work& work : *static_cast<std::vector<Work>*>(graph)) {
    if (const int status = put(stream, work)) return status;
  }
  return on_device();
}
API(cuGraphDestroy, hipGraphDestroy)(void* graph) {
  delete static_cast<std::vector<Work>*>(graph);
  return 0;
}
API(cuGraphExecDestroy, hipGraphExecDestroy)(void* graph) {
  delete static_cast<std::vector<Work>*>(graph);
  return 0;
}

namespace {
unsigned most_resident() { return static_cast<unsigned>(settings["resident"] * settings["multiprocessors"]); }
}  // namespace
API(cuOccupancyMaxActiveBlocksPerMultiprocessor, hipModuleOccupancyMaxActiveBlocksPerMultiprocessor)(int* out, void*,
                                                                                                     int, size_t) {
  ENTER(cuOccupancyMaxActiveBlocksPerMultiprocessor, hipModuleOccupancyMaxActiveBlocksPerMultiprocessor);
  *out = static_cast<int>(settings["resident"]);
  return 0;
}

#ifdef FAKE_ROCM
extern "C" int hipModuleLaunchCooperativeKernel(void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads,
                                                unsigned, unsigned, unsigned shared, void* stream, void** parameters) {
  ENTER(-, hipModuleLaunchCooperativeKernel);
  if (x > most_resident()) return 720;
  const unsigned grid[3] = {x, y, z};
  return start(static_cast<Kernel*>(kernel), grid, threads, shared, stream, parameters, false);
}
extern "C" int hipModuleLaunchKernel(void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned,
                                     unsigned, unsigned shared, void* stream, void** parameters, void**) {
  ENTER(-, hipModuleLaunchKernel);
  const unsigned grid[3] = {x, y, z};
  return start(static_cast<Kernel*>(kernel), grid, threads, shared, stream, parameters, false);
}
#else
extern "C" int cuFuncSetAttribute(void*, int attribute, int value) {
  ENTER(cuFuncSetAttribute, -);
  note("attribute " + std::to_string(attribute) + " " + std::to_string(value));
  return 0;
}
namespace {
struct Attribute {  // CUlaunchAttribute
  int id, padding, value, rest[15];
};
struct Config {  // CUlaunchConfig
  unsigned grid[3], block[3], shared;
  void* stream;
  const Attribute* attributes;
  unsigned count;
};
}  // namespace
extern "C" int cuLaunchKernelEx(const Config* config, void* kernel, void** parameters, void**) {
  ENTER(cuLaunchKernelEx, -);
  bool dependent = false;
  for (unsigned i = 0; i < config->count; ++i) {
    const Attribute& attribute = config->attributes[i];
    if ((attribute.id != 6 && attribute.id != 2) || attribute.value != 1) return 1;
    if (attribute.id == 2 && config->grid[0] > most_resident()) return 720;
    dependent |= attribute.id == 6;
  }
  return start(static_cast<Kernel*>(kernel), config->grid, config->block[0], config->shared, config->stream, parameters,
               dependent);
}
#endif
