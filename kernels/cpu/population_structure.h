// Changes of the structure at the end of a step: divisions are forks, dissolutions releases, links are made and cut.
#pragma once

#include <algorithm>

#include "kernels/cpu/population_emit.h"

namespace echoc::population {

template <class S>
class Structure : public Binding<S> {
 public:
  using Binding<S>::Binding;

  // Of this thread's rows those to divide, into work_.order; those to dissolve are marked. All are counted.
  void find(Range rows) {
    work_.order.size = 0;
    uint64_t parts = 0, dissolving = 0;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int32_t row = static_cast<int32_t>(i), what = shared_.structure.data[row];
      if (what >= 0) {
        const int32_t count = parts_of(what);
        if (count == 0) shared_.dissolves.data[row] = 1;
        if (count > 0) work_.order.push(row);
        parts += count > 0 ? static_cast<uint64_t>(count - 1) : 0;
      }
      dissolving += shared_.dissolves.data[row];
    }
    work_.before = parts;
    if (work_.order.size > 0) __atomic_fetch_add(&shared_.dividing, work_.order.size, __ATOMIC_RELAXED);
    if (dissolving > 0) __atomic_fetch_add(&shared_.dissolving, dissolving, __ATOMIC_RELAXED);
  }

  // All threads, when all have found: every row divides on the thread that found it.
  void run() {
    if constexpr (S::kNested || S::kHasLinks) {
      if (call_.tid == 0 && !failed()) run_alone();
    } else {
      if (shared_.dividing > 0) {
        const uint64_t parts = this->sum_before(&Workspace::before, [](const Workspace& work) { return work.before; });
        if (call_.tid == 0) number_parts(parts);
        this->meet();
        divide_own();
        this->meet();
      }
      if (call_.tid == 0 && !failed() && shared_.dissolving > 0) dissolve();
    }
  }

 private:
  using Binding<S>::after_;
  using Binding<S>::before_;
  using Binding<S>::call_;
  using Binding<S>::fail;
  using Binding<S>::item;
  using Binding<S>::pool_;
  using Binding<S>::shared_;
  using Binding<S>::work_;

  static constexpr uint32_t kNoPart = UINT32_MAX;  // they do not fit

  Vec<Link>& links_ = *call_.links;

  bool failed() const { return shared_.status.load(std::memory_order_relaxed) != kDone; }

  // By one thread: where membranes that divide have others inside, or links.
  [[gnu::noinline, gnu::cold]] void run_alone() {
    gather_rows();
    if constexpr (S::kHasLinks) relink();
    if (work_.order.size > 0) divide();
    if (!failed() && shared_.dissolving > 0) dissolve();
  }

  // The rows that all threads have found, deepest first.
  void gather_rows() {
    for (int32_t t = 1; t < call_.nthreads; ++t) {
      const Vec<int32_t>& found = call_.workspaces[t].order;
      for (uint64_t i = 0; i < found.size; ++i) work_.order.push(found.data[i]);
    }
    if constexpr (S::kNested) {
      if (work_.order.size < 2) return;
      // by depth, counted: a stable counting sort would need another list, and depths are few
      int32_t deepest = 0;
      for (uint64_t i = 0; i < work_.order.size; ++i) {
        const int32_t d = depth(work_.order.data[i]);
        deepest = d > deepest ? d : deepest;
      }
      const uint64_t count = work_.order.size;
      for (int32_t d = deepest; d >= 0; --d) {
        for (uint64_t i = 0; i < count; ++i) {
          if (depth(work_.order.data[i]) == d) work_.order.push(work_.order.data[i]);
        }
      }
      for (uint64_t i = 0; i < count; ++i) work_.order.data[i] = work_.order.data[count + i];
      work_.order.size = count;
    }
  }

  // Parts get rows and ids in the order of what they are parts of, as if one thread had made them all.
  void number_parts(uint64_t parts) {
    shared_.first_part = kNoPart;
    if (failed()) return;
    if (parts > after_.limit - after_.count) return fail(kOutOfCells);
    shared_.first_part = after_.count;
    shared_.first_id = shared_.next_id;
    after_.count += static_cast<uint32_t>(parts);
    shared_.next_id += static_cast<int64_t>(parts);
    shared_.divided += static_cast<int64_t>(shared_.dividing);
    after_.family = __atomic_add_fetch(&pool_.families, 1, __ATOMIC_RELAXED);
  }

