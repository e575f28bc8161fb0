// The machine of kernels/cuda/ptx.cuh on a host: the threads of a block are fibers that take turns in random order, and
// copies are checked for alignment and for leaving the block's shared memory. For tests.
#pragma once

#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#define __global__
#define __shared__
#define __align__(n)
#define __launch_bounds__(...)

struct Three {
  unsigned x, y, z;
};
inline Three threadIdx, blockIdx, gridDim;

#include "types.cuh"

namespace echoc {

alignas(128) inline char shared[256 * 1024];

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};
struct Meeting {
  int arrived = 0;
  unsigned generation = 0;
};
struct Machine {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  std::function<void()> body;
  unsigned running = 0, shared_bytes = 0;
  std::vector<Meeting> blocks, warps;
  std::vector<std::vector<uint32_t>> lanes;  // what the lanes of a warp show each other
};
inline Machine machine;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "block %u thread %u: %s\n", blockIdx.x, machine.running, what);
  std::abort();
}
inline void yield() {
  const unsigned me = machine.running;
  swapcontext(&machine.fibers[me].context, &machine.scheduler);
  machine.running = me;
  threadIdx = {me, 0, 0};
}
inline void meet(Meeting& m, int count) {
  const unsigned generation = m.generation;
  if (++m.arrived == count) {
    m.arrived = 0;
    ++m.generation;
  }
  while (m.generation == generation) yield();
}

inline void run_fiber() {
  machine.body();
  machine.fibers[machine.running].done = true;
  setcontext(&machine.scheduler);
}

// Runs a grid block by block; every wait that nobody can end is a failure.
inline void run_grid(Three grid, int threads, unsigned shared_bytes, unsigned seed, std::function<void()> body) {
  std::mt19937 random(seed);
  gridDim = grid;
  machine.body = std::move(body);
  machine.shared_bytes = shared_bytes;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        std::memset(shared, 0xff, sizeof shared);  // NaN, so that what was never written shows
        machine.fibers.resize(threads);
        machine.blocks.assign(16, {});
        machine.warps.assign(threads / 32, {});
        machine.lanes.assign(threads, {});
        for (int i = 0; i < threads; ++i) {
          Fiber& f = machine.fibers[i];
          f.stack.resize(128 * 1024);
          f.done = false;
          getcontext(&f.context);
          f.context.uc_stack.ss_sp = f.stack.data();
          f.context.uc_stack.ss_size = f.stack.size();
          f.context.uc_link = nullptr;
          makecontext(&f.context, run_fiber, 0);
        }
        std::vector<unsigned> open(threads);
        for (int i = 0; i < threads; ++i) open[i] = i;
        for (int rounds = 0; !open.empty(); ++rounds) {
          if (rounds > 1000000) fail("no thread gets on");
          std::swap(open[0], open[random() % open.size()]);
          for (size_t i = 0; i < open.size(); ++i) {
            machine.running = open[i];
            threadIdx = {open[i], 0, 0};
            swapcontext(&machine.scheduler, &machine.fibers[open[i]].context);
          }
          std::erase_if(open, [](unsigned i) { return machine.fibers[i].done; });
        }
      }
}

inline void wait_dependencies() {}
inline void launch_dependents() {}
inline void warp_sync() { meet(machine.warps[threadIdx.x / 32], 32); }
inline void block_sync() { meet(machine.blocks[0], static_cast<int>(machine.fibers.size())); }
inline void barrier(int id, int threads) { meet(machine.blocks[id], threads); }

inline std::vector<uint32_t>& lane_of(unsigned lane) { return machine.lanes[threadIdx.x / 32 * 32 + lane]; }
inline float shuffle_xor(float v, int mask) {
  const unsigned lane = threadIdx.x % 32;
  lane_of(lane) = {std::bit_cast<uint32_t>(v)};
  warp_sync();
  const float out = std::bit_cast<float>(lane_of(lane ^ mask)[0]);
  warp_sync();
  return out;
}
inline float warp_sum(float v) {
  for (int o = 16; o; o >>= 1) v += shuffle_xor(v, o);
  return v;
}

template <class T>
inline T load_fresh(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) fail("a load is not aligned");
  return *p;
}

