// f32, bf16, bf16c and f8 weights.
//
// A bf16c weight gives what a bf16 one gives, but that the products of its uncoded values are added last.
// An f8 weight is a bf16 one that takes half the bytes: rows of x are prepared alike, and sums are scaled at the end.
// Every path without AMX adds the products of a row in one order: two interleaved chains over k, added at the end.
// So the result of a row depends on nothing else in the call.
#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "coded.h"
#include "tiles.h"
#include "vec16.h"
#if defined(ECHOC_AMX)
#include "amx.h"
#endif

namespace echoc {
namespace {

using namespace vec16;

constexpr int kChains = 2;

// One step of a panel against one row: what to load of each and how to accumulate. One k of f32, two of the others.
struct StepF32 {
  static constexpr int64_t kStepBytes = 64;
  static constexpr int64_t kRowBytes = 4;
  using Vector = f32x16;
  static ECHOC_INLINE Vector load(const std::byte* w) { return vec16::load(reinterpret_cast<const float*>(w)); }
  static ECHOC_INLINE f32x16 step(f32x16 sum, Vector w, const std::byte* x) {
    return fma(w, splat(read<float>(x)), sum);
  }
};

#if defined(ECHOC_AMX)
constexpr int64_t kDequantiseRows = 64;  // so many pay for turning a panel of f8 to bf16
#endif

#if defined(ECHOC_BF16_DOT)
constexpr bool kBf16Rows = true;
struct StepBf16 {
  static constexpr int64_t kStepBytes = 64;
  static constexpr int64_t kRowBytes = 4;
  using Vector = __m512i;
  static ECHOC_INLINE Vector load(const std::byte* w) { return _mm512_load_si512(w); }
  static ECHOC_INLINE f32x16 step(f32x16 sum, Vector w, const std::byte* x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(read<int32_t>(x)));
  }
};
struct StepF8 : StepBf16 {
  static constexpr int64_t kStepBytes = 32;
  static constexpr float kUnit = 1.0f;
  static ECHOC_INLINE Vector load(const std::byte* w) { return bf16_of_f8(w); }
};
#else
constexpr bool kBf16Rows = false;
struct StepBf16 {
  static constexpr int64_t kStepBytes = 64;
  static constexpr int64_t kRowBytes = 8;
  struct Vector {
    f32x16 even, odd;
  };
  static ECHOC_INLINE Vector load(const std::byte* w) { return {even_bf16(w), odd_bf16(w)}; }
  static ECHOC_INLINE f32x16 step(f32x16 sum, const Vector& w, const std::byte* x) {
    return fma(w.odd, splat(read<float>(x + 4)), fma(w.even, splat(read<float>(x)), sum));
  }
};
struct StepF8 : StepBf16 {
  static constexpr int64_t kStepBytes = 32;
  static constexpr float kUnit = 256.0f;
  static ECHOC_INLINE Vector load(const std::byte* w) { return {even_f8(w), odd_f8(w)}; }
};
#endif

#if defined(ECHOC_AVX512)
constexpr int kTall = 6;    // most rows of a block
constexpr int kWide = 2;    // panels of a block
constexpr int kFewest = 6;  // rows from which blocks are wide; fewer are bound by the weight's stream
#else
constexpr int kTall = 2;
constexpr int kWide = 1;
constexpr int kFewest = 1;
#endif

struct Job {
  const std::byte* rows;
  int64_t row_stride;
  const std::byte* panel;
  int64_t panel_stride;
  int64_t steps;
  float* acc[2];
  int64_t ld;
  int64_t ahead;          // bytes of a panel to ask for beforehand, where it is read once
  const std::byte* next;  // what to bring into the second-level cache meanwhile, `lines` every kBurst steps
  int64_t lines;
};
constexpr int64_t kBurst = 16;

// R rows times P panels.
template <class Step, int R, int P>
void block(const Job& job) {
  f32x16 sum[kChains][R][P];
  unroll<kChains * R * P>([&](auto i) ECHOC_INLINE_LAMBDA { sum[i / (R * P)][i / P % R][i % P] = zero(); });
  const std::byte* w = job.panel;
  const std::byte* x = job.rows;
  const auto advance = [&](auto c) ECHOC_INLINE_LAMBDA {
    typename Step::Vector v[P];
    unroll<P>([&](auto p) ECHOC_INLINE_LAMBDA { v[p] = Step::load(w + p * job.panel_stride + c * Step::kStepBytes); });
    if constexpr (P == 1 && R >= kPrefetchRows) __builtin_prefetch(w + c * Step::kStepBytes + job.ahead);
    unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA {
      sum[c][r][p] = Step::step(sum[c][r][p], v[p], x + r * job.row_stride + c * Step::kRowBytes);
    });
  };
  const std::byte* next = job.next;
  for (int64_t s = 0; s < job.steps;) {
    const int64_t last = std::min(s + kBurst, job.steps);
    for (; s + kChains <= last; s += kChains, w += kChains * Step::kStepBytes, x += kChains * Step::kRowBytes)
      unroll<kChains>(advance);
    if (s < last) advance(std::integral_constant<int, 0>{});
    s = last;
    if constexpr (P > 1)
      for (const std::byte* end = next + job.lines * 64; next < end; next += 64) __builtin_prefetch(next, 0, 2);
  }
  unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA {
    f32x16 total = add(sum[0][r][p], sum[1][r][p]);
    if constexpr (std::is_same_v<Step, StepF8>) {
      const std::byte* scales = job.panel + p * job.panel_stride + job.steps * Step::kStepBytes;
      total = mul(total, mul(load(reinterpret_cast<const float*>(scales)), splat(Step::kUnit)));
    }
    store(job.acc[p] + r * job.ld, total);
  });
}

