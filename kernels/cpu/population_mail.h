// Grouping what the membranes of a step send to each other by whom it is for.
#pragma once

#include "kernels/cpu/abi.h"
#include "kernels/cpu/population_ordered.h"

namespace echoc::population {

template <class S>
class MailRoom : public Ordered<S> {
 public:
  using Ordered<S>::Ordered;

 protected:
  using Ordered<S>::before_;
  using Ordered<S>::call_;
  using Ordered<S>::shared_;
  using Ordered<S>::work_;
  using Ordered<S>::meet;
  using Ordered<S>::share_rows;

  // The mail of all threads by row, in an order that does not tell how many threads there were: of the first thread's
  // membranes, of the others', of what was settled.
  void group_mail() {
    if (call_.nthreads <= this->kFewThreads) {
      if (call_.tid == 0) group_alone();
      return meet();
    }
    const Range ends = share_rows(static_cast<int64_t>(before_.count) + 2);
    uint32_t* begin = shared_.mail_begin.data;
    for (int64_t i = ends.begin; i < ends.end; ++i) begin[i] = 0;
    first_ = this->sum_before(&Workspace::before, [](const Workspace& work) { return work.settled; });
    this->sum_before(&Workspace::behind, [](const Workspace& work) { return work.mail.size - work.settled; });
    const Range mine = share_rows(static_cast<int64_t>(shared_.mail.size));
    each_mail(mine, [&](const Mail& mail, int64_t) { count_mail(mail); });
    flush_count();
    meet();
    this->sum_up(begin, static_cast<int64_t>(before_.count) + 2);
    each_mail(mine, [&](const Mail& mail, int64_t i) {
      const uint32_t at = __atomic_fetch_add(&begin[mail.cell + 1], 1u, __ATOMIC_RELAXED);
      shared_.mail.data[at] = mail;
      shared_.mail_order.data[at] = static_cast<uint32_t>(i);
    });
    meet();
    const Range rows = share_rows(before_.count);
    if (call_.tid == 0) in_order(mail_of(-1));
    for (int64_t row = rows.begin; row < rows.end; ++row) in_order(mail_of(static_cast<int32_t>(row)));
  }

  Span mail_of(int32_t row) const {
    // after the grouping an entry is where the row's mail ends, and the next row's begins
    const uint32_t* end = shared_.mail_begin.data;
    return {row < 0 ? 0 : static_cast<int32_t>(end[row]), static_cast<int32_t>(end[row + 1])};
  }

 private:
  // Mail of one row, back into the order it was posted in.
  void in_order(Span span) {
    uint32_t* order = shared_.mail_order.data + span.begin;
    Mail* mail = shared_.mail.data + span.begin;
    this->sort(
        span.size(), [&](int64_t a, int64_t b) { return order[a] < order[b]; },
        [&](int64_t a, int64_t b) {
          const uint32_t kept = order[a];
          order[a] = order[b];
          order[b] = kept;
          const Mail held = mail[a];
          mail[a] = mail[b];
          mail[b] = held;
        });
  }

  // A part of all mail: that of membranes lies in the workspaces one behind another, then comes what was settled.
  template <class F>
  void each_mail(Range range, F&& f) const {
    const int64_t first = static_cast<int64_t>(first_);
    const Range own{range.begin, range.end < first ? range.end : first};
    each_in(
        own, 0, &Workspace::before, [](const Workspace&) { return uint64_t{0}; },
        [](const Workspace& w) { return w.settled; }, f);
    const Range late{range.begin > first ? range.begin : first, range.end};
    each_in(
        late, first, &Workspace::behind, [](const Workspace& w) { return w.settled; },
        [](const Workspace& w) { return w.mail.size; }, f);
  }

  template <class Begin, class End, class F>
  void each_in(Range range, int64_t base, uint64_t Workspace::* before, Begin&& begin, End&& end, F&& f) const {
    if (range.begin >= range.end) return;
    int32_t low = 0, high = call_.nthreads;  // the last thread whose part begins at or before the range
    while (high - low > 1) {
      const int32_t middle = low + (high - low) / 2;
      (base + static_cast<int64_t>(call_.workspaces[middle].*before) <= range.begin ? low : high) = middle;
    }
    int64_t i = range.begin;
    for (int32_t t = low; t < call_.nthreads && i < range.end; ++t) {
      const Workspace& work = call_.workspaces[t];
      uint64_t at = begin(work) + static_cast<uint64_t>(i - base) - work.*before;
      for (const uint64_t last = end(work); at < last && i < range.end; ++at, ++i) f(work.mail.data[at], i);
    }
  }

  // Mail for one row often comes at a time.
  void count_mail(const Mail& mail) {
    if (mail.cell != counted_) flush_count();
    counted_ = mail.cell;
    ++count_;
  }

  void flush_count() {
    if (count_ > 0) __atomic_fetch_add(&shared_.mail_begin.data[counted_ + 2], count_, __ATOMIC_RELAXED);
    count_ = 0;
  }

  void group_alone() {
    const uint64_t rows = before_.count;
    uint32_t* begin = shared_.mail_begin.data;
    for (uint64_t i = 0; i < rows + 2; ++i) begin[i] = 0;
    for_mail([&](const Mail& mail) { ++begin[mail.cell + 2]; });
    for (uint64_t i = 1; i < rows + 2; ++i) begin[i] += begin[i - 1];
    for_mail([&](const Mail& mail) { shared_.mail.data[begin[mail.cell + 1]++] = mail; });
  }

  template <class F>
  void for_mail(F&& f) {
    for (int32_t t = 0; t < call_.nthreads; ++t) {
      const Workspace& work = call_.workspaces[t];
      for (uint64_t i = 0; i < work.settled; ++i) f(work.mail.data[i]);
    }
    for (int32_t t = 0; t < call_.nthreads; ++t) {
      const Workspace& work = call_.workspaces[t];
      for (uint64_t i = work.settled; i < work.mail.size; ++i) f(work.mail.data[i]);
    }
  }

  uint64_t first_ = 0;       // mail that membranes sent by themselves
  int32_t counted_ = kNone;  // the row that mail was counted for last, and how much of it
  uint32_t count_ = 0;
};

}  // namespace echoc::population