  void divide_own() {
    if (shared_.first_part == kNoPart) return;
    next_row_ = shared_.first_part + static_cast<uint32_t>(work_.before);
    next_id_ = shared_.first_id + static_cast<int64_t>(work_.before);
    const uint32_t first = next_row_;
    for (uint64_t i = 0; i < work_.order.size; ++i) {  // all have a content before anything can fail
      const int32_t row = work_.order.data[i];
      for (int32_t p = parts_of(shared_.structure.data[row]); p > 1; --p) set_like(next_row_++, next_id_++, row);
    }
    next_row_ = first;
    uint64_t dissolving = dissolving_;
    for (uint64_t i = 0; i < work_.order.size && !failed(); ++i) divide(work_.order.data[i]);
    dissolving = dissolving_ - dissolving;
    if (dissolving > 0) __atomic_fetch_add(&shared_.dissolving, dissolving, __ATOMIC_RELAXED);
  }

  int32_t depth(int32_t row) const {
    int32_t d = 0;
    for (; after_.parent[row] >= 0; row = after_.parent[row]) ++d;
    return d;
  }

  static int32_t parts_of(int32_t what) {
    return what < S::kInnerCount ? S::kInners[what].results.size() : S::kRules[what - S::kInnerCount].divide.size();
  }

  void divide(int32_t row) {
    const int32_t what = shared_.structure.data[row];
    if (what < S::kInnerCount) {
      split(row, S::kInners[what]);
    } else {
      replace(row, S::kRules[what - S::kInnerCount]);
    }
  }

  void divide() {
    after_.family = __atomic_add_fetch(&pool_.families, 1, __ATOMIC_RELAXED);
    for (uint64_t i = 0; i < work_.order.size && !failed(); ++i) {
      divide(work_.order.data[i]);
      ++shared_.divided;
    }
    shared_.dissolving += dissolving_;
  }

  // A row like `row`, holding nothing yet: the next of this thread's parts, or one behind all others; -1 when the table
  // is full.
  int32_t append_like(int32_t row) {
    if constexpr (!S::kNested && !S::kHasLinks) return static_cast<int32_t>(next_row_++);
    if (after_.count == after_.limit) {
      fail(kOutOfCells, row);
      return kNone;
    }
    const uint32_t fresh = after_.count++;
    set_like(fresh, shared_.next_id++, row);
    return static_cast<int32_t>(fresh);
  }

  void set_like(uint32_t fresh, int64_t id, int32_t row) {
    after_.label[fresh] = after_.label[row];
    after_.charge[fresh] = after_.charge[row];
    after_.parent[fresh] = after_.parent[row];
    after_.id[fresh] = id;
    after_.idle[fresh] = 0;
    after_.content[fresh] = 0;
    after_.closed[fresh] = S::kHasDelay ? after_.closed[row] : 0;
    after_.pending[fresh] = S::kHasDelay ? after_.pending[row] : kNone;
    shared_.dissolves.data[fresh] = 0;
  }

  void split(int32_t row, const InnerRow& inner) {
    const uint32_t whole = after_.content[row];
    for (int32_t p = inner.results.begin + 1; p < inner.results.end; ++p) {
      const int32_t part = append_like(row);
      if (part == kNone) return;
      if (inner.common) {
        share(pool_, whole);
        after_.content[part] = whole;
      } else if (!write_part(part, whole, S::kResults[p].produce, S::kResults[p].keeps)) {
        return;
      }
      become(part, S::kResults[p]);
      shared_.dissolves.data[part] = shared_.dissolves.data[row];
      dissolving_ += shared_.dissolves.data[row];
      if constexpr (S::kNested) copy_children(row, part);
    }
    const ResultRow& first = S::kResults[inner.results.begin];
    if (!inner.common && !rewrite(row, first.produce, first.keeps)) return;
    become(row, first);
    after_.idle[row] = 0;
  }

  void become(int32_t row, const ResultRow& result) {
    after_.label[row] = static_cast<uint16_t>(result.label);
    if (result.charge != kAnyCharge) after_.charge[row] = result.charge;
  }

  // Kernel P systems: parts with what the membrane still holds, and their own products.
  void replace(int32_t row, const RuleRow& r) {
    const uint32_t whole = after_.content[row];
    for (int32_t p = r.divide.begin + 1; p < r.divide.end; ++p) {
      const int32_t part = append_like(row);
      if (part == kNone || !write_part(part, whole, S::kDivides[p].produce, kNone)) return;
      after_.label[part] = static_cast<uint16_t>(S::kDivides[p].label);
      copy_links(row, part);
    }
    if (!rewrite(row, S::kDivides[r.divide.begin].produce, kNone)) return;
    after_.label[row] = static_cast<uint16_t>(S::kDivides[r.divide.begin].label);
    after_.idle[row] = 0;
  }

