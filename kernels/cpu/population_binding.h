// Which rules fit which membranes: labels, charges, contents, guards, targets.
#pragma once

#include "kernels/cpu/abi.h"
#include "kernels/cpu/population.h"
#include "kernels/cpu/population_pages.h"
#include "kernels/cpu/population_rules.h"
#include "kernels/cpu/random.h"

namespace echoc::population {

/// Random numbers of one membrane in one step: a function of seed, run, step and the membrane's id alone.
class Random {
 public:
  Random(uint64_t seed, uint64_t run, uint64_t step, uint64_t id) : stream_(mix(seed ^ mix(id)), run) {
    stream_.at(step);
  }

  double uniform() { return stream_.uniform(); }

  /// Uniform on 0 .. n - 1, n at least 1.
  uint64_t below(uint64_t n) {
    if (n <= UINT32_MAX) return stream_.below(static_cast<uint32_t>(n));
    const uint64_t threshold = -n % n;
    uint64_t bits = stream_.bits();
    while (bits < threshold) bits = stream_.bits();
    return bits % n;
  }

  int64_t binomial(int64_t n, double p) { return random::binomial(stream_, n, random::chance(p)); }

 private:
  static uint64_t mix(uint64_t x) {  // splitmix64's finaliser (Steele, Lea and Flood 2014)
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  random::Stream stream_;
};

/// What every part of a step looks at. `row_` is the membrane whose counts are loaded into work_.count.
template <class S>
class Binding {
 public:
  using Candidate = Bound<S::kMostBound>;

  explicit Binding(const StepCall& call)
      : call_(call),
        before_(*call.before),
        after_(*call.after),
        pool_(*call.pool),
        shared_(*call.shared),
        work_(call.workspaces[call.tid]) {}

 protected:
  static const RuleRow& rule_row(int32_t rule) { return S::kRules[rule]; }
  static const BagRow& item(int32_t i) { return S::kBags[i]; }

  void fail(Status status, int32_t row = 0, uint32_t object = 0) {
    int32_t expected = kDone;
    if (shared_.status.compare_exchange_strong(expected, status)) {
      shared_.failed_cell = row;
      shared_.failed_object = object;
    }
  }

  Random random_for(uint64_t stream) const {
    return Random(call_.seed, call_.run, static_cast<uint64_t>(call_.step), stream);
  }

  static bool charge_fits(int8_t wanted, int8_t found) { return wanted == kAnyCharge || wanted == found; }

  // Whether a row (or the environment) may be the holder of a rule with inner membranes.
  bool holds(const RuleRow& r, int32_t holder) const {
    if (holder < 0) return r.label == kNone;
    return (r.label == kNone || r.label == before_.label[holder]) && charge_fits(r.charge, before_.charge[holder]);
  }

  bool is_inner(const InnerRow& inner, int32_t row) const {
    return inner.label == before_.label[row] && charge_fits(inner.charge, before_.charge[row]);
  }

  // Whether a rule that decides by one membrane may do so in this row.
  bool matches(int32_t rule, int32_t row) const {
    const RuleRow& r = rule_row(rule);
    if (r.inner.size() == 0) return r.label == before_.label[row] && charge_fits(r.charge, before_.charge[row]);
    return is_inner(S::kInners[r.inner.begin], row) && holds(r, before_.parent[row]);
  }

  bool enough(Span bag) const {
    for (int32_t i = bag.begin; i < bag.end; ++i) {
      if (work_.count[item(i).object] < item(i).count) return false;
    }
    return true;
  }

  bool none_of(Span bag) const {
    for (int32_t i = bag.begin; i < bag.end; ++i) {
      if (work_.count[item(i).object] >= item(i).count) return false;
    }
    return true;
  }

  // Promoters, inhibitors and guard on the loaded counts.
  bool conditions_hold(const RuleRow& r) const {
    if (!enough(r.promoters) || !none_of(r.inhibitors)) return false;
    return r.guard == kNone || S::guard(r.guard, work_.count);
  }

  // What the membrane that decides loses: the inner one's objects where there is one.
  static Span consumed(const RuleRow& r) { return r.inner.size() ? S::kInners[r.inner.begin].consume : r.consume; }

  bool fits_here(int32_t rule) const {
    const RuleRow& r = rule_row(rule);
    return matches(rule, row_) && enough(consumed(r)) && conditions_hold(r) && has_targets(r, row_);
  }

  bool has_targets(const RuleRow& r, int32_t row) const {
    for (int32_t s = r.send.begin; s < r.send.end; ++s) {
      const SendRow& send = S::kSends[s];
      if (send.target == TargetKind::kIn && count_children(row, send.label) == 0) return false;
      if (send.target == TargetKind::kLinked && count_linked(row, send.label) == 0) return false;
    }
    if (r.link != kNone && pick_unlinked(row, r.link) == kNone) return false;
    return r.unlink == kNone || count_linked(row, r.unlink) > 0;
  }

  Candidate bind(int32_t rule, int32_t row) const {
    Candidate candidate{};
    candidate.rule = rule;
    const bool inside = rule_row(rule).inner.size() > 0;
    candidate.cells[0] = inside ? before_.parent[row] : row;
    candidate.cells[1] = inside ? row : kNone;
    return candidate;
  }

