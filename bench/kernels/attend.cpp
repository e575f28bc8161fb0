// Attention kernels against the machine's own limits, measured in the same run.
//
//   flags="-std=c++20 -O3 -fno-math-errno -fno-trapping-math -march=native -pthread"
//   c++ $flags -iquote kernels/cpu bench/kernels/attend.cpp -o attend
//   ./attend [threads]
//
// Decode prints bytes of keys and values read per second next to a plain read of the same size; prefill prints
// multiply-adds of the visible (causal) scores next to the f32 fma peak. Every figure is the best of many repeats.
#include "attend.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include <sys/mman.h>

using namespace echoc;

namespace {

int g_threads = 1;

// CPU seconds of the calling thread: other processes on the core do not count.
double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Seconds of the busiest thread, best of `repeats` parallel runs of work(tid).
double best(int repeats, const std::function<void(int)>& work) {
  std::atomic<int> arrived{0};
  std::vector<std::vector<double>> taken(static_cast<size_t>(repeats), std::vector<double>(g_threads));
  auto body = [&](int tid) {
    for (int i = 0; i < repeats; ++i) {
      arrived.fetch_add(1);
      while (arrived.load() < g_threads * (i + 1)) {
      }
      const double start = now();
      work(tid);
      taken[i][tid] = now() - start;
    }
  };
  std::vector<std::thread> others;
  for (int tid = 1; tid < g_threads; ++tid) others.emplace_back(body, tid);
  body(0);
  for (auto& t : others) t.join();
  double shortest = 1e30;
  for (const auto& run : taken) shortest = std::min(shortest, *std::max_element(run.begin(), run.end()));
  return shortest;
}

std::byte* pages_of_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) std::abort();
  auto aligned = (reinterpret_cast<uintptr_t>(p) + (2 << 20) - 1) & ~uintptr_t{(2 << 20) - 1};
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
  return reinterpret_cast<std::byte*>(aligned);
}

double fma_peak() {  // GFLOP/s of all threads
  std::atomic<float> sink{0};
  const int64_t rounds = 2'000'000;
  const double seconds = best(5, [&](int) {
    simd::Vec acc[12] = {};
    simd::Vec a = simd::splat(0.5f), b = simd::splat(0.25f);
    asm volatile("" : "+m"(a), "+m"(b));
    for (int64_t i = 0; i < rounds; ++i)
      for (auto& x : acc) x = simd::fma(x, a, b);
    float total = 0;
    for (auto& x : acc) total += x[0];
    sink.store(total);
  });
  return 2.0 * 12 * simd::kLanes * rounds * g_threads / seconds * 1e-9;
}

double read_rate(const std::byte* memory, size_t bytes) {  // GB/s of all threads
  std::atomic<uint32_t> sink{0};
  const double seconds = best(8, [&](int tid) {
    const Range range = share(static_cast<int64_t>(bytes / 512), tid, g_threads);
    simd::VecBits acc[8] = {};
    for (int64_t i = range.begin; i < range.end; ++i)
      for (int j = 0; j < 8; ++j)
        for (int k = 0; k < 16 / simd::kLanes; ++k)
          acc[j] += *reinterpret_cast<const simd::BitsLoose*>(memory + i * 512 + j * 64 + k * simd::kLanes * 4);
    for (auto& x : acc) sink.fetch_add(x[0]);
  });
  return static_cast<double>(bytes) / seconds * 1e-9;
}

