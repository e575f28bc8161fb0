// Reservoirs: stacked leaky-integrator layers with sparse weights, run over whole series in one call.
//
//   x(t) = (1 - leak) x(t-1) + leak tanh(M [x(t-1); 1; drive(t); y(t-1)])
//
// M of a layer is one stream. Its rows are cut into blocks, and each lane of a block sums one row. A gather costs 5 to
// 8 cycles per register, so with AVX-512 a step of a block looks at two registers of [x; 1; drive; y], and every lane
// of two registers of rows selects one of their elements by a permutation: what is loaded for one register serves two,
// and more registers would leave more lanes with nothing to do. The two are 64-byte windows anywhere in it where
// weights were drawn in the geometry of compiler/targets/cpu/reservoir.py, so that no lane has nothing to do; else each
// is made of two halves of windows, among which the packing finds work for nine lanes of ten. Other levels hold columns
// and gather, one register a block. There is no branch in the loop over steps, and no NaN or infinity in what a lane
// with weight 0 selects, as states are bounded and signals are checked before.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "abi.h"
#include "math.h"
#include "vec16.h"

namespace echoc::reservoir {

constexpr int64_t kChunk = 64;  // steps that a layer runs before the next one, where nothing is fed back

// Offsets are bytes from the start of the plan. All of it is written by the packing.
struct Layer {
  int64_t units, columns, padded;  // padded: of [x; 1; drive; y] in elements, whole windows
  double leak;
  int64_t blocks, windows, value_bytes;  // windows of a step: 2, or 4 half ones; 0: columns. Bytes of a stored value
  int64_t order, steps;                  // int32 per packed row: its unit, -1 for none; int32 per block
  int64_t selects, lanes, values;  // per step: where the windows begin (uint16), lanes' choices; one value per row
  int64_t sources, num_sources;    // Source: what drives it, in the order of the columns
  int64_t first;                   // its first unit among all
  int64_t moved;                   // whether packed rows are in another order than units
};

struct Source {
  int64_t layer;  // 0: columns of the inputs; 1: units of layers below
  int64_t begin, count;
};

struct Plan {
  int64_t layers, inputs, feedback, units, outputs;
  int64_t squares;            // 0: none, 1: every second unit, 2: all, behind the units
  int64_t reads_inputs;       // whether the readout sees the inputs
  int64_t features, readout;  // readout: double [outputs, features]
  int64_t table;              // Layer [layers]
};

// One batch of series. Null pointers stand for what is not wanted.
template <class T>
struct Job {
  const std::byte* plan;
  int64_t batch, steps;
  const T* inputs;  // [batch, steps, inputs]
  const T* late;    // [batch, steps, feedback]: y(t-1) at row t; null: the readout's own
  T* state;         // [batch, units], before and after
  T* output;        // [batch, outputs], of the step before and of the last one
  T* states;        // [batch, steps, units]
  T* outputs;       // [batch, steps, outputs]
  bool closed;      // each output is the next input
};

template <class T>
constexpr int kLanes = 64 / sizeof(T);
constexpr int64_t kRegisters = 2;  // of rows in a block, where windows are held

#if defined(ECHOC_AVX512)

ECHOC_INLINE __m512d load_values(const float* p, double) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
ECHOC_INLINE __m512d load_values(const double* p, double) { return _mm512_loadu_pd(p); }
ECHOC_INLINE __m512 load_values(const float* p, float) { return _mm512_loadu_ps(p); }

// What permutations of doubles and of floats take: one choice for each register of rows, side by side in each lane.
struct Doubles {
  using Register = __m512d;
  using Choice = uint8_t;  // two of 4 bits
  static Register load(const double* p) { return _mm512_load_pd(p); }
  static Register load(const double* lower, const double* upper) {
    return _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_load_pd(lower)), _mm256_load_pd(upper), 1);
  }
  static void store(double* p, Register a) { _mm512_store_pd(p, a); }
  static Register zero() { return _mm512_setzero_pd(); }
  static Register add(Register a, Register b) { return _mm512_add_pd(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_pd(a, b, c); }
  static Register select(Register a, __m512i choice, Register b) { return _mm512_permutex2var_pd(a, choice, b); }
  static __m512i choices(const Choice* p) {
    return _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static __m512i second(__m512i choices) { return _mm512_srli_epi64(choices, 4); }
  using Group = uint64_t;
  static constexpr int kGroup = 8;  // steps whose choices a register holds: a byte for each in every lane
  static __m512i choices(const Group* group, int i) {  // only the lowest 4 bits of a lane count
    __m512i all = _mm512_loadu_si512(reinterpret_cast<const std::byte*>(group) + i);
    asm("" : "+v"(all));  // or it is loaded again to be shifted, across a line
    return all;
  }
};

struct Floats {
  using Register = __m512;
  using Choice = uint16_t;  // two of 5 bits
  static Register load(const float* p) { return _mm512_load_ps(p); }
  static Register load(const float* lower, const float* upper) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_load_ps(lower)), _mm256_load_ps(upper), 1);
  }
  static void store(float* p, Register a) { _mm512_store_ps(p, a); }
  static Register zero() { return _mm512_setzero_ps(); }
  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static Register select(Register a, __m512i choice, Register b) { return _mm512_permutex2var_ps(a, choice, b); }
  static __m512i choices(const Choice* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512i second(__m512i choices) { return _mm512_srli_epi32(choices, 5); }
  using Group = uint32_t;
  static constexpr int kGroup = 3;  // 10 bits for each
  static __m512i choices(const Group* group, int i) {
    return _mm512_srli_epi32(_mm512_loadu_si512(group), static_cast<unsigned>(10 * i));
  }
};

