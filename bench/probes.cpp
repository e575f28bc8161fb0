// What this machine can do at best: streaming reads and the peak rates of its multiply-add and dot instructions.
//
// Compiled by the system compiler for the machine at hand (-march=native) and called through ctypes. Every entry runs
// the given number of threads, which start together behind a spin barrier; each reports its own rate and the share of
// the wall time during which it really ran, so that the caller can tell a slow machine from a shared one.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

double thread_cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Runs body(tid) on `threads` threads at once. `rates` and `shares` have one entry a thread; a share is cpu time over
// the time since the first thread began, so that one which did not run beside the others shows.
template <class Body>
void on_team(int threads, double* rates, double* shares, Body&& body) {
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> starts(threads), ends(threads);
  auto member = [&](int tid) {
    waiting.fetch_sub(1);
    while (waiting.load(std::memory_order_acquire) > 0) {
    }
    const double cpu = thread_cpu_seconds();
    starts[tid] = Clock::now();
    const double work = body(tid);
    ends[tid] = Clock::now();
    rates[tid] = work / std::chrono::duration<double>(ends[tid] - starts[tid]).count();
    shares[tid] = thread_cpu_seconds() - cpu;
  };
  std::vector<std::thread> team;
  for (int tid = 1; tid < threads; ++tid) team.emplace_back(member, tid);
  member(0);
  for (auto& thread : team) thread.join();
  const auto first = *std::min_element(starts.begin(), starts.end());
  for (int tid = 0; tid < threads; ++tid) shares[tid] /= std::chrono::duration<double>(ends[tid] - first).count();
}

// Repeats `block` (a fixed amount of arithmetic) until `seconds` have passed; returns the operations done.
template <class Block>
double repeat_for(double seconds, double ops_per_block, Block&& block) {
  const auto start = Clock::now();
  double ops = 0;
  do {
    block();
    ops += ops_per_block;
  } while (seconds_since(start) < seconds);
  return ops;
}

constexpr int kChains = 12;  // independent accumulators: covers a latency of 6 at two instructions a cycle
constexpr int kRepeat = 400;

#if defined(__AVX512F__)
using Floats = float __attribute__((vector_size(64)));
#elif defined(__AVX__)
using Floats = float __attribute__((vector_size(32)));
#else
using Floats = float __attribute__((vector_size(16)));
#endif
#if defined(__x86_64__)
#define KEEP(x) [](auto& kept) { asm volatile("" : "+v"(kept)); }(x)
#else
#define KEEP(x) [](auto& kept) { asm volatile("" : "+w"(kept)); }(x)
#endif

// Twelve named accumulators, because g++ keeps an array of them in memory.
template <class Vector, class Step>
void chains(Vector start, Step&& step) {
  Vector a = start, b = start, c = start, d = start, e = start, f = start;
  Vector g = start, h = start, i = start, j = start, k = start, l = start;
  for (int n = 0; n < kRepeat; ++n) {
    a = step(a), b = step(b), c = step(c), d = step(d), e = step(e), f = step(f);
    g = step(g), h = step(h), i = step(i), j = step(j), k = step(k), l = step(l);
    KEEP(a), KEEP(b), KEEP(c), KEEP(d), KEEP(e), KEEP(f);
    KEEP(g), KEEP(h), KEEP(i), KEEP(j), KEEP(k), KEEP(l);
  }
}

double fma_f32(double seconds) {
  Floats x = {}, y = {};
  x += 0.5f, y += 0.25f;
  constexpr double ops = 2.0 * (sizeof(Floats) / 4) * kChains * kRepeat;
  return repeat_for(seconds, ops, [&] {
    KEEP(x);
    KEEP(y);
    chains(Floats{}, [&](Floats a) { return x * a + y; });
  });
}

double dot_bf16(double seconds) {
#if defined(__AVX512BF16__)
  __m512i bits = _mm512_set1_epi16(0x3e80);
  constexpr double ops = 2.0 * 32 * kChains * kRepeat;
  return repeat_for(seconds, ops, [&] {
    KEEP(bits);
    const __m512bh x = (__m512bh)bits;
    chains(_mm512_setzero_ps(), [&](__m512 a) { return _mm512_dpbf16_ps(a, x, x); });
  });
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  bfloat16x8_t x = vreinterpretq_bf16_u16(vdupq_n_u16(0x3e80));
  constexpr double ops = 2.0 * 8 * kChains * kRepeat;
  return repeat_for(seconds, ops, [&] { chains(vdupq_n_f32(0), [&](float32x4_t a) { return vbfdotq_f32(a, x, x); }); });
#else
  (void)seconds;
  return 0;
#endif
}

