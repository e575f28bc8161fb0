// Memory spread over the nodes of a machine that has several: threads of all of them read it.
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <climits>
#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "runtime/native/bindings.h"

namespace nb = nanobind;

namespace echoc {
namespace {

constexpr unsigned kMostNodes = 1024;  // CONFIG_NODES_SHIFT is at most 10

bool interleave(void* memory, size_t bytes, const std::vector<unsigned>& nodes) {
  constexpr unsigned kBits = sizeof(unsigned long) * CHAR_BIT;
  unsigned long mask[kMostNodes / kBits] = {};
  for (const unsigned node : nodes) {
    if (node >= kMostNodes) return false;
    mask[node / kBits] |= 1ul << (node % kBits);
  }
#if defined(__linux__)
  constexpr int kInterleave = 3;  // MPOL_INTERLEAVE of linux/mempolicy.h
  return syscall(SYS_mbind, memory, bytes, kInterleave, mask, kMostNodes + 1ul, 0u) == 0;
#else
  return memory == nullptr && bytes == 0;
#endif
}

}  // namespace

void bind_numa(nb::module_& m) {
  m.def(
      "interleave",
      [](nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> memory, const std::vector<unsigned>& nodes) {
        return interleave(memory.data(), memory.size(), nodes);
      },
      nb::arg("memory"), nb::arg("nodes"),
      "Lays pages of a u8 array that starts on a page border on the nodes in turn, as they are first touched. False "
      "where the kernel does not; the memory works all the same.");
}

}  // namespace echoc