template <class T>
using Wide = std::conditional_t<sizeof(T) == 8, Doubles, Floats>;

// What each row's choice selects of a and b, times its weight, for two registers of rows.
template <class T, class V, class Register = typename Wide<T>::Register>
ECHOC_INLINE void multiply_add(Register a, Register b, __m512i first, __m512i second, const V* weights, Register* sum) {
  using W = Wide<T>;
  sum[0] = W::fma(load_values(weights, T(0)), W::select(a, first, b), sum[0]);
  sum[1] = W::fma(load_values(weights + kLanes<T>, T(0)), W::select(a, second, b), sum[1]);
}

// Sums of the rows of one block. Every second step has sums of its own: one chain of additions would be too long.
template <class T, class V>
ECHOC_INLINE void window_block(const T* z, const uint16_t* selects, const typename Wide<T>::Choice* choices,
                               const V* values, int64_t steps, T* out) {
  using W = Wide<T>;
  typename W::Register sum[4] = {W::zero(), W::zero(), W::zero(), W::zero()};
  const auto step = [&](int64_t s, typename W::Register* acc) ECHOC_INLINE_LAMBDA {
    const __m512i choice = W::choices(choices + kLanes<T> * s);
    multiply_add<T>(W::load(z + selects[2 * s]), W::load(z + selects[2 * s + 1]), choice, W::second(choice),
                    values + kRegisters * kLanes<T> * s, acc);
  };
  int64_t s = 0;
  for (; s + 2 <= steps; s += 2) {
    step(s, sum);
    step(s + 1, sum + 2);
  }
  if (s < steps) step(s, sum);
  W::store(out, W::add(sum[0], sum[2]));
  W::store(out + kLanes<T>, W::add(sum[1], sum[3]));
}

// The same with four half windows, and the choices of a group of steps in one register.
template <class T, class V>
ECHOC_INLINE void half_window_block(const T* z, const uint16_t* selects, const typename Wide<T>::Group* groups,
                                    const V* values, int64_t steps, T* out) {
  using W = Wide<T>;
  typename W::Register sum[4] = {W::zero(), W::zero(), W::zero(), W::zero()};
  const auto step = [&](int64_t s, int i, typename W::Register* acc) ECHOC_INLINE_LAMBDA {
    const uint16_t* const at = selects + 4 * s;
    const __m512i choice = W::choices(groups, i);
    multiply_add<T>(W::load(z + at[0], z + at[1]), W::load(z + at[2], z + at[3]), choice, W::second(choice),
                    values + kRegisters * kLanes<T> * s, acc);
  };
  int64_t s = 0;
  for (; s + W::kGroup <= steps; s += W::kGroup, groups += kLanes<T>) {
    vec16::unroll<W::kGroup>([&](auto i) ECHOC_INLINE_LAMBDA { step(s + i, i, sum + 2 * (i % 2)); });
  }
  for (int i = 0; s < steps; ++s, ++i) step(s, i, sum);
  W::store(out, W::add(sum[0], sum[2]));
  W::store(out + kLanes<T>, W::add(sum[1], sum[3]));
}
#endif