  bool write_part(int32_t row, uint32_t whole, Span produce, int32_t keeps) {
    each_entry(pool_, whole, [&](uint32_t object, int64_t count) {
      if (keeps == kNone || S::keeps(keeps, object)) add(row, object, count);
    });
    for (int32_t i = produce.begin; i < produce.end; ++i) add(row, item(i).object, item(i).count);
    return write_fresh(row);
  }

  bool rewrite(int32_t row, Span produce, int32_t keeps) {
    const uint32_t whole = after_.content[row];
    const bool was_carried = static_cast<uint32_t>(row) < before_.count && shared_.carried.data[row] == kCarried;
    if (!write_part(row, whole, produce, keeps)) {
      if (after_.content[row] != whole) after_.content[row] = whole;
      return false;
    }
    if (was_carried) {
      shared_.carried.data[row] = kGivenBack;
    } else {
      release(pool_, work_, whole);
    }
    return true;
  }

  void add(int32_t row, uint32_t object, int64_t count) {
    int64_t& sum = work_.fresh[object];
    if (sum == 0) work_.renewed.push(object);
    if (__builtin_add_overflow(sum, count, &sum)) {
      fail(kOverflow, row, object);
      sum = INT64_MAX;
    }
  }

  bool write_fresh(int32_t row) {
    Writer writer(pool_, work_);
    bool fits = !failed();
    for (uint64_t i = 0; i < work_.renewed.size; ++i) {
      const uint32_t object = work_.renewed.data[i];
      if (work_.fresh[object] != 0) fits = fits && writer.put(object, work_.fresh[object]);
      work_.fresh[object] = 0;
    }
    work_.renewed.size = 0;
    if (!fits) {
      writer.abandon();
      fail(kOutOfPages, row);
      return false;
    }
    after_.content[row] = writer.finish();
    return true;
  }

  // The whole tree below a membrane, for its other part: depth first, what is still to be looked at on a list.
  void copy_children(int32_t from, int32_t to) {
    struct Level {
      int32_t from, to, next, rows;
    };
    Records<Level> levels(work_.candidates);
    levels.resize(0);
    if (!levels.push({from, to, 0, static_cast<int32_t>(after_.count)})) return fail(kOutOfWorkspace);
    while (levels.size() > 0) {
      Level& level = levels[levels.size() - 1];
      if (level.next == level.rows) {
        levels.resize(levels.size() - 1);
        continue;
      }
      const int32_t row = level.next++;
      if (after_.parent[row] != level.from || row == level.to) continue;
      const int32_t copy = append_like(row);
      if (copy == kNone) return;
      after_.parent[copy] = level.to;
      share(pool_, after_.content[row]);
      after_.content[copy] = after_.content[row];
      shared_.dissolves.data[copy] = shared_.dissolves.data[row];
      dissolving_ += shared_.dissolves.data[row];
      if (!levels.push({row, copy, 0, static_cast<int32_t>(after_.count)})) return fail(kOutOfWorkspace);
    }
  }

  // ---- links

  void copy_links(int32_t from, int32_t to) {
    if constexpr (S::kHasLinks) {
      const uint64_t count = links_.size;
      for (uint64_t i = 0; i < count; ++i) {
        const Link link = links_.data[i];
        if (link.from != from && link.to != from) continue;
        if (!links_.push({link.from == from ? to : link.from, link.to == from ? to : link.to})) {
          return fail(kOutOfLinks);
        }
      }
    }
  }

  void relink() {
    links_.size = 0;
    const Vec<Link>& links = *call_.links_before;
    for (uint64_t i = 0; i < links.size; ++i) {
      if (cut(links.data[i])) continue;
      if (!links_.push(links.data[i])) return fail(kOutOfLinks);
    }
    each_wish([&](const Link& wish) {
      if (wish.to < 0) return;
      if (has_link(wish)) return;
      if (!links_.push(wish) || !links_.push({wish.to, wish.from})) fail(kOutOfLinks);
    });
  }

  template <class F>
  void each_wish(F&& f) const {
    for (int32_t t = 0; t < call_.nthreads; ++t) {
      const Vec<Link>& wishes = call_.workspaces[t].relinks;
      for (uint64_t i = 0; i < wishes.size; ++i) f(wishes.data[i]);
    }
  }

  bool cut(const Link& link) const {
    bool found = false;
    each_wish([&](const Link& wish) {
      const int32_t to = -2 - wish.to;
      found |= wish.to < 0 && ((link.from == wish.from && link.to == to) || (link.from == to && link.to == wish.from));
    });
    return found;
  }

