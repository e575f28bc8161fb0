// Drivers that share a matmul among a team and hand finished row segments to an epilogue.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "balance.h"
#include "tiles.h"

namespace echoc {

// The part of a [rows, panels] output that one thread computes.
struct Share {
  Range rows;
  Range panels;
};

// So many rows of a thread that reading all of a weight costs little beside their products.
#if defined(__AMX_TILE__)
inline constexpr int64_t kOwnRows = 512;
#else
inline constexpr int64_t kOwnRows = 48;
#endif

// Cuts the output into a grid of at most nthreads parts. Panels are cut first, so that a weight is read once; rows as
// well when that leaves less for the busiest thread, and rows only where there are many: a thread then multiplies those
// that it has in its caches, as it made them. `unit_bytes` is what a panel costs to read, `row_bytes` a row.
inline Share share_output(const Call& call, int64_t T, int64_t panels, int64_t unit_bytes, int64_t row_bytes) {
  if (T >= kOwnRows * call.nthreads) return {share(T, call.tid, call.nthreads), {0, panels}};
  constexpr int64_t kRowUnit = 32;
  int64_t best_cuts = 1;
  double best = 0;
  const int64_t most_cuts = std::min<int64_t>(call.nthreads, (T + kRowUnit - 1) / kRowUnit);
  for (int64_t cuts = 1; cuts <= most_cuts; ++cuts) {
    const int64_t across = call.nthreads / cuts;
    const auto rows = static_cast<double>((T + cuts - 1) / cuts);
    const auto wide = static_cast<double>((panels + across - 1) / across);
    // A byte brought to the core costs about as much as the arithmetic of 4 rows on it.
    const double cost = rows * wide * static_cast<double>(unit_bytes) +
                        4.0 * (wide * static_cast<double>(unit_bytes) + rows * static_cast<double>(row_bytes));
    if (cuts == 1 || cost < best * 0.98) {
      best = cost;
      best_cuts = cuts;
    }
  }
  const int64_t across = call.nthreads / best_cuts;
  if (call.tid >= across * best_cuts) return {{0, 0}, {0, 0}};
  return {share(T, call.tid / across, best_cuts), share(panels, call.tid % across, across)};
}

namespace detail {

inline constexpr int64_t kMostColumns = 256;  // of a segment

// Multiplies rows [rows.begin, rows.end) of x with panels [panels.begin, panels.end) of w (in units of NW interleaved
// panels) and calls epilogue(row, n0, count, acc) for each row segment.
template <class W, int NW, class Epilogue>
void multiply(const void* x, const void* w, Range rows, Range panels, int64_t N, int64_t K, bool deterministic,
              Schedule schedule, Epilogue&& epilogue) {
  const auto* activations = static_cast<const std::byte*>(x);
  const auto* weights = static_cast<const std::byte*>(w);
  Blocking blocking = W::blocking(rows.end - rows.begin, K);
  if (rows.end - rows.begin > kFewRows) {
    blocking.rows = schedule.rows > 0 ? schedule.rows : blocking.rows;
    blocking.panels = schedule.panels > 0 ? schedule.panels : blocking.panels;
  }
  const int64_t ahead = schedule.ahead > 0 ? schedule.ahead : layout::kAhead;
  const int64_t unit = std::clamp<int64_t>(blocking.panels / NW, 1, kMostColumns / W::kPanel);
  const int64_t most_rows = std::min(blocking.rows, kAccumulators / (unit * NW * W::kPanel));
  float* const acc = accumulators();
  for (int64_t t = rows.begin; t < rows.end; t += most_rows) {
    const int64_t high = std::min(most_rows, rows.end - t);
    for (int64_t p = panels.begin; p < panels.end; p += unit) {
      const int64_t wide = std::min(unit, panels.end - p);
      const int64_t n0 = p * W::kPanel;
      const int64_t count = std::min(wide * W::kPanel, N - n0);
      const int64_t ld = wide * W::kPanel;
      const int64_t plane = high * ld;
      W::tile(activations + t * W::row_bytes(K), weights + p * NW * W::panel_bytes(K), K, high, wide * NW, acc, ld, NW,
              plane, deterministic, ahead, p != panels.begin);
      for (int64_t r = 0; r < high; ++r) {
        const float* segments[NW];
        for (int i = 0; i < NW; ++i) segments[i] = acc + i * plane + r * ld;
        epilogue(t + r, n0, count, segments);
      }
    }
  }
}

}  // namespace detail

inline constexpr int64_t kLeastStream = 16384;  // bytes of a weight worth taking from another thread

// out[t][n] = sum over k of x[t][k] * w[n][k] for t < T, n < N, handed to the epilogue, for NW weights of equal shape
// whose panels are interleaved (w0 panel 0, w1 panel 0, w0 panel 1, ...).
// x: T prepared rows, W::row_bytes(K) apart. Every thread of the team calls it.
// epilogue(int64_t t, int64_t n0, int64_t count, const float* const acc[NW]): acc[i][j] belongs to column n0 + j of
// weight i; count <= 256, n0 + count <= N; segments start at multiples of 16.
// With `deterministic` the results of a row depend on nothing but the row and the weights; without, the tile may
// follow T.
template <class W, int NW, class Epilogue>
void gemm(const Call& call, const void* x, const void* w, int64_t T, int64_t N, int64_t K, bool deterministic,
          Epilogue&& epilogue, Schedule schedule = {}) {
  if (T == 1) {  // bound by memory, which does not serve all threads alike
    W::begin();
    const int64_t least = std::max<int64_t>(kLeastStream / (NW * W::panel_bytes(K)), 1);
    share_out(call, layout::panels(N), least, [&](Range panels) {
      detail::multiply<W, NW>(x, w, {0, 1}, panels, N, K, deterministic, schedule, epilogue);
    });
    W::end();
    return;
  }
  const Share mine = share_output(call, T, layout::panels(N), NW * W::panel_bytes(K), W::row_bytes(K));
  if (mine.rows.begin == mine.rows.end || mine.panels.begin == mine.panels.end) return;
  W::begin();
  detail::multiply<W, NW>(x, w, mine.rows, mine.panels, N, K, deterministic, schedule, epilogue);
  W::end();
}

// The same where output row i multiplies prepared row i / rows_per_x with expert ids[i] of E; experts are packed one
// after another, each as NW interleaved weights. The rows of an expert are gathered and share its stream of weights.
// Rows whose id is outside 0..E-1 are skipped: their epilogue is not called.
template <class W, int NW, class Epilogue>
void gemm_experts(const Call& call, const void* x, int64_t rows_per_x, const void* w, int64_t E, const int32_t* ids,
                  int64_t rows, int64_t N, int64_t K, bool deterministic, Epilogue&& epilogue, Schedule schedule = {}) {
  const auto* activations = static_cast<const std::byte*>(x);
  const auto* weights = static_cast<const std::byte*>(w);
  const int64_t expert_bytes = layout::packed_bytes(W::kBits, W::kGroup, NW, N, K);
  const Range panels = share(layout::panels(N), call.tid, call.nthreads);
  if (panels.begin == panels.end) return;
  constexpr int64_t kMostRows = 64;
  const int64_t row_bytes = W::row_bytes(K);
  const int64_t most_rows = std::clamp<int64_t>(kGatherBytes / row_bytes, 1, kMostRows);
  int64_t members[kMostRows];
  W::begin();
  for (int64_t first = 0; first < rows; ++first) {
    const int32_t expert = ids[first];
    if (expert < 0 || expert >= E || std::find(ids, ids + first, expert) != ids + first) continue;
    for (int64_t i = first; i < rows;) {
      int64_t count = 0;
      for (; i < rows && count < most_rows; ++i)
        if (ids[i] == expert) members[count++] = i;
      if (count == 0) break;
      const std::byte* group = activations + members[0] / rows_per_x * row_bytes;
      if (count > 1) {
        std::byte* const copy = gather_buffer();
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(copy + r * row_bytes, activations + members[r] / rows_per_x * row_bytes, row_bytes);
        group = copy;
      }
      detail::multiply<W, NW>(
          group, weights + expert * expert_bytes, {0, count}, panels, N, K, deterministic, schedule,
          [&](int64_t r, int64_t n0, int64_t width, const float* const* acc) { epilogue(members[r], n0, width, acc); });
    }
  }
  W::end();
}

}  // namespace echoc
