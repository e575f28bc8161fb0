// Runs of a system whose membranes stay: counts in one dense vector, a charge per cell. What a kernel is called with.
#pragma once

#include <cstddef>
#include <cstdint>

// Of runs that threads of a GPU advance side by side, so many work in arrays that lie interleaved.
#if !defined(ECHOC_RUN_STRIDE)
#define ECHOC_RUN_STRIDE 1
#endif

namespace echoc::runs {

constexpr int64_t kStride = ECHOC_RUN_STRIDE;

enum class Error : int32_t {
  kNone = 0,
  kOverflow = 1,    // a count would pass 2^63 - 1; `where` is its place in `counts`
  kPropensity = 2,  // a rate law gave a negative number, NaN or infinity; `where` is the reaction (an instance)
  kEvent = 3,       // an event set a count to what is none, or has a delay that is none; `where` is the event
  kEndless = 4,     // events set each other off without end, or too many wait; `where` is one of them
};

// One run. A kernel advances it in place and never allocates or throws; after an error the run is as it was at the
// start of the failing step.
struct Run {
  int64_t* counts;
  int8_t* charges;
  double time;           // of the last event (GILLESPIE); in steps otherwise
  uint64_t seed, index;  // of the run: random numbers depend on these and on the step alone
  int64_t step;          // steps (events) taken since the start
  int64_t steps;         // take at most so many now
  double until;          // take no event later than this (GILLESPIE)

  // Records of `num_recorded` counts each, at every `every`-th step (0: none) or at the ascending `times`.
  const int32_t* recorded;  // places in `counts`
  int64_t num_recorded;
  int64_t every;
  const double* times;
  int64_t num_records;  // capacity; with `times`, how many there are
  int64_t* records;     // [num_records, num_recorded]
  int64_t records_done;

  int64_t* applications;  // null, or per instance, how often it was applied in the last step
  std::byte* scratch;     // as many bytes as the layout says, 64-byte aligned

  int32_t halted;  // out: nothing is applicable any more
  Error error;
  int64_t where;
#if ECHOC_RUN_STRIDE > 1
  int64_t lane;  // its place among the runs that share `scratch`, which has as many bytes for each of them
#endif
};

/// What a kernel and the runtime that calls it must agree on; kVersion counts changes of meaning that keep the size.
constexpr int64_t kVersion = 1;
constexpr int64_t kAbi = kVersion << 32 | sizeof(Run);

inline void record(Run& run) {
  if (run.records_done >= run.num_records) return;
  int64_t* out = run.records + run.records_done++ * run.num_recorded;
  for (int64_t i = 0; i < run.num_recorded; ++i) out[i] = run.counts[run.recorded[i]];
}

// Records the state at every time that lies before `time`.
inline void record_before(Run& run, double time) {
  while (run.records_done < run.num_records && run.times[run.records_done] < time) record(run);
}

}  // namespace echoc::runs