  bool has_link(const Link& wanted) const {
    for (uint64_t i = 0; i < links_.size; ++i) {
      if (links_.data[i].from == wanted.from && links_.data[i].to == wanted.to) return true;
    }
    return false;
  }

  // ---- dissolution

  // The nearest membrane around that stays, -1 when there is none.
  int32_t survivor(int32_t row) const {
    row = after_.parent[row];
    while (row >= 0 && shared_.dissolves.data[row]) row = after_.parent[row];
    return row;
  }

  void dissolve() {
    // rows that dissolve, grouped by who gets their content
    work_.order.size = 0;
    for (uint32_t row = 0; row < after_.count; ++row) {
      if (shared_.dissolves.data[row]) work_.order.push(static_cast<int32_t>(row));
    }
    std::sort(work_.order.data, work_.order.data + work_.order.size, [&](int32_t a, int32_t b) {
      const int32_t x = survivor(a), y = survivor(b);
      return x != y ? x < y : a < b;
    });
    for (uint64_t i = 0; i < work_.order.size && !failed();) {
      const int32_t heir = survivor(work_.order.data[i]);
      uint64_t end = i;
      while (end < work_.order.size && survivor(work_.order.data[end]) == heir) ++end;
      if (heir >= 0) inherit(heir, i, end);
      i = end;
    }
    if (failed()) return;
    for (uint64_t i = 0; i < work_.order.size; ++i) drop(work_.order.data[i]);
    compact();
  }

  void inherit(int32_t heir, uint64_t begin, uint64_t end) {
    bool any = false;
    for (uint64_t i = begin; i < end; ++i) any |= after_.content[work_.order.data[i]] != 0;
    if (!any) return;
    const uint32_t own = after_.content[heir];
    each_entry(pool_, own, [&](uint32_t object, int64_t count) { add(heir, object, count); });
    for (uint64_t i = begin; i < end; ++i) {
      each_entry(pool_, after_.content[work_.order.data[i]],
                 [&](uint32_t object, int64_t count) { add(heir, object, count); });
    }
    if (!write_fresh(heir)) return;
    const uint32_t content = after_.content[heir];
    after_.content[heir] = own;
    drop(heir);
    after_.content[heir] = content;
    after_.idle[heir] = 0;
  }

  void drop(int32_t row) {
    if (static_cast<uint32_t>(row) < before_.count && shared_.carried.data[row] == kCarried) {
      shared_.carried.data[row] = kGivenBack;
    } else {
      release(pool_, work_, after_.content[row]);
    }
    after_.content[row] = 0;
  }

  void compact() {
    const uint32_t rows = after_.count;
    for (uint32_t row = 0; row < rows; ++row) {
      const int32_t parent = after_.parent[row];
      if (parent >= 0 && shared_.dissolves.data[parent]) {
        after_.parent[row] = survivor(static_cast<int32_t>(row));
        after_.idle[row] = 0;
      }
    }
    after_.family = __atomic_add_fetch(&pool_.families, 1, __ATOMIC_RELAXED);
    // where every row goes
    Vec<int32_t>& where = shared_.children;
    shared_.listed = 0;
    uint32_t kept = 0;
    for (uint32_t row = 0; row < rows; ++row) {
      where.data[row] = shared_.dissolves.data[row] ? kNone : static_cast<int32_t>(kept++);
    }
    for (uint32_t row = 0; row < rows; ++row) {
      const int32_t to = where.data[row];
      if (to == kNone) continue;
      after_.label[to] = after_.label[row];
      after_.charge[to] = after_.charge[row];
      after_.idle[to] = after_.idle[row];
      after_.parent[to] = after_.parent[row] < 0 ? kNone : where.data[after_.parent[row]];
      after_.content[to] = after_.content[row];
      after_.id[to] = after_.id[row];
      after_.closed[to] = after_.closed[row];
      after_.pending[to] = after_.pending[row];
    }
    after_.count = kept;
    shared_.dissolved += rows - kept;
    if constexpr (S::kHasLinks) {
      uint64_t left = 0;
      for (uint64_t i = 0; i < links_.size; ++i) {
        const Link link = links_.data[i];
        if (where.data[link.from] == kNone || where.data[link.to] == kNone) continue;
        links_.data[left++] = {where.data[link.from], where.data[link.to]};
      }
      links_.size = left;
    }
  }

  uint64_t dissolving_ = 0;  // parts that are to dissolve
  uint32_t next_row_ = 0;    // of this thread's parts
  int64_t next_id_ = 0;
};

}  // namespace echoc::population