  void load(int32_t row) {
    work_.touched.size = 0;
    each_entry(pool_, before_.content[row], [&](uint32_t object, int64_t count) {
      work_.count[object] = count;
      work_.touched.push(object);
    });
  }

  static constexpr int32_t kFewThreads = 16;  // one of them orders things sooner than all together

  Range share_rows(int64_t count) const { return echoc::share(count, call_.tid, call_.nthreads); }
  void meet() const { population::meet(call_); }

  // For every thread t the sum of f of those before it; returns the sum of all. All threads call it and meet.
  template <class F>
  uint64_t sum_before(uint64_t Workspace::* sums, F&& f) const {
    constexpr int32_t kGroups = 64;  // add up the threads of each first
    const int32_t groups = call_.nthreads <= kGroups ? 1 : kGroups;
    const Range mine = call_.tid < groups ? echoc::share(call_.nthreads, call_.tid, groups) : Range{0, 0};
    uint64_t sum = 0;
    for (int64_t t = mine.begin; t < mine.end; ++t) sum += f(call_.workspaces[t]);
    work_.partial = sum;
    meet();
    if (call_.tid == 0) {
      sum = 0;
      for (int32_t g = 0; g < groups; ++g) {
        const uint64_t own = call_.workspaces[g].partial;
        call_.workspaces[g].partial = sum;
        sum += own;
      }
      shared_.total = sum;
    }
    meet();
    sum = work_.partial;
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      const uint64_t own = f(call_.workspaces[t]);
      call_.workspaces[t].*sums = sum;
      sum += own;
    }
    const uint64_t total = shared_.total;
    meet();
    return total;
  }

  // Mail like one of the last few goes with it, which changes neither sums nor which object comes first.
  bool add_to_mail(int32_t row, uint32_t object, int64_t delta) {
    const uint64_t size = work_.mail.size;
    for (uint64_t i = size; i > work_.settled && i + 3 > size; --i) {
      Mail& mail = work_.mail.data[i - 1];
      int64_t sum;
      if (mail.cell != row || mail.object != object || (mail.delta < 0) != (delta < 0)) continue;
      if (__builtin_add_overflow(mail.delta, delta, &sum)) break;
      mail.delta = sum;
      return true;
    }
    return work_.mail.push({row, object, delta});
  }

  void clear_counts() {
    for (uint64_t i = 0; i < work_.touched.size; ++i) work_.count[work_.touched.data[i]] = 0;
    work_.touched.size = 0;
  }

  // ---- children and links

  Span children_of(int32_t row) const {
    const uint32_t* begin = shared_.child_begin.data;
    return {static_cast<int32_t>(begin[row + 1]), static_cast<int32_t>(begin[row + 2])};
  }

  int32_t count_children(int32_t row, int32_t label) const {
    const Span span = children_of(row);
    int32_t found = 0;
    for (int32_t i = span.begin; i < span.end; ++i) found += before_.label[shared_.children.data[i]] == label;
    return found;
  }

  int32_t child(int32_t row, int32_t label, int64_t which) const {
    const Span span = children_of(row);
    for (int32_t i = span.begin; i < span.end; ++i) {
      const int32_t cell = shared_.children.data[i];
      if (before_.label[cell] == label && which-- == 0) return cell;
    }
    return kNone;
  }

  Span links_of(int32_t row) const {
    const uint32_t* begin = shared_.link_begin.data;
    return {static_cast<int32_t>(begin[row]), static_cast<int32_t>(begin[row + 1])};
  }

  int32_t count_linked(int32_t row, int32_t label) const {
    const Span span = links_of(row);
    int32_t found = 0;
    for (int32_t i = span.begin; i < span.end; ++i) found += before_.label[linked_row(i)] == label;
    return found;
  }

  int32_t linked_row(int32_t i) const { return shared_.order.data[i]; }

  int32_t linked(int32_t row, int32_t label, int64_t which) const {
    const Span span = links_of(row);
    for (int32_t i = span.begin; i < span.end; ++i) {
      const int32_t cell = linked_row(i);
      if (before_.label[cell] == label && which-- == 0) return cell;
    }
    return kNone;
  }

  bool are_linked(int32_t row, int32_t other) const {
    const Span span = links_of(row);
    for (int32_t i = span.begin; i < span.end; ++i) {
      if (linked_row(i) == other) return true;
    }
    return false;
  }

  // A row of `label` that `row` has no link to (links are made between any two membranes of a graph).
  int32_t pick_unlinked(int32_t row, int32_t label) const {
    for (uint32_t other = 0; other < before_.count; ++other) {
      const int32_t cell = static_cast<int32_t>(other);
      if (cell != row && before_.label[cell] == label && !are_linked(row, cell)) return cell;
    }
    return kNone;
  }

