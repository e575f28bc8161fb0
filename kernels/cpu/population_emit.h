// What applications make: objects in the membrane itself, mail for others, charges, marks for the structure.
#pragma once

#include "kernels/cpu/population_binding.h"

namespace echoc::population {

template <class S>
class Emission : public Binding<S> {
 public:
  using Binding<S>::Binding;
  using typename Binding<S>::Candidate;

 protected:
  using Binding<S>::after_;
  using Binding<S>::before_;
  using Binding<S>::call_;
  using Binding<S>::shared_;
  using Binding<S>::work_;
  using Binding<S>::fail;
  using Binding<S>::item;
  using Binding<S>::rule_row;

  static int8_t inner_charge(const InnerRow& inner) {
    return inner.results.size() == 1 ? S::kResults[inner.results.begin].charge : kAnyCharge;
  }

  static int32_t inner_renames(const InnerRow& inner) {
    const bool stays = inner.results.size() == 1 && S::kResults[inner.results.begin].label != inner.label;
    return stays ? -2 - S::kResults[inner.results.begin].label : kNone;
  }

  // Places what `times` applications make. `self`: the row whose content is being written, reached through `give`
  // (kNone: there is none, everything goes by mail).
  template <class Give>
  bool emit(const Candidate& candidate, int64_t times, int32_t self, Random& random, Give&& give) {
    const RuleRow& r = rule_row(candidate.rule);
    const int32_t holder = candidate.cells[0];
    auto place = [&](int32_t row, Span bag, int64_t n) {
      bool fits = true;
      for (int32_t i = bag.begin; i < bag.end; ++i) {
        int64_t amount;
        if (__builtin_mul_overflow(item(i).count, n, &amount)) {
          fail(kOverflow, row, item(i).object);
          return false;
        }
        fits &= row == self && self != kNone ? give(item(i).object, amount) : post(row, item(i).object, amount);
      }
      return fits;
    };
    int32_t targets[S::kMostTargets];
    if (r.delay > 0) {  // everything leaves when the cell opens
      after_.closed[holder] = r.delay;
      after_.pending[holder] = candidate.rule;
      if (call_.record) note(candidate, times, targets, 0);
      return true;
    }
    bool fits = place(holder, r.produce, times);
    if (r.new_charge != kAnyCharge && holder >= 0) after_.charge[holder] = r.new_charge;
    // a skin never dissolves
    if (r.dissolve && (S::kGraph || before_.parent[holder] >= 0)) shared_.dissolves.data[holder] = 1;
    for (int32_t k = 0; k < r.inner.size(); ++k) {
      fits &= change_inner(candidate.cells[k + 1], r.inner.begin + k, times, place);
    }
    if (r.divide.size() > 0) shared_.structure.data[holder] = S::kInnerCount + candidate.rule;
    const bool links = S::kHasLinks && (r.link != kNone || r.unlink != kNone);
    if constexpr (S::kHasSends) {
      fits = fits && send<0>(candidate, times, r.send.begin, targets, 0, random, place, call_.record != 0 && !links);
    } else if (call_.record != 0 && !links) {
      note(candidate, times, targets, 0);
    }
    if constexpr (S::kHasLinks) {
      if (links) return fits && relink(r, candidate, times, targets, random);
    }
    return fits;
  }

  template <class Place>
  bool change_inner(int32_t row, int32_t index, int64_t times, Place&& place) {
    const InnerRow& inner = S::kInners[index];
    if (inner.results.size() != 1) {
      shared_.structure.data[row] = index;
      return !inner.common || place(row, S::kResults[inner.results.begin].produce, times);
    }
    const ResultRow& result = S::kResults[inner.results.begin];
    if (result.charge != kAnyCharge) after_.charge[row] = result.charge;
    after_.label[row] = static_cast<uint16_t>(result.label);
    return place(row, result.produce, times);
  }

  bool post(int32_t row, uint32_t object, int64_t delta) {
    if (this->add_to_mail(row, object, delta)) return true;
    fail(kOutOfWorkspace);
    return false;
  }

