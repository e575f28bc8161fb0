// The direct method (Gillespie, Exact stochastic simulation of coupled chemical reactions, J. Phys. Chem. 81, 1977):
// what small systems, whose reactions are straight-line code, and large ones, which go by tables, have in common; and
// the loop of the large ones.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cstring>

#include "kernels/cpu/random.h"
#include "kernels/cpu/runs.h"

namespace echoc::gillespie {

constexpr double kNever = real::kInfinity;

// Two numbers for every event, functions of (seed, run, event): a wait of mean 1, and a uniform that picks a reaction.
// An event that was not taken because it came too late gets the same numbers when the run goes on.
class Events {
 public:
  Events(uint64_t seed, uint64_t run) : seed_(seed), run_(run) {}

#if defined(ECHOC_SINGLE_NUMBERS)
  void at(int64_t event) {
    const auto number = static_cast<uint64_t>(event);
    const auto [w0, w1, w2, w3] =
        random::philox({{static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32),
                         static_cast<uint32_t>(run_), static_cast<uint32_t>(run_ >> 32) & 0xFFFF}},
                       static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32))
            .word;
    wait_ = -random::log_uniform(random::to_uniform(uint64_t{w1} << 32 | w0));
    pick_ = random::to_uniform(uint64_t{w3} << 32 | w2);
  }
  double wait() const { return wait_; }
  double pick() const { return pick_; }

 private:
  uint64_t seed_, run_;
  double wait_ = 0, pick_ = 0;
};
#else
  void at(int64_t event) {
    const auto number = static_cast<uint64_t>(event);
    if (number / random::kLanes != base_) refill(number / random::kLanes);
    place_ = number % random::kLanes;
  }
  double wait() const { return wait_[place_]; }
  double pick() const { return pick_[place_]; }

 private:
  __attribute__((noinline)) void refill(uint64_t base) {
    base_ = base;
    const uint64_t first = base * random::kLanes;
    uint64_t low[random::kLanes], high[random::kLanes];
    random::philox_batch(static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32), static_cast<uint32_t>(run_),
                         static_cast<uint32_t>(run_ >> 32) & 0xFFFF, static_cast<uint32_t>(seed_),
                         static_cast<uint32_t>(seed_ >> 32), low, high);
    for (int i = 0; i < random::kLanes; ++i) {
      wait_[i] = -random::log_uniform(random::to_uniform(low[i]));
      pick_[i] = random::to_uniform(high[i]);
    }
  }

  uint64_t seed_, run_, base_ = UINT64_MAX, place_ = 0;
  alignas(64) double wait_[random::kLanes];
  alignas(64) double pick_[random::kLanes];
};
#endif

// How many ways there are to take k of x: the factor h of a propensity.
inline double ways(int64_t x, int64_t k) {
  const double n = static_cast<double>(x);
  if (k == 1) return n;
  if (k == 2) return n * (n - 1) * 0.5;
  if (x < k) return 0;
  double h = 1;
  for (int64_t i = 0; i < k && h > 0 && h <= DBL_MAX; ++i) {
    h *= (n - static_cast<double>(i)) / static_cast<double>(i + 1);
  }
  return h;
}

inline bool good(double propensity) { return propensity >= 0 && propensity <= DBL_MAX; }

inline double next_time(const runs::Run& run) {
  return run.times && run.records_done < run.num_records ? run.times[run.records_done] : kNever;
}

// Records the state, which stays as it is until after `time`, at all times up to it.
inline void record_until(runs::Run& run, double time) {
  if (!run.times) return;
  while (run.records_done < run.num_records && run.times[run.records_done] <= time) runs::record(run);
}

inline void report(runs::Run& run, int32_t instances, int32_t last) {
  if (!run.applications) return;
  std::fill_n(run.applications, instances, 0);
  if (last >= 0) run.applications[last] = 1;
}

// ---- Large systems ----

