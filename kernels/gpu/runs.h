// Runs of a system whose membranes stay, each advanced by one thread of a GPU.
#pragma once

#include "kernels/cpu/runs.h"
#include "kernels/gpu/device.h"

namespace echoc::runs {

// What a launch is told, as runtime/device_runs.py fills it in: arrays with an entry for every run, and arrays with
// `places`, `cells`, ... entries for each, one run behind the other. Only the scratch of kStride runs is interleaved.
struct Batch {
  int64_t count;  // of runs
  int64_t lanes;  // runs of a block, at most its threads
  uint64_t seed;
  int64_t places, cells, instances;
  double until;
  int64_t every;
  int64_t num_recorded, num_records;
  int64_t scratch_bytes;  // of a run, a multiple of 64
  const int32_t* recorded;
  const double* times;    // may be null
  const uint64_t* index;  // [count], as all of these
  int64_t* step;
  int64_t* records_done;
  int64_t* where;
  int32_t* halted;
  int32_t* error;
  double* time;
  int8_t* charges;  // [count, cells]
  int64_t* counts;  // [count, places]
  int64_t* records;
  int64_t* applications;  // may be null
  std::byte* scratch;
};

template <class Kernel>
void serve(const Batch& batch, int64_t steps, int64_t block, int64_t thread, Kernel&& kernel) {
  const int64_t i = block * batch.lanes + thread;
  if (thread >= batch.lanes || i >= batch.count) return;
  Run run{};
  run.counts = batch.counts + i * batch.places;
  run.charges = batch.charges + i * batch.cells;
  run.time = batch.time[i];
  run.seed = batch.seed;
  run.index = batch.index[i];
  run.step = batch.step[i];
  run.steps = steps;
  run.until = batch.until;
  run.recorded = batch.recorded;
  run.num_recorded = batch.num_recorded;
  run.every = batch.every;
  run.times = batch.times;
  run.num_records = batch.num_records;
  run.records = batch.records + i * batch.num_records * batch.num_recorded;
  run.records_done = batch.records_done[i];
  if (batch.applications) run.applications = batch.applications + i * batch.instances;
  run.scratch = batch.scratch + i / kStride * kStride * batch.scratch_bytes;
#if ECHOC_RUN_STRIDE > 1
  run.lane = i % kStride;
#endif
  kernel(&run);
  batch.time[i] = run.time;
  batch.step[i] = run.step;
  batch.records_done[i] = run.records_done;
  batch.halted[i] = run.halted;
  batch.error[i] = static_cast<int32_t>(run.error);
  batch.where[i] = run.where;
}

}  // namespace echoc::runs
