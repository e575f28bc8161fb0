// Measures this machine's read bandwidth and dot-product peaks, then every weight format's matmul against them, in one
// run. `python -m echoc.bench.kernels` builds and runs it per level of instructions.
//
// Usage: tiles_bench [threads] [formats, e.g. bf16,i4] [rows, e.g. 1,8,512] [N K] [MiB of weights]
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/vec16.h"

namespace {

using namespace echoc;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Memory on huge pages where the system grants them.
std::byte* map(int64_t bytes) {
  constexpr int64_t kHuge = int64_t{2} << 20;
  const int64_t length = layout::round_up(bytes, kHuge) + kHuge;
  void* raw = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) std::exit((std::perror("mmap"), 1));
  auto* start = reinterpret_cast<std::byte*>(layout::round_up(reinterpret_cast<intptr_t>(raw), kHuge));
  madvise(start, layout::round_up(bytes, kHuge), MADV_HUGEPAGE);
  return start;
}

// A team that spins: the bench runs alone, in short bursts.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int tid = 1; tid < size; ++tid) threads_.emplace_back([this, tid] { serve(tid); });
  }
  ~Team() {
    stop_ = true;
    ++round_;
    for (auto& thread : threads_) thread.join();
  }
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    done_ = 0;
    ++round_;
    work(0);
    while (done_.load() < size_ - 1) __builtin_ia32_pause();
  }
  int size() const { return size_; }

 private:
  void serve(int tid) {
    for (int seen = 0;;) {
      while (round_.load() == seen) __builtin_ia32_pause();
      ++seen;
      if (stop_) return;
      (*work_)(tid);
      ++done_;
    }
  }
  int size_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<int> round_{0}, done_{0};
  std::atomic<bool> stop_{false};
};

double thread_time() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// CPU seconds of the busiest thread in the best of several runs that together take about `budget`. CPU time, because a
// foreign process on a core must not count; what it takes of caches and memory still does.
double best_time(Team& team, double budget, const std::function<void(int)>& work) {
  double best = 1e30;
  int runs = 0;
  std::vector<double> used(team.size() * 8);
  for (const double begin = now(); runs < 3 || now() - begin < budget; ++runs) {
    team.run([&](int tid) {
      const double start = thread_time();
      work(tid);
      used[tid * 8] = thread_time() - start;
    });
    best = std::min(best, *std::max_element(used.begin(), used.end()));
  }
  return best;
}

double read_rate(Team& team, const std::byte* data, int64_t bytes) {
  std::vector<uint64_t> sinks(team.size() * 8);
  const double seconds = best_time(team, 0.6, [&](int tid) {
    const Range lines = share(bytes / 512, tid, team.size());
    uint64_t sum[64] = {};
    const auto* at = reinterpret_cast<const uint64_t*>(data + lines.begin * 512);
    for (int64_t i = 0; i < (lines.end - lines.begin) * 64; i += 64)
      for (int j = 0; j < 64; ++j) sum[j] += at[i + j];
    for (const uint64_t part : sum) sinks[tid * 8] += part;
  });
  volatile uint64_t keep = sinks[0];
  (void)keep;
  return bytes / seconds / 1e9;
}

struct Peaks {
  double f32 = 0, bf16 = 0, i8 = 0, amx_bf16 = 0, amx_i8 = 0;  // 1e9 operations a second, all threads
};

constexpr int64_t kPeakSteps = 2000000;

template <class Step>
double peak(Team& team, double operations, Step&& step) {
  return team.size() * operations * kPeakSteps / best_time(team, 0.1, [&](int) { step(kPeakSteps); }) / 1e9;
}

#if defined(ECHOC_AVX512)
template <class Op>
void spin_zmm(int64_t steps, Op&& op) {
  __m512i sum[12];
  vec16::unroll<12>([&](auto j) ECHOC_INLINE_LAMBDA { sum[j] = _mm512_setzero_si512(); });
  const __m512i a = _mm512_set1_epi32(static_cast<int>(steps & 1));
  for (int64_t i = 0; i < steps; i += 12) {
    vec16::unroll<12>([&](auto j) ECHOC_INLINE_LAMBDA {
      sum[j] = op(sum[j], a);
      asm volatile("" : "+v"(sum[j]));
    });
  }
}
#endif

