// Where memory lies: on which nodes of a machine that has several, and in pages of what size.
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
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

#if defined(__linux__)
using Span = std::pair<uintptr_t, uintptr_t>;  // [begin, end)

constexpr uintptr_t kHuge = uintptr_t{2} << 20;
constexpr uintptr_t kMostAtOnce = uintptr_t{64} << 20;  // memory that is there twice while it is moved

/// What of [begin, end) is mapped in huge pages, in ascending order; nothing where the kernel does not tell.
std::vector<Span> huge_spans(uintptr_t begin, uintptr_t end) {
  struct Region {  // page_region and pm_scan_arg of linux/fs.h, Linux 6.7
    uint64_t start, end, categories;
  };
  struct Scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
  };
  constexpr uint64_t kIsHuge = 1u << 6;
  Region regions[256];
  std::vector<Span> out;
  const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (file < 0) return out;
  while (begin < end) {
    Scan scan{sizeof(Scan),       0, begin, end,     0, reinterpret_cast<uintptr_t>(regions),
              std::size(regions), 0, 0,     kIsHuge, 0, kIsHuge};
    const int count = ioctl(file, _IOWR('f', 16, Scan), &scan);
    if (count < 0 || scan.walk_end <= begin) break;
    for (int i = 0; i < count; ++i) out.emplace_back(regions[i].start, regions[i].end);
    begin = scan.walk_end;
  }
  close(file);
  return out;
}

/// Puts private huge pages of the same contents where [begin, end) is. Readers see the one or the other.
bool move_to_huge_pages(Span span, const std::vector<unsigned>& nodes, int num_threads) {
  const size_t bytes = span.second - span.first;
  void* const mapping = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return false;
  const auto at = reinterpret_cast<uintptr_t>(mapping);
  auto* const copy = reinterpret_cast<std::byte*>((at + kHuge - 1) / kHuge * kHuge);
  bool done = madvise(copy, bytes, MADV_HUGEPAGE) == 0;
  if (done) {
    if (nodes.size() > 1) interleave(copy, bytes, nodes);
    const auto* const from = reinterpret_cast<const std::byte*>(span.first);
    const auto pieces = bytes / kHuge;
    const auto threads = std::clamp<size_t>(static_cast<size_t>(num_threads), 1, pieces);
    const auto work = [&](size_t i) {
      const size_t first = pieces * i / threads * kHuge, last = pieces * (i + 1) / threads * kHuge;
      std::memcpy(copy + first, from + first, last - first);
    };
    std::vector<std::thread> helpers;
    for (size_t i = 1; i < threads; ++i) helpers.emplace_back(work, i);
    work(0);
    for (auto& helper : helpers) helper.join();
    done = mprotect(copy, bytes, PROT_READ) == 0 &&
           mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, reinterpret_cast<void*>(span.first)) != MAP_FAILED;
  }
  const auto begin = reinterpret_cast<uintptr_t>(copy);
  munmap(mapping, begin - at);
  if (!done) munmap(copy, bytes);
  munmap(copy + bytes, at + kHuge - begin);
  return done;
}
#endif

/// Bytes moved.
size_t gather_in_huge_pages(const uint8_t* data, size_t size, const std::vector<unsigned>& nodes, int num_threads) {
  size_t moved = 0;
#if defined(__linux__)
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const auto end = (reinterpret_cast<uintptr_t>(data) + size) / kHuge * kHuge;
  if (begin >= end) return 0;
  std::vector<Span> huge = huge_spans(begin, end);
  huge.emplace_back(end, end);
  uintptr_t at = begin;
  for (const auto& [low, high] : huge) {
    for (const uintptr_t stop = low / kHuge * kHuge; at < stop;) {
      const Span span{at, std::min(stop, at + kMostAtOnce)};
      if (!move_to_huge_pages(span, nodes, num_threads)) return moved;
      moved += span.second - span.first;
      at = span.second;
    }
    at = std::max(at, high / kHuge * kHuge);
  }
#else
  (void)data, (void)size, (void)nodes, (void)num_threads;
#endif
  return moved;
}

}  // namespace

void bind_placement(nb::module_& m) {
  m.def(
      "interleave",
      [](nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> memory, const std::vector<unsigned>& nodes) {
        return interleave(memory.data(), memory.size(), nodes);
      },
      nb::arg("memory"), nb::arg("nodes"),
      "Lays pages of a u8 array that starts on a page border on the nodes in turn, as they are first touched. False "
      "where the kernel does not; the memory works all the same.");
  m.def(
      "gather_in_huge_pages",
      [](nb::ndarray<nb::ro, uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> memory,
         const std::vector<unsigned>& nodes, int num_threads) {
        nb::gil_scoped_release release;
        return gather_in_huge_pages(memory.data(), memory.size(), nodes, num_threads);
      },
      nb::arg("memory"), nb::arg("nodes"), nb::arg("num_threads"),
      "Puts private, read-only huge pages of the same contents in the place of what of a mapped u8 array lies in small "
      "ones, on the nodes in turn where there are several; returns the bytes moved. Where the kernel does not, the "
      "memory stays as it is and works all the same.");
}

}  // namespace echoc