  // Products for elsewhere from the s-th send on, and the record. Every application chooses its own child: together a
  // multinomial; a linked row is chosen once. `depth` sends lie before: functions that call themselves have no place on
  // devices.
  template <int64_t depth, class Place>
  bool send(const Candidate& candidate, int64_t times, int32_t s, int32_t* targets, int32_t chosen, Random& random,
            Place&& place, bool record) {
    const int32_t holder = candidate.cells[0];
    if (s == rule_row(candidate.rule).send.end) {
      if (record) note(candidate, times, targets, chosen);
      return true;
    }
    if constexpr (depth < S::kMostSends) {
      const SendRow& row = S::kSends[s];
      bool fits = true;
      int32_t known = chosen;
      if (row.target == TargetKind::kIn) {
        const int32_t count = this->count_children(holder, row.label);
        for (int32_t k = 0; k < count && times > 0; ++k) {
          const int64_t here = k + 1 == count ? times : random.binomial(times, 1.0 / (count - k));
          if (here == 0) continue;
          times -= here;
          const int32_t to = this->child(holder, row.label, k);
          targets[chosen] = to;
          known = chosen + 1;
          fits &= place(to, row.objects, here);
          fits &= send<depth + 1>(candidate, here, s + 1, targets, known, random, place, record);
        }
        return fits;
      }
      if (row.target == TargetKind::kOut) {
        fits &= place(before_.parent[holder], row.objects, times);
      } else if (row.target == TargetKind::kSynapses) {
        const Span links = this->links_of(holder);
        for (int32_t i = links.begin; i < links.end; ++i) fits &= place(this->linked_row(i), row.objects, times);
      } else {
        const int32_t to = this->linked(holder, row.label, pick(random, this->count_linked(holder, row.label)));
        fits &= place(to, row.objects, times);
        targets[known++] = to;
      }
      return fits & send<depth + 1>(candidate, times, s + 1, targets, known, random, place, record);
    }
    return true;
  }

  static int64_t pick(Random& random, int32_t count) {
    return count == 1 ? 0 : static_cast<int64_t>(random.below(static_cast<uint64_t>(count)));
  }

  // One link is made or cut; the record names the sends' targets, then the other end.
  bool relink(const RuleRow& r, const Candidate& candidate, int64_t times, int32_t* targets, Random& random) {
    const int32_t holder = candidate.cells[0];
    const bool makes = r.link != kNone;
    const int32_t label = makes ? r.link : r.unlink;
    int32_t other;
    if (makes) {
      int32_t count = 0;
      for (uint32_t row = 0; row < before_.count; ++row) count += linkable(holder, static_cast<int32_t>(row), label);
      int64_t which = pick(random, count);
      other = kNone;
      for (uint32_t row = 0; row < before_.count && other == kNone; ++row) {
        if (linkable(holder, static_cast<int32_t>(row), label) && which-- == 0) other = static_cast<int32_t>(row);
      }
    } else {
      other = this->linked(holder, label, pick(random, this->count_linked(holder, label)));
    }
    int32_t chosen = 0;
    for (int32_t s = r.send.begin; s < r.send.end; ++s) {
      const TargetKind target = S::kSends[s].target;
      chosen += target == TargetKind::kIn || target == TargetKind::kLinked;
    }
    targets[chosen++] = other;
    if (call_.record) note(candidate, times, targets, chosen);
    if (work_.relinks.push({holder, makes ? other : -2 - other})) return true;
    fail(kOutOfWorkspace);
    return false;
  }

  bool linkable(int32_t holder, int32_t row, int32_t label) const {
    return row != holder && before_.label[row] == label && !this->are_linked(holder, row);
  }

  // One line of the record: the rule and the ids of what it binds.
  [[gnu::cold]] void note(const Candidate& candidate, int64_t times, const int32_t* targets, int32_t chosen) {
    const int32_t bound = 1 + rule_row(candidate.rule).inner.size();
    bool fits = work_.applications.push(candidate.rule) && work_.applications.push(times) &&
                work_.applications.push(bound + chosen);
    for (int32_t i = 0; i < bound; ++i) fits = fits && work_.applications.push(id_of(candidate.cells[i]));
    for (int32_t i = 0; i < chosen; ++i) fits = fits && work_.applications.push(id_of(targets[i]));
    if (!fits) fail(kOutOfWorkspace);
  }

  int64_t id_of(int32_t row) const { return row < 0 ? -1 : before_.id[row]; }
};

}  // namespace echoc::population
