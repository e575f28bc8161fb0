// Population dynamics by direct distribution based on consistent blocks (Martinez-del-Amor, Perez-Hurtado,
// Garcia-Quismondo, Macias-Ramos, Valencia-Cabrera, Romero-Jimenez, Graciani, Riscos-Nunez, Colomer, Perez-Jimenez:
// DCBA: Simulating population dynamics P systems with proportional object distribution, CMC 13, 2012).
//
// The generated code gives the tables. A block is the rules that consume the same objects under the same condition.
// Blocks that no other block competes with are chosen directly: the distribution gives them all they can take. The
// others stand in families, connected by the objects they compete for.
#pragma once

#include <algorithm>

#include "kernels/cpu/random.h"
#include "kernels/cpu/runs.h"

namespace echoc::dcba {

constexpr int kAccuracy = 2;  // loops of the distribution phase: A of the paper

// Runs that a device advances side by side take every block at the same time, one that is not chosen as well: a list of
// the chosen ones would have them part ways.
constexpr bool kTogether = runs::kStride > 1;

struct Range {
  int32_t begin, end;
};

struct Amount {
  int32_t place;
  int32_t unused;
  int64_t count;
};

struct BlockRules {
  Range consume;  // Amounts
  Range rules;    // Rules, one Range of products and one Chance each; the last rule takes what is left
  Range charges;  // SetCharges
  int32_t condition;
  bool mixed;  // its rules have conditions of their own
};

struct Rule {
  double weight;
  int32_t instance;
  int32_t condition;
};

struct SetCharge {
  int32_t cell, charge;
};

struct Tables {
  int32_t places, cells, blocks, conditions, instances;
  const BlockRules* block;
  const Amount* amount;
  const Range* product;  // per rule
  const Rule* rule;
  const random::Chance* chance;  // per rule: its probability among itself and the rules after it
  const SetCharge* set_charge;
  const SetCharge* need;   // charges that conditions ask for
  const Range* condition;  // per condition: its needs; other things that it asks are code
  const Range* single;     // per condition: blocks without competition
  const Range* family;     // blocks of every family
  int32_t families;
  bool conflicts;  // blocks applicable together may ask for different charges of a cell
};

// An array of one run in its scratch: its entries are kStride apart.
template <class T>
struct Lane {
  T* first;
  T& operator[](int64_t i) const { return first[i * runs::kStride]; }
};

template <class To, class From>
void copy(To to, From from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Arrays of one run, in its scratch. Layout: see scratch_bytes() of the generator.
struct Work {
  Lane<int64_t> left;    // [places] counts not yet consumed, then the next counts
  Lane<double> share;    // [places] sums of the distribution table's rows
  Lane<int64_t> chosen;  // [blocks]
  Lane<int32_t> list;    // [blocks] blocks with applications
  Lane<int32_t> active;  // [blocks]
  Lane<int8_t> charge;   // [cells] next charges
  Lane<bool> holds;      // [conditions]
  Lane<bool> allowed;    // [blocks] consistent with the charges that others ask for
};

inline Work carve(const Tables& t, const runs::Run& run) {
  Work w;
  std::byte* scratch = run.scratch;
  int64_t lane = 0;
#if ECHOC_RUN_STRIDE > 1
  lane = run.lane;
#endif
  auto take = [&]<class T>(Lane<T>& to, int64_t count) {
    to.first = reinterpret_cast<T*>(scratch) + lane;
    scratch += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 * runs::kStride;
  };
  take(w.left, t.places);
  take(w.share, t.places);
  take(w.chosen, t.blocks);
  take(w.list, t.blocks);
  take(w.active, t.blocks);
  take(w.charge, t.cells);
  take(w.holds, t.conditions);
  take(w.allowed, t.blocks);
  return w;
}

inline int64_t most(const Tables& t, const BlockRules& block, Lane<int64_t> left) {
  int64_t n = INT64_MAX;
  for (int32_t i = block.consume.begin; i < block.consume.end; ++i) {
    const Amount& a = t.amount[i];
    const int64_t fits = a.count == 1 ? left[a.place] : left[a.place] / a.count;
    n = std::min(n, fits);
  }
  return n;
}

inline void consume(const Tables& t, const BlockRules& block, int64_t n, Lane<int64_t> left) {
  for (int32_t i = block.consume.begin; i < block.consume.end; ++i) left[t.amount[i].place] -= n * t.amount[i].count;
}

template <class Counts>
bool fits(const Tables& t, const BlockRules& block, Counts left) {
  for (int32_t i = block.consume.begin; i < block.consume.end; ++i) {
    if (left[t.amount[i].place] < t.amount[i].count) return false;
  }
  return true;
}

inline void shuffle(random::Stream& stream, Lane<int32_t> items, int32_t count) {
  for (int32_t i = count - 1; i > 0; --i) std::swap(items[i], items[stream.below(static_cast<uint32_t>(i) + 1)]);
}

// Blocks applicable at once must agree on charges: a maximal consistent set of them, in random order.
inline void make_consistent(const Tables& t, random::Stream& stream, const int64_t* counts, const Work& w) {
  constexpr int8_t kOpen = 127;
  int32_t applicable = 0;
  for (int32_t b = 0; b < t.blocks; ++b) {
    w.allowed[b] = w.holds[t.block[b].condition] && fits(t, t.block[b], counts);
    if (w.allowed[b]) w.active[applicable++] = b;
  }
  shuffle(stream, w.active, applicable);
  const Lane<int8_t> decided = w.charge;
  for (int32_t c = 0; c < t.cells; ++c) decided[c] = kOpen;
  for (int32_t i = 0; i < applicable; ++i) {
    const BlockRules& block = t.block[w.active[i]];
    bool agrees = true;
    for (int32_t c = block.charges.begin; c < block.charges.end; ++c) {
      const int8_t now = decided[t.set_charge[c].cell];
      agrees = agrees && (now == kOpen || now == t.set_charge[c].charge);
    }
    w.allowed[w.active[i]] = agrees;
    if (!agrees) continue;
    for (int32_t c = block.charges.begin; c < block.charges.end; ++c) {
      decided[t.set_charge[c].cell] = static_cast<int8_t>(t.set_charge[c].charge);
    }
  }
}

// One loop of phase 1 over the first `count` active blocks: a row of the table is an object, with 1/k where a block
// takes k of it, and a block gets the least of count * (1/k)^2 / (sum of the row) over its objects.
inline void share_out(const Tables& t, int32_t count, const Work& w) {
  const auto each_amount = [&](auto&& visit) {
    for (int32_t i = 0; i < count; ++i) {
      const BlockRules& block = t.block[w.active[i]];
      for (int32_t j = block.consume.begin; j < block.consume.end; ++j) visit(t.amount[j]);
    }
  };
  each_amount([&](const Amount& a) { w.share[a.place] = 0; });
  each_amount([&](const Amount& a) { w.share[a.place] += 1.0 / static_cast<double>(a.count); });
  // Every block's number comes from the counts at the start of the loop: from sums (positive) to shares (negative).
  each_amount([&](const Amount& a) {
    double& share = w.share[a.place];
    if (share > 0) share = -static_cast<double>(w.left[a.place]) / share;
  });
  for (int32_t i = 0; i < count; ++i) {
    const BlockRules& block = t.block[w.active[i]];
    double least = 0x1p63;
    for (int32_t j = block.consume.begin; j < block.consume.end; ++j) {
      const double k = static_cast<double>(t.amount[j].count);
      least = std::min(least, -w.share[t.amount[j].place] / (k * k));
    }
    const double whole = real::floor(least * (1 + 0x1p-50));  // thirds and the like, rounded down, would lose one
    int64_t n = whole < 0x1p62 ? static_cast<int64_t>(whole) : INT64_MAX;
    n = std::min(n, most(t, block, w.left));
    w.chosen[w.active[i]] += n;
    consume(t, block, n, w.left);
  }
}

// Phases 1 and 2 for blocks that compete. Appends the chosen ones to the list.
inline int32_t distribute(const Tables& t, Range family, random::Stream& stream, const Work& w, int32_t listed) {
  int32_t count = 0;
  for (int32_t b = family.begin; b < family.end; ++b) {
    const bool may = w.holds[t.block[b].condition] && (!t.conflicts || w.allowed[b]);
    if (may && fits(t, t.block[b], w.left)) {
      w.active[count++] = b;
      w.chosen[b] = 0;
    }
  }
  int32_t still = count;
  for (int loop = 0; loop < kAccuracy && still > 1; ++loop) {  // one alone gets in phase 2 what phase 1 would give it
    share_out(t, still, w);
    int32_t kept = 0;
    for (int32_t i = 0; i < still; ++i) {
      if (fits(t, t.block[w.active[i]], w.left)) std::swap(w.active[kept++], w.active[i]);
    }
    still = kept;
  }
  shuffle(stream, w.active, still);
  for (int32_t i = 0; i < still; ++i) {
    const int32_t b = w.active[i];
    const int64_t n = most(t, t.block[b], w.left);
    w.chosen[b] += n;
    consume(t, t.block[b], n, w.left);
  }
  for (int32_t i = 0; i < count; ++i) {
    if (w.chosen[w.active[i]] > 0) w.list[listed++] = w.active[i];
  }
  return listed;
}

inline bool produce(const Tables& t, int32_t r, int64_t times, const Work& w, runs::Run& run) {
  if (run.applications) run.applications[t.rule[r].instance] = times;
  for (int32_t i = t.product[r].begin; i < t.product[r].end; ++i) {
    const Amount& a = t.amount[i];
    int64_t made;
    if (__builtin_mul_overflow(a.count, times, &made) ||
        __builtin_add_overflow(w.left[a.place], made, &w.left[a.place])) {
      run.error = runs::Error::kOverflow;
      run.where = a.place;
      return false;
    }
  }
  return true;
}

// Splits n applications over the rules of a block whose own conditions hold.
inline bool split_mixed(const Tables& t, const BlockRules& block, int64_t n, random::Stream& stream, const Work& w,
                        runs::Run& run) {
  double rest = 0;
  int32_t last = block.rules.begin;
  for (int32_t r = block.rules.begin; r < block.rules.end; ++r) {
    if (!w.holds[t.rule[r].condition]) continue;
    rest += t.rule[r].weight;
    last = r;
  }
  for (int32_t r = block.rules.begin; r <= last && n > 0; ++r) {
    if (!w.holds[t.rule[r].condition]) continue;
    const double p = std::min(1.0, t.rule[r].weight / rest);
    const int64_t times = r == last ? n : random::binomial(stream, n, random::chance(p));
    rest -= t.rule[r].weight;
    n -= times;
    if (times > 0 && !produce(t, r, times, w, run)) return false;
  }
  return true;
}

// Phases 3 and 4 for one block: its applications split over its rules, their products appear.
inline bool execute(const Tables& t, const BlockRules& block, int64_t n, random::Stream& stream, const Work& w,
                    runs::Run& run) {
  for (int32_t c = block.charges.begin; c < block.charges.end; ++c) {
    w.charge[t.set_charge[c].cell] = static_cast<int8_t>(t.set_charge[c].charge);
  }
  if (block.mixed) return split_mixed(t, block, n, stream, w, run);
  for (int32_t r = block.rules.begin; r < block.rules.end && n > 0; ++r) {
    const bool last = r + 1 == block.rules.end;
    const int64_t times = last ? n : random::binomial(stream, n, t.chance[r]);
    n -= times;
    if (times > 0 && !produce(t, r, times, w, run)) return false;
  }
  return true;
}

template <class Conditions>
void find_conditions(const Tables& t, Conditions&& conditions, const runs::Run& run, const Work& w) {
  for (int32_t c = 0; c < t.conditions; ++c) {
    bool holds = true;
    for (int32_t i = t.condition[c].begin; i < t.condition[c].end; ++i) {
      holds = holds && run.charges[t.need[i].cell] == t.need[i].charge;
    }
    w.holds[c] = holds;
  }
  conditions(run.counts, run.charges, w.holds);
}

// One step. False when it did nothing: halted or in error.
template <class Conditions>
bool step(const Tables& t, Conditions&& conditions, random::Stream& stream, const Work& w, runs::Run& run) {
  stream.at(static_cast<uint64_t>(run.step));
  find_conditions(t, conditions, run, w);
  copy(w.left, run.counts, t.places);
  if (run.applications) std::fill_n(run.applications, t.instances, 0);
  if (t.conflicts) make_consistent(t, stream, run.counts, w);
  copy(w.charge, run.charges, t.cells);
  int32_t listed = 0;
  bool alone = false;
  for (int32_t c = 0; c < t.conditions; ++c) {
    if (!kTogether && !w.holds[c]) continue;
    for (int32_t b = t.single[c].begin; b < t.single[c].end; ++b) {
      const BlockRules& block = t.block[b];
      const int64_t n = w.holds[c] && (!t.conflicts || w.allowed[b]) ? most(t, block, w.left) : 0;
      if (kTogether) w.chosen[b] = n;
      if (n <= 0) continue;
      consume(t, block, n, w.left);
      alone = true;
      if (kTogether) continue;
      w.chosen[b] = n;
      w.list[listed++] = b;
    }
  }
  for (int32_t f = 0; f < t.families; ++f) listed = distribute(t, t.family[f], stream, w, listed);
  if (listed == 0 && !alone) {
    run.halted = 1;
    return false;
  }
  for (int32_t c = 0; kTogether && c < t.conditions; ++c) {
    for (int32_t b = t.single[c].begin; b < t.single[c].end; ++b) {
      const int64_t n = w.chosen[b];
      if (n > 0 && !execute(t, t.block[b], n, stream, w, run)) return false;
    }
  }
  for (int32_t i = 0; i < listed; ++i) {
    const int32_t b = w.list[i];
    if (!execute(t, t.block[b], w.chosen[b], stream, w, run)) return false;
  }
  copy(run.counts, w.left, t.places);
  copy(run.charges, w.charge, t.cells);
  return true;
}

template <class Conditions>
void advance(const Tables& t, Conditions&& conditions, runs::Run& run) {
  random::Stream stream(run.seed, run.index);
  const Work w = carve(t, run);
  run.halted = 0;
  run.error = runs::Error::kNone;
  for (int64_t i = 0; i < run.steps && step(t, conditions, stream, w, run); ++i) {
    run.step += 1;
    run.time = static_cast<double>(run.step);
    if (run.every > 0 && run.step % run.every == 0) runs::record(run);
  }
  // What has halted stays as it is at the steps that were asked for.
  if (run.halted && run.every > 0) {
    while (run.records_done < run.num_records) runs::record(run);
  }
}

}  // namespace echoc::dcba
