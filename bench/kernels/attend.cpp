// Attention kernels against the machine's own limits, measured in the same run.
//
//   flags="-std=c++20 -O3 -fno-math-errno -fno-trapping-math -march=native -pthread"
//   c++ $flags -iquote kernels/cpu bench/kernels/attend.cpp -o attend
//   ./attend [threads [heads kv_heads head_dim sequences cached new [deterministic]]]
//
// Formats of keys and values are taken in turns, each through as many layers as do not stay in a cache; a figure is the
// median of many rounds, by the wall clock of all threads together (give them the cores: chrt -r 1). Bytes of keys,
// values and scales a second stand beside a plain read of as many; multiply-adds of the visible (causal) scores beside
// the f32 fma peak; and what appending the new tokens takes.
#include "attend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>

using namespace echoc;

namespace {

int g_threads = 1;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Threads that wait for each other after every step. Seconds of work(tid, 0), ..., work(tid, steps - 1) on all threads.
double timed(int64_t steps, const std::function<void(int, int64_t)>& work) {
  std::atomic<int64_t> arrived{0};
  double start = 0;
  const auto meet = [&](int64_t count) {
    arrived.fetch_add(1);
    while (arrived.load() < g_threads * count) {
    }
  };
  const auto body = [&](int tid) {
    meet(1);
    if (tid == 0) start = now();
    for (int64_t i = 0; i < steps; ++i) {
      work(tid, i);
      meet(i + 2);
    }
  };
  std::vector<std::thread> others;
  for (int tid = 1; tid < g_threads; ++tid) others.emplace_back(body, tid);
  body(0);
  const double seconds = now() - start;
  for (auto& t : others) t.join();
  return seconds;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

struct Memory {
  explicit Memory(size_t bytes) : size(bytes + (2 << 20)) {
    whole = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) std::abort();
    const auto aligned = (reinterpret_cast<uintptr_t>(whole) + (2 << 20) - 1) & ~uintptr_t{(2 << 20) - 1};
    data = reinterpret_cast<std::byte*>(aligned);
    madvise(data, bytes, MADV_HUGEPAGE);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { munmap(whole, size); }
  size_t size;
  void* whole;
  std::byte* data;
};

double fma_peak() {  // GFLOP/s of all threads
  std::atomic<float> sink{0};
  const int64_t rounds = 1'000'000;
  const double seconds = timed(1, [&](int, int64_t) {
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
  const double seconds = timed(1, [&](int tid, int64_t) {
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

struct Case {
  int heads, kv_heads, dim;
  int64_t sequences, cached, fresh;
  bool deterministic;
};

// One format of keys and values: its layers, pages of a sequence scattered in each.
struct Format {
  virtual ~Format() = default;
  virtual void attend_layer(int tid, int64_t layer) = 0;
  virtual void append_layer(int tid, int64_t layer) = 0;
  std::string name;
  size_t bytes = 0;  // of keys and values of a layer
  int64_t layers = 0;
  std::vector<double> attending, appending;  // seconds a layer
};

template <class KV>
struct Paged : Format {
  Paged(const char* called, const Case& c, size_t least_bytes)
      : shape{c.heads, c.kv_heads, c.dim, c.dim, 0.125f, 0.0f, 0, true},
        blocks((c.cached + c.fresh + attn::kPage - 1) / attn::kPage),
        tokens(c.sequences * c.fresh),
        deterministic(c.deterministic),
        side(static_cast<size_t>(c.sequences * blocks * c.kv_heads * attn::Store<KV>::piece(c.dim)) * sizeof(KV)),
        table(static_cast<size_t>(c.sequences * blocks)),
        q(static_cast<size_t>(tokens * c.heads * c.dim)),
        fresh(static_cast<size_t>(tokens * c.kv_heads * c.dim)),
        out(q.size()),
        scratch(static_cast<size_t>(attend_scratch_bytes(c.dim, c.dim) * g_threads)),
        lent(static_cast<size_t>(attend_workspace_bytes(c.dim, g_threads))) {
    name = called;
    bytes = 2 * side;
    layers = static_cast<int64_t>((least_bytes + bytes - 1) / bytes);
    pages = std::make_unique<Memory>(bytes * static_cast<size_t>(layers));
    std::mt19937 random(1);
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    std::shuffle(table.begin(), table.end(), random);
    const auto draw = [&](std::vector<float>& values) {
      for (auto& x : values) x = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    };
    std::vector<float> x(static_cast<size_t>(attn::kPage * c.kv_heads * c.dim));
    draw(x), draw(q), draw(fresh);
    std::vector<int32_t> s(attn::kPage), p(attn::kPage);
    const Call call{nullptr, nullptr, 0, 1, nullptr};
    for (int64_t one = 0; one < c.sequences; ++one) {
      for (int64_t i = 0; i < c.fresh; ++i) {
        seq.push_back(static_cast<int32_t>(one));
        pos.push_back(static_cast<int32_t>(c.cached + i));
      }
      for (int64_t page = 0; page < blocks; ++page) {
        for (int i = 0; i < attn::kPage; ++i) p[i] = static_cast<int32_t>(page * attn::kPage + i);
        std::fill(s.begin(), s.end(), static_cast<int32_t>(one));
        std::rotate(x.begin(), x.begin() + 7, x.end());
        for (int64_t layer = 0; layer < layers; ++layer) {
          append_k<KV>(call, keys(layer), x.data(), c.kv_heads * c.dim, attn::kPage, c.kv_heads, c.dim, s.data(),
                       p.data(), table.data(), blocks);
          append_v<KV>(call, values(layer), x.data(), c.kv_heads * c.dim, attn::kPage, c.kv_heads, c.dim, s.data(),
                       p.data(), table.data(), blocks);
        }
      }
    }
  }

  void attend_layer(int tid, int64_t layer) override {
    const Call call{nullptr, nullptr, tid, g_threads, scratch.data + tid * (scratch.size - (2 << 20)) / g_threads};
    attend<KV>(call, shape, q.data(), shape.heads * shape.head_dim, out.data(), keys(layer), values(layer), nullptr,
               tokens, seq.data(), pos.data(), table.data(), blocks, deterministic, PlainScore{},
               {lent.data, static_cast<int64_t>(lent.size - (2 << 20))});
  }

  void append_layer(int tid, int64_t layer) override {
    const Call call{nullptr, nullptr, tid, g_threads, nullptr};
    const int64_t ld = shape.kv_heads * shape.head_dim;
    append_k<KV>(call, keys(layer), fresh.data(), ld, tokens, shape.kv_heads, shape.head_dim, seq.data(), pos.data(),
                 table.data(), blocks);
    append_v<KV>(call, values(layer), fresh.data(), ld, tokens, shape.kv_heads, shape.head_dim, seq.data(), pos.data(),
                 table.data(), blocks);
  }

  std::byte* keys(int64_t layer) const { return pages->data + bytes * static_cast<size_t>(layer); }
  std::byte* values(int64_t layer) const { return keys(layer) + side; }

  AttendShape shape;
  int64_t blocks, tokens;
  bool deterministic;
  size_t side;
  std::vector<int32_t> table, seq, pos;
  std::vector<float> q, fresh, out;
  Memory scratch, lent;
  std::unique_ptr<Memory> pages;
};

void measure(const Case& c) {
  constexpr size_t kLeast = size_t{96} << 20;
  std::vector<std::unique_ptr<Format>> formats;
  formats.push_back(std::make_unique<Paged<bf16_t>>("bf16", c, kLeast));
  formats.push_back(std::make_unique<Paged<i8_t>>("i8", c, kLeast));
  formats.push_back(std::make_unique<Paged<f8_t>>("f8", c, kLeast));
  formats.push_back(std::make_unique<Paged<float>>("f32", c, kLeast));
  const Memory memory(kLeast);
  for (size_t i = 0; i < kLeast; i += 64) memory.data[i] = std::byte{1};
  std::vector<double> peaks, rates;
  const int rounds = c.fresh > 16 ? 5 : 15;
  for (int i = 0; i < rounds; ++i) {
    peaks.push_back(fma_peak());
    for (const auto& format : formats) {
      rates.push_back(read_rate(memory.data, kLeast));
      const int64_t layers = c.fresh > 16 ? std::min<int64_t>(format->layers, 8) : format->layers;
      format->attending.push_back(timed(layers, [&](int tid, int64_t layer) { format->attend_layer(tid, layer); }) /
                                  layers);
      format->appending.push_back(timed(layers, [&](int tid, int64_t layer) { format->append_layer(tid, layer); }) /
                                  layers);
    }
  }
  double pairs = 0;
  for (int64_t i = 0; i < c.fresh; ++i) pairs += static_cast<double>(c.cached + i + 1);
  const double flops = 4.0 * pairs * static_cast<double>(c.sequences) * c.heads * c.dim;
  const double peak = median(peaks), rate = median(rates);
  std::printf("%d/%d heads of %d, %ld x (%ld + %ld)%s, %d threads: fma %.0f GFLOP/s, read %.1f GB/s\n", c.heads,
              c.kv_heads, c.dim, static_cast<long>(c.sequences), static_cast<long>(c.cached),
              static_cast<long>(c.fresh), c.deterministic ? " deterministic" : "", g_threads, peak, rate);
  for (const auto& format : formats) {
    const double seconds = median(format->attending), read = static_cast<double>(format->bytes) * 1e-9;
    std::printf("  %-5s %9.1f us  %6.1f GFLOP/s (%3.0f%% of fma)  %5.1f GB/s (%3.0f%% of read)  append %7.1f us\n",
                format->name.c_str(), seconds * 1e6, flops / seconds * 1e-9, flops / seconds * 1e-7 / peak,
                read / seconds, 100 * read / seconds / rate, median(format->appending) * 1e6);
  }
}

}  // namespace

int main(int argc, char** argv) {
  g_threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (argc > 7) {
    measure({std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), std::atoll(argv[5]), std::atoll(argv[6]),
             std::atoll(argv[7]), argc > 8});
    return 0;
  }
  for (const bool deterministic : {false, true})
    for (const Case& shape : {Case{16, 8, 128}, Case{32, 8, 64}, Case{32, 32, 64}, Case{32, 1, 64}})
      for (const Case& work :
           {Case{.sequences = 1, .cached = 576, .fresh = 1}, Case{.sequences = 8, .cached = 512, .fresh = 1},
            Case{.sequences = 32, .cached = 500, .fresh = 1}, Case{.sequences = 8, .cached = 8191, .fresh = 1},
            Case{.sequences = 1, .cached = 0, .fresh = 512}, Case{.sequences = 1, .cached = 2048, .fresh = 512}})
        measure({shape.heads, shape.kv_heads, shape.dim, work.sequences, work.cached, work.fresh, deterministic});
  return 0;
}