template <class Step, int P, int... R>
void dispatch(int64_t rows, const Job& job, std::integer_sequence<int, R...>) {
  using Block = void (*)(const Job&);
  static constexpr Block kBlocks[] = {block<Step, R + 1, P>...};
  kBlocks[rows - 1](job);
}

// All row blocks of P panels, of near-equal height. Each brings its part of `next_bytes` at job.next nearer.
template <class Step, int P>
void sweep(const Job& job, int64_t num_rows, int64_t next_bytes) {
  const int64_t blocks = (num_rows + kTall - 1) / kTall;
  const int64_t bursts = (job.steps + kBurst - 1) / kBurst;
  Job part = job;
  part.lines = (next_bytes / 64 + blocks * bursts - 1) / (blocks * bursts);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = num_rows * b / blocks;
    part.rows = job.rows + first * job.row_stride;
    for (int p = 0; p < P; ++p) part.acc[p] = job.acc[p] + first * job.ld;
    part.next = job.next + b * bursts * part.lines * 64;
    dispatch<Step, P>(num_rows * (b + 1) / blocks - first, part, std::make_integer_sequence<int, kTall>{});
  }
}

// place(p) is where panel p's results go. `next` and its bytes are what the panels after these are made from, if that
// is not what follows them.
template <class Step, class Place>
void multiply(const void* rows, int64_t row_stride, const void* panels, int64_t panel_stride, int64_t steps,
              int64_t num_rows, int64_t num_panels, int64_t ld, int64_t ahead, Place&& place,
              const std::byte* next = nullptr, int64_t next_bytes = 0) {
  Job job{static_cast<const std::byte*>(rows),
          row_stride,
          static_cast<const std::byte*>(panels),
          panel_stride,
          steps,
          {},
          ld,
          ahead,
          nullptr,
          0};
  const auto take = [&](auto wide, int64_t p) {
    for (int i = 0; i < wide; ++i) job.acc[i] = place(p + i);
    job.next = next != nullptr ? next : job.panel + wide * panel_stride;
    sweep<Step, wide>(job, num_rows, next != nullptr ? next_bytes : wide * panel_stride);
    job.panel += wide * panel_stride;
  };
  int64_t p = 0;
  for (; num_rows >= kFewest && p + kWide <= num_panels; p += kWide) take(std::integral_constant<int, kWide>{}, p);
  for (; p < num_panels; ++p) take(std::integral_constant<int, 1>{}, p);
}

// Units of eight k of bf16c, as four vectors of bf16 pairs.
constexpr int kUnitSteps = coded::kStep / 2;

