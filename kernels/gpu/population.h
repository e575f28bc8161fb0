// One step of a population on a GPU: every thread of the grid is a thread of the team that population_step.h speaks of.
#pragma once

#include "kernels/cpu/population.h"
#include "kernels/gpu/device.h"

namespace echoc::population {

/// What a launch and its host tell each other, in memory of the device. `call` points to the members behind it.
struct Control {
  device::Meeting meeting;
  uint32_t blocks;
  uint32_t unused;
  int64_t abi;
  StepCall call;
  Cells before, after;
  Pool pool;
  pages::Account account;
  Vec<Link> links_before, links;
  Shared shared;
  int64_t applied;  // whether any thread has applied a rule, or could have
  int64_t held;     // pages, by all threads
};

#if defined(ECHOC_DEVICE)

inline void meet(const StepCall& call) {
  auto& control = *static_cast<Control*>(call.team);
  device::meet_grid(control.meeting, control.blocks);
}

template <class Step>
inline void run_on_device(Control& control, uint32_t threads) {
  StepCall call = control.call;
  call.tid = static_cast<int32_t>(device::block() * threads + device::thread());
  call.team = &control;
  Workspace& work = call.workspaces[call.tid];
  work.held = 0;
  pages::open(control.pool.taken, work.cache, control.account);
  meet(call);  // nobody takes from what others have still to give back
  Step(call).run();
  pages::close(work.cache);
  if (work.applied + work.possible > 0) __atomic_store_n(&control.applied, 1, __ATOMIC_RELAXED);
  if (work.held != 0) __atomic_fetch_add(&control.held, work.held, __ATOMIC_RELAXED);
}

#endif

}  // namespace echoc::population
