// Reservoirs on a GPU: stacked leaky-integrator layers with sparse weights, run over whole series in one launch.
//
//   x(t) = (1 - leak) x(t-1) + leak tanh(M [x(t-1); 1; drive(t); y(t-1)])
//
// All blocks stay on the device over the whole series. Each has rows of M, in registers or shared memory where they
// fit, and a board in shared memory: [1; drives; outputs fed back; states of all units]. In a tick every block computes
// its rows from its board, posts the new states in global memory and waits for those of all others; each state
// carries the number of its tick, so that no barrier is needed beside it. Two letter boxes in turn suffice: a block
// posts tick k + 2 only when it has the whole tick k + 1, which every block posts when it has read tick k.
//
// Layers that drive others run a tick ahead of them each, all layers in one tick (a pipeline), where each is at the
// right distance from what it drives and nothing is fed back; else one depth after another.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/math.h"
#include "kernels/gpu/device.h"

namespace echoc::reservoir {

enum class Hold { registers, shared, plan };  // where the weights stay
enum class Loop { none, feedback, closed };   // what the readout's outputs drive: nothing, y(t-1), the inputs
enum class Squares { none, half, all };       // of the states, in the readout

#if defined(__NVPTX__) || defined(__AMDGCN__)
extern "C" __attribute__((address_space(3), aligned(16))) std::byte reservoir_shared[];
inline std::byte* shared_memory() { return (std::byte*)reservoir_shared; }
inline uint64_t look(const uint64_t* word) {
  return __scoped_atomic_load_n(word, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
}
inline void post(uint64_t* word, uint64_t value) {
  __scoped_atomic_store_n(word, value, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
}
#else
std::byte* shared_memory();  // of the calling thread's block
inline uint64_t look(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
inline void post(uint64_t* word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }
#endif

template <class T>
struct Row {
  int32_t unit;   // among all, -1 for none
  int32_t depth;  // how many ticks it runs behind the first layers
  T leak, kept;
};

// One batch of series. Null pointers stand for what is not wanted.
template <class T>
struct Job {
  const std::byte* plan;
  std::byte* mail;  // of all teams, zero before the first launch
  int32_t batch, steps;
  const T* inputs;  // [batch, steps, inputs]
  const T* late;    // [batch, steps, feedback]: y(t-1) at row t
  T* state;         // [batch, units], before and after
  T* output;        // [batch, outputs], of the step before and of the last one
  T* states;        // [batch, steps, units]
  T* outputs;       // [batch, steps, outputs]
};

// What a team of blocks shares; letters and rows of the last steps stand behind it.
struct Mail {
  device::Meeting meeting;
  uint32_t ticks;  // of all launches, modulo 2^32
  uint32_t unused[13];
};
static_assert(sizeof(Mail) == 64);

// A state and the tick it belongs to, in words that are written at once: 32 bits and the tick in each.
template <class T>
struct Letter {
  static constexpr int kWords = sizeof(T) / 4;
  uint64_t words[kWords];

  bool of(uint32_t tick) const {
    bool all = true;
    for (const uint64_t word : words) all = all && static_cast<uint32_t>(word >> 32) == tick;
    return all;
  }
  T value() const {
    if constexpr (kWords == 2) {
      return std::bit_cast<double>((words[1] << 32) | (words[0] & 0xFFFFFFFFu));
    } else {
      return std::bit_cast<float>(static_cast<uint32_t>(words[0]));
    }
  }
};

// `N` is one network as compiler/targets/gpu/reservoir.py lays it out: sizes and offsets, all known when it is
// compiled.
template <class N>
class Worker {
 public:
  using T = typename N::State;
  using V = typename N::Weight;

  Worker(const Job<T>& job, uint32_t block) : job_(job), part_(static_cast<int>(block) % N::kBlocks) {
    std::byte* at = shared_memory();
    board_ = reinterpret_cast<T*>(at + N::kBoardAt);
    sums_ = reinterpret_cast<T*>(at + N::kSumsAt);
    dots_ = reinterpret_cast<double*>(at + N::kDotsAt);
    rows_ = reinterpret_cast<Row<T>*>(at + N::kRowsAt);
    std::byte* const own = job.mail + static_cast<int64_t>(block / N::kBlocks) * N::kTeamBytes;
    mail_ = reinterpret_cast<Mail*>(own);
    letters_ = reinterpret_cast<Letter<T>*>(own + sizeof(Mail));
    history_ = reinterpret_cast<T*>(own + N::kHistoryAt);
    tick_ = mail_->ticks;
    take_weights(at);
  }

  /// One series of the batch.
  void run(int row) {
    place_ = static_cast<int64_t>(row) * job_.steps;
    state_ = job_.state + static_cast<int64_t>(row) * N::kUnits;
    output_ = job_.output ? job_.output + static_cast<int64_t>(row) * N::kOutputs : nullptr;
    if (thread() == 0) board_[0] = T(1);
    for (int i = thread(); i < N::kUnits; i += N::kThreads) board_[N::kStates + i] = state_[i];
    if constexpr (N::kLoop != Loop::none) {
      for (int i = thread(); i < N::kOutputs; i += N::kThreads) board_[kFed + i] = output_[i];
    }
    fetch(0);
    put_drives();
    device::meet_block();
    const int ticks = N::kPipeline ? job_.steps + N::kDepths - 1 : job_.steps * N::kDepths;
    for (int k = 0; k < ticks; ++k) {
      fetch(k + 1);
      multiply(k);
      device::meet_block();
      advance(k);
      put_drives();
      if constexpr (N::kBlocks > 1) receive();
      ++tick_;
      device::meet_block();
      const int done = N::kPipeline ? k + 2 - N::kDepths : (k + 1) / N::kDepths;  // steps of all layers
      if constexpr (N::kLoop != Loop::none) {
        if (done * N::kDepths == k + 1) feed_back(done - 1);
      } else if constexpr (N::kOutputs > 0) {
        const bool whole = N::kPipeline ? done > 0 : done > 0 && done * N::kDepths == k + 1;
        if (whole && (done % N::kChunk == 0 || done == job_.steps))
          read_chunk((done - 1) / N::kChunk * N::kChunk, done);
      }
    }
    if (part_ == 0) {
      for (int i = thread(); i < N::kUnits; i += N::kThreads) state_[i] = board_[N::kStates + i];
    }
    device::meet_block();
  }

  /// Leaves the number of ticks to the next launch.
  void end() {
    if (part_ == 0 && thread() == 0) mail_->ticks = tick_;
  }

 private:
  static constexpr int kActive = N::kLanes * N::kRows;  // threads that multiply
  static constexpr int kInputsAt = 1, kLateAt = kInputsAt + N::kLags * N::kInputs;
  static constexpr int kFed = N::kLoop == Loop::closed ? kInputsAt : kLateAt;
  static constexpr bool kReadsInputs = N::kInputs > 0 && N::kLoop != Loop::closed;
  static constexpr bool kReadsLate = N::kFeedback > 0 && N::kLoop == Loop::none;
  static constexpr int kDrives =
      (kReadsInputs ? N::kLags * N::kInputs : 0) + (kReadsLate ? N::kLags * N::kFeedback : 0);
  static constexpr int kFetched = (kDrives + N::kThreads - 1) / N::kThreads;
  static constexpr int kHeld = N::kHold == Hold::registers ? N::kSlots : 1;

  static int thread() { return static_cast<int>(device::thread()); }

  void take_weights(std::byte* at) {
    const auto* values = reinterpret_cast<const V*>(job_.plan + N::kValues) + part_ * (N::kSlots * kActive);
    const auto* columns = reinterpret_cast<const uint16_t*>(job_.plan + N::kColumns) + part_ * (N::kSlots * kActive);
    const auto* rows = reinterpret_cast<const Row<T>*>(job_.plan + N::kRowTable) + part_ * (N::kPasses * N::kRows);
    for (int i = thread(); i < N::kPasses * N::kRows; i += N::kThreads) rows_[i] = rows[i];
    if constexpr (N::kHold == Hold::registers) {
      const int mine = thread() < kActive ? thread() : 0;
#pragma unroll
      for (int s = 0; s < N::kSlots; ++s) {
        held_values_[s] = values[s * kActive + mine];
        const uint32_t column = columns[s * kActive + mine];
        held_columns_[s / 2] = s % 2 ? held_columns_[s / 2] | column << 16 : column;
      }
    } else if constexpr (N::kHold == Hold::shared) {
      auto* const kept = reinterpret_cast<V*>(at + N::kHeldValues);
      auto* const places = reinterpret_cast<uint16_t*>(at + N::kHeldColumns);
      for (int i = thread(); i < N::kSlots * kActive; i += N::kThreads) {
        kept[i] = values[i];
        places[i] = columns[i];
      }
      values_ = kept;
      columns_ = places;
    } else {
      values_ = values;
      columns_ = columns;
    }
  }

  /// Sums of this thread's weights times what they see, for the rows of each pass that runs in tick k.
  void multiply(int k) {
    if (thread() >= kActive) return;
    if constexpr (N::kHold == Hold::registers) {
      constexpr int kEach = N::kSlots / N::kPasses;
#pragma unroll
      for (int p = 0; p < N::kPasses; ++p) {
        if (!runs(p, k)) continue;
        T sum[2] = {T(0), T(0)};
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const int s = p * kEach + i;
          const uint32_t column = held_columns_[s / 2] >> (s % 2 * 16) & 0xFFFFu;
          sum[i % 2] = m::fma(static_cast<T>(held_values_[s]), board_[column], sum[i % 2]);
        }
        sums_[p * kActive + thread()] = sum[0] + sum[1];
      }
    } else {
      for (int p = 0; p < N::kPasses; ++p) {
        if (!runs(p, k)) continue;
        T sum[4] = {T(0), T(0), T(0), T(0)};
        int s = N::kFirst[p];
        const int end = N::kFirst[p + 1];
        for (; s + 4 <= end; s += 4) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = (s + i) * kActive + thread();
            sum[i] = m::fma(static_cast<T>(values_[at]), board_[columns_[at]], sum[i]);
          }
        }
        for (; s < end; ++s) {
          const int at = s * kActive + thread();
          sum[0] = m::fma(static_cast<T>(values_[at]), board_[columns_[at]], sum[0]);
        }
        sums_[p * kActive + thread()] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
    }
  }

  /// Whether rows of a pass change in tick k.
  static bool runs(int pass, int k) {
    if constexpr (N::kPipeline || N::kDepths == 1) return true;
    return N::kDepth[pass] == k % N::kDepths;
  }

  /// The new states of this block's rows, posted to all. What does not change in tick k is posted as it is.
  void advance(int k) {
    T* const kept = N::kLoop == Loop::none && N::kOutputs > 0 ? history_ : nullptr;
    T* const rows = job_.states ? job_.states + place_ * N::kUnits : kept;
    const int ring = job_.states ? ~0 : N::kRing - 1;
    for (int r = thread(); r < N::kPasses * N::kRows; r += N::kThreads) {
      const Row<T> row = rows_[r];
      if (row.unit < 0) continue;
      const int t = N::kPipeline ? k - row.depth : k / N::kDepths;
      const int pass = r / N::kRows;
      T x = board_[N::kStates + row.unit];
      if (runs(pass, k) && t >= 0 && t < job_.steps) {
        const T* const from = sums_ + pass * kActive + r % N::kRows;
        T sum[4] = {T(0), T(0), T(0), T(0)};
#pragma unroll
        for (int i = 0; i < N::kLanes; ++i) sum[i % 4] += from[i * N::kRows];
        x = row.kept * x + row.leak * m::tanh((sum[0] + sum[1]) + (sum[2] + sum[3]));
        if (rows) rows[static_cast<int64_t>(t & ring) * N::kUnits + row.unit] = x;
      }
      if constexpr (N::kBlocks == 1) {
        board_[N::kStates + row.unit] = x;
      } else {
        send(row.unit, x);
      }
    }
  }

  Letter<T>* letters() const { return letters_ + (tick_ & 1) * N::kUnits; }

  void send(int unit, T x) {
    uint64_t* const words = letters()[unit].words;
    const uint64_t tick = static_cast<uint64_t>(tick_ + 1) << 32;
    if constexpr (sizeof(T) == 8) {
      const auto bits = std::bit_cast<uint64_t>(x);
      post(words, tick | (bits & 0xFFFFFFFFu));
      post(words + 1, tick | bits >> 32);
    } else {
      post(words, tick | std::bit_cast<uint32_t>(x));
    }
  }

  /// All states of this tick, onto the board.
  void receive() {
    constexpr int kAtOnce = 4;
    const Letter<T>* const from = letters();
    for (int first = thread(); first < N::kUnits; first += kAtOnce * N::kThreads) {
      Letter<T> found[kAtOnce];
      for (bool all = false; !all;) {
        all = true;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int unit = first + i * N::kThreads;
          if (unit >= N::kUnits) continue;
          for (int w = 0; w < Letter<T>::kWords; ++w) found[i].words[w] = look(&from[unit].words[w]);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) all = (first + i * N::kThreads >= N::kUnits || found[i].of(tick_ + 1)) && all;
#if !defined(__NVPTX__) && !defined(__AMDGCN__)
        if (!all) device::wait_a_little();
#endif
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int unit = first + i * N::kThreads;
        if (unit < N::kUnits) board_[N::kStates + unit] = found[i].value();
      }
    }
  }

  /// What drives the layers in tick k, into registers; `put_drives` puts it on the board when nobody reads that.
  void fetch(int k) {
    if constexpr (kFetched > 0) {
      constexpr int kFirst = kReadsInputs ? N::kLags * N::kInputs : 0;
#pragma unroll
      for (int i = 0; i < kFetched; ++i) {
        const int at = i * N::kThreads + thread();
        if (at >= kDrives) continue;
        const bool late = at >= kFirst;
        const int width = late ? N::kFeedback : N::kInputs, place = late ? at - kFirst : at;
        const int lag = place / (width ? width : 1);
        const int t = N::kPipeline ? k - lag : k / N::kDepths;
        const T* const from = late ? job_.late : job_.inputs;
        const bool there = t >= 0 && t < job_.steps;
        fetched_[i] = there ? from[(place_ + t) * width + (place - lag * width)] : T(0);
      }
    }
  }

  void put_drives() {
    if constexpr (kFetched > 0) {
      constexpr int kBegin = kReadsInputs ? kInputsAt : kLateAt;
#pragma unroll
      for (int i = 0; i < kFetched; ++i) {
        const int at = i * N::kThreads + thread();
        if (at < kDrives) board_[kBegin + at] = fetched_[i];
      }
    }
  }

  /// What the readout sees at one place.
  static double feature(int f, const T* inputs, const T* states) {
    constexpr int kBefore = 1 + (N::kSeesInputs ? N::kInputs : 0);
    if (f == 0) return 1.0;
    if (f < kBefore) return static_cast<double>(inputs[f - 1]);
    const bool again = f - kBefore >= N::kUnits;
    const int unit = f - kBefore - (again ? N::kUnits : 0);
    const auto x = static_cast<double>(states[unit]);
    const bool square = again || (N::kSquares == Squares::half && unit % 2 == 1);
    return square ? x * x : x;
  }

  /// The outputs `first`, `first + 1`, ... of `items` (step after step), one for each kSplit threads; each goes to
  /// `give(item, value)`. `at(item)` gives inputs and states.
  template <class At, class Give>
  void read_out(int first, int items, int stride, const At& at, const Give& give) {
    constexpr int kTogether = N::kThreads / N::kSplit;
    const auto* weights = reinterpret_cast<const double*>(job_.plan + N::kReadout);
    const int part = thread() % N::kSplit;
    for (int begin = first * kTogether; begin < items; begin += stride * kTogether) {
      const int item = begin + thread() / N::kSplit;
      double sum = 0;
      if (item < items) {
        const double* const row = weights + item % N::kOutputs * N::kFeatures;
        const auto [inputs, states] = at(item / N::kOutputs);
        for (int f = part; f < N::kFeatures; f += N::kSplit) sum = m::fma(row[f], feature(f, inputs, states), sum);
      }
      dots_[thread()] = sum;
      device::meet_block();
      for (int half = N::kSplit / 2; half > 0; half /= 2) {
        if (part < half) dots_[thread()] += dots_[thread() + half];
        device::meet_block();
      }
      if (part == 0 && item < items) give(item, static_cast<T>(dots_[thread()]));
      device::meet_block();
    }
  }

  struct Seen {
    const T *inputs, *states;
  };

  /// Steps begin..end-1, shared by the blocks.
  void read_chunk(int begin, int end) {
    if constexpr (N::kBlocks > 1) {
      device::meet_grid(mail_->meeting, N::kBlocks);
    }
    const auto at = [&](int i) {
      const T* const rows = history_ + static_cast<int64_t>((begin + i) & (N::kRing - 1)) * N::kUnits;
      return Seen{job_.inputs + (place_ + begin + i) * N::kInputs, rows};
    };
    read_out(part_, (end - begin) * N::kOutputs, N::kBlocks, at, [&](int item, T y) {
      job_.outputs[(place_ + begin) * N::kOutputs + item] = y;
      if (begin + item / N::kOutputs == job_.steps - 1) output_[item % N::kOutputs] = y;
    });
  }

  /// The output of step t, which every block finds by itself, onto the board.
  void feed_back(int t) {
    T* const found = reinterpret_cast<T*>(dots_ + N::kThreads);
    const T* const inputs = N::kLoop == Loop::closed ? board_ + kInputsAt : job_.inputs + (place_ + t) * N::kInputs;
    const auto at = [&](int) { return Seen{inputs, board_ + N::kStates}; };
    read_out(0, N::kOutputs, 1, at, [&](int item, T y) { found[item] = y; });
    for (int i = thread(); i < N::kOutputs; i += N::kThreads) {
      board_[kFed + i] = found[i];
      if (part_ == 0 && job_.outputs) job_.outputs[(place_ + t) * N::kOutputs + i] = found[i];
      if (part_ == 0 && t == job_.steps - 1) output_[i] = found[i];
    }
    device::meet_block();
  }

  const Job<T>& job_;
  const int part_;  // which of the team's blocks this is
  int64_t place_ = 0;
  T *state_ = nullptr, *output_ = nullptr;
  T *board_, *sums_;
  double* dots_;
  Row<T>* rows_;
  Mail* mail_;
  Letter<T>* letters_;
  T* history_;
  uint32_t tick_;
  V held_values_[kHeld];
  uint32_t held_columns_[(kHeld + 1) / 2];
  const V* values_ = nullptr;
  const uint16_t* columns_ = nullptr;
  T fetched_[kFetched > 0 ? kFetched : 1];
};

/// This block's share of the batch: teams of kBlocks blocks take the series in turn.
template <class N>
inline void run(const Job<typename N::State>& job) {
  const auto block = device::block();
  const int team = static_cast<int>(block) / N::kBlocks;
  if (team >= job.batch) return;
  Worker<N> worker(job, block);
  for (int row = team; row < job.batch; row += N::kTeams) worker.run(row);
  worker.end();
}

}  // namespace echoc::reservoir