#if defined(ECHOC_BF16_DOT)
class Decoder {
 public:
  explicit Decoder(const std::byte* panel) {
    const __m128i exponents = _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(exponents, 1), _mm_set1_epi8(0x7f));
    const __m128i low = _mm_and_si128(_mm_slli_epi16(exponents, 7), _mm_set1_epi8(static_cast<char>(0x80)));
    high_ = _mm512_broadcast_i32x4(high);
    low_ = _mm512_broadcast_i32x4(low);
  }
  ECHOC_INLINE void unit(const std::byte* from, StepBf16::Vector (&v)[kUnitSteps]) const {
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    const __m512i first = _mm512_load_si512(from);
    const __m512i second = _mm512_load_si512(from + 64);
    const __m512i codes = _mm512_load_si512(from + 128);
    half(first, _mm512_and_si512(codes, nibble), v[0], v[1]);
    half(second, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble), v[2], v[3]);
  }

 private:
  ECHOC_INLINE void half(__m512i rest, __m512i codes, __m512i& a, __m512i& b) const {
    constexpr int kSelect = 0xca;  // of each bit: mask ? second : third
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i high = _mm512_ternarylogic_epi32(sign, rest, _mm512_shuffle_epi8(high_, codes), kSelect);
    const __m512i low = _mm512_ternarylogic_epi32(sign, _mm512_shuffle_epi8(low_, codes), rest, kSelect);
    a = _mm512_unpacklo_epi8(low, high);
    b = _mm512_unpackhi_epi8(low, high);
  }
  __m512i high_, low_;
};
constexpr int kCodedTall = 8;  // most rows of a block that decodes for itself
#else
class Decoder {
 public:
  explicit Decoder(const std::byte* panel) : panel_(panel), header_(coded::header_of(panel)) {}
  void pairs(const std::byte* from, uint16_t* out) const {
    const int64_t first = (from - panel_ - layout::kLine) / coded::kStepBytes * coded::kStep;
    for (int64_t k = 0; k < coded::kStep; ++k)
      for (int64_t lane = 0; lane < layout::kPanel; ++lane)
        out[k / 2 * 32 + lane * 2 + k % 2] = coded::bits_at(panel_, header_, first + k, lane);
  }
  void unit(const std::byte* from, StepBf16::Vector (&v)[kUnitSteps]) const {
    alignas(64) uint16_t out[coded::kStep * layout::kPanel];
    pairs(from, out);
    unroll<kUnitSteps>(
        [&](auto j) ECHOC_INLINE_LAMBDA { v[j] = StepBf16::load(reinterpret_cast<const std::byte*>(out + j * 32)); });
  }

 private:
  const std::byte* panel_;
  coded::Header header_;
};
constexpr int kCodedTall = 2;
#endif

struct CodedJob {
  const std::byte* rows;
  int64_t row_stride;
  const std::byte* panel;
  int64_t units;
  float* acc;
  int64_t ld;
  int64_t ahead;
};

// R rows times a panel that is decoded on the way.
template <int R>
void coded_block(const CodedJob& job) {
  f32x16 sum[kChains][R];
  unroll<kChains, R>([&](auto c, auto r) ECHOC_INLINE_LAMBDA { sum[c][r] = zero(); });
  const Decoder decoder(job.panel);
  const std::byte* w = job.panel + layout::kLine;
  const std::byte* x = job.rows;
  for (int64_t u = 0; u < job.units; ++u, w += coded::kStepBytes, x += kUnitSteps * StepBf16::kRowBytes) {
    StepBf16::Vector v[kUnitSteps];
    decoder.unit(w, v);
    if constexpr (R >= kPrefetchRows)
      for (int64_t line = 0; line < coded::kStepBytes; line += 64) __builtin_prefetch(w + 4 * job.ahead + line, 0, 2);
    unroll<kUnitSteps>([&](auto j) ECHOC_INLINE_LAMBDA {
      unroll<R>([&](auto r) ECHOC_INLINE_LAMBDA {
        sum[j % kChains][r] =
            StepBf16::step(sum[j % kChains][r], v[j], x + r * job.row_stride + j * StepBf16::kRowBytes);
      });
    });
    in_order();
  }
  unroll<R>([&](auto r) ECHOC_INLINE_LAMBDA { store(job.acc + r * job.ld, add(sum[0][r], sum[1][r])); });
}

template <int... R>
void dispatch_coded(int64_t rows, const CodedJob& job, std::integer_sequence<int, R...>) {
  using Block = void (*)(const CodedJob&);
  static constexpr Block kBlocks[] = {coded_block<R + 1>...};
  kBlocks[rows - 1](job);
}

// Rows from which a panel is decoded once for all of them, and the largest K that there is room for.
constexpr int64_t kDecodeRows = 2 * kCodedTall + 1;
constexpr int64_t kDecodedK = 16384;

