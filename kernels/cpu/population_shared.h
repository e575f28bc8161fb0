// Choosing among rules that bind several membranes, or take from the membrane around.
#pragma once

#include "kernels/cpu/population_choice.h"

namespace echoc::population {

template <class S>
class SharedChoice : public CellChoice<S> {
 public:
  using CellChoice<S>::CellChoice;
  using typename CellChoice<S>::Candidate;

  // Once a step, by one thread.
  void begin() {
    after_.count = before_.count;
    after_.family = before_.family;
    shared_.candidates.size = 0;
    shared_.divided = shared_.dissolved = 0;
    shared_.wide.size = shared_.bindings = shared_.mails = shared_.dividing = shared_.dissolving = 0;
    if constexpr (S::kHasLinks) this->list_links();
  }

  // By every thread for its rows.
  void begin_rows(Range rows) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      shared_.contested.data[i] = S::kSequential ? 1 : 0;
      shared_.charge_set.data[i] = kUnset;
      shared_.structure.data[i] = kNone;
      shared_.dissolves.data[i] = 0;
    }
  }

  // Finds the bindings of sharing rules, starting at the rows of this thread.
  void gather(Range rows) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int32_t row = static_cast<int32_t>(i);
      if (!S::starts_shared(before_.label[row])) continue;
      each_entry(pool_, before_.content[row], [&](uint32_t object, int64_t) { start_at(row, object); });
      for (int32_t k = 0; k < S::kSharedAlwaysCount; ++k) start(S::kSharedAlways[k], row);
    }
    if (call_.tid + 1 != call_.nthreads) return;  // the last of all, on any number of threads
    for (int o = 0; o < S::kObjects; ++o) {
      if (call_.environment_before[o] > 0) start_at(kNone, static_cast<uint32_t>(o));
    }
  }

  // The bindings that gather has left to all threads.
  void gather_wide() {
    Vec<Wide>& wide = shared_.wide;
    if (call_.tid == 0) {
      uint64_t before = 0;
      for (uint64_t i = 0; i < wide.size; ++i) {
        for (uint64_t k = i; k > 0 && comes_before(wide.data[k], wide.data[k - 1]); --k) {
          const Wide kept = wide.data[k];
          wide.data[k] = wide.data[k - 1];
          wide.data[k - 1] = kept;
        }
      }
      for (uint64_t i = 0; i < wide.size; ++i) {
        wide.data[i].before = before;
        before += static_cast<uint64_t>(wide.data[i].children);
      }
    }
    meet();
    const Wide& last = wide.data[wide.size - 1];
    const Range mine = this->share_rows(static_cast<int64_t>(last.before) + last.children);
    int64_t at = mine.begin;
    for (uint64_t w = 0; w < wide.size && at < mine.end; ++w) {
      const Wide& from = wide.data[w];
      const RuleRow& r = rule_row(from.rule);
      const InnerRow& inner = S::kInners[r.inner.begin];
      const Span children = this->children_of(from.row);
      const int64_t begin = static_cast<int64_t>(from.before);
      for (; at < mine.end && at < begin + from.children; ++at) {
        const int32_t row = shared_.children.data[children.begin + (at - begin)];
        if (!this->is_inner(inner, row) || !has(row, inner.consume)) continue;
        Candidate candidate{};
        candidate.rule = from.rule;
        candidate.cells[0] = from.row;
        candidate.cells[1] = row;
        bind_inner<1>(candidate, r, kNone);
      }
    }
    meet();
  }

  // All bindings one behind another, in an order that does not tell how many threads there were. All threads.
  bool join() {
    const auto words = [](const Vec<int32_t>& list, uint64_t from, uint64_t to, int32_t* out) {
      for (uint64_t i = from; i < to; ++i) *out++ = list.data[i];
    };
    const uint64_t narrow = this->sum_before(&Workspace::before, [](const Workspace& w) { return w.narrow; });
    const uint64_t wide =
        this->sum_before(&Workspace::behind, [](const Workspace& w) { return w.candidates.size - w.narrow; });
    const uint64_t rest = this->sum_before(&Workspace::counted, [](const Workspace& w) { return w.contested.size; });
    if (narrow + wide + rest > shared_.candidates.limit) {
      fail(kOutOfWorkspace);
      return false;
    }
    int32_t* all = shared_.candidates.data;
    words(work_.candidates, 0, work_.narrow, all + work_.before);
    words(work_.candidates, work_.narrow, work_.candidates.size, all + narrow + work_.behind);
    words(work_.contested, 0, work_.contested.size, all + narrow + wide + work_.counted);
    if (call_.tid == 0) {
      shared_.candidates.size = narrow + wide + rest;
      shared_.refused = false;
    }
    meet();
    return true;
  }

  // Where there is enough for all bindings, whatever the order, none is to be drawn. All threads; whether it was so.
  bool apply_all() {
    if constexpr (S::kSequential || S::kHasPriority || S::kWeak) return false;
    const Records<Candidate> all = candidates();
    if (all.size() < kMany) return false;
    uint32_t* claims = shared_.mail_begin.data;
    const Range rows = this->share_rows(before_.count), mine = this->share_rows(static_cast<int64_t>(all.size()));
    for (int64_t i = rows.begin; i < rows.end; ++i) claims[i] = 0;
    meet();
    const int32_t holder = all[0].cells[0];
    int64_t* wanted = call_.workspaces[0].fresh;
    bool fits = holder >= 0;
    uint64_t pending = 0;  // applications of a rule that were not added up yet
    int32_t rule = kNone;
    const auto add_up = [&] {
      if (pending == 0) return;
      const Span bag = rule_row(rule).consume;
      for (int32_t i = bag.begin; i < bag.end; ++i) {
        __atomic_fetch_add(&wanted[item(i).object], static_cast<int64_t>(pending) * item(i).count, __ATOMIC_RELAXED);
      }
      pending = 0;
    };
    for (int64_t i = mine.begin; i < mine.end && fits; ++i) {
      const Candidate& candidate = all[static_cast<uint64_t>(i)];
      const int64_t times = alone(candidate);
      fits = candidate.cells[0] == holder && times >= 0;
      if (!fits) break;
      fits = __atomic_fetch_add(&claims[candidate.cells[1]], 1u, __ATOMIC_RELAXED) == 0;
      if (candidate.rule != rule) add_up();
      rule = candidate.rule;
      pending += static_cast<uint64_t>(times);
    }
    add_up();
    if (!fits) __atomic_store_n(&shared_.refused, true, __ATOMIC_RELAXED);
    meet();
    const Range objects = this->share_rows(S::kObjects);
    for (int64_t o = objects.begin; o < objects.end; ++o) {
      if (wanted[o] == 0) continue;
      if (holder < 0 || count_in(holder, static_cast<uint32_t>(o)) < wanted[o]) {
        __atomic_store_n(&shared_.refused, true, __ATOMIC_RELAXED);
      }
      wanted[o] = 0;
    }
    meet();
    if (shared_.refused) return false;
    random_ = this->random_for(~uint64_t{0});
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const Candidate& candidate = all[static_cast<uint64_t>(i)];
      const RuleRow& r = rule_row(candidate.rule);
      const int64_t times = alone(candidate);
      if (times == 0) continue;
      const auto consume = [&](int32_t row, Span bag) {
        for (int32_t k = bag.begin; k < bag.end; ++k) this->post(row, item(k).object, -item(k).count * times);
      };
      consume(candidate.cells[0], r.consume);
      consume(candidate.cells[1], S::kInners[r.inner.begin].consume);
      this->emit(candidate, times, kNone, random_, [](uint32_t, int64_t) { return true; });
      work_.applied += 1;
    }
    return true;
  }

  // Draws among all candidates that share something. One thread, when all others are done choosing.
  [[gnu::noinline, gnu::cold]] void settle() {
    random_ = this->random_for(~uint64_t{0});
    if (!list_resources()) return fail(kOutOfWorkspace);
    if constexpr (S::kHasPriority && !S::kWeak) bar_by_priority();
    draw();
  }

 protected:
  using CellChoice<S>::after_;
  using CellChoice<S>::before_;
  using CellChoice<S>::call_;
  using CellChoice<S>::pool_;
  using CellChoice<S>::random_;
  using CellChoice<S>::shared_;
  using CellChoice<S>::work_;
  using CellChoice<S>::fail;
  using CellChoice<S>::item;
  using CellChoice<S>::meet;
  using CellChoice<S>::rule_row;

 private:
  // ---- finding the bindings

  void start_at(int32_t row, uint32_t object) {
    const Span triggers = S::shared_trigger(object);
    for (int32_t t = triggers.begin; t < triggers.end; ++t) start(S::kSharedTriggers[t], row);
  }

  // `trigger`: the rule and which of its membranes (0 the holder) the row would be.
  void start(TriggerRow trigger, int32_t row) {
    const RuleRow& r = rule_row(trigger.rule);
    Candidate candidate{};
    candidate.rule = trigger.rule;
    if (trigger.member == 0) {
      if (!holds(r, row) || !has(row, r.consume)) return;
      candidate.cells[0] = row;
    } else {
      const InnerRow& inner = S::kInners[r.inner.begin + trigger.member - 1];
      if (row < 0 || !this->is_inner(inner, row) || !has(row, inner.consume)) return;
      const int32_t holder = before_.parent[row];
      if (!holds(r, holder) || !has(holder, r.consume)) return;
      candidate.cells[0] = holder;
      candidate.cells[trigger.member] = row;
    }
    if (!holder_allows(r, candidate.cells[0])) return;
    if (trigger.member == 0 && r.inner.size() == 1) {
      const int32_t children = this->children_of(row).size();
      if (children >= kWideFrom) return leave_to_all({row, ordinal_++, trigger.rule, children, 0});
    }
    bind_inner<0>(candidate, r, trigger.member - 1);
  }

  void leave_to_all(const Wide& wide) {
    const uint64_t at = __atomic_fetch_add(&shared_.wide.size, 1, __ATOMIC_RELAXED);
    if (at < shared_.wide.limit) {
      shared_.wide.data[at] = wide;
    } else {
      __atomic_store_n(&shared_.wide.size, shared_.wide.limit, __ATOMIC_RELAXED);
      fail(kOutOfWorkspace);
    }
  }

  int32_t ordinal_ = 0;  // of what is left to all threads

  // With inner membranes a rule without a label is held by whatever is around them; without, by its own label.
  bool holds(const RuleRow& r, int32_t row) const {
    if (r.inner.size() > 0) return CellChoice<S>::holds(r, row);
    return row >= 0 && r.label == before_.label[row] && this->charge_fits(r.charge, before_.charge[row]);
  }

  bool has(int32_t row, Span bag) const {
    for (int32_t i = bag.begin; i < bag.end; ++i) {
      if (count_in(row, item(i).object) < item(i).count) return false;
    }
    return true;
  }

  int64_t count_in(int32_t row, uint32_t object) const {
    return row < 0 ? call_.environment_before[object] : count_of(pool_, before_.content[row], object);
  }

  bool holder_allows(const RuleRow& r, int32_t holder) {
    if (r.guard == kNone && r.promoters.size() == 0 && r.inhibitors.size() == 0) return true;
    if (holder < 0) {
      for (int o = 0; o < S::kObjects; ++o) work_.count[o] = call_.environment_before[o];
      const bool allowed = this->conditions_hold(r);
      for (int o = 0; o < S::kObjects; ++o) work_.count[o] = 0;
      return allowed;
    }
    this->load(holder);
    const bool allowed = this->conditions_hold(r);
    this->clear_counts();
    return allowed;
  }

  template <int32_t k>
  void bind_inner(Candidate& candidate, const RuleRow& r, int32_t fixed) {
    if (k == r.inner.size()) {
      for (int32_t m = 0; m <= k; ++m) {
        if (candidate.cells[m] >= 0) __atomic_store_n(&shared_.contested.data[candidate.cells[m]], 1, __ATOMIC_RELAXED);
      }
      if (!Records<Candidate>(work_.candidates).push(candidate)) fail(kOutOfWorkspace);
      return;
    }
    if constexpr (k + 1 < S::kMostBound) {
      if (k == fixed) return bind_inner<k + 1>(candidate, r, fixed);
      const InnerRow& inner = S::kInners[r.inner.begin + k];
      const Span children = this->children_of(candidate.cells[0]);
      for (int32_t i = children.begin; i < children.end; ++i) {
        const int32_t row = shared_.children.data[i];
        if (!this->is_inner(inner, row) || taken(candidate, row, k, fixed) || !has(row, inner.consume)) continue;
        candidate.cells[k + 1] = row;
        bind_inner<k + 1>(candidate, r, fixed);
      }
    }
  }

  static bool taken(const Candidate& candidate, int32_t row, int32_t before, int32_t fixed) {
    if (fixed >= 0 && candidate.cells[fixed + 1] == row) return true;
    for (int32_t k = 0; k < before; ++k) {
      if (candidate.cells[k + 1] == row) return true;
    }
    return false;
  }

  static bool comes_before(const Wide& a, const Wide& b) {
    return a.row != b.row ? a.row < b.row : a.ordinal < b.ordinal;
  }

  static constexpr uint64_t kMany = 256;  // bindings, from which on it is worth a look whether there is enough for all

  // How often a rule could be applied if nothing but the membrane inside limited it; -1 where more has to be looked at.
  int64_t alone(const Candidate& candidate) const {
    constexpr int64_t kMost = 1 << 20;
    const RuleRow& r = rule_row(candidate.rule);
    const GroupRow& group = S::kGroups[r.group];
    if (r.inner.size() != 1 || r.new_charge != kAnyCharge || r.dissolve || r.divide.size() > 0 || r.send.size() > 0 ||
        r.delay > 0 || r.link != kNone || r.unlink != kNone) {
      return -1;
    }
    if (group.bound != BoundKind::kMaximal && group.bound != BoundKind::kAtMost) return -1;
    const InnerRow& inner = S::kInners[r.inner.begin];
    if (inner.results.size() != 1 || this->inner_renames(inner) != kNone) return -1;
    int64_t most = group.bound == BoundKind::kAtMost ? static_cast<int64_t>(group.limit) : INT64_MAX;
    for (int32_t i = inner.consume.begin; i < inner.consume.end; ++i) {
      const int64_t times = count_in(candidate.cells[1], item(i).object) / item(i).count;
      most = times < most ? times : most;
    }
    return most <= kMost ? most : -1;
  }

  Records<Candidate> candidates() const { return Records<Candidate>(shared_.candidates); }

  // ---- what is left of what: open addressing over (row, key), keys being objects and groups

  bool list_resources() {
    const uint64_t wanted = candidates().size() * 8 + 64;
    uint64_t size = 1024;
    while (size < wanted) size *= 2;
    if (size > shared_.slots.limit) return false;
    shared_.slots.size = size;
    for (uint64_t i = 0; i < size; ++i) shared_.slots.data[i] = 0;
    shared_.resources.size = 1;
    return true;
  }

  static uint64_t hash(int32_t row, uint32_t key) {
    uint64_t x = (static_cast<uint64_t>(static_cast<uint32_t>(row)) << 32 | key) + 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;  // the finaliser of splitmix64 (Steele, Lea and Flood 2014)
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  /// What is left, or nullptr when there is no room for the entry.
  int64_t* left(int32_t row, uint32_t key) {
    const uint64_t mask = shared_.slots.size - 1;
    uint64_t at = hash(row, key) & mask;
    while (shared_.slots.data[at] != 0) {
      Mail& found = shared_.resources.data[shared_.slots.data[at]];
      if (found.cell == row && found.object == key) return &found.delta;
      at = (at + 1) & mask;
    }
    if (shared_.resources.size * 2 > shared_.slots.size && !grow_slots()) return nullptr;
    const int64_t amount = key < S::kObjects ? count_in(row, key) : 0;
    if (!shared_.resources.push({row, key, amount})) return nullptr;
    const uint32_t index = static_cast<uint32_t>(shared_.resources.size - 1);
    insert(index);
    return &shared_.resources.data[index].delta;
  }

  void insert(uint32_t index) {
    const Mail& entry = shared_.resources.data[index];
    const uint64_t mask = shared_.slots.size - 1;
    uint64_t at = hash(entry.cell, entry.object) & mask;
    while (shared_.slots.data[at] != 0) at = (at + 1) & mask;
    shared_.slots.data[at] = index;
  }

  bool grow_slots() {
    if (shared_.slots.size * 2 > shared_.slots.limit) return false;
    shared_.slots.size *= 2;
    for (uint64_t i = 0; i < shared_.slots.size; ++i) shared_.slots.data[i] = 0;
    for (uint64_t i = 1; i < shared_.resources.size; ++i) insert(static_cast<uint32_t>(i));
    return true;
  }

  // ---- drawing

  static bool limits(const GroupRow& group) {
    return group.bound == BoundKind::kAtMost || group.bound == BoundKind::kChoice;
  }

  template <class F>
  static void for_subjects(const Candidate& candidate, const RuleRow& r, F&& f) {
    if (r.inner.size() == 0) return f(candidate.cells[0]);
    for (int32_t k = 0; k < r.inner.size(); ++k) f(candidate.cells[k + 1]);
  }

  /// How often a candidate can be applied now; -1 when there is no room to find out.
  int64_t room(const Candidate& candidate) {
    const RuleRow& r = rule_row(candidate.rule);
    const GroupRow& group = S::kGroups[r.group];
    int64_t most = INT64_MAX;
    auto bound_by = [&](int32_t row, Span bag) {
      for (int32_t i = bag.begin; i < bag.end && most > 0; ++i) {
        const int64_t* amount = left(row, item(i).object);
        const int64_t times = amount == nullptr ? -1 : *amount / item(i).count;
        most = times < most ? times : most;
      }
    };
    bound_by(candidate.cells[0], r.consume);
    for (int32_t k = 0; k < r.inner.size(); ++k)
      bound_by(candidate.cells[k + 1], S::kInners[r.inner.begin + k].consume);
    if (limits(group)) {
      for_subjects(candidate, r, [&](int32_t row) {
        const int64_t* used = left(row, S::kObjects + static_cast<uint32_t>(r.group));
        const int64_t rest = used == nullptr ? -1 : group.limit - *used;
        most = rest < most ? rest : most;
      });
    }
    if (most <= 0 || !charges_agree(candidate, r)) return most < 0 ? -1 : 0;
    if (restructures(candidate, r)) return 1;
    return most;
  }

  bool charges_agree(const Candidate& candidate, const RuleRow& r) const {
    auto agrees = [&](int32_t row, int8_t charge) {
      if (row < 0 || charge == kAnyCharge) return true;
      const int8_t set = shared_.charge_set.data[row];
      return set == kUnset || set == charge;
    };
    if (!agrees(candidate.cells[0], r.new_charge)) return false;
    for (int32_t k = 0; k < r.inner.size(); ++k) {
      const InnerRow& inner = S::kInners[r.inner.begin + k];
      const int32_t row = candidate.cells[k + 1];
      if (!agrees(row, this->inner_charge(inner))) return false;
      const int32_t renames = this->inner_renames(inner), marked = shared_.structure.data[row];
      if (inner.results.size() != 1 && marked != kNone) return false;
      if (renames != kNone && marked != kNone && marked != renames) return false;
    }
    return r.divide.size() == 0 || shared_.structure.data[candidate.cells[0]] == kNone;
  }

  static bool restructures(const Candidate&, const RuleRow& r) {
    bool any = r.divide.size() > 0;
    for (int32_t k = 0; k < r.inner.size(); ++k) any |= S::kInners[r.inner.begin + k].results.size() != 1;
    return any;
  }

  void apply(const Candidate& candidate, int64_t times) {
    const RuleRow& r = rule_row(candidate.rule);
    auto consume = [&](int32_t row, Span bag) {
      for (int32_t i = bag.begin; i < bag.end; ++i) {
        *left(row, item(i).object) -= item(i).count * times;
        this->post(row, item(i).object, -item(i).count * times);
      }
    };
    auto charge = [&](int32_t row, int8_t value) {
      if (row >= 0 && value != kAnyCharge) shared_.charge_set.data[row] = value;
    };
    consume(candidate.cells[0], r.consume);
    charge(candidate.cells[0], r.new_charge);
    for (int32_t k = 0; k < r.inner.size(); ++k) {
      const InnerRow& inner = S::kInners[r.inner.begin + k];
      consume(candidate.cells[k + 1], inner.consume);
      charge(candidate.cells[k + 1], this->inner_charge(inner));
      if (this->inner_renames(inner) != kNone) {
        shared_.structure.data[candidate.cells[k + 1]] = this->inner_renames(inner);
      }
    }
    for_subjects(candidate, r, [&](int32_t row) {
      if (limits(S::kGroups[r.group]) || asks_for_number(r)) {
        if (int64_t* used = left(row, S::kObjects + static_cast<uint32_t>(r.group))) *used += times;
      }
    });
    this->emit(candidate, times, kNone, random_, [](uint32_t, int64_t) { return true; });
    work_.applied += 1;
  }

  static bool asks_for_number(const RuleRow& r) {
    const BoundKind bound = S::kGroups[r.group].bound;
    return bound == BoundKind::kArbitrary || bound == BoundKind::kMinimal;
  }

  int32_t home(const Candidate& candidate) const {
    const RuleRow& r = rule_row(candidate.rule);
    return r.label == kNone && r.inner.size() > 0 ? candidate.cells[1] : candidate.cells[0];
  }

  /// The smallest priority among candidates of a membrane, kept beside the resources as its negative.
  void bar_by_priority() {
    constexpr uint32_t kKey = S::kObjects + S::kGroupCount;
    Records<Candidate> all = candidates();
    for (uint64_t i = 0; i < all.size(); ++i) {
      const int32_t priority = rule_row(all[i].rule).priority;
      if (priority == kNoPriority) continue;
      int64_t* best = left(home(all[i]), kKey);
      if (best == nullptr) return fail(kOutOfWorkspace);
      const int64_t rank = INT32_MAX - static_cast<int64_t>(priority) + 1;
      *best = rank > *best ? rank : *best;
    }
    uint64_t kept = 0;
    for (uint64_t i = 0; i < all.size(); ++i) {
      const int32_t priority = rule_row(all[i].rule).priority;
      const bool free = priority == kNoPriority;
      if (!free && INT32_MAX - static_cast<int64_t>(priority) + 1 < *left(home(all[i]), kKey)) continue;
      all[kept++] = all[i];
    }
    all.resize(kept);
  }

  void draw() {
    Records<Candidate> all = candidates();
    uint64_t until_look = 0;
    while (all.size() > 0 && shared_.status.load(std::memory_order_relaxed) == kDone) {
      if (!S::kSequential && all.size() <= 4096 && until_look == 0) {
        if (draw_many()) continue;
        until_look = all.size();
      }
      until_look -= until_look > 0 ? 1 : 0;
      const uint64_t i = random_.below(all.size());
      const Candidate candidate = all[i];
      const RuleRow& r = rule_row(candidate.rule);
      if constexpr (!S::kUniform) {
        if (random_.uniform() * S::kMaxWeight >= r.weight) continue;
      }
      const int64_t most = room(candidate);
      if (most < 0) return fail(kOutOfWorkspace);
      if (most == 0) {
        drop(all, i);
        continue;
      }
      if (S::kWeak && outranked(candidate)) continue;
      if (asks_for_number(r)) {
        work_.possible += 1;
        const int64_t least = S::kGroups[r.group].bound == BoundKind::kMinimal && unused(candidate) ? 1 : 0;
        const int64_t times = least + static_cast<int64_t>(random_.below(static_cast<uint64_t>(most - least) + 1));
        if (times > 0) apply(candidate, times);
        drop(all, i);
        continue;
      }
      apply(candidate, all.size() == 1 && !S::kSequential ? most : 1);
      if constexpr (S::kSequential) return;
    }
  }

  static void drop(Records<Candidate>& all, uint64_t i) {
    all[i] = all[all.size() - 1];
    all.resize(all.size() - 1);
  }

  bool unused(const Candidate& candidate) {
    bool any = false;
    const RuleRow& r = rule_row(candidate.rule);
    for_subjects(candidate, r, [&](int32_t row) {
      const int64_t* used = left(row, S::kObjects + static_cast<uint32_t>(r.group));
      any |= used != nullptr && *used == 0;
    });
    return any;
  }

  bool outranked(const Candidate& candidate) {
    const int32_t priority = rule_row(candidate.rule).priority;
    if (priority == kNoPriority) return false;
    const Records<Candidate> all = candidates();
    for (uint64_t i = 0; i < all.size(); ++i) {
      const int32_t other = rule_row(all[i].rule).priority;
      if (other == kNoPriority || other >= priority || home(all[i]) != home(candidate)) continue;
      if (room(all[i]) > 0) return true;
    }
    return false;
  }

  // So many draws at once that no candidate can become inapplicable meanwhile. False when that is hardly any.
  bool draw_many() {
    Records<Candidate> all = candidates();
    if (S::kWeak) return false;
    int64_t least = INT64_MAX;
    double total = 0;
    for (uint64_t i = 0; i < all.size(); ++i) {
      const RuleRow& r = rule_row(all[i].rule);
      if (S::kGroups[r.group].bound != BoundKind::kMaximal || restructures(all[i], r)) return false;
      if (sets_new_charge(all[i], r)) return false;
      const int64_t most = room(all[i]);
      if (most <= 0) return false;
      // any draw takes at most kMaxCount of an object, this candidate needs at least one of each of its own
      least = most / S::kMaxCount < least ? most / S::kMaxCount : least;
      total += r.weight;
    }
    if (least < 2 * static_cast<int64_t>(all.size())) return false;
    int64_t draws = least;
    for (uint64_t i = 0; i < all.size() && draws > 0; ++i) {
      const double weight = rule_row(all[i].rule).weight;
      const int64_t times = weight >= total ? draws : random_.binomial(draws, weight / total);
      if (times > 0) apply(all[i], times);
      draws -= times;
      total -= weight;
    }
    return true;
  }

  bool sets_new_charge(const Candidate& candidate, const RuleRow& r) const {
    auto changes = [&](int32_t row, int8_t charge) {
      return row >= 0 && charge != kAnyCharge && shared_.charge_set.data[row] != charge;
    };
    bool any = changes(candidate.cells[0], r.new_charge);
    for (int32_t k = 0; k < r.inner.size(); ++k) {
      any |= changes(candidate.cells[k + 1], this->inner_charge(S::kInners[r.inner.begin + k]));
    }
    return any;
  }
};

}  // namespace echoc::population