double dot_int8(double seconds) {
#if defined(__AVX512VNNI__)
  __m512i x = _mm512_set1_epi8(3);
  constexpr double ops = 2.0 * 64 * kChains * kRepeat;
  return repeat_for(seconds, ops, [&] {
    KEEP(x);
    chains(_mm512_setzero_si512(), [&](__m512i a) { return _mm512_dpbusd_epi32(a, x, x); });
  });
#elif defined(__AVXVNNI__)
  __m256i x = _mm256_set1_epi8(3);
  constexpr double ops = 2.0 * 32 * kChains * kRepeat;
  return repeat_for(seconds, ops, [&] {
    KEEP(x);
    chains(_mm256_setzero_si256(), [&](__m256i a) { return _mm256_dpbusd_avx_epi32(a, x, x); });
  });
#elif defined(__AVX2__)
  __m256i x = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  constexpr double ops = 2.0 * 32 * kChains * kRepeat;
  return repeat_for(seconds, ops, [&] {
    chains(_mm256_setzero_si256(), [&](__m256i a) {
      __m256i v = x;
      KEEP(v);
      return _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(v, x), ones));
    });
  });
#elif defined(__ARM_FEATURE_DOTPROD)
  int8x16_t x = vdupq_n_s8(3);
  constexpr double ops = 2.0 * 16 * kChains * kRepeat;
  return repeat_for(seconds, ops, [&] { chains(vdupq_n_s32(0), [&](int32x4_t a) { return vdotq_s32(a, x, x); }); });
#else
  (void)seconds;
  return 0;
#endif
}

#if defined(__AMX_TILE__) && defined(__linux__)
// The kernel hands out the tile registers on request, once per process (Documentation/arch/x86/xstate.rst).
bool amx_granted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

void configure_tiles() {
  alignas(64) uint8_t config[64] = {};
  config[0] = 1;  // palette 1: eight tiles of at most 16 rows of 64 bytes
  for (int tile = 0; tile < 8; ++tile) {
    const uint16_t row_bytes = 64;
    std::memcpy(config + 16 + 2 * tile, &row_bytes, sizeof row_bytes);
    config[48 + tile] = 16;
  }
  // g++ 12 tells its optimiser of the first 8 bytes only (amxtileintrin.h) and would drop the other stores.
  asm volatile("" : : "r"(config) : "memory");
  _tile_loadconfig(config);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}
#endif

double amx_bf16(double seconds) {
#if defined(__AMX_BF16__) && defined(__linux__)
  if (!amx_granted()) return 0;
  configure_tiles();
  const double done = repeat_for(seconds, 4 * 2.0 * 16 * 16 * 32 * 200, [] {
    for (int i = 0; i < 200; ++i) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  });
  _tile_release();
  return done;
#else
  (void)seconds;
  return 0;
#endif
}

double amx_int8(double seconds) {
#if defined(__AMX_INT8__) && defined(__linux__)
  if (!amx_granted()) return 0;
  configure_tiles();
  const double done = repeat_for(seconds, 4 * 2.0 * 16 * 16 * 64 * 200, [] {
    for (int i = 0; i < 200; ++i) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  });
  _tile_release();
  return done;
#else
  (void)seconds;
  return 0;
#endif
}

using Words = unsigned long long __attribute__((vector_size(sizeof(Floats))));
constexpr std::size_t kStep = 8 * sizeof(Words);

// One forward pass over [begin, end), a multiple of kStep bytes. kAhead: bytes of software prefetch, 0 for none.
template <std::size_t kAhead>
unsigned long long stream(const char* begin, const char* end) {
  Words acc[8] = {};
  for (const char* at = begin; at < end; at += kStep) {
    if constexpr (kAhead > 0) {
      for (std::size_t line = 0; line < kStep; line += 64) __builtin_prefetch(at + kAhead + line, 0, 3);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      Words value;
      std::memcpy(&value, at + i * sizeof(Words), sizeof value);
      acc[i] ^= value;
    }
  }
  Words all = acc[0] ^ acc[1] ^ acc[2] ^ acc[3] ^ acc[4] ^ acc[5] ^ acc[6] ^ acc[7];
  return all[0] ^ all[1];
}

}  // namespace

