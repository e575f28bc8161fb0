// i8 and i4 weights against int8 activations, both scaled per group.
//
// Every path computes a group's exact integer sum, turns it to f32 and adds sum * (weight scale * row scale) to the
// row's result, groups in ascending order. Row scales are powers of two. So all levels, and all shapes of call, give
// the same bits. The exception is many rows on AMX without `deterministic`: weights and activations go through bf16
// there, which is no less accurate.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

#include "bytes.h"
#include "vec16.h"
#if defined(ECHOC_AMX)
#include "amx.h"
#endif
#include "tiles.h"

namespace echoc {
namespace {

using namespace vec16;

#if defined(ECHOC_AVX512)
constexpr int kTall = 5;  // most rows of a block: six are more sums than registers hold beside 4-bit weights
constexpr int kWide = 2;  // panels of a block, where there are several rows
#else
constexpr int kTall = 2;
constexpr int kWide = 1;
#endif

#if defined(ECHOC_AMX)
constexpr int64_t kAmxRows = 9;          // fewer are quicker without tiles
constexpr int64_t kDequantiseRows = 64;  // so many pay for turning a panel to bf16
#endif

// Bytes of a group of one row among arranged ones: its scale, the sum of its values, and the values.
constexpr int64_t arranged_bytes(int group) { return 8 + group; }

struct Job {
  const std::byte* rows;
  int64_t row_stride;
  int64_t scales;  // offsets in a row
  int64_t sums;
  const std::byte* arranged;  // the same rows, where there are more than one
  const std::byte* panel;
  int64_t panel_stride;
  int64_t blocks;  // of two groups
  int group;
  float* acc[2];
  int64_t ld;
  int64_t ahead;          // bytes of a panel to ask for beforehand, where it is read once
  const std::byte* next;  // what to bring into the second-level cache meanwhile, `lines` a block of two groups
  int64_t lines;
};

// The scales of prepared rows are powers of two, so that arranged rows multiply by adding to exponents: the units that
// multiply f32 are those of vpdpbusd. An f16 times what lies between these bounds is neither infinite nor subnormal.
constexpr float kLeastScale = 0x1p-100f;
constexpr float kMostScale = 0x1p110f;

// What to add to the bits of a float to multiply it by `scale`; nothing for 0, which only zeros have.
int32_t exponent_of(float scale) { return scale > 0.0f ? std::bit_cast<int32_t>(scale) - (127 << 23) : 0; }

// The scales of a panel's group, for times(). A scale of 0 is that of zeros, so any other does, and one is needed: the
// bits of 0 can't be added to.
#if defined(ECHOC_AVX512)
ECHOC_INLINE f32x16 load_scales(const std::byte* from) {
  constexpr int kLargerWithFirstSign = 0x3;
  return _mm512_range_ps(load_f16(from), splat(0x1p-24f), kLargerWithFirstSign);
}
ECHOC_INLINE f32x16 times(f32x16 scales, int32_t exponent) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(scales), _mm512_set1_epi32(exponent)));
}
#else
ECHOC_INLINE f32x16 load_scales(const std::byte* from) { return load_f16(from); }
ECHOC_INLINE f32x16 times(f32x16 scales, int32_t exponent) {
  return mul(scales, splat(std::bit_cast<float>(exponent + (127 << 23))));
}
#endif

// R rows of a block group by group, as one forward stream: the scales of a group as exponent_of() gives them, its
// sums, then R times 32 values.
template <int R>
struct Rows {
  const std::byte* group;
  const std::byte* values;
  explicit Rows(const Job& job) : group(job.arranged), values(group + 8 * R) {}
  int32_t exponent(int64_t r) const { return read<int32_t>(group + r * 4); }
  const std::byte* sum(int64_t r) const { return group + (R + r) * 4; }
  const std::byte* at(int64_t r, int64_t k) const { return values + r * 32 + k; }
  void next_part() { values += R * 32; }
  void next_group() {
    group = values;
    values += 8 * R;
  }
};

