// A C face of the tiles for the tests: packs, prepares, multiplies, one simulated thread after another.
#include <cstring>
#include <new>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/vec16.h"

namespace {

using namespace echoc;

struct Problem {
  int64_t T, N, K;  // T counts rows of x
  int32_t nthreads;
  int32_t deterministic;
  const float* x;  // [T][K]
  const void* w;
  float* out;          // [NW][rows][N]
  uint8_t* writes;     // [rows][N]: how often an element was handed over
  const int32_t* ids;  // experts only: [rows]
  int64_t rows, rows_per_x, experts;
};

struct Rows {
  std::byte* data;
  explicit Rows(int64_t bytes) : data(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}))) {
    std::memset(data, 0xa5, bytes);
  }
  ~Rows() { ::operator delete(data, std::align_val_t{64}); }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
};

template <class W, int NW>
void run(const Problem& p) {
  Rows rows(p.T * W::row_bytes(p.K));
  for (int64_t t = 0; t < p.T; ++t) W::prepare(p.x + t * p.K, p.K, rows.data + t * W::row_bytes(p.K));
  const auto epilogue = [&](int64_t t, int64_t n0, int64_t count, const float* const* acc) {
    for (int64_t j = 0; j < count; ++j) ++p.writes[t * p.N + n0 + j];
    for (int i = 0; i < NW; ++i) std::copy_n(acc[i], count, p.out + (i * p.rows + t) * p.N + n0);
  };
  for (int32_t tid = 0; tid < p.nthreads; ++tid) {
    const Call call{nullptr, nullptr, tid, p.nthreads, nullptr};
    if (p.ids != nullptr) {
      gemm_experts<W, NW>(call, rows.data, p.rows_per_x, p.w, p.experts, p.ids, p.rows, p.N, p.K, p.deterministic != 0,
                          epilogue);
    } else {
      gemm<W, NW>(call, rows.data, p.w, p.T, p.N, p.K, p.deterministic != 0, epilogue);
    }
  }
}

template <class W>
int run_interleaved(int interleave, const Problem& p) {
  switch (interleave) {
    case 1:
      run<W, 1>(p);
      return 0;
    case 2:
      run<W, 2>(p);
      return 0;
    case 3:
      run<W, 3>(p);
      return 0;
    case 4:
      run<W, 4>(p);
      return 0;
    default:
      return 1;
  }
}

// Calls f with the Weight type of (bits, group).
template <class F>
int with_format(int bits, int group, F&& f) {
  if (bits == 32 && group == 0) return f(Weight<32, 0>{});
  if (bits == 16 && group == 0) return f(Weight<16, 0>{});
  if (bits == 12 && group == 0) return f(Weight<12, 0>{});
  if (bits == 8 && group == 0) return f(Weight<8, 0>{});
  if (bits == 8 && group == 32) return f(Weight<8, 32>{});
  if (bits == 8 && group == 64) return f(Weight<8, 64>{});
  if (bits == 8 && group == 128) return f(Weight<8, 128>{});
  if (bits == 4 && group == 32) return f(Weight<4, 32>{});
  if (bits == 4 && group == 64) return f(Weight<4, 64>{});
  if (bits == 4 && group == 128) return f(Weight<4, 128>{});
  return 1;
}

}  // namespace

ECHOC_EXPORT const char* tiles_level() {
#if defined(ECHOC_AMX)
  return "amx";
#elif defined(ECHOC_BF16_DOT) && defined(ECHOC_VNNI)
  return "avx512-bf16-vnni";
#elif defined(ECHOC_AVX512)
  return "avx512";
#elif defined(ECHOC_AVX2)
  return "avx2";
#else
  return "portable";
#endif
}

ECHOC_EXPORT int64_t tiles_packed_bytes(int bits, int group, int64_t interleave, int64_t N, int64_t K) {
  return layout::packed_bytes(bits, group, interleave, N, K);
}

// src is [interleave][N][K] f32.
ECHOC_EXPORT void tiles_pack(int bits, int group, int64_t interleave, int64_t N, int64_t K, const float* src,
                             std::byte* out) {
  std::vector<packing::Source> sources;
  for (int64_t i = 0; i < interleave; ++i) sources.push_back({src + i * N * K, packing::Element::f32, false});
  packing::pack({bits, group}, sources, N, K, out, 1);
}

ECHOC_EXPORT void tiles_unpack(int bits, int group, int64_t interleave, int64_t N, int64_t K, const std::byte* packed,
                               float* out) {
  packing::unpack({bits, group}, interleave, N, K, packed, out);
}

ECHOC_EXPORT int tiles_unpack_row(int bits, int group, int64_t interleave, int64_t which, int64_t n, int64_t K,
                                  const void* packed, float* out) {
  return with_format(bits, group, [&]<class W>(W) {
    W::unpack_row(packed, K, n, out, interleave, which);
    return 0;
  });
}

ECHOC_EXPORT int tiles_gemm(int bits, int group, int interleave, const Problem* problem) {
  return with_format(bits, group, [&]<class W>(W) { return run_interleaved<W>(interleave, *problem); });
}