template <class T, class V>
ECHOC_INLINE void column_block(const T* z, const int32_t* columns, const V* values, int64_t steps, T* out) {
  T sum[kLanes<T>] = {};
  for (int64_t s = 0; s < steps; ++s) {
    for (int i = 0; i < kLanes<T>; ++i) {
      sum[i] = m::fma(static_cast<T>(values[s * kLanes<T> + i]), z[columns[s * kLanes<T> + i]], sum[i]);
    }
  }
  std::memcpy(out, sum, sizeof(sum));
}

// out[packed row] = M z.
template <class T, class V>
void multiply(const std::byte* plan, const Layer& layer, const T* z, T* out) {
  constexpr int64_t lanes = kLanes<T>;
  const auto* steps = reinterpret_cast<const int32_t*>(plan + layer.steps);
  const auto* values = reinterpret_cast<const V*>(plan + layer.values);
#if defined(ECHOC_AVX512)
  if (layer.windows) {
    using W = Wide<T>;
    const auto* selects = reinterpret_cast<const uint16_t*>(plan + layer.selects);
    const auto* choices = reinterpret_cast<const typename W::Choice*>(plan + layer.lanes);
    const auto* groups = reinterpret_cast<const typename W::Group*>(plan + layer.lanes);
    for (int64_t b = 0; b < layer.blocks; ++b, out += kRegisters * lanes) {
      if (layer.windows == 2) {
        window_block(z, selects, choices, values, steps[b], out);
        choices += steps[b] * lanes;
      } else {
        half_window_block(z, selects, groups, values, steps[b], out);
        groups += (steps[b] + W::kGroup - 1) / W::kGroup * lanes;
      }
      selects += layer.windows * steps[b];
      values += steps[b] * kRegisters * lanes;
    }
    return;
  }
#endif
  const auto* columns = reinterpret_cast<const int32_t*>(plan + layer.lanes);
  for (int64_t b = 0; b < layer.blocks; ++b, out += lanes) {
    column_block(z, columns, values, steps[b], out);
    columns += steps[b] * lanes;
    values += steps[b] * lanes;
  }
}

// One series at a time, in one thread's memory.
template <class T>
class Runner {
 public:
  Runner(const Job<T>& job, std::byte* scratch)
      : job_(job),
        plan_(*reinterpret_cast<const Plan*>(job.plan)),
        layers_(reinterpret_cast<const Layer*>(job.plan + plan_.table)),
        scratch_(scratch) {}

  void run(int64_t row) {
    memory_ = scratch_;
    features_ = take<double>(plan_.features);
    T* const scratch_rows = take<T>(kChunk * plan_.units);
    int64_t widest = 0;
    for (int64_t l = 0; l < plan_.layers; ++l)
      widest = std::max(widest, layers_[l].blocks * (layers_[l].windows ? kRegisters : 1) * kLanes<T>);
    sums_ = take<T>(widest);
    T* const z = take<T>(0);
    T* const state = job_.state + row * plan_.units;
    load(z, state);
    T* const output = job_.output ? job_.output + row * plan_.outputs : nullptr;
    const T* const inputs = job_.inputs + row * job_.steps * plan_.inputs;
    const bool own = job_.closed || (plan_.feedback && !job_.late);
    const int64_t chunk = own ? 1 : kChunk;
    for (int64_t begin = 0; begin < job_.steps; begin += chunk) {
      const int64_t count = std::min(chunk, job_.steps - begin), place = row * job_.steps + begin;
      rows_ = job_.states ? job_.states + place * plan_.units : scratch_rows;
      const T* const drive = job_.closed ? output : inputs + begin * plan_.inputs;
      const T* const late = job_.late ? job_.late + (row * job_.steps + begin) * plan_.feedback : output;
      T* at = z;
      for (int64_t l = 0; l < plan_.layers; ++l) {
        advance(layers_[l], at, count, drive, late);
        at += layers_[l].padded;
      }
      for (int64_t t = 0; plan_.outputs && output && t < count; ++t) {
        if (!own && !job_.outputs && begin + t + 1 < job_.steps) continue;
        read_out(drive + t * plan_.inputs, rows_ + t * plan_.units, output);
        if (job_.outputs) std::copy_n(output, plan_.outputs, job_.outputs + (place + t) * plan_.outputs);
      }
      if (begin + count == job_.steps) {
        std::copy_n(rows_ + (count - 1) * plan_.units, plan_.units, state);
      }
    }
  }

