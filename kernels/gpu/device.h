// What a kernel in C++ needs of a GPU: which thread it is, and where threads meet. One source for both vendors,
// compiled by clang without CUDA's or HIP's headers. Compiled for the host (neither macro), it is what tests run with
// threads.
#pragma once

#include <cstdint>

#if defined(__NVPTX__)
#define ECHOC_KERNEL(threads) extern "C" __attribute__((nvptx_kernel, visibility("default")))
#define ECHOC_BLOCK_SHARED [[clang::loader_uninitialized]] static __attribute__((address_space(3)))
#elif defined(__AMDGCN__)
#define ECHOC_KERNEL(threads) \
  extern "C" __attribute__((amdgpu_kernel, amdgpu_flat_work_group_size(threads, threads), visibility("default")))
#define ECHOC_BLOCK_SHARED [[clang::loader_uninitialized]] static __attribute__((address_space(3)))
#endif

namespace echoc::device {

/// Where the blocks of a grid meet, all zero before the first launch. All blocks must be resident: a cooperative
/// launch. Every meeting leaves it ready for the next one and for the next launch.
struct Meeting {
  uint32_t arrived;
  uint32_t phase;
};

#if defined(__NVPTX__)
inline uint32_t thread() { return __nvvm_read_ptx_sreg_tid_x(); }
inline uint32_t block() { return __nvvm_read_ptx_sreg_ctaid_x(); }
inline uint32_t lane() { return __nvvm_read_ptx_sreg_laneid(); }
inline void meet_block() { __syncthreads(); }
/// Between two looks at a word that another block writes.
inline void wait_a_little() { __nvvm_nanosleep(20); }
#elif defined(__AMDGCN__)
inline uint32_t thread() { return __builtin_amdgcn_workitem_id_x(); }
inline uint32_t block() { return __builtin_amdgcn_workgroup_id_x(); }
inline uint32_t lane() { return __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)); }
inline void meet_block() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
inline void wait_a_little() { __builtin_amdgcn_s_sleep(1); }
#endif

#if defined(__NVPTX__) || defined(__AMDGCN__)

/// Every thread of the grid meets here. Writes made before are visible to all threads after.
inline void meet_grid(Meeting& meeting, uint32_t blocks) {
  meet_block();
  if (thread() == 0) {
    __scoped_atomic_thread_fence(__ATOMIC_ACQ_REL, __MEMORY_SCOPE_DEVICE);
    const uint32_t phase = __scoped_atomic_load_n(&meeting.phase, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
    const uint32_t before = __scoped_atomic_fetch_add(&meeting.arrived, 1u, __ATOMIC_ACQ_REL, __MEMORY_SCOPE_DEVICE);
    if (before + 1 == blocks) {
      __scoped_atomic_store_n(&meeting.arrived, 0u, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
      __scoped_atomic_store_n(&meeting.phase, phase + 1, __ATOMIC_RELEASE, __MEMORY_SCOPE_DEVICE);
    } else {
      while (__scoped_atomic_load_n(&meeting.phase, __ATOMIC_ACQUIRE, __MEMORY_SCOPE_DEVICE) == phase) {
        wait_a_little();
      }
    }
    __scoped_atomic_thread_fence(__ATOMIC_ACQ_REL, __MEMORY_SCOPE_DEVICE);
  }
  meet_block();
}

#endif

}  // namespace echoc::device
