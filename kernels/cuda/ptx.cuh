// What kernels need of the machine, one function an instruction: PTX ISA 9.0, chapters 9.7.8 (data movement),
// 9.7.13 (barriers), 9.7.14 (mma). Nothing else of this folder holds assembly, so that the same kernels can be run on
// a host by another header of this name.
#pragma once

#include "types.cuh"

namespace echoc {

inline constexpr uint32_t kAll = 0xffffffffu;

extern __shared__ __align__(128) char shared[];  // as much as the launch says

inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Programmatic dependent launch: nothing that other launches write is touched before wait_dependencies.
inline void wait_dependencies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

inline void warp_sync() { __syncwarp(); }
inline void block_sync() { __syncthreads(); }
// A barrier of the first `threads` threads of a block; id 0 is block_sync's.
inline void barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

inline float shuffle_xor(float v, int mask) { return __shfl_xor_sync(kAll, v, mask); }
inline float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += shuffle_xor(v, o);
  return v;
}

// Loads of values that other launches write: past the first-level cache, which may hold what lay there before.
template <class T>
inline T load_fresh(const T* p) {
  static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  T out;
  if constexpr (sizeof(T) == 16) {
    uint32_t w[4];
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "l"(p));
    memcpy(&out, w, 16);
  } else if constexpr (sizeof(T) == 8) {
    uint64_t w;
    asm volatile("ld.global.cg.u64 %0, [%1];" : "=l"(w) : "l"(p));
    memcpy(&out, &w, 8);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t w;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(w) : "l"(p));
    memcpy(&out, &w, 4);
  } else if constexpr (sizeof(T) == 2) {
    uint16_t w;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(w) : "l"(p));
    memcpy(&out, &w, 2);
  } else {
    uint32_t w;
    asm volatile("ld.global.cg.u8 %0, [%1];" : "=r"(w) : "l"(p));
    const uint8_t byte = static_cast<uint8_t>(w);
    memcpy(&out, &byte, 1);
  }
  return out;
}

// 16 bytes into shared memory behind the thread's back, in groups that are waited for oldest first.
inline void async_copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
inline void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
inline void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#if __CUDA_ARCH__ >= 900
inline void mbarrier_init(uint64_t* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the copy engine.
inline void mbarrier_publish() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
inline void mbarrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
inline void mbarrier_expect(uint64_t* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
inline void mbarrier_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}
// Weights are read once a step: they leave the second-level cache first.
inline uint64_t read_once() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* full, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy)
      : "memory");
}
#endif

// acc[16 x 8] += a[16 x 16] b[16 x 8], bf16 products, f32 sums: a row (lane / 4 and + 8), b column lane / 4, acc
// columns lane % 4 * 2 and + 1.
inline void mma_bf16(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// acc[16 x 8] += a[16 x 32] b[32 x 8] in bytes, exact: lanes hold four neighbours in k where those of mma_bf16 hold
// two. Both are signed, or the bytes of a are not.
inline void mma_s8(int32_t (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
inline void mma_u8(int32_t (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// a * c of two pairs of bf16: as a * c - 0, which sm_80 has.
inline uint32_t mul_bf16x2(uint32_t a, uint32_t c) {
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(c), "r"(0x80008000u));
  return out;
}

// Two floats rounded to bf16, the first in the low half.
inline uint32_t pack_bf16x2(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
inline float to_float(f16_t x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}
inline f16_t to_f16(float x) {
  f16_t out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
  return out;
}
inline float bits_to_float(uint32_t x) { return __uint_as_float(x); }
inline uint32_t float_to_bits(float x) { return __float_as_uint(x); }

}  // namespace echoc