struct Range {
  int32_t begin, end;
};

struct Amount {
  int32_t place;
  int32_t unused;
  int64_t count;
};

struct SetCharge {
  int32_t cell, charge;
};

struct Reaction {
  double constant;
  Range reactants;   // Amounts
  Range changes;     // Amounts, signed
  Range charges;     // SetCharges
  Range dependents;  // reactions whose propensity it may change, ascending
  int32_t special;   // -1: mass action; else the number of its code
  int32_t unused;
};

struct Tables {
  int32_t places, cells, reactions;
  const Reaction* reaction;
  const Amount* amount;
  const SetCharge* set_charge;
  const int32_t* dependent;
};

// Sums of eight over sums of eight ..., propensities at the bottom: to change one or to find one is a few levels. Sums
// are always made anew from their parts, so that rounding does not pile up.
constexpr int kFan = 8;
constexpr int kLevels = 8;

class SumTree {
 public:
  SumTree(std::byte* memory, int32_t leaves) {
    auto* next = reinterpret_cast<double*>(memory);
    int64_t size = std::max(leaves, 1);
    do {
      size = (size + kFan - 1) / kFan * kFan;
      level_[levels_++] = next;
      std::fill(next, next + size, 0.0);
      next += size;
      size /= kFan;
    } while (size > 1);
    end_ = reinterpret_cast<std::byte*>(next);
  }

  double* leaves() { return level_[0]; }
  std::byte* end() { return end_; }  // of its memory

  double total() const { return sum(level_[levels_ - 1]); }

  void sum_all(int32_t leaves) {
    int64_t size = leaves;
    for (int l = 1; l < levels_; ++l) {
      size = (size + kFan - 1) / kFan;
      for (int64_t i = 0; i < size; ++i) level_[l][i] = sum(level_[l - 1] + i * kFan);
    }
  }

  // Makes the sums over changed leaves, given ascending, anew.
  void sum_over(const int32_t* leaves, int32_t count) {
    for (int l = 1; l < levels_; ++l) {
      int32_t last = -1;
      const int shift = 3 * l;
      for (int32_t i = 0; i < count; ++i) {
        const int32_t node = leaves[i] >> shift;
        if (node == last) continue;
        last = node;
        level_[l][node] = sum(level_[l - 1] + static_cast<int64_t>(node) * kFan);
      }
    }
  }

  // The leaf that `target`, below the total, falls on; never an empty one.
  int32_t find(double target) const {
    int64_t node = 0;
    for (int l = levels_ - 1; l >= 0; --l) {
      const double* part = level_[l] + node * kFan;
      // In the order in which `sum` adds, for its rounding and for its depth of four instead of eight.
      const double two = part[0] + part[1], four = two + (part[2] + part[3]), last = part[6] + part[7];
      const double six = four + (part[4] + part[5]), all = four + ((part[4] + part[5]) + last);
      const double upto[kFan + 1] = {0, part[0], two, two + part[2], four, four + part[4], six, six + part[6], all};
      int chosen = 0;  // counted, not searched for: nobody could predict where a search ends
      for (int i = 1; i < kFan; ++i) chosen += upto[i] <= target;
      while (part[chosen] <= 0 && chosen > 0) [[unlikely]]
        --chosen;  // rounding led to an empty part
      target = std::max(0.0, target - upto[chosen]);
      node = node * kFan + chosen;
    }
    return static_cast<int32_t>(node);
  }

 private:
  static double sum(const double* p) { return ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7])); }

  double* level_[kLevels];
  std::byte* end_;
  int levels_ = 0;
};

template <class Special>
double propensity(const Tables& t, Special&& special, int32_t r, const int64_t* x, const int8_t* charge) {
  const Reaction& reaction = t.reaction[r];
  if (reaction.special >= 0) return special(reaction.special, x, charge);
  double a = reaction.constant;
  for (int32_t i = reaction.reactants.begin; i < reaction.reactants.end; ++i) {
    a *= ways(x[t.amount[i].place], t.amount[i].count);
  }
  return a;
}

