#include "runtime/native/gpu_launch.h"

#include <algorithm>

namespace echoc::gpu {
namespace {

constexpr int64_t kMostBlocks[3] = {0x7FFFFFFF, 65535, 65535};  // CUDA C++ Programming Guide, technical specifications
constexpr int kCooperative = 2, kProgrammaticStreamSerialization = 6;  // CUlaunchAttributeID

int64_t size_of(const Axis& axis, std::span<const int64_t> dims, const Kernel& kernel) {
  int64_t sum = 0;
  bool fits = true;
  for (const auto& [coefficient, symbols] : axis.terms) {
    int64_t product = coefficient;
    for (const uint32_t symbol : symbols) fits = !__builtin_mul_overflow(product, dims[symbol], &product) && fits;
    fits = !__builtin_add_overflow(sum, product, &sum) && fits;
  }
  if (!fits || sum < 0) {
    throw Failure("kernel " + kernel.name + " has a grid of " + (fits ? std::to_string(sum) : "more than 2^63") +
                  " elements at these sizes; make a smaller step, or compile the model again");
  }
  return sum;
}

}  // namespace

Grid evaluate(const Launch& launch, std::span<const int64_t> dims) {
  Grid grid{1, 1, 1};
  bool idle = false;
  for (size_t i = 0; i < launch.axes.size(); ++i) {
    const Axis& axis = launch.axes[i];
    const int64_t size = size_of(axis, dims, *launch.kernel);
    const int64_t blocks = size / axis.tile + (size % axis.tile != 0);
    if (blocks > kMostBlocks[i]) {
      throw Failure("kernel " + launch.kernel->name + " would need " + std::to_string(blocks) + " blocks on axis " +
                    std::to_string(i) + ", a device takes " + std::to_string(kMostBlocks[i]) + ": make a smaller step");
    }
    idle = idle || blocks == 0;
    grid[i] = static_cast<unsigned>(blocks);
  }
  return idle ? Grid{0, 0, 0} : grid;
}

void start(const Context& context, Handle stream, const Kernel& kernel, const Grid& grid, void** parameters,
           bool dependent) {
  if (kernel.together) return start_together(context, stream, kernel, grid[0], parameters);
  int status = 0;
  if (context.api.launch) {
    LaunchAttribute attribute{};
    attribute.id = kProgrammaticStreamSerialization;
    attribute.value = 1;
    const LaunchConfig config{{grid[0], grid[1], grid[2]},      {kernel.threads, 1, 1}, kernel.shared_bytes, stream,
                              dependent ? &attribute : nullptr, dependent ? 1u : 0u};
    status = context.api.launch(&config, kernel.function, parameters, nullptr);
  } else {
    status = context.api.launch_plain(kernel.function, grid[0], grid[1], grid[2], kernel.threads, 1, 1,
                                      kernel.shared_bytes, stream, parameters, nullptr);
  }
  if (status != 0) context.driver->fail(status, "launch of kernel " + kernel.name);
}

void start_together(const Context& context, Handle stream, const Kernel& kernel, unsigned blocks, void** parameters) {
  int status = 0;
  if (context.api.launch) {
    LaunchAttribute attribute{};
    attribute.id = kCooperative;
    attribute.value = 1;
    const LaunchConfig config{{blocks, 1, 1}, {kernel.threads, 1, 1}, kernel.shared_bytes, stream, &attribute, 1};
    status = context.api.launch(&config, kernel.function, parameters, nullptr);
  } else {
    if (!context.api.launch_together)
      throw Failure("the driver has no cooperative launches; update ROCm to 6 or newer");
    status = context.api.launch_together(kernel.function, blocks, 1, 1, kernel.threads, 1, 1, kernel.shared_bytes,
                                         stream, parameters);
  }
  if (status != 0) context.driver->fail(status, "launch of kernel " + kernel.name);
}

unsigned resident_blocks(const Context& context, const Kernel& kernel) {
  if (!context.api.occupancy) throw Failure("the driver does not tell how many blocks are resident; update it");
  int blocks = 0;
  context.driver->call(context.api.occupancy, &blocks, kernel.function, static_cast<int>(kernel.threads),
                       size_t{kernel.shared_bytes});
  if (blocks < 1) {
    throw Failure("no block of kernel " + kernel.name + " fits a multiprocessor of " + context.info.name +
                  ": compile the system for this device");
  }
  return static_cast<unsigned>(blocks) * static_cast<unsigned>(context.info.multiprocessors);
}

std::string names(std::span<const Launch> launches) {
  constexpr size_t kShown = 12;
  std::vector<std::string> found;
  for (const Launch& launch : launches) {
    if (std::find(found.begin(), found.end(), launch.kernel->name) == found.end()) found.push_back(launch.kernel->name);
  }
  std::string out;
  for (size_t i = 0; i < std::min(found.size(), kShown); ++i) out += (i ? ", " : "") + found[i];
  if (found.size() > kShown) out += " and " + std::to_string(found.size() - kShown) + " more";
  return out;
}

}  // namespace echoc::gpu
