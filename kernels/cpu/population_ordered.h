// Groups of rules that run one after another in each membrane (kernel P systems).
#pragma once

#include "kernels/cpu/population_shared.h"

namespace echoc::population {

template <class S>
class Ordered : public SharedChoice<S> {
 public:
  using SharedChoice<S>::SharedChoice;

  // Chooses for the membrane whose counts are loaded, group by group, each on what the ones before left. Conditions are
  // those of the step's start. One rule that changes the structure is applied at most, and ends the membrane's turn.
  bool decide_ordered(int32_t row) {
    row_ = row;
    structure_ = kNone;
    replaced_ = false;
    charge_ = kUnset;
    applied_ = false;
    work_.local.size = 0;
    random_ = this->random_for(static_cast<uint64_t>(before_.id[row]));
    const Span groups = S::groups_of(before_.label[row]);
    for (int32_t g = groups.begin; g < groups.end; ++g) {
      for (int32_t i = S::kGroups[g].rules.begin; i < S::kGroups[g].rules.end; ++i) {
        if (allowed(S::kGroupRules[i])) work_.local.push({S::kGroupRules[i], 0});
      }
    }
    if constexpr (S::kHasFree) {
      for (uint64_t i = 0; i < work_.local.size; ++i) work_.possible += room_here(work_.local.data[i]) > 0;
    }
    for (int32_t g = groups.begin; g < groups.end && !replaced_; ++g) {
      if (!run_group(g)) break;
    }
    return work_.local.size > 0;
  }

 protected:
  using SharedChoice<S>::applied_;
  using SharedChoice<S>::before_;
  using SharedChoice<S>::charge_;
  using SharedChoice<S>::random_;
  using SharedChoice<S>::row_;
  using SharedChoice<S>::rule_row;
  using SharedChoice<S>::structure_;
  using SharedChoice<S>::work_;

  bool allowed(int32_t rule) const {
    const RuleRow& r = rule_row(rule);
    return this->matches(rule, row_) && this->conditions_hold(r) && this->has_targets(r, row_);
  }

  static bool changes_structure(const RuleRow& r) {
    return r.divide.size() > 0 || r.dissolve || r.link != kNone || r.unlink != kNone;
  }

  int64_t room_here(const Local& local) const {
    const RuleRow& r = rule_row(local.rule);
    if (changes_structure(r)) return structure_ == kNone && this->enough(r.consume) ? 1 : 0;
    return this->local_room(local);
  }

  void take_here(Local& local, int64_t times) {
    this->take(local, times);
    const RuleRow& r = rule_row(local.rule);
    if (times > 0 && changes_structure(r)) structure_ = local.rule;
    replaced_ |= times > 0 && (r.divide.size() > 0 || r.dissolve);
  }

  // Whether the membrane's step goes on.
  bool run_group(int32_t g) {
    const GroupRow& group = S::kGroups[g];
    if (group.bound == BoundKind::kSequence) return run_in_order(group);
    int64_t limit = group.bound == BoundKind::kChoice ? 1 : group.bound == BoundKind::kAtMost ? group.limit : INT64_MAX;
    bool first = true;
    work_.order.size = 0;
    for (uint64_t i = 0; i < work_.local.size; ++i) {
      if (rule_row(work_.local.data[i].rule).group == g) work_.order.push(static_cast<int32_t>(i));
    }
    while (limit > 0) {
      uint64_t live = 0;
      for (uint64_t i = 0; i < work_.order.size; ++i) {
        if (room_here(work_.local.data[work_.order.data[i]]) > 0) work_.order.data[live++] = work_.order.data[i];
      }
      work_.order.size = live;
      if (live == 0) break;
      const uint64_t position = live == 1 ? 0 : this->draw_weighted();
      Local& local = work_.local.data[work_.order.data[position]];
      int64_t times = 1;
      const int64_t most = room_here(local);
      if (group.bound == BoundKind::kArbitrary || group.bound == BoundKind::kMinimal) {
        const int64_t least = group.bound == BoundKind::kMinimal && first ? 1 : 0;
        times = least + static_cast<int64_t>(random_.below(static_cast<uint64_t>(most - least) + 1));
        work_.order.data[position] = work_.order.data[--work_.order.size];
      } else if (live == 1) {
        times = most < limit ? most : limit;
      } else if (limit == INT64_MAX) {
        const int64_t together = this->draws_without_change(INT32_MAX);
        if (together > 1) {
          this->draw_together(INT32_MAX, together, this->total_weight());
          continue;
        }
      }
      take_here(local, times);
      first = first && times == 0;
      limit -= limit == INT64_MAX ? 0 : times;
    }
    this->clear_used();
    return true;
  }

  // A sequence that stops before its last rule ends the membrane's step.
  bool run_in_order(const GroupRow& group) {
    bool whole = true;
    for (int32_t i = group.rules.begin; i < group.rules.end && whole; ++i) {
      Local* local = this->find_local(S::kGroupRules[i]);
      whole = local != nullptr && room_here(*local) > 0;
      if (whole) take_here(*local, 1);
    }
    this->clear_used();
    return whole;
  }

  bool replaced_ = false;
};

}  // namespace echoc::population
