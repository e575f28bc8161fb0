#pragma once

// Lets others go on for a moment.
inline int sched_yield() {
#if defined(__NVPTX__)
  __nvvm_nanosleep(200);
#elif defined(__AMDGCN__)
  __builtin_amdgcn_s_sleep(4);
#endif
  return 0;
}