 private:
  template <class U>
  U* take(int64_t count) {
    auto* const out = reinterpret_cast<U*>(memory_);
    memory_ += (static_cast<size_t>(count) * sizeof(U) + 63) / 64 * 64;
    return out;
  }

  void load(T* z, const T* state) const {
    for (int64_t l = 0; l < plan_.layers; z += layers_[l].padded, ++l) {
      const auto* const order = reinterpret_cast<const int32_t*>(job_.plan + layers_[l].order);
      std::fill_n(z, layers_[l].padded, T(0));
      for (int64_t i = 0; i < layers_[l].units; ++i) z[i] = state[layers_[l].first + order[i]];
    }
  }

  // The layer's rows of all steps; z holds [x; 1; drive; y] with x in packed order.
  void advance(const Layer& layer, T* z, int64_t count, const T* inputs, const T* late) {
    const auto* const order = reinterpret_cast<const int32_t*>(job_.plan + layer.order);
    const auto* const sources = reinterpret_cast<const Source*>(job_.plan + layer.sources);
    const T leak = static_cast<T>(layer.leak), kept = static_cast<T>(1.0 - layer.leak);
    for (int64_t t = 0; t < count; ++t) {
      T* const row = rows_ + t * plan_.units;
      T* at = z + layer.units;
      *at++ = T(1);
      for (int64_t i = 0; i < layer.num_sources; ++i) {
        const T* const from = sources[i].layer ? row : inputs + t * plan_.inputs;
        at = std::copy_n(from + sources[i].begin, sources[i].count, at);
      }
      std::copy_n(late + t * plan_.feedback, plan_.feedback, at);
      if (layer.value_bytes == 4) {
        multiply<T, float>(job_.plan, layer, z, sums_);
      } else {
        multiply<T, T>(job_.plan, layer, z, sums_);
      }
      const T* const sums = sums_;
#pragma GCC ivdep
      for (int64_t i = 0; i < layer.units; ++i) z[i] = kept * z[i] + leak * m::tanh(sums[i]);
      T* const out = row + layer.first;
      if (layer.moved) {
        for (int64_t i = 0; i < layer.units; ++i) out[order[i]] = z[i];
      } else {
        std::copy_n(z, layer.units, out);
      }
    }
  }

  void read_out(const T* inputs, const T* row, T* output) {
    double* f = features_;
    *f++ = 1.0;
    if (plan_.reads_inputs) f = std::copy_n(inputs, plan_.inputs, f);
    for (int64_t i = 0; i < plan_.units; ++i) f[i] = static_cast<double>(row[i]);
    if (plan_.squares == 1) {
      for (int64_t i = 1; i < plan_.units; i += 2) f[i] *= f[i];
    } else if (plan_.squares == 2) {
      for (int64_t i = 0; i < plan_.units; ++i) f[plan_.units + i] = f[i] * f[i];
    }
    const auto* weights = reinterpret_cast<const double*>(job_.plan + plan_.readout);
    for (int64_t o = 0; o < plan_.outputs; ++o, weights += plan_.features) {
      double sum[16] = {};
      int64_t i = 0;
      for (; i + 16 <= plan_.features; i += 16) {
        for (int k = 0; k < 16; ++k) sum[k] = m::fma(weights[i + k], features_[i + k], sum[k]);
      }
      double total = 0;
      for (; i < plan_.features; ++i) total = m::fma(weights[i], features_[i], total);
      for (const double part : sum) total += part;
      output[o] = static_cast<T>(total);
    }
  }

  const Job<T>& job_;
  const Plan& plan_;
  const Layer* layers_;
  std::byte* scratch_;
  std::byte* memory_ = nullptr;
  double* features_ = nullptr;
  T* rows_ = nullptr;  // of this chunk: where the states go, or scratch
  T* sums_ = nullptr;
};

// This thread's share of the batch.
template <class T>
void run(const Job<T>& job, const Call& call) {
  const Range mine = share(job.batch, call.tid, call.nthreads);
  Runner<T> runner(job, call.scratch);
  for (int64_t row = mine.begin; row < mine.end; ++row) runner.run(row);
}

}  // namespace echoc::reservoir