template <class KV>
void measure(const char* name, int heads, int kv_heads, int dim, int64_t sequences, int64_t cached, int64_t fresh,
             double peak, double rate, bool deterministic) {
  const int64_t length = cached + fresh, blocks = (length + 15) / 16, tokens = sequences * fresh;
  const int64_t page_elements = kv_heads * attn::Store<KV>::piece(dim);
  const size_t bytes = static_cast<size_t>(sequences * blocks * page_elements) * sizeof(KV);
  std::byte* const k = pages_of_memory(bytes);
  std::byte* const v = pages_of_memory(bytes);
  std::mt19937 random(1);
  std::vector<int32_t> table(static_cast<size_t>(sequences * blocks));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  for (size_t i = table.size(); i > 1; --i) std::swap(table[i - 1], table[random() % i]);
  std::vector<int32_t> seq, pos;
  for (int64_t s = 0; s < sequences; ++s)
    for (int64_t i = 0; i < fresh; ++i) {
      seq.push_back(static_cast<int32_t>(s));
      pos.push_back(static_cast<int32_t>(cached + i));
    }
  for (int64_t first = 0; first < length; first += 256) {  // the pages' values
    const int64_t count = std::min<int64_t>(256, length - first);
    std::vector<float> x(static_cast<size_t>(count * kv_heads * dim));
    std::vector<int32_t> s(static_cast<size_t>(count)), p(s.size());
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<int32_t>(first + i);
    for (int64_t one = 0; one < sequences; ++one) {
      for (auto& each : x) each = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
      std::fill(s.begin(), s.end(), static_cast<int32_t>(one));
      const Call call{nullptr, nullptr, 0, 1, nullptr};
      append_k<KV>(call, k, x.data(), kv_heads * dim, count, kv_heads, dim, s.data(), p.data(), table.data(), blocks);
      append_v<KV>(call, v, x.data(), kv_heads * dim, count, kv_heads, dim, s.data(), p.data(), table.data(), blocks);
    }
  }
  std::vector<float> q(static_cast<size_t>(tokens * heads * dim)), out(q.size());
  for (auto& x : q) x = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  const int64_t scratch_bytes = attend_scratch_bytes(dim, dim);
  std::byte* const scratch = pages_of_memory(static_cast<size_t>(scratch_bytes * g_threads));
  const AttendWorkspace workspace{pages_of_memory(static_cast<size_t>(attend_workspace_bytes(dim, g_threads))),
                                  attend_workspace_bytes(dim, g_threads)};
  const AttendShape shape{heads, kv_heads, dim, dim, 0.125f, 0.0f, 0, true};
  const double seconds = best(fresh > 16 ? 6 : 12, [&](int tid) {
    const Call call{nullptr, nullptr, tid, g_threads, scratch + scratch_bytes * tid};
    attend<KV>(call, shape, q.data(), heads * dim, out.data(), k, v, nullptr, tokens, seq.data(), pos.data(),
               table.data(), blocks, deterministic, PlainScore{}, workspace);
  });
  double pairs = 0;
  for (int64_t i = 0; i < fresh; ++i) pairs += static_cast<double>(cached + i + 1);
  const double flops = 4.0 * pairs * static_cast<double>(sequences) * heads * dim;
  const double gigabytes = 2.0 * static_cast<double>(bytes) * 1e-9;
  std::printf("%-5s %2d/%d heads of %3d, %3ld x (%5ld + %4ld) %s: %9.3f ms  %6.1f GFLOP/s (%3.0f%% of fma)", name,
              heads, kv_heads, dim, static_cast<long>(sequences), static_cast<long>(cached), static_cast<long>(fresh),
              deterministic ? "det" : "   ", seconds * 1e3, flops / seconds * 1e-9, flops / seconds * 1e-7 / peak);
  if (fresh <= 16) std::printf("  %5.1f GB/s (%3.0f%% of read)", gigabytes / seconds, 100 * gigabytes / seconds / rate);
  std::printf("\n");
  munmap(k, bytes);
  munmap(v, bytes);
  munmap(workspace.data, static_cast<size_t>(workspace.bytes));
  munmap(scratch, static_cast<size_t>(scratch_bytes * g_threads));
}

}  // namespace

int main(int argc, char** argv) {
  g_threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const size_t bytes = size_t{256} << 20;
  std::byte* const memory = pages_of_memory(bytes);
  for (size_t i = 0; i < bytes; i += 64) memory[i] = std::byte{1};
  const double peak = fma_peak(), rate = read_rate(memory, bytes);
  std::printf("%d threads, %d lanes: fma %.1f GFLOP/s, read %.1f GB/s\n", g_threads, simd::kLanes, peak, rate);
  for (const bool deterministic : {false, true}) {
    std::printf("read %.1f GB/s\n", read_rate(memory, bytes));
    measure<bf16_t>("bf16", 32, 8, 64, 8, 8191, 1, peak, rate, deterministic);
    measure<bf16_t>("bf16", 32, 8, 64, 1, 8191, 1, peak, rate, deterministic);
    measure<bf16_t>("bf16", 16, 8, 128, 4, 8191, 1, peak, rate, deterministic);
    measure<bf16_t>("bf16", 32, 32, 64, 1, 8191, 1, peak, rate, deterministic);
    measure<bf16_t>("bf16", 32, 1, 64, 8, 8191, 1, peak, rate, deterministic);
    measure<float>("f32", 32, 8, 64, 4, 8191, 1, peak, rate, deterministic);
    measure<i8_t>("i8", 32, 8, 64, 8, 8191, 1, peak, rate, deterministic);
    measure<i8_t>("i8", 16, 8, 128, 4, 8191, 1, peak, rate, deterministic);
    measure<f8_t>("f8", 32, 8, 64, 8, 8191, 1, peak, rate, deterministic);
    measure<f16_t>("f16", 32, 8, 64, 8, 8191, 1, peak, rate, deterministic);
    measure<bf16_t>("bf16", 32, 8, 64, 1, 0, 512, peak, rate, deterministic);
    measure<bf16_t>("bf16", 32, 8, 64, 1, 2048, 512, peak, rate, deterministic);
    measure<bf16_t>("bf16", 16, 8, 128, 1, 0, 512, peak, rate, deterministic);
    measure<float>("f32", 32, 8, 64, 1, 0, 512, peak, rate, deterministic);
  }
  return 0;
}