// Adds the changes of a reaction to the counts, or leaves them as they are and reports which would overflow.
inline bool apply(const Tables& t, const Reaction& reaction, runs::Run& run) {
  for (int32_t i = reaction.changes.begin; i < reaction.changes.end; ++i) {
    const Amount& a = t.amount[i];
    if (__builtin_add_overflow(run.counts[a.place], a.count, &run.counts[a.place])) {
      run.counts[a.place] =
          static_cast<int64_t>(static_cast<uint64_t>(run.counts[a.place]) - static_cast<uint64_t>(a.count));
      for (int32_t j = reaction.changes.begin; j < i; ++j) run.counts[t.amount[j].place] -= t.amount[j].count;
      run.error = runs::Error::kOverflow;
      run.where = a.place;
      return false;
    }
  }
  for (int32_t i = reaction.charges.begin; i < reaction.charges.end; ++i) {
    run.charges[t.set_charge[i].cell] = static_cast<int8_t>(t.set_charge[i].charge);
  }
  return true;
}

inline bool refuse(runs::Run& run, int64_t reaction) {
  run.error = runs::Error::kPropensity;
  run.where = reaction;
  return false;
}

template <class Special>
bool prepare(const Tables& t, Special&& special, SumTree& tree, runs::Run& run) {
  for (int32_t r = 0; r < t.reactions; ++r) {
    const double a = propensity(t, special, r, run.counts, run.charges);
    if (!good(a)) return refuse(run, r);
    tree.leaves()[r] = a;
  }
  tree.sum_all(t.reactions);
  return true;
}

// Computes anew what an event of the reaction may have changed.
template <class Special>
bool update(const Tables& t, Special&& special, const Reaction& reaction, SumTree& tree, runs::Run& run) {
  const int32_t* dependents = t.dependent + reaction.dependents.begin;
  const int32_t count = reaction.dependents.end - reaction.dependents.begin;
  for (int32_t i = 0; i < count; ++i) {
    const double a = propensity(t, special, dependents[i], run.counts, run.charges);
    if (!good(a)) [[unlikely]]
      return refuse(run, dependents[i]);
    tree.leaves()[dependents[i]] = a;
  }
  tree.sum_over(dependents, count);
  return true;
}

// ---- Triggers ----
// Sudden changes (Event of compiler/ir/algebra.py). Behind the places, the counts hold whether each trigger is true.

struct Sudden {
  Range values;  // what it assigns
  bool persistent, early;
  int32_t queue;  // where what waits for its delay stands among the counts, as bits; -1: there is no delay
};

constexpr int kCascade = 1000;  // at one moment
constexpr int kPending = 64;    // of one delayed event: each the time at which it is due, 0 for none, and its values

// A system without them. Generated code has others, with
//   kFirst      the place of the first trigger's truth; kHidden  how many numbers stand there
//   kSudden     Sudden[kCount];  kTargets  the place of each value
//   holds(i, x, time), value(i, x, time), delay(i, x, time), and the first time from `time` on at which a trigger may
//   turn by itself: moment(x, time)
struct NoTriggers {
  static constexpr int32_t kCount = 0, kHidden = 0;
};

inline bool holds(double truth) { return truth != 0 && truth == truth; }

// The next double above a finite one.
inline double next_above(double x) {
  if (x == 0) return 0x1p-1074;
  return std::bit_cast<double>(std::bit_cast<int64_t>(x) + (x > 0 ? 1 : -1));
}

// first = min(first, moment) where that is still to come; right behind it if `after`.
inline void soonest(double& first, double now, double moment, bool at, bool after) {
  if (at && moment > now && moment < first) first = moment;
  const double behind = next_above(moment);
  if (after && behind > now && behind < first) first = behind;
}

