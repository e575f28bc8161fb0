// Choosing rule applications in one membrane.
//
// Applications are drawn one at a time, uniformly (by weight where rules have weights) among the candidates that are
// applicable then. What became inapplicable stays so within a step, so a candidate found inapplicable leaves for good;
// and while no candidate can run out, the next draws are independent and are made together, as a multinomial.
#pragma once

#include "kernels/cpu/population_emit.h"

namespace echoc::population {

template <class S>
class CellChoice : public Emission<S> {
 public:
  using Emission<S>::Emission;
  using typename Emission<S>::Candidate;

  // Chooses for the membrane whose counts are loaded. Whether any rule was a candidate here, or may be elsewhere.
  bool decide_cell(int32_t row, const uint32_t* actions) {
    row_ = row;
    charge_ = kUnset;
    structure_ = kNone;
    delays_ = false;
    applied_ = false;
    work_.local.size = 0;
    random_ = this->random_for(static_cast<uint64_t>(before_.id[row]));
    const uint64_t contested = work_.contested.size;
    if (actions != nullptr) {
      for (uint64_t i = 0; i < work_.touched.size; ++i) {
        const uint32_t object = work_.touched.data[i];
        if ((actions[object] & kKindMask) != kDecide) continue;
        const Span rules = S::cell_trigger(object);
        for (int32_t t = rules.begin; t < rules.end; ++t) consider(S::kCellTriggers[t]);
      }
    }
    for (int32_t i = 0; i < S::kAlwaysCount; ++i) consider(S::kAlways[i]);
    if (work_.local.size > 0) {
      if constexpr (S::kHasPriority && !S::kWeak) bar_by_priority();
      if constexpr (S::kHasSequence) run_sequences();
      apply_alone();
      if constexpr (S::kHasFree) work_.possible += work_.local.size > 0;
      draw();
    }
    return work_.local.size > 0 || work_.contested.size > contested;
  }

  bool applied_here() const { return applied_; }

  // Whether an object of the loaded membrane moves by itself.
  bool moved(const uint32_t* actions) const {
    if (actions == nullptr) return false;
    for (uint64_t i = 0; i < work_.touched.size; ++i) {
      const uint32_t object = work_.touched.data[i];
      const uint32_t kind = actions[object] & kKindMask;
      if (kind == kErase || (kind != kDecide && (actions[object] & ~kKindMask) != object)) return true;
    }
    return false;
  }

  // What the chosen applications make: `give` places objects in this membrane, the rest goes by mail.
  template <class Give>
  bool produce_cell(int32_t row, Give&& give) {
    bool fits = true;
    for (uint64_t i = 0; i < work_.local.size; ++i) {
      const Local& local = work_.local.data[i];
      if (local.times == 0) continue;
      fits &= this->emit(this->bind(local.rule, row), local.times, row, random_, give);
      work_.applied += 1;
    }
    return fits;
  }

  // A neuron whose delay is over: what its rule makes leaves now.
  void open(int32_t row) {
    random_ = this->random_for(static_cast<uint64_t>(before_.id[row]));
    const int32_t rule = before_.pending[row];
    after_.pending[row] = kNone;
    if (rule == kNone) return;
    [[maybe_unused]] int32_t targets[S::kMostTargets];
    auto place = [&](int32_t to, Span bag, int64_t times) {
      bool fits = true;
      for (int32_t i = bag.begin; i < bag.end; ++i) fits &= this->post(to, item(i).object, item(i).count * times);
      return fits;
    };
    place(row, rule_row(rule).produce, 1);
    if constexpr (S::kHasSends) {
      this->template send<0>(this->bind(rule, row), 1, rule_row(rule).send.begin, targets, 0, random_, place, false);
    }
    work_.applied += 1;
  }

  [[gnu::cold]] void note_rule(int32_t row, int32_t rule, int64_t times) {
    this->note(this->bind(rule, row), times, nullptr, 0);
  }

