// Weight formats and their matmul tiles. The definitions are in tiles_*.cpp, compiled once per feature level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace echoc {

// How the driver cuts a gemm for tile(): rows of x and panels of w per call.
struct Blocking {
  int64_t rows;
  int64_t panels;
};

// What may be chosen for a matmul without changing its results; 0 leaves it to the format.
struct Schedule {
  int64_t rows = 0;    // of x per call of tile(), where there are more than kFewRows
  int64_t panels = 0;  // of w per call, likewise
  int64_t ahead = 0;   // bytes of a panel asked for beforehand, where two to some ten rows share its stream
};
inline constexpr int64_t kFewRows = 32;

// A weight format: Bits 32 (f32), 16 (bf16), 12 (bf16c) or 8 (f8) with Group 0; Bits 8 or 4 with Group 32, 64 or 128.
// The logical weight is [N, K] and serves out[t][n] = sum over k of x[t][k] * w[n][k].
template <int Bits, int Group>
struct Weight {
  static constexpr int kBits = Bits;
  static constexpr int kGroup = Group;
  static constexpr int kPanel = layout::kPanel;

  static constexpr int64_t panel_bytes(int64_t K) { return layout::panel_bytes(Bits, Group, K); }
  // Stride of prepared activation rows; a multiple of 64.
  static constexpr int64_t row_bytes(int64_t K) { return layout::row_bytes(Bits, Group, K); }

  // Prepares one activation row x [K] into `row` (row_bytes(K) bytes, 64-byte aligned).
  static void prepare(const float* x, int64_t K, void* row);

  // acc[(p % planes) * plane + r * ld + (p / planes) * 16 + lane] = row r times row `lane` of panel p.
  // `rows` are prepared rows row_bytes(K) apart, `panels` are panel_bytes(K) apart; acc is 64-byte aligned, ld and
  // plane are multiples of 16. With `deterministic` the result of a row does not depend on num_rows or num_panels.
  // `again`: the rows are those of this thread's call before, unchanged. Called between begin() and end().
  static void tile(const void* rows, const void* panels, int64_t K, int64_t num_rows, int64_t num_panels, float* acc,
                   int64_t ld, int64_t planes, int64_t plane, bool deterministic, int64_t ahead, bool again);

  // Row n of the packed weight as f32 [K]; `interleave` weights share the panels and this is number `which`.
  static void unpack_row(const void* w, int64_t K, int64_t n, float* out, int64_t interleave = 1, int64_t which = 0);

  // Blocks for a gemm over T rows; rows * panels * 16 <= kAccumulators.
  static Blocking blocking(int64_t T, int64_t K);

  // Before the first and after the last tile of a kernel on each thread.
  static void begin();
  static void end();
};

// Floats in accumulators(), this thread's 64-byte aligned buffer for results of tile().
inline constexpr int64_t kAccumulators = 128 * 1024;
float* accumulators();

// This thread's 64-byte aligned buffer for prepared rows brought together.
inline constexpr int64_t kGatherBytes = int64_t{1} << 20;
std::byte* gather_buffer();

extern template struct Weight<32, 0>;
extern template struct Weight<16, 0>;
extern template struct Weight<12, 0>;
extern template struct Weight<8, 0>;
extern template struct Weight<8, 32>;
extern template struct Weight<8, 64>;
extern template struct Weight<8, 128>;
extern template struct Weight<4, 32>;
extern template struct Weight<4, 64>;
extern template struct Weight<4, 128>;

using WeightF32 = Weight<32, 0>;
using WeightBf16 = Weight<16, 0>;

}  // namespace echoc