inline int32_t stride(const Sudden& sudden) { return 1 + sudden.values.end - sudden.values.begin; }

// The entry of a queue that is due first; null where none waits.
inline int64_t* waiting(const Sudden& sudden, int64_t* counts) {
  int64_t* first = nullptr;
  if (sudden.queue < 0) return first;
  for (int i = 0; i < kPending; ++i) {  // times above 0 compare as their bits do
    int64_t* const entry = counts + sudden.queue + i * stride(sudden);
    if (*entry && (!first || *entry < *first)) first = entry;
  }
  return first;
}

// When the first delay ends.
template <class Triggers>
double next_due(int64_t* counts) {
  double first = kNever;
  for (const Sudden& sudden : Triggers::kSudden) {
    if (const int64_t* entry = waiting(sudden, counts)) first = std::min(first, std::bit_cast<double>(*entry));
  }
  return first;
}

// An event that is due later than now, with the values that it has if they are known. False if too many wait.
inline bool postpone(const Sudden& sudden, runs::Run& run, int32_t number, double due, const double* values) {
  int64_t* entry = run.counts + sudden.queue;
  int i = 0;
  while (i < kPending && *entry) ++i, entry += stride(sudden);
  if (i == kPending) {
    run.error = runs::Error::kEndless;
    run.where = number;
    return false;
  }
  *entry = std::bit_cast<int64_t>(due);
  const size_t bytes = static_cast<size_t>(stride(sudden) - 1) * sizeof(double);
  if (sudden.early) std::memcpy(entry + 1, values + sudden.values.begin, bytes);
  return true;
}

// The state as it was, for a step that fails.
class Kept {
 public:
  Kept(std::byte* memory, int32_t numbers, int32_t cells)
      : counts_(reinterpret_cast<int64_t*>(memory)),
        charges_(reinterpret_cast<int8_t*>(counts_ + numbers)),
        numbers_(numbers),
        cells_(cells) {}
  void keep(const runs::Run& run) {
    std::copy_n(run.counts, numbers_, counts_);
    std::copy_n(run.charges, cells_, charges_);
  }
  void restore(runs::Run& run) const {
    std::copy_n(counts_, numbers_, run.counts);
    std::copy_n(charges_, cells_, run.charges);
  }

 private:
  int64_t* counts_;
  int8_t* charges_;
  int32_t numbers_, cells_;
};

// All that triggers bring about at a time. False where that fails; `changed` tells whether counts were set.
template <class Triggers>
bool settle(runs::Run& run, double time, bool& changed) {
  constexpr int32_t kCount = Triggers::kCount;
  double values[Triggers::kTargets.size() + 1];
  bool due[kCount] = {};
  const auto evaluate = [&](const Range& range) {
    for (int32_t i = range.begin; i < range.end; ++i) values[i] = Triggers::value(i, run.counts, time);
  };
  int32_t first = 0;
  for (int round = 0; round < kCascade; ++round) {
    for (int32_t i = 0; i < kCount; ++i) {
      const Sudden& sudden = Triggers::kSudden[i];
      int64_t& held = run.counts[Triggers::kFirst + i];
      const bool now = holds(Triggers::holds(i, run.counts, time));
      if (now && !held) {
        const double delay = sudden.queue < 0 ? 0.0 : Triggers::delay(i, run.counts, time);
        if (sudden.early) evaluate(sudden.values);
        const double when = time + delay;
        if (!(delay >= 0 && when <= DBL_MAX)) {
          run.error = runs::Error::kEvent;
          run.where = i;
          return false;
        }
        due[i] = when <= time;
        if (!due[i] && !postpone(sudden, run, i, when, values)) return false;
      }
      if (!now && !sudden.persistent) {
        due[i] = false;
        for (int64_t* entry; (entry = waiting(sudden, run.counts));) std::fill_n(entry, stride(sudden), 0);
      }
      held = now;
    }
    int64_t* entry = nullptr;
    for (first = 0; first < kCount; ++first) {
      entry = waiting(Triggers::kSudden[first], run.counts);
      if (entry && std::bit_cast<double>(*entry) > time) entry = nullptr;
      if (entry || due[first]) break;
    }
    if (first == kCount) return true;
    const Sudden& sudden = Triggers::kSudden[first];
    if (entry) {
      std::memcpy(values + sudden.values.begin, entry + 1, static_cast<size_t>(stride(sudden) - 1) * sizeof(double));
      std::fill_n(entry, stride(sudden), 0);
    } else {
      due[first] = false;
    }
    if (!sudden.early) evaluate(sudden.values);
    for (int32_t i = sudden.values.begin; i < sudden.values.end; ++i) {
      const double value = values[i], whole = __builtin_rint(value);
      if (!(value > -0.5 && value < 0x1p63 && real::abs(value - whole) <= 1e-9 * std::max(1.0, value))) {
        run.error = runs::Error::kEvent;
        run.where = first;
        return false;
      }
      run.counts[Triggers::kTargets[i]] = static_cast<int64_t>(whole);
      changed = true;
    }
  }
  run.error = runs::Error::kEndless;
  run.where = first;
  return false;
}

