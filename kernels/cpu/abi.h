// The one calling convention of every generated CPU kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(ECHOC_DEVICE)
#define ECHOC_EXPORT static inline  // for the kernel that calls it
#elif defined(_WIN32)
#define ECHOC_EXPORT extern "C" __declspec(dllexport)
#else
#define ECHOC_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace echoc {

// What a thread has left of a launch, in a cache line of its own: the low bits of the launch's ticket, then how many of
// its items were taken from the back and from the front (balance.h).
struct alignas(64) Pile {
  uint64_t word;
};

// One thread's view of one launch. All threads of a team call the kernel with the same args and dims; each does its
// share of the work by (tid, nthreads). Kernels never allocate and never throw.
struct Call {
  void* const* args;      // pointers in launch order: arena, weights, ports, states
  const int64_t* dims;    // values of the program's symbols in manifest order
  int32_t tid;            // 0 <= tid < nthreads
  int32_t nthreads;       // >= 1
  std::byte* scratch;     // this thread's own, 64-byte aligned, as many bytes as the variant asks for
  Pile* piles = nullptr;  // of all threads; null: each does its own share, however long it takes
  uint32_t ticket = 0;    // tells this launch from those before it
};

// A half-open range of work items.
struct Range {
  int64_t begin;
  int64_t end;
};

// Share `part` of `count` items cut into `parts` contiguous, ascending ranges whose sizes differ by at most one.
inline Range share(int64_t count, int64_t part, int64_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

}  // namespace echoc