// Lays the rows of a block out as Rows<num_rows> reads them; returns the end. Each row, its scales and its sums apart
// would be more streams than the prefetchers follow. `plain` stays where times() serves for all of their scales.
std::byte* arrange(const Job& job, int64_t first, int64_t num_rows, std::byte* out, bool& plain) {
  const auto copy = [&](int64_t from, int64_t bytes) {
    for (int64_t r = 0; r < num_rows; ++r, out += bytes)
      std::memcpy(out, job.rows + (first + r) * job.row_stride + from, bytes);
  };
  for (int64_t g = 0; g < 2 * job.blocks; ++g) {
    for (int64_t r = 0; r < num_rows; ++r, out += 4) {
      const auto scale = read<float>(job.rows + (first + r) * job.row_stride + job.scales + g * 4);
      const int32_t exponent = exponent_of(scale);
      plain &= scale == 0.0f || (scale > kLeastScale && scale < kMostScale);
      std::memcpy(out, &exponent, 4);
    }
    copy(job.sums + g * 4, 4);
    for (int64_t part = 0; part < job.group; part += 32) copy(g * job.group + part, 32);
  }
  return out;
}

// One group: `w` points at its values, `scales` are the panel's.
template <int Bits, int R, int P>
ECHOC_INLINE void add_group(const Job& job, const std::byte* w, const std::byte* scales, Rows<R>& rows,
                            f32x16 (&sum)[R][P]) {
  using Dot = ByteDot<Bits>;
  constexpr int kPartBytes = 32 * 16 * Bits / 8;  // a group goes in parts of 32 k, eight steps
  typename Dot::Sum dot[R][P];
  unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA { dot[r][p] = Dot::start(read<int32_t>(rows.sum(r))); });
  for (int64_t part = 0; part < job.group; part += 32, w += kPartBytes) {
    unroll<kPartBytes / 64>([&](auto s) ECHOC_INLINE_LAMBDA {
      typename Dot::Vector v[P][Dot::kVectors];
      unroll<P>([&](auto p) ECHOC_INLINE_LAMBDA { Dot::load(w + p * job.panel_stride + s * 64, v[p]); });
      if constexpr (P == 1 && R >= kPrefetchRows) __builtin_prefetch(w + s * 64 + job.ahead);
      unroll<Dot::kVectors>([&](auto i) ECHOC_INLINE_LAMBDA {
        unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA {
          Dot::step(dot[r][p], v[p][i], rows.at(r, (s * Dot::kVectors + i) * 4));
        });
      });
    });
    unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA { Dot::flush(dot[r][p]); });
    rows.next_part();
  }
  f32x16 scale[P];
  unroll<P>([&](auto p) ECHOC_INLINE_LAMBDA { scale[p] = load_scales(scales + p * job.panel_stride); });
  unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA {
    sum[r][p] = fma(Dot::finish(dot[r][p]), times(scale[p], rows.exponent(r)), sum[r][p]);
  });
  rows.next_group();
}

// R rows times P panels.
template <int Bits, int R, int P>
void block(const Job& job) {
  const int64_t group_bytes = layout::group_bytes(Bits, job.group);
  const int64_t block_bytes = layout::block_bytes(Bits, job.group);
  f32x16 sum[R][P];
  unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA { sum[r][p] = zero(); });
  Rows<R> rows(job);
  const std::byte* next = job.next;
  for (int64_t b = 0; b < job.blocks; ++b) {
    const std::byte* w = job.panel + b * block_bytes;
    const std::byte* scales = w + 2 * group_bytes;
    for (int64_t h = 0; h < 2; ++h) add_group<Bits, R, P>(job, w + h * group_bytes, scales + h * 32, rows, sum);
    if constexpr (P > 1)
      for (const std::byte* end = next + job.lines * 64; next < end; next += 64) __builtin_prefetch(next, 0, 2);
  }
  unroll<R, P>([&](auto r, auto p) ECHOC_INLINE_LAMBDA { store(job.acc[p] + r * job.ld, sum[r][p]); });
}

template <int Bits, int P, int... R>
void dispatch(int64_t rows, const Job& job, std::integer_sequence<int, R...>) {
  using Block = void (*)(const Job&);
  static constexpr Block kBlocks[] = {block<Bits, R + 1, P>...};
  kBlocks[rows - 1](job);
}