  [[gnu::cold]] void note_move(int32_t row, uint32_t object, int64_t count) {
    const Span rules = S::cell_trigger(object);
    for (int32_t t = rules.begin; t < rules.end; ++t) {
      const int32_t rule = S::kCellTriggers[t];
      if (this->matches(rule, row)) return this->note(this->bind(rule, row), count, nullptr, 0);
    }
  }

 protected:
  using Emission<S>::after_;
  using Emission<S>::before_;
  using Emission<S>::call_;
  using Emission<S>::row_;
  using Emission<S>::shared_;
  using Emission<S>::work_;
  using Emission<S>::consumed;
  using Emission<S>::fail;
  using Emission<S>::item;
  using Emission<S>::rule_row;

  void consider(int32_t rule) {
    if (!this->fits_here(rule)) return;
    if constexpr (S::kHasShared || S::kSequential) {
      if (shared_.contested.data[row_] && (S::kSequential || S::kComponentShared[rule_row(rule).component])) {
        if (!Records<Candidate>(work_.contested).push(this->bind(rule, row_))) fail(kOutOfWorkspace);
        return;
      }
    }
    work_.local.push({rule, 0});
  }

  static int8_t charge_given(const RuleRow& r) {
    if (r.inner.size() == 0) return r.new_charge;
    const InnerRow& inner = S::kInners[r.inner.begin];
    return inner.results.size() == 1 ? S::kResults[inner.results.begin].charge : kAnyCharge;
  }

  // As an entry of `structure`: the label that a rule gives its inner membrane, kNone where that keeps its own.
  static int32_t renames(const RuleRow& r) {
    return r.inner.size() == 1 ? Emission<S>::inner_renames(S::kInners[r.inner.begin]) : kNone;
  }

  static bool restructures(const RuleRow& r) {
    return r.divide.size() > 0 || r.delay > 0 || (r.inner.size() > 0 && S::kInners[r.inner.begin].results.size() != 1);
  }

  static bool bounded(const RuleRow& r) { return S::kGroups[r.group].bound != BoundKind::kMaximal; }

  // How often it can be applied now, the bound of its group included.
  int64_t local_room(const Local& local) const {
    const RuleRow& r = rule_row(local.rule);
    const GroupRow& group = S::kGroups[r.group];
    int64_t most = INT64_MAX;
    const Span bag = consumed(r);
    for (int32_t i = bag.begin; i < bag.end; ++i) {
      const int64_t times = work_.count[item(i).object] / item(i).count;
      most = times < most ? times : most;
    }
    if (group.bound == BoundKind::kAtMost || group.bound == BoundKind::kChoice) {
      const int64_t left = group.limit - work_.used[r.group];
      most = left < most ? left : most;
    }
    const int8_t charge = charge_given(r);
    if (charge != kAnyCharge && charge_ != kUnset && charge_ != charge) return 0;
    if (r.delay > 0) return delays_ || most < 1 ? 0 : 1;
    if (restructures(r)) return structure_ == kNone && most > 0 ? 1 : 0;
    const int32_t renames = this->renames(r);
    if (renames != kNone && structure_ != kNone && structure_ != renames) return 0;
    return most == INT64_MAX && bag.size() == 0 && !bounded(r) ? 0 : most;
  }

  void take(Local& local, int64_t times) {
    if (times == 0) return;
    const RuleRow& r = rule_row(local.rule);
    const Span bag = consumed(r);
    for (int32_t i = bag.begin; i < bag.end; ++i) work_.count[item(i).object] -= item(i).count * times;
    work_.used[r.group] += static_cast<int32_t>(times < INT32_MAX ? times : INT32_MAX);
    const int8_t charge = charge_given(r);
    if (charge != kAnyCharge) charge_ = charge;
    if (restructures(r) && r.delay == 0) structure_ = local.rule;
    if (this->renames(r) != kNone) structure_ = this->renames(r);
    delays_ |= r.delay > 0;
    local.times += times;
    applied_ = true;
  }

