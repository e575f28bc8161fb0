#include "runtime/native/gpu_launch.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

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

/// A CUtensorMapDataType and its bytes.
std::pair<int, int64_t> data_type(const std::string& element) {
  if (element == "u8" || element == "i8") return {0, 1};
  if (element == "f16") return {6, 2};
  if (element == "f32") return {7, 4};
  if (element == "bf16") return {9, 2};
  throw std::invalid_argument("no tensor map has elements of type " + element);
}

}  // namespace

TensorMap encode(const Context& context, const Matrix& matrix, Address address, int64_t bytes,
                 const std::string& kernel) {
  if (!context.api.encode_tiled) {
    throw Failure("kernel " + kernel + " takes tensor maps, and the driver does not make them (no " +
                  (context.api.encode_tiled.name ? context.api.encode_tiled.name : "such function") +
                  "): update the NVIDIA driver to 525 or newer");
  }
  constexpr int kSwizzles[] = {0, 32, 64, 128};      // CUtensorMapSwizzle
  constexpr int kFetch128 = 2;                       // CU_TENSOR_MAP_L2_PROMOTION_L2_128B
  constexpr int kNotInterleaved = 0, kZeroFill = 0;  // what lies outside of the matrix reads as 0
  const auto [type, size] = data_type(matrix.element);
  const std::string name = "tensor map of " + std::to_string(matrix.rows) + " rows of " +
                           std::to_string(matrix.columns) + " " + matrix.element + " for kernel " + kernel;
  int64_t row = 0, all = 0;
  if (matrix.rows < 1 || matrix.columns < 1 || __builtin_mul_overflow(matrix.columns, size, &row) ||
      __builtin_mul_overflow(matrix.rows, row, &all) || all > bytes) {
    throw Failure(name + ": its memory has " + std::to_string(bytes) + " bytes");
  }
  const int* swizzle = std::find(std::begin(kSwizzles), std::end(kSwizzles), matrix.swizzle);
  if (swizzle == std::end(kSwizzles)) throw std::invalid_argument("a tensor map swizzles 0, 32, 64 or 128 bytes");
  const uint64_t sizes[] = {static_cast<uint64_t>(matrix.columns), static_cast<uint64_t>(matrix.rows)};
  const uint64_t row_bytes[] = {static_cast<uint64_t>(row)};
  const unsigned box[] = {matrix.box[1], matrix.box[0]}, every[] = {1, 1};
  TensorMap map{};
  const int status = context.api.encode_tiled(&map, type, 2u, address, sizes, row_bytes, box, every, kNotInterleaved,
                                              static_cast<int>(swizzle - kSwizzles), kFetch128, kZeroFill);
  if (status != 0) context.driver->fail(status, name);
  return map;
}

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