// One row, as it was prepared, times `num_panels` panels. Memory gives all it has to a stream of strictly ascending
// lines: the scales of two groups are read after the values of both, and no load passes another.
template <int Bits, int Group, class Place>
void stream_row(const Job& job, int64_t num_panels, Place&& place) {
  using Dot = ByteDot<Bits>;
  constexpr int kLineSteps = Dot::kVectors * 4;  // k of a line
  constexpr int64_t kGroupBytes = layout::group_bytes(Bits, Group);
  const std::byte* w = job.panel;
  for (int64_t p = 0; p < num_panels; ++p) {
    const std::byte* x = job.rows;
    const std::byte* row_scale = job.rows + job.scales;
    const std::byte* row_sum = job.rows + job.sums;
    f32x16 sum = zero();
    for (int64_t b = 0; b < job.blocks; ++b, w += layout::block_bytes(Bits, Group)) {
      f32x16 exact[2];
      unroll<2>([&](auto h) ECHOC_INLINE_LAMBDA {
        typename Dot::Sum dot = Dot::start(read<int32_t>(row_sum + h * 4));
        for (int part = 0; part < Group; part += 32, x += 32) {
          const std::byte* values = w + h * kGroupBytes + part * 2 * Bits;
          unroll<32 / kLineSteps>([&](auto s) ECHOC_INLINE_LAMBDA {
            typename Dot::Vector v[Dot::kVectors];
            Dot::load(values + s * 64, v);
            if constexpr (kPrefetchRows == 1) __builtin_prefetch(values + s * 64 + job.ahead);
            unroll<Dot::kVectors>([&](auto i)
                                      ECHOC_INLINE_LAMBDA { Dot::step(dot, v[i], x + s * kLineSteps + i * 4); });
            in_order();
          });
          Dot::flush(dot);
        }
        exact[h] = Dot::finish(dot);
      });
      unroll<2>([&](auto h) ECHOC_INLINE_LAMBDA {
        const f32x16 scale = load_f16(w + 2 * kGroupBytes + h * 32);
        sum = fma(exact[h], mul(scale, splat(read<float>(row_scale + h * 4))), sum);
      });
      in_order();
      row_scale += 8;
      row_sum += 8;
    }
    store(place(p), sum);
  }
}

// This thread's buffer for arranged rows.
constexpr int64_t kArranged = int64_t{1} << 20;
std::byte* arrangement() {
  alignas(64) static thread_local std::byte buffer[kArranged];
  return buffer;
}

// Calls f(first row, height) for row blocks of near-equal height.
template <class F>
void each_block(int64_t num_rows, F&& f) {
  const int64_t blocks = (num_rows + kTall - 1) / kTall;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = num_rows * b / blocks;
    f(begin, num_rows * (b + 1) / blocks - begin);
  }
}

// All row blocks of P panels. Each brings its part of the next P panels nearer.
template <int Bits, int P>
void sweep(const Job& job, int64_t num_rows) {
  const int64_t groups = 2 * job.blocks;
  const int64_t steps = (num_rows + kTall - 1) / kTall * job.blocks;
  Job part = job;
  part.next = job.panel + P * job.panel_stride;
  part.lines = (P * job.panel_stride / 64 + steps - 1) / steps;
  each_block(num_rows, [&](int64_t first, int64_t height) {
    part.rows = job.rows + first * job.row_stride;
    part.arranged = job.arranged + first * groups * arranged_bytes(job.group);
    for (int p = 0; p < P; ++p) part.acc[p] = job.acc[p] + first * job.ld;
    dispatch<Bits, P>(height, part, std::make_integer_sequence<int, kTall>{});
    part.next += part.lines * job.blocks * 64;
  });
}

// Rows that fit in arrangement(); place(p) is where panel p's results go.
template <int Bits, int Group, class Place>
void multiply(Job job, int64_t num_rows, int64_t num_panels, bool again, Place&& place) {
  if (num_rows == 1) return stream_row<Bits, Group>(job, num_panels, place);
  static thread_local bool plain;
  job.arranged = arrangement();
  if (!again) {
    std::byte* out = arrangement();
    plain = true;
    each_block(num_rows, [&](int64_t first, int64_t height) { out = arrange(job, first, height, out, plain); });
  }
  if (!plain) {
    for (int64_t r = 0; r < num_rows; ++r, job.rows += job.row_stride)
      stream_row<Bits, Group>(job, num_panels, [&](int64_t p) { return place(p) + r * job.ld; });
    return;
  }
  int64_t p = 0;
  for (; p + kWide <= num_panels; p += kWide) {
    for (int i = 0; i < kWide; ++i) job.acc[i] = place(p + i);
    sweep<Bits, kWide>(job, num_rows);
    job.panel += kWide * job.panel_stride;
  }
  for (; p < num_panels; ++p) {
    job.acc[0] = place(p);
    sweep<Bits, 1>(job, num_rows);
    job.panel += job.panel_stride;
  }
}