inline void check_copy(const void* to, const void* from, unsigned bytes) {
  const auto* at = static_cast<const char*>(to);
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || !bytes)
    fail("a copy is not in whole aligned 16 bytes");
  if (at < shared || at + bytes > shared + machine.shared_bytes) fail("a copy leaves the shared memory");
}
inline void async_copy16(void* to, const void* from) {
  check_copy(to, from, 16);
  std::memcpy(to, from, 16);
}
inline void async_commit() {}
template <int kLeft>
inline void async_wait() {}

struct Mbarrier {
  int32_t bytes;
  int16_t pending;
  uint8_t arrivals, phase;
};
inline Mbarrier& at(uint64_t* b) { return *reinterpret_cast<Mbarrier*>(b); }
inline void settle(Mbarrier& b) {
  if (b.pending < 0) fail("more arrivals than a barrier takes");
  if (b.pending == 0 && b.bytes == 0) {
    b.phase ^= 1;
    b.pending = b.arrivals;
  }
}
inline void mbarrier_init(uint64_t* b, int arrivals) {
  if (reinterpret_cast<char*>(b) + 8 > shared + machine.shared_bytes) fail("a barrier outside shared memory");
  at(b) = {0, static_cast<int16_t>(arrivals), static_cast<uint8_t>(arrivals), 0};
}
inline void mbarrier_publish() {}
inline void mbarrier_arrive(uint64_t* b) {
  --at(b).pending;
  settle(at(b));
}
inline void mbarrier_expect(uint64_t* b, uint32_t bytes) {
  at(b).bytes += static_cast<int32_t>(bytes);
  mbarrier_arrive(b);
}
inline void mbarrier_wait(uint64_t* b, uint32_t parity) {
  while (at(b).phase == parity) yield();
}
inline uint64_t read_once() { return 0; }
inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* full, uint64_t) {
  check_copy(to, from, bytes);
  std::memcpy(to, from, bytes);
  at(full).bytes -= static_cast<int32_t>(bytes);
  settle(at(full));
}

inline uint32_t float_to_bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float bits_to_float(uint32_t x) { return std::bit_cast<float>(x); }
inline float half_of(uint32_t pair, int which) { return bits_to_float(which ? pair & 0xffff0000u : pair << 16); }
inline uint32_t round_bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  return x != x ? 0x7fc0u : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16x2(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
inline uint32_t mul_bf16x2(uint32_t a, uint32_t c) {
  return pack_bf16x2(half_of(a, 0) * half_of(c, 0), half_of(a, 1) * half_of(c, 1));
}
inline float to_float(f16_t x) { return static_cast<float>(std::bit_cast<_Float16>(x.bits)); }
inline f16_t to_f16(float x) { return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))}; }

inline void mma_bf16(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const unsigned lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4;
  lane_of(lane) = {a0, a1, a2, a3, b0, b1};
  warp_sync();
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = quad * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const auto& a = lane_of(row * 4 + k % 8 / 2);
      const auto& b = lane_of(column * 4 + k % 8 / 2);
      const float x = half_of(a[k / 8 * 2 + lower], k % 2), y = half_of(b[4 + k / 8], k % 2);
      if (x == x && y == y)
        acc[i] += x * y;
      else
        acc[i] = NAN;
    }
  }
  warp_sync();
}

template <class A>
inline void mma_bytes(int32_t (&acc)[4], const std::vector<uint32_t>& operands) {
  const unsigned lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4;
  lane_of(lane) = operands;
  warp_sync();
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = quad * 2 + i % 2;
    for (int k = 0; k < 32; ++k) {
      const uint32_t a = lane_of(row * 4 + k % 16 / 4)[k / 16 * 2 + lower];
      const uint32_t b = lane_of(column * 4 + k % 16 / 4)[4 + k / 16];
      acc[i] += static_cast<A>(a >> k % 4 * 8) * static_cast<int8_t>(b >> k % 4 * 8);
    }
  }
  warp_sync();
}
inline void mma_s8(int32_t (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  mma_bytes<int8_t>(acc, {a0, a1, a2, a3, b0, b1});
}
inline void mma_u8(int32_t (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  mma_bytes<uint8_t>(acc, {a0, a1, a2, a3, b0, b1});
}

}  // namespace echoc
