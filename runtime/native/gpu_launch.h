// Kernels and launch lists of a GPU program, resolved to addresses.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/native/gpu_memory.h"

namespace echoc::gpu {

struct Kernel {
  std::string name;
  Handle function = nullptr;
  unsigned threads = 0;
  unsigned shared_bytes = 0;
  int extra_pointers = 0;  // null pointers that the compiler adds behind the parameters
};

/// One axis of a grid: ceil(sum of coefficient * product of symbols / tile) blocks.
struct Axis {
  std::vector<std::pair<int64_t, std::vector<uint32_t>>> terms;
  int64_t tile = 1;
};

struct Launch {
  const Kernel* kernel;
  uint32_t first_parameter;  // into Variant::parameters
  std::vector<Axis> axes;
  bool dependent;
};

/// A launch list. Parameters point into `arguments`, into `dims`, or at a null pointer.
struct Variant {
  std::vector<Launch> launches;
  std::vector<Address> arguments;                        // the pointers of all launches, one after another
  std::vector<void*> parameters;                         // what the driver reads, launch by launch
  std::vector<std::pair<uint32_t, uint32_t>> port_uses;  // (argument, port): these change from step to step
  std::vector<int32_t> dims;                             // the symbols' values as kernels get them
  int token_symbol = -1;
  int64_t steps = 0;
  int64_t step_ns = 0;
  int64_t graph_steps = 0;
  int64_t profiled_steps = 0;
  std::vector<int64_t> launch_ns;
  std::vector<Event> marks;  // one before each launch and one behind the last, made when profiling begins
};

using AxisSpec = std::pair<std::vector<std::pair<int64_t, std::vector<uint32_t>>>, int64_t>;
/// (kernel index, [(kind, value), ...], symbols passed, grid, dependent)
using LaunchSpec = std::tuple<uint32_t, std::vector<std::pair<std::string, int64_t>>, std::vector<uint32_t>,
                              std::vector<AxisSpec>, bool>;

using Grid = std::array<unsigned, 3>;

/// Blocks per axis for these symbol values; {0, 0, 0} where there is nothing to do. Throws Failure for what no device
/// takes.
Grid evaluate(const Launch& launch, std::span<const int64_t> dims);

/// Puts one kernel in the stream. `dependent`: it may start before what is in front of it has ended
/// (CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION), and waits for it itself.
void start(const Context& context, Handle stream, const Kernel& kernel, const Grid& grid, void** parameters,
           bool dependent);

/// "rows_0a1b, gemm_2c3d and 4 more": the kernels of a launch list, each once.
std::string names(const Variant& variant);

}  // namespace echoc::gpu