// Adding and subtracting it rounds to the nearest integer, in the mantissa's low bits.
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23

// The least power of two that takes `most` to 127 or less; 0 for 0.
float scale_of(float most) {
  constexpr int32_t kMantissa = (1 << 23) - 1;
  return std::bit_cast<float>((std::bit_cast<int32_t>(most / 127.0f) + kMantissa) & ~kMantissa);
}

// One group of activations as int8, its scale, and the sum of the int8 values. NaN has no part in the scale.
template <int Group>
void prepare_group(const float* x, int8_t* out, float* scale, int32_t* sum) {
#if defined(ECHOC_AVX512)
  __m512 most16 = _mm512_setzero_ps();
  for (int i = 0; i < Group; i += 16) most16 = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i)), most16);
  *scale = scale_of(_mm512_reduce_max_ps(most16));
  const __m512 inverse = _mm512_set1_ps(*scale > 0.0f ? 1.0f / *scale : 0.0f);
  __m512i total = _mm512_setzero_si512();
  for (int i = 0; i < Group; i += 16) {
    const __m512 rounded = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), inverse, _mm512_set1_ps(kRound));
    const __m128i value = _mm512_cvtepi32_epi8(_mm512_castps_si512(rounded));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), value);
    total = _mm512_add_epi32(total, _mm512_cvtepi8_epi32(value));
  }
  *sum = _mm512_reduce_add_epi32(total);
#else
  float most = 0.0f;
  for (int i = 0; i < Group; ++i) {
    const float size = std::fabs(x[i]);
    most = most < size ? size : most;
  }
  *scale = scale_of(most);
  const float inverse = *scale > 0.0f ? 1.0f / *scale : 0.0f;
  int32_t total = 0;
  for (int i = 0; i < Group; ++i) {
    const float rounded = std::fma(x[i], inverse, kRound);
    const auto value = static_cast<int8_t>(std::bit_cast<int32_t>(rounded) & 0xff);
    out[i] = value;
    total += value;
  }
  *sum = total;
#endif
}

}  // namespace

template <int Bits, int Group>
void Weight<Bits, Group>::prepare(const float* x, int64_t K, void* row) {
  auto* bytes = static_cast<std::byte*>(row);
  auto* values = reinterpret_cast<int8_t*>(bytes);
  auto* scales = reinterpret_cast<float*>(bytes + layout::row_scales(Group, K));
  auto* sums = reinterpret_cast<int32_t*>(bytes + layout::row_sums(Group, K));
  constexpr auto kOffset = static_cast<int32_t>(layout::offset_of(Bits));
  const int64_t groups = layout::groups(Group, K);
  for (int64_t g = 0; g < groups; ++g) {
    float padded[Group];
    const float* group = x + g * Group;
    const int64_t count = std::clamp<int64_t>(K - g * Group, 0, Group);
    if (count < Group) {
      std::fill(std::copy_n(group, count, padded), padded + Group, 0.0f);
      group = padded;
    }
    prepare_group<Group>(group, values + g * Group, scales + g, sums + g);
    sums[g] *= -kOffset;
  }
#if defined(ECHOC_AMX)
  auto* copy = reinterpret_cast<bf16_t*>(bytes + layout::row_bf16(Group, K));
  from_float(x, copy, K);
  std::fill(copy + K, copy + layout::padded_k(Bits, Group, K), bf16_t{0});
#endif
}

