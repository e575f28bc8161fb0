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
  int64_t applied;  // by all threads, and what could have been
  int64_t held;     // pages, by all threads
};

#if defined(ECHOC_DEVICE)

ECHOC_BLOCK_SHARED int64_t sum_applied;
ECHOC_BLOCK_SHARED int64_t sum_held;

inline void add_in_block(__attribute__((address_space(3))) int64_t& sum, int64_t more) {
  if (more != 0) __scoped_atomic_fetch_add(&sum, more, __ATOMIC_RELAXED, __MEMORY_SCOPE_WRKGRP);
}

inline void add_to(int64_t& sum, int64_t more) {
  if (more != 0) __scoped_atomic_fetch_add(&sum, more, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
}

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
  if (device::thread() == 0) {
    sum_applied = 0;
    sum_held = 0;
  }
  work.held = 0;
  pages::open(control.pool.taken, work.cache, control.account);
  meet(call);  // nobody takes from what others have still to give back
  Step(call).run();
  pages::close(work.cache);
  add_in_block(sum_applied, work.applied + work.possible);
  add_in_block(sum_held, work.held);
  device::meet_block();
  if (device::thread() == 0) {
    add_to(control.applied, sum_applied);
    add_to(control.held, sum_held);
  }
}

#endif

}  // namespace echoc::population
