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
  bool together = false;   // its blocks wait for each other: all are on the device at once
};

/// One axis of a grid: ceil(sum of coefficient * product of symbols / tile) blocks.
struct Axis {
  std::vector<std::pair<int64_t, std::vector<uint32_t>>> terms;
  int64_t tile = 1;
};

struct Launch {
  const Kernel* kernel;
  uint32_t first_parameter;  // of the launch list's
  std::vector<Axis> axes;
  bool dependent;
};

/// A launch argument of which the kernel gets a tensor map: rows of `columns` elements, one behind the other, copied in
/// boxes of `box` rows and columns, swizzled over `swizzle` bytes in shared memory.
struct Matrix {
  uint32_t argument;
  std::string element;
  int64_t rows, columns;
  std::array<unsigned, 2> box;
  int swizzle;
};
using MatrixSpec = std::tuple<uint32_t, std::string, int64_t, int64_t, std::array<unsigned, 2>, int>;

/// The tensor map of a matrix at an address that `bytes` bytes follow. Throws Failure where the driver is too old to
/// make one, refuses, or the matrix is larger.
TensorMap encode(const Context& context, const Matrix& matrix, Address address, int64_t bytes,
                 const std::string& kernel);

using AxisSpec = std::pair<std::vector<std::pair<int64_t, std::vector<uint32_t>>>, int64_t>;
/// (kernel index, [(kind, value), ...], symbols passed, grid, dependent, arguments that are matrices)
using LaunchSpec = std::tuple<uint32_t, std::vector<std::pair<std::string, int64_t>>, std::vector<uint32_t>,
                              std::vector<AxisSpec>, bool, std::vector<MatrixSpec>>;

using Grid = std::array<unsigned, 3>;

/// Blocks per axis for these symbol values; {0, 0, 0} where there is nothing to do. Throws Failure for what no device
/// takes.
Grid evaluate(const Launch& launch, std::span<const int64_t> dims);

/// Puts one kernel in the stream. `dependent`: it may start before what is in front of it has ended
/// (CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION), and waits for it itself.
void start(const Context& context, Handle stream, const Kernel& kernel, const Grid& grid, void** parameters,
           bool dependent);

/// Puts a kernel in the stream whose blocks meet: all of them are on the device at once, or Failure is thrown.
void start_together(const Context& context, Handle stream, const Kernel& kernel, unsigned blocks, void** parameters);

/// The most blocks of a kernel that a device holds at once.
unsigned resident_blocks(const Context& context, const Kernel& kernel);

/// "rows_0a1b, gemm_2c3d and 4 more": the kernels of a launch list, each once.
std::string names(std::span<const Launch> launches);

}  // namespace echoc::gpu