template <int Bits, int Group>
void Weight<Bits, Group>::tile(const void* rows, const void* panels, int64_t K, int64_t num_rows, int64_t num_panels,
                               float* acc, int64_t ld, int64_t planes, int64_t plane, bool deterministic, int64_t ahead,
                               bool again) {
  const auto place = [&](int64_t p) { return acc + p % planes * plane + p / planes * kPanel; };
#if defined(ECHOC_AMX)
  if (!deterministic && num_rows >= kDequantiseRows && amx::available()) {
    alignas(64) static thread_local std::byte slots[2 * amx::DequantisedPanels<Bits>::kMostSteps * 1024];
    const amx::DequantisedPanels<Bits> source{static_cast<const std::byte*>(panels), panel_bytes(K), Group, slots};
    amx::multiply_bf16(static_cast<const std::byte*>(rows) + layout::row_bf16(Group, K), row_bytes(K), num_rows,
                       num_panels, layout::padded_k(Bits, Group, K) / layout::kBf16Step, ld, source, place);
    return;
  }
  if (num_rows >= kAmxRows && amx::available()) {
    const amx::IntJob tiled{static_cast<const std::byte*>(rows),
                            row_bytes(K),
                            layout::row_scales(Group, K),
                            layout::row_sums(Group, K),
                            static_cast<const std::byte*>(panels),
                            layout::groups(Group, K) / 2,
                            Group,
                            nullptr,
                            ld};
    amx::multiply_int<Bits>(tiled, panel_bytes(K), num_rows, num_panels, place);
    return;
  }
#endif
  (void)deterministic;
  Job job{static_cast<const std::byte*>(rows),
          row_bytes(K),
          layout::row_scales(Group, K),
          layout::row_sums(Group, K),
          nullptr,
          static_cast<const std::byte*>(panels),
          panel_bytes(K),
          layout::groups(Group, K) / 2,
          Group,
          {},
          ld,
          ahead,
          nullptr,
          0};
  const int64_t most_rows = std::max<int64_t>(kArranged / (layout::groups(Group, K) * arranged_bytes(Group)), 1);
  for (int64_t first = 0; first < num_rows; first += most_rows, job.rows += most_rows * job.row_stride) {
    multiply<Bits, Group>(job, std::min(most_rows, num_rows - first), num_panels, again && num_rows <= most_rows,
                          [&](int64_t p) { return place(p) + first * ld; });
  }
}

template <int Bits, int Group>
void Weight<Bits, Group>::unpack_row(const void* w, int64_t K, int64_t n, float* out, int64_t interleave,
                                     int64_t which) {
  const auto* panel = static_cast<const std::byte*>(w) + (n / kPanel * interleave + which) * panel_bytes(K);
  const int64_t lane = n % kPanel;
  constexpr int64_t kGroupBytes = layout::group_bytes(Bits, Group);
  constexpr auto kOffset = static_cast<int>(layout::offset_of(Bits));
  for (int64_t k = 0; k < K; ++k) {
    const int64_t g = k / Group;
    const int64_t i = k % Group;
    const std::byte* block = panel + g / 2 * layout::block_bytes(Bits, Group);
    const auto* values = reinterpret_cast<const uint8_t*>(block + g % 2 * kGroupBytes);
    const f16_t scale = reinterpret_cast<const f16_t*>(block + 2 * kGroupBytes)[g % 2 * kPanel + lane];
    int stored = 0;
    if constexpr (Bits == 8) {
      stored = values[i / 4 * 64 + lane * 4 + i % 4];
    } else {
      stored = values[i / 8 * 64 + lane * 4 + i % 4] >> (i % 8 / 4 * 4) & 15;
    }
    out[k] = static_cast<float>(stored - kOffset) * to_float(scale);
  }
}

template <int Bits, int Group>
Blocking Weight<Bits, Group>::blocking(int64_t T, int64_t) {
#if defined(ECHOC_AMX)
  if (T > 32) return {256, 32};
#endif
  return T <= kFewRows ? Blocking{32, 16} : Blocking{96, 16};
}

template <int Bits, int Group>
void Weight<Bits, Group>::begin() {}

template <int Bits, int Group>
void Weight<Bits, Group>::end() {
#if defined(ECHOC_AMX)
  if (amx::available()) amx::release();
#endif
}

template struct Weight<8, 32>;
template struct Weight<8, 64>;
template struct Weight<8, 128>;
template struct Weight<4, 32>;
template struct Weight<4, 64>;
template struct Weight<4, 128>;

}  // namespace echoc