template <class Triggers, class Special>
void advance(const Tables& t, Special&& special, runs::Run& run) {
  constexpr bool kTriggered = Triggers::kCount > 0;
  run.halted = 0;
  run.error = runs::Error::kNone;
  SumTree tree(run.scratch, t.reactions);
  [[maybe_unused]] Kept kept(tree.end(), t.places + Triggers::kHidden, t.cells);
  const auto settled = [&]([[maybe_unused]] double time, [[maybe_unused]] bool& changed) {
    if constexpr (kTriggered) {
      if (!settle<Triggers>(run, time, changed)) {
        kept.restore(run);
        return false;
      }
    }
    return true;
  };
  bool changed = false;
  if constexpr (kTriggered) kept.keep(run);
  if (!settled(run.time, changed)) return;
  if (!prepare(t, special, tree, run)) return;
  Events events(run.seed, run.index);
  int32_t last = -1;
  double next_record = next_time(run);
  for (int64_t i = 0; i < run.steps; ++i) {
    const double total = tree.total();
    if (!(total <= DBL_MAX)) {
      refuse(run, std::max_element(tree.leaves(), tree.leaves() + t.reactions) - tree.leaves());
      break;
    }
    double moment = kNever;
    if constexpr (kTriggered) moment = std::min(Triggers::moment(run.counts, run.time), next_due<Triggers>(run.counts));
    if (total <= 0 && moment == kNever) {
      run.halted = 1;
      record_until(run, run.until);
      break;
    }
    events.at(run.step);
    const double wait = total > 0 ? run.time + events.wait() / total : kNever;
    const bool turns = kTriggered && moment <= wait;  // what remains of an exponential wait is exponential
    const double time = turns ? moment : wait;
    if (!(time <= run.until)) {
      record_until(run, run.until);
      break;
    }
    if (time > next_record) {
      runs::record_before(run, time);
      next_record = next_time(run);
    }
    if constexpr (kTriggered) kept.keep(run);
    changed = false;
    int32_t chosen = -1;
    if (!turns) {
      chosen = tree.find(events.pick() * total);
      if (!apply(t, t.reaction[chosen], run)) break;
    }
    if (!settled(time, changed)) break;
    last = chosen;
    run.time = time;
    run.step += 1;
    if (run.every > 0 && run.step % run.every == 0) runs::record(run);
    if (changed) {
      if (!prepare(t, special, tree, run)) break;
    } else if (!turns && !update(t, special, t.reaction[chosen], tree, run)) {
      break;
    }
  }
  if (run.halted && run.every > 0) {
    while (run.records_done < run.num_records) runs::record(run);
  }
  report(run, t.reactions, last);
}

}  // namespace echoc::gillespie