// Adds the products of the uncoded values of a panel.
void add_uncoded(const std::byte* panel, int64_t K, const std::byte* rows, int64_t row_stride, int64_t num_rows,
                 float* acc, int64_t ld) {
  using Element = std::conditional_t<kBf16Rows, bf16_t, float>;
  const coded::Header header = coded::header_of(panel);
  for (int64_t i = 0; i < header.uncoded; ++i) {
    const coded::Uncoded value = coded::uncoded_of(panel, K, i);
    for (int64_t r = 0; r < num_rows; ++r) {
      const float x = to_float(reinterpret_cast<const Element*>(rows + r * row_stride)[value.k]);
      acc[r * ld + value.lane] += to_float(bf16_t{value.bits}) * x;
    }
  }
}

// A panel as bf16 pairs.
void decode(const std::byte* panel, int64_t units, std::byte* out) {
  const Decoder decoder(panel);
  const std::byte* w = panel + layout::kLine;
  for (int64_t u = 0; u < units; ++u, w += coded::kStepBytes, out += kUnitSteps * 64) {
#if defined(ECHOC_BF16_DOT)
    StepBf16::Vector v[kUnitSteps];
    decoder.unit(w, v);
    unroll<kUnitSteps>([&](auto j) ECHOC_INLINE_LAMBDA { _mm512_store_si512(out + j * 64, v[j]); });
#else
    decoder.pairs(w, reinterpret_cast<uint16_t*>(out));
#endif
  }
}

// place(p) is where panel p's results go.
template <class Place>
void multiply_coded(const std::byte* rows, int64_t row_stride, const std::byte* panels, int64_t K, int64_t num_rows,
                    int64_t num_panels, int64_t ld, int64_t ahead, Place&& place) {
  const int64_t panel_bytes = layout::panel_bytes(layout::kCodedBits, 0, K);
  const int64_t padded = layout::padded_k(layout::kCodedBits, 0, K);
  const int64_t units = padded / coded::kStep;
  if (num_rows >= kDecodeRows && padded <= kDecodedK) {
    constexpr int64_t kMostBytes = kDecodedK * layout::kPanel * 2;
    alignas(64) static thread_local std::byte decoded[kWide * kMostBytes];
    const int64_t decoded_bytes = padded * layout::kPanel * 2;
    for (int64_t p = 0; p < num_panels; p += kWide) {
      const int64_t wide = std::min<int64_t>(kWide, num_panels - p);
      for (int64_t i = 0; i < wide; ++i) {
        const std::byte* panel = panels + (p + i) * panel_bytes;
        decode(panel, units, decoded + i * decoded_bytes);
      }
      multiply<StepBf16>(
          rows, row_stride, decoded, decoded_bytes, padded / 2, num_rows, wide, ld, ahead,
          [&](int64_t i) { return place(p + i); }, panels + (p + wide) * panel_bytes, kWide * panel_bytes);
    }
  } else {
    const int64_t blocks = (num_rows + kCodedTall - 1) / kCodedTall;
    for (int64_t p = 0; p < num_panels; ++p) {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = num_rows * b / blocks;
        const CodedJob job{
            rows + first * row_stride, row_stride, panels + p * panel_bytes, units, place(p) + first * ld, ld, ahead};
        dispatch_coded(num_rows * (b + 1) / blocks - first, job, std::make_integer_sequence<int, kCodedTall>{});
      }
    }
  }
  for (int64_t p = 0; p < num_panels; ++p)
    add_uncoded(panels + p * panel_bytes, K, rows, row_stride, num_rows, place(p), ld);
}

}  // namespace

template <int Bits, int Group>
void Weight<Bits, Group>::prepare(const float* x, int64_t K, void* row) {
  const int64_t padded = layout::padded_k(Bits, Group, K);
  using Element = std::conditional_t<(Bits != 32 && kBf16Rows), bf16_t, float>;
  auto* out = static_cast<Element*>(row);
  from_float(x, out, K);
  std::fill(out + K, out + padded, Element{});
}

