// Products of bf16 rows with pair-interleaved panels, the inner loops of attention over bf16 pages where the target has
// bf16 dot products (AVX512-BF16) or tiles of them (AMX).
#pragma once

#include <cstdint>

#include "attend_entries.h"
#include "half.h"
#include "vec16.h"

// ECHOC_ATTEND_DOT: bf16 products pay. Tiles do; vdpbf16ps does where it has twice the rate of an f32 fma (AMD's Zen 4
// and later, which GCC 12 calls znver3), and not on Intel, where it has half (measured: 94 against 146 GFLOP/s).
#if defined(ECHOC_AMX) || \
    (defined(ECHOC_BF16_DOT) && (defined(__znver3__) || defined(__znver4__) || defined(__znver5__)))
#define ECHOC_ATTEND_DOT 1
#endif

#if defined(ECHOC_ATTEND_DOT)
#if defined(ECHOC_AMX)
#include "amx.h"
#endif

namespace echoc::attn {

inline constexpr int64_t kStep = 32;  // of the summed index: one tile, 16 rows of 16 pairs
inline constexpr int kDotRows = 32;   // rows a product, or 16

// Whether bf16 products may be used. On a machine with tiles the first call of a process asks the system for them.
inline bool has_dots() {
#if defined(ECHOC_AMX)
  return amx::available();
#else
  return true;
#endif
}

inline void begin_tiles() {
#if defined(ECHOC_AMX)
  amx::configure(16, 16, 64);
#endif
}

inline void end_tiles() {
#if defined(ECHOC_AMX)
  amx::release();
#endif
}

// to[0, count) = from[0, count) as bf16; count is a multiple of 32.
inline void narrow(const float* from, bf16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 32) {
    const __m512bh two = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i));
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(two));
  }
}

// An element of paired pages as bf16, without its scale: never rounded.
inline bf16_t exact_bf16(bf16_t value) { return value; }
inline bf16_t exact_bf16(i8_t value) { return to_bf16(to_float(value)); }
inline bf16_t exact_bf16(f8_t value) { return to_bf16(to_float(value)); }

// 32 elements in pairs as bf16.
inline __m512i pairs_bf16(const bf16_t* from) { return _mm512_loadu_si512(from); }
inline __m512i pairs_bf16(const f8_t* from) { return vec16::bf16_of_f8(from); }
inline __m512i pairs_bf16(const i8_t* from) {
  const __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(words, 16));
  const __m512 even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16));
  return _mm512_mask_blend_epi16(0x55555555u, _mm512_castps_si512(odd),
                                 _mm512_srli_epi32(_mm512_castps_si512(even), 16));
}

// to[0, count) = from[0, count) as bf16; count is a multiple of 32.
template <class KV>
inline void to_pairs(const KV* from, bf16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 32) _mm512_storeu_si512(to + i, pairs_bf16(from + i));
}

// 8 rows times two panels without tiles.
template <int Panels>
inline void dot_rows(const bf16_t* a, int64_t lda, const bf16_t* const* panels, int64_t steps, float* c, int64_t ldc,
                     bool resume) {
  constexpr int kRows = 8;
  __m512 acc[kRows][Panels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < Panels; ++p) acc[r][p] = resume ? _mm512_loadu_ps(c + r * ldc + p * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < steps * kStep; k += 2) {
    __m512bh b[Panels];
    for (int p = 0; p < Panels; ++p) b[p] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panels[p] + k * 16));
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, a + r * lda + k, sizeof pair);
      const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      for (int p = 0; p < Panels; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], x, b[p]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(c + r * ldc + p * 16, acc[r][p]);
}

// c[r][p * 16 + lane] = (c or 0) + sum over k of a[r][k] * panels[p][k][lane], for 16 or 32 rows, k < 32 * steps.
inline void product(const bf16_t* a, int64_t lda, const bf16_t* const* panels, int count, int64_t steps, float* c,
                    int64_t ldc, bool tall, bool resume) {
#if defined(ECHOC_AMX)
  for (int p = 0; p < count; p += 2) {
    const bool wide = p + 1 < count;
    amx::Block b{};
    b.x = reinterpret_cast<const std::byte*>(a);
    b.x_stride = lda * 2;
    b.steps = steps;
    b.ld = ldc;
    b.resume = resume;
    for (int i = 0; i < 1 + wide; ++i) {
      b.w[i] = reinterpret_cast<const std::byte*>(panels[p + i]);
      b.acc[i] = c + (p + i) * 16;
    }
    if (tall) {
      wide ? amx::block_bf16<true, true>(b) : amx::block_bf16<true, false>(b);
    } else {
      wide ? amx::block_bf16<false, true>(b) : amx::block_bf16<false, false>(b);
    }
  }
#else
  for (int r = 0; r < (tall ? 32 : 16); r += 8) {
    int p = 0;
    for (; p + 2 <= count; p += 2) dot_rows<2>(a + r * lda, lda, panels + p, steps, c + r * ldc + p * 16, ldc, resume);
    if (p < count) dot_rows<1>(a + r * lda, lda, panels + p, steps, c + r * ldc + p * 16, ldc, resume);
  }
#endif
}

}  // namespace echoc::attn
#endif