  void bar_by_priority() {
    int32_t first = INT32_MAX;
    for (uint64_t i = 0; i < work_.local.size; ++i) {
      const int32_t priority = rule_row(work_.local.data[i].rule).priority;
      if (priority != kNoPriority && priority < first) first = priority;
    }
    uint64_t kept = 0;
    for (uint64_t i = 0; i < work_.local.size; ++i) {
      const int32_t priority = rule_row(work_.local.data[i].rule).priority;
      if (priority == kNoPriority || priority == first) work_.local.data[kept++] = work_.local.data[i];
    }
    work_.local.size = kept;
  }

  // Candidates whose objects nobody else wants are applied as often as possible at once.
  void apply_alone() {
    work_.order.size = 0;
    for (uint64_t i = 0; i < work_.local.size; ++i) count_users(work_.local.data[i], 1);
    for (uint64_t i = 0; i < work_.local.size; ++i) {
      Local& local = work_.local.data[i];
      const RuleRow& r = rule_row(local.rule);
      bool alone = !bounded(r) && charge_given(r) == kAnyCharge && !restructures(r) && local.times == 0;
      const Span bag = consumed(r);
      for (int32_t b = bag.begin; b < bag.end; ++b) alone &= work_.fresh[item(b).object] == 1;
      if (alone) {
        take(local, local_room(local));
      } else if (S::kGroups[r.group].bound != BoundKind::kSequence) {
        work_.order.push(static_cast<int32_t>(i));
      }
    }
    for (uint64_t i = 0; i < work_.local.size; ++i) count_users(work_.local.data[i], 0);
  }

  void count_users(const Local& local, int64_t by) {
    const Span bag = consumed(rule_row(local.rule));
    for (int32_t b = bag.begin; b < bag.end; ++b) {
      int64_t& users = work_.fresh[item(b).object];
      users = by == 0 ? 0 : users + 1;
    }
  }

  void run_sequences() {
    const Span groups = S::groups_of(before_.label[row_]);
    for (int32_t g = groups.begin; g < groups.end; ++g) {
      if (S::kGroups[g].bound == BoundKind::kSequence) run_sequence(S::kGroups[g]);
    }
    clear_used();
  }

  // Rules one after another, each once, up to the first that cannot be applied.
  void run_sequence(const GroupRow& group) {
    for (int32_t i = group.rules.begin; i < group.rules.end; ++i) {
      Local* local = find_local(S::kGroupRules[i]);
      if (local == nullptr || local_room(*local) < 1) return;
      take(*local, 1);
    }
  }

  Local* find_local(int32_t rule) {
    for (uint64_t i = 0; i < work_.local.size; ++i) {
      if (work_.local.data[i].rule == rule) return &work_.local.data[i];
    }
    return nullptr;
  }

  // Draws among the candidates listed in work_.order until none is applicable.
  void draw() {
    while (true) {
      uint64_t live = 0;
      int32_t level = INT32_MAX;
      for (uint64_t i = 0; i < work_.order.size; ++i) {
        const Local& local = work_.local.data[work_.order.data[i]];
        if (local_room(local) < 1) continue;
        const int32_t priority = rule_row(local.rule).priority;
        if (S::kWeak && priority != kNoPriority && priority < level) level = priority;
        work_.order.data[live++] = work_.order.data[i];
      }
      work_.order.size = live;
      if (live == 0) break;
      draw_some(level);
    }
    clear_used();
  }

  bool may_go(const Local& local, int32_t level) const {
    const int32_t priority = rule_row(local.rule).priority;
    return !S::kWeak || priority == kNoPriority || priority == level;
  }

  void draw_some(int32_t level) {
    double total = 0;
    int32_t count = 0;
    for (uint64_t i = 0; i < work_.order.size; ++i) {
      const Local& local = work_.local.data[work_.order.data[i]];
      if (!may_go(local, level)) continue;
      total += rule_row(local.rule).weight;
      ++count;
    }
    const int64_t together = count == 1 ? 1 : draws_without_change(level);
    if (together > 1) return draw_together(level, together, total);
    double at = random_.uniform() * total;
    int32_t chosen = kNone;
    for (uint64_t i = 0; i < work_.order.size; ++i) {
      const Local& local = work_.local.data[work_.order.data[i]];
      if (!may_go(local, level)) continue;
      chosen = static_cast<int32_t>(i);
      at -= rule_row(local.rule).weight;
      if (at < 0) break;
    }
    draw_one(chosen, count == 1 && work_.order.size == 1);
  }