template <int Bits, int Group>
void Weight<Bits, Group>::tile(const void* rows, const void* panels, int64_t K, int64_t num_rows, int64_t num_panels,
                               float* acc, int64_t ld, int64_t planes, int64_t plane, bool deterministic, int64_t ahead,
                               bool) {
  const auto place = [&](int64_t p) { return acc + p % planes * plane + p / planes * kPanel; };
#if defined(ECHOC_AMX)
  if constexpr (Bits == 16) {
    if (amx::available()) {
      const amx::Bf16Panels source{static_cast<const std::byte*>(panels), panel_bytes(K)};
      amx::multiply_bf16(static_cast<const std::byte*>(rows), row_bytes(K), num_rows, num_panels,
                         layout::padded_k(16, 0, K) / layout::kBf16Step, ld, source, place);
      return;
    }
  }
  if constexpr (Bits == 8) {
    if (!deterministic && num_rows >= kDequantiseRows && amx::available()) {
      alignas(64) static thread_local std::byte slots[2 * amx::F8Panels::kMostSteps * 1024];
      const amx::F8Panels source{static_cast<const std::byte*>(panels), panel_bytes(K), slots};
      amx::multiply_bf16(static_cast<const std::byte*>(rows), row_bytes(K), num_rows, num_panels,
                         layout::padded_k(8, 0, K) / layout::kBf16Step, ld, source, place);
      for (int64_t p = 0; p < num_panels; ++p) {
        const std::byte* scales = static_cast<const std::byte*>(panels) + p * panel_bytes(K) + layout::panel_scales(K);
        const f32x16 scale = load(reinterpret_cast<const float*>(scales));
        for (int64_t r = 0; r < num_rows; ++r) store(place(p) + r * ld, mul(load(place(p) + r * ld), scale));
      }
      return;
    }
  }
#endif
  (void)deterministic;
  if constexpr (Bits == layout::kCodedBits) {
    multiply_coded(static_cast<const std::byte*>(rows), row_bytes(K), static_cast<const std::byte*>(panels), K,
                   num_rows, num_panels, ld, ahead, place);
    return;
  }
  using Step = std::conditional_t<Bits == 32, StepF32, std::conditional_t<Bits == 16, StepBf16, StepF8>>;
  const int64_t steps = layout::padded_k(Bits, 0, K) * kPanel * Bits / 8 / Step::kStepBytes;
  multiply<Step>(rows, row_bytes(K), panels, panel_bytes(K), steps, num_rows, num_panels, ld, ahead, place);
}

template <int Bits, int Group>
void Weight<Bits, Group>::unpack_row(const void* w, int64_t K, int64_t n, float* out, int64_t interleave,
                                     int64_t which) {
  if constexpr (Bits == layout::kCodedBits) {
    const auto* panel = static_cast<const std::byte*>(w) + (n / kPanel * interleave + which) * panel_bytes(K);
    const coded::Header header = coded::header_of(panel);
    for (int64_t k = 0; k < K; ++k) out[k] = to_float(bf16_t{coded::bits_at(panel, header, k, n % kPanel)});
    for (int64_t i = 0; i < header.uncoded; ++i) {
      const coded::Uncoded value = coded::uncoded_of(panel, K, i);
      if (value.lane == n % kPanel) out[value.k] = to_float(bf16_t{value.bits});
    }
    return;
  }
  constexpr int64_t kPacked = Bits == 32 ? 1 : 2;  // consecutive k of a lane
  using Element = std::conditional_t<Bits == 32, float, std::conditional_t<Bits == 16, bf16_t, f8_t>>;
  const auto* panel = static_cast<const std::byte*>(w) + (n / kPanel * interleave + which) * panel_bytes(K);
  const auto* values = reinterpret_cast<const Element*>(panel) + n % kPanel * kPacked;
  for (int64_t k = 0; k < K; ++k) out[k] = to_float(values[k / kPacked * kPacked * kPanel + k % kPacked]);
  if constexpr (Bits == 8) {
    const float scale = reinterpret_cast<const float*>(panel + layout::panel_scales(K))[n % kPanel];
    for (int64_t k = 0; k < K; ++k) out[k] *= scale;
  }
}

template <int Bits, int Group>
Blocking Weight<Bits, Group>::blocking(int64_t T, int64_t) {
#if defined(ECHOC_AMX)
  if (Bits != 32 && T > 32) return {256, 32};
#endif
  constexpr int64_t kRows = Bits == layout::kCodedBits ? 192 : 96;  // panels are decoded once for so many
  return T <= kFewRows ? Blocking{32, 16} : Blocking{kRows, 16};
}

template <int Bits, int Group>
void Weight<Bits, Group>::begin() {}

template <int Bits, int Group>
void Weight<Bits, Group>::end() {
#if defined(ECHOC_AMX)
  if constexpr (Bits != 32) {
    if (amx::available()) amx::release();
  }
#endif
}

float* accumulators() {
  alignas(64) static thread_local float buffer[kAccumulators];
  return buffer;
}

std::byte* gather_buffer() {
  alignas(64) static thread_local std::byte buffer[kGatherBytes];
  return buffer;
}

template struct Weight<32, 0>;
template struct Weight<16, 0>;
template struct Weight<12, 0>;
template struct Weight<8, 0>;

}  // namespace echoc