#if defined(__AVX2__) && !defined(ECHOC_AVX512)
template <class Op>
void spin_ymm(int64_t steps, Op&& op) {
  __m256i sum[12];
  vec16::unroll<12>([&](auto j) ECHOC_INLINE_LAMBDA { sum[j] = _mm256_setzero_si256(); });
  __m256i a = _mm256_set1_epi32(static_cast<int>(steps & 1));
  for (int64_t i = 0; i < steps; i += 12) {
    vec16::unroll<12>([&](auto j) ECHOC_INLINE_LAMBDA {
      asm volatile("" : "+x"(a));  // every product is made anew
      sum[j] = op(sum[j], a);
      asm volatile("" : "+x"(sum[j]));
    });
  }
}
#endif

Peaks peaks(Team& team) {
  Peaks found;
#if defined(ECHOC_AVX512)
  found.f32 = peak(team, 32, [](int64_t n) {
    spin_zmm(n, [](__m512i s, __m512i a) {
      return _mm512_castps_si512(
          _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(a), _mm512_castsi512_ps(s)));
    });
  });
#elif defined(__AVX2__)
  found.f32 = peak(team, 16, [](int64_t n) {
    spin_ymm(n, [](__m256i s, __m256i a) {
      return _mm256_castps_si256(
          _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(a), _mm256_castsi256_ps(s)));
    });
  });
  found.i8 = peak(team, 64, [](int64_t n) {
    spin_ymm(n, [](__m256i s, __m256i a) {
      return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, a), _mm256_set1_epi16(1)));
    });
  });
#endif
#if defined(ECHOC_BF16_DOT)
  found.bf16 = peak(team, 64, [](int64_t n) {
    spin_zmm(n, [](__m512i s, __m512i a) {
      return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(s), (__m512bh)a, (__m512bh)a));
    });
  });
#endif
#if defined(ECHOC_VNNI)
  found.i8 = peak(team, 128,
                  [](int64_t n) { spin_zmm(n, [](__m512i s, __m512i a) { return _mm512_dpbusd_epi32(s, a, a); }); });
#endif
#if defined(ECHOC_AMX)
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  const auto spin = [&](auto&& op) {
    return peak(team, 1, [&](int64_t n) {
      _tile_loadconfig(&config);
      for (int64_t i = 0; i < n; i += 16) op();
      _tile_release();
    });
  };
  found.amx_bf16 = 1024 * 16 / 16 * spin([] {
                     _tile_dpbf16ps(0, 4, 5);
                     _tile_dpbf16ps(1, 4, 6);
                     _tile_dpbf16ps(2, 7, 5);
                     _tile_dpbf16ps(3, 7, 6);
                   }) *
                   4;
  found.amx_i8 = 2048 * spin([] {
                   _tile_dpbusd(0, 4, 5);
                   _tile_dpbusd(1, 4, 6);
                   _tile_dpbusd(2, 7, 5);
                   _tile_dpbusd(3, 7, 6);
                 }) *
                 4;
#endif
  return found;
}

struct Bench {
  Team& team;
  std::byte* memory;
  int64_t memory_bytes;
  double read_gbs;
  Peaks peak;
  std::vector<int64_t> row_counts;
  int64_t N, K;
};