  double total_weight() const {
    double total = 0;
    for (uint64_t i = 0; i < work_.order.size; ++i)
      total += rule_row(work_.local.data[work_.order.data[i]].rule).weight;
    return total;
  }

  uint64_t draw_weighted() {
    double at = random_.uniform() * total_weight();
    for (uint64_t i = 0; i + 1 < work_.order.size; ++i) {
      at -= rule_row(work_.local.data[work_.order.data[i]].rule).weight;
      if (at < 0) return i;
    }
    return work_.order.size - 1;
  }

  void draw_one(int32_t position, bool last) {
    Local& local = work_.local.data[work_.order.data[position]];
    const RuleRow& r = rule_row(local.rule);
    const BoundKind bound = S::kGroups[r.group].bound;
    if (bound == BoundKind::kArbitrary || bound == BoundKind::kMinimal) {
      const int64_t least = bound == BoundKind::kMinimal && work_.used[r.group] == 0 ? 1 : 0;
      take(local, least + static_cast<int64_t>(random_.below(static_cast<uint64_t>(local_room(local) - least) + 1)));
      work_.order.data[position] = work_.order.data[--work_.order.size];
      return;
    }
    take(local, last ? local_room(local) : 1);
  }

  // So many draws can be made before any candidate may become inapplicable.
  int64_t draws_without_change(int32_t level) {
    int64_t least = INT64_MAX;
    for (uint64_t i = 0; i < work_.order.size; ++i) {
      const Local& local = work_.local.data[work_.order.data[i]];
      const RuleRow& r = rule_row(local.rule);
      if (!may_go(local, level)) continue;
      if (bounded(r) || restructures(r) || (charge_given(r) != kAnyCharge && charge_given(r) != charge_)) return 1;
    }
    for (uint64_t i = 0; i < work_.order.size; ++i) {
      const Local& local = work_.local.data[work_.order.data[i]];
      if (!may_go(local, level)) continue;
      const RuleRow& r = rule_row(local.rule);
      const Span bag = consumed(r);
      for (int32_t b = bag.begin; b < bag.end; ++b) {
        int64_t& most = work_.fresh[item(b).object];
        most = item(b).count > most ? item(b).count : most;
      }
    }
    for (uint64_t i = 0; i < work_.order.size; ++i) {
      const Span bag = consumed(rule_row(work_.local.data[work_.order.data[i]].rule));
      for (int32_t b = bag.begin; b < bag.end; ++b) {
        int64_t& most = work_.fresh[item(b).object];
        if (most == 0) continue;
        const int64_t draws = work_.count[item(b).object] / most;
        least = draws < least ? draws : least;
        most = 0;
      }
    }
    return least;
  }

  void draw_together(int32_t level, int64_t draws, double total) {
    for (uint64_t i = 0; i < work_.order.size && draws > 0; ++i) {
      Local& local = work_.local.data[work_.order.data[i]];
      if (!may_go(local, level)) continue;
      const double weight = rule_row(local.rule).weight;
      const int64_t times = weight >= total ? draws : random_.binomial(draws, weight / total);
      take(local, times);
      draws -= times;
      total -= weight;
    }
  }

  void clear_used() {
    for (uint64_t i = 0; i < work_.local.size; ++i) work_.used[rule_row(work_.local.data[i].rule).group] = 0;
  }

  Random random_{0, 0, 0, 0};
  int8_t charge_ = kUnset;
  int32_t structure_ = kNone;  // the rule that divides or dissolves the membrane, or what renames it
  bool delays_ = false;
  bool applied_ = false;
};

}  // namespace echoc::population