  // Sums of `values` up to each, in place. All threads call it and meet.
  void sum_up(uint32_t* values, int64_t count) const {
    const Range mine = share_rows(count);
    uint32_t sum = 0;
    for (int64_t i = mine.begin; i < mine.end; ++i) values[i] = sum += values[i];
    work_.counted = sum;
    meet();
    sum_before(&Workspace::counted, [](const Workspace& work) { return work.counted; });
    const auto before = static_cast<uint32_t>(work_.counted);
    for (int64_t i = mine.begin; i < mine.end; ++i) values[i] += before;
    meet();
  }

  // Ascending: by insertion where there are few, else a heap.
  template <class Less, class Swap>
  static void sort(int64_t n, Less&& less, Swap&& swap) {
    if (n <= 24) {
      for (int64_t i = 1; i < n; ++i) {
        for (int64_t k = i; k > 0 && less(k, k - 1); --k) swap(k - 1, k);
      }
      return;
    }
    const auto sink = [&](int64_t at, int64_t size) {
      while (2 * at + 1 < size) {
        int64_t child = 2 * at + 1;
        if (child + 1 < size && less(child, child + 1)) ++child;
        if (!less(at, child)) return;
        swap(at, child);
        at = child;
      }
    };
    for (int64_t i = n / 2; i-- > 0;) sink(i, n);
    for (int64_t last = n; last-- > 1;) {
      swap(0, last);
      sink(0, last);
    }
  }

  // Rows by parent, ascending: children of row r lie between child_begin[r + 1] and child_begin[r + 2]; rows without a
  // parent come first. All threads.
  void list_children() {
    if (call_.nthreads <= kFewThreads || before_.count == 0) {
      if (call_.tid == 0) list_children_alone();
      return meet();
    }
    const int64_t rows = before_.count;
    uint32_t* begin = shared_.child_begin.data;
    uint32_t* next = shared_.mail_begin.data;
    int32_t* children = shared_.children.data;
    const Range ends = share_rows(rows + 3), mine = share_rows(rows);
    for (int64_t i = ends.begin; i < ends.end; ++i) begin[i] = 0;
    meet();
    // most have one parent, whose list is in order without being sorted
    const int32_t common = before_.parent[rows - 1];
    uint64_t own = 0;
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int32_t parent = before_.parent[i];
      own += parent == common;
      if (parent != common) __atomic_fetch_add(&begin[parent + 2], 1u, __ATOMIC_RELAXED);
    }
    work_.before = own;
    meet();
    const uint64_t all = sum_before(&Workspace::before, [](const Workspace& work) { return work.before; });
    if (call_.tid == 0) begin[common + 2] += static_cast<uint32_t>(all);
    meet();
    sum_up(begin, rows + 3);
    for (int64_t i = ends.begin; i < ends.end; ++i) next[i] = begin[i];
    meet();
    uint32_t at = begin[common + 1] + static_cast<uint32_t>(work_.before);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int32_t parent = before_.parent[i];
      const uint32_t place = parent == common ? at++ : __atomic_fetch_add(&next[parent + 1], 1u, __ATOMIC_RELAXED);
      children[place] = static_cast<int32_t>(i);
    }
    meet();
    const auto in_order = [&](int32_t row) {
      if (row == common) return;
      int32_t* list = children + begin[row + 1];
      sort(
          begin[row + 2] - begin[row + 1], [&](int64_t a, int64_t b) { return list[a] < list[b]; },
          [&](int64_t a, int64_t b) {
            const int32_t kept = list[a];
            list[a] = list[b];
            list[b] = kept;
          });
    };
    if (call_.tid == 0) in_order(kNone);
    for (int64_t i = mine.begin; i < mine.end; ++i) in_order(static_cast<int32_t>(i));
    meet();
  }

  void list_children_alone() {
    const uint32_t rows = before_.count;
    uint32_t* begin = shared_.child_begin.data;
    for (uint32_t i = 0; i < rows + 3; ++i) begin[i] = 0;
    for (uint32_t i = 0; i < rows; ++i) ++begin[before_.parent[i] + 2];
    for (uint32_t i = 1; i < rows + 3; ++i) begin[i] += begin[i - 1];
    // begin[p + 1] is now where the children of p start, and moves to where they end
    for (uint32_t i = 0; i < rows; ++i) shared_.children.data[begin[before_.parent[i] + 1]++] = static_cast<int32_t>(i);
    for (uint32_t i = rows + 2; i > 0; --i) begin[i] = begin[i - 1];
    begin[0] = 0;
  }

  // Links by row; shared_.order holds the rows they lead to.
  void list_links() {
    const uint32_t rows = before_.count;
    uint32_t* begin = shared_.link_begin.data;
    for (uint32_t i = 0; i < rows + 2; ++i) begin[i] = 0;
    const Vec<Link>& links = *call_.links_before;
    for (uint64_t i = 0; i < links.size; ++i) ++begin[links.data[i].from + 2];
    for (uint32_t i = 1; i < rows + 2; ++i) begin[i] += begin[i - 1];
    for (uint64_t i = 0; i < links.size; ++i) shared_.order.data[begin[links.data[i].from + 1]++] = links.data[i].to;
  }

  const StepCall& call_;
  const Cells& before_;
  Cells& after_;
  Pool& pool_;
  Shared& shared_;
  Workspace& work_;
  int32_t row_ = kNone;
};

}  // namespace echoc::population