// Streams as many [N, K] weights as fit in memory, as a decoder's layers would.
template <class W>
void measure(const Bench& b, const char* name, double dot_peak) {
  const int64_t N = b.N;
  const int64_t K = b.K;
  const packing::Format format{W::kBits, W::kGroup};
  const int64_t weight_bytes = packing::packed_bytes(format, 1, N, K);
  const int64_t most = std::max<int64_t>(1, b.memory_bytes / weight_bytes);
  packing::fill_random(format, 1, N, K, 1, 0, 0.02f, b.memory, 1);
  for (int64_t i = 1; i < most; ++i) std::memcpy(b.memory + i * weight_bytes, b.memory, weight_bytes);
  const int64_t most_rows = *std::max_element(b.row_counts.begin(), b.row_counts.end());
  std::byte* rows = map(most_rows * W::row_bytes(K));
  std::vector<float> x(K);
  for (int64_t t = 0; t < most_rows; ++t) {
    for (int64_t k = 0; k < K; ++k) x[k] = static_cast<float>((t * 31 + k * 17) % 101) / 50.0f - 1.0f;
    W::prepare(x.data(), K, rows + t * W::row_bytes(K));
  }
  std::vector<float> out(most_rows * N);
  for (const int64_t T : b.row_counts) {
    const int64_t count = T >= 64 ? std::min<int64_t>(most, 8) : most;
    const double seconds = best_time(b.team, 0.8, [&](int tid) {
      const Call call{nullptr, nullptr, tid, b.team.size(), nullptr};
      for (int64_t i = 0; i < count; ++i)
        gemm<W, 1>(call, rows, b.memory + i * weight_bytes, T, N, K, false,
                   [&](int64_t t, int64_t n0, int64_t width, const float* const* acc) {
                     std::memcpy(&out[t * N + n0], acc[0], width * sizeof(float));
                   });
    });
    const double gbs = static_cast<double>(weight_bytes * count) / seconds / 1e9;
    const double gops = 2.0 * static_cast<double>(N * K * count * T) / seconds / 1e9;
    const double floor = std::max(static_cast<double>(weight_bytes) / 1e9 / b.read_gbs,
                                  dot_peak > 0 ? 2.0 * static_cast<double>(N * K * T) / 1e9 / dot_peak : 0.0);
    std::printf("%-8s T=%-4ld %8.3f ms  %7.1f GB/s (%3.0f%% of read)  %8.0f Gop/s", name, static_cast<long>(T),
                seconds / static_cast<double>(count) * 1e3, gbs, 100 * gbs / b.read_gbs, gops);
    if (dot_peak > 0)
      std::printf(" (%3.0f%% of dot peak)  floor %.0f%%", 100 * gops / dot_peak,
                  100 * floor * static_cast<double>(count) / seconds);
    std::printf("\n");
  }
  munmap(rows, most_rows * W::row_bytes(K));
}

std::vector<std::string> split(const char* text) {
  std::vector<std::string> parts(1);
  for (; *text != 0; ++text) {
    if (*text == ',') {
      parts.emplace_back();
    } else {
      parts.back() += *text;
    }
  }
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  const auto formats = split(argc > 2 ? argv[2] : "f32,bf16,i8,i4");
  Bench bench{*new Team(std::max(threads, 1)), nullptr, int64_t{1} << 30, 0, {}, {}, 4096, 2048};
  if (argc > 5) {
    bench.N = std::max(1L, std::atol(argv[4]));
    bench.K = std::max(1L, std::atol(argv[5]));
  }
  const int64_t weights_bytes = argc > 6 ? std::max(1L, std::atol(argv[6])) << 20 : bench.memory_bytes;
  for (const auto& count : split(argc > 3 ? argv[3] : "1,2,4,8,16,64,512"))
    bench.row_counts.push_back(std::max(1L, std::atol(count.c_str())));
#if defined(ECHOC_AMX)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return std::perror("the system refuses AMX tiles"), 1;
#endif
  bench.memory = map(bench.memory_bytes);
  std::memset(bench.memory, 1, bench.memory_bytes);
  bench.read_gbs = read_rate(bench.team, bench.memory, bench.memory_bytes);
  bench.peak = peaks(bench.team);
  bench.memory_bytes = weights_bytes;
  const Peaks& p = bench.peak;
  std::printf(
      "%d threads: read %.1f GB/s; Gop/s: f32 fma %.0f, vdpbf16ps %.0f, vpdpbusd %.0f, tdpbf16ps %.0f, "
      "tdpbusd %.0f\n",
      threads, bench.read_gbs, p.f32, p.bf16, p.i8, p.amx_bf16, p.amx_i8);
  const double bf16 = p.amx_bf16 > 0 ? p.amx_bf16 : p.bf16 > 0 ? p.bf16 : p.f32;
  const double i8 = p.amx_bf16 > 0 ? p.amx_bf16 : p.i8;
  for (const auto& format : formats) {
    if (format == "f32") measure<Weight<32, 0>>(bench, "f32", p.f32);
    if (format == "bf16") measure<Weight<16, 0>>(bench, "bf16", bf16);
    if (format == "bf16c") measure<Weight<12, 0>>(bench, "bf16c", bf16);
    if (format == "f8") measure<Weight<8, 0>>(bench, "f8", bf16);
    if (format == "i8") measure<Weight<8, 32>>(bench, "i8 g32", i8);
    if (format == "i4") measure<Weight<4, 32>>(bench, "i4 g32", i8);
    if (format == "i8g128") measure<Weight<8, 128>>(bench, "i8 g128", i8);
    if (format == "i4g128") measure<Weight<4, 128>>(bench, "i4 g128", i8);
  }
  return 0;
}