extern "C" {

// Runs the peak loop `kind` (0 f32 multiply-add, 1 bf16 dot, 2 int8 dot, 3 AMX bf16, 4 AMX int8) on `threads` threads
// for `seconds`; rates[threads] get operations a second (a multiply-add counts two), shares[threads] cpu/wall time.
// Returns 0, or 1 where this machine has no such instruction.
int echoc_probe_compute(int kind, int threads, double seconds, double* rates, double* shares) {
  double (*const loops[])(double) = {fma_f32, dot_bf16, dot_int8, amx_bf16, amx_int8};
  if (kind < 0 || kind > 4 || loops[kind](0.0) == 0) return 1;
  on_team(threads, rates, shares, [&](int) { return loops[kind](seconds); });
  return 0;
}

// Memory for echoc_probe_read, in huge pages where the system gives them, every page touched. Null when there is none.
void* echoc_probe_allocate(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  std::memset(memory, 1, bytes);
  return memory;
}

void echoc_probe_release(void* memory, std::size_t bytes) { munmap(memory, bytes); }

// Every thread reads its own contiguous share of `memory` once; rates[threads] get bytes a second. `ahead` is the
// distance of software prefetch in bytes: 0, 1024 or 4096.
unsigned long long echoc_probe_read(const char* memory, std::size_t bytes, int threads, int ahead, double* rates,
                                    double* shares) {
  std::atomic<unsigned long long> checksum{0};
  on_team(threads, rates, shares, [&](int tid) {
    const std::size_t share = bytes / threads / kStep * kStep;
    const char* begin = memory + tid * share;
    auto* const pass = ahead == 0 ? stream<0> : ahead == 1024 ? stream<1024> : stream<4096>;
    checksum ^= pass(begin, begin + share);
    return static_cast<double>(share);
  });
  return checksum.load();
}

// Nanoseconds that a cache line takes one way between neighbours in a row of `threads` threads, which all run
// meanwhile: one[threads - 1], the best batch of a pair's, 0 where a pair did not get its cores in time.
void echoc_probe_line(int threads, double* one) {
  struct alignas(128) Line {
    std::atomic<int> value{0};
  };
  constexpr int kStopped = -1, kBatches = 5, kRounds = 100;
  constexpr double kPatience = 0.002;
  Line ball, pair;  // odd: on its way to the neighbour; the pair that plays
  auto serve = [&]() -> double {
    const auto begin = Clock::now();
    double best = 0;
    for (int batch = 0; batch < kBatches; ++batch) {
      const auto start = Clock::now();
      for (int round = 0; round < kRounds; ++round) {
        const int sent = 2 * (batch * kRounds + round) + 1;
        ball.value.store(sent, std::memory_order_release);
        for (int spins = 1; ball.value.load(std::memory_order_acquire) == sent; ++spins) {
          if (spins % 4096 == 0 && seconds_since(begin) > kPatience) return best;
        }
      }
      const double took = 1e9 * seconds_since(start) / (2 * kRounds);
      best = best == 0 ? took : std::min(best, took);
    }
    return best;
  };
  auto answer = [&] {
    for (int seen = ball.value.load(); seen != kStopped; seen = ball.value.load(std::memory_order_acquire)) {
      if (seen % 2 == 1) ball.value.compare_exchange_strong(seen, seen + 1);
    }
  };
  auto await_pair = [&](int wanted) {
    while (pair.value.load(std::memory_order_acquire) != wanted) {
    }
  };
  std::vector<double> rates(threads), shares(threads);
  on_team(threads, rates.data(), shares.data(), [&](int tid) {
    if (tid > 0) {
      await_pair(tid - 1);
      answer();
      ball.value.store(0);
      pair.value.store(tid, std::memory_order_release);
    }
    if (tid + 1 < threads) {
      await_pair(tid);
      one[tid] = serve();
      ball.value.exchange(kStopped);
    }
    return 1.0;
  });
}
}
