// One step of a population of membranes: choose, apply, communicate, change the structure.
//
// `S` holds the generated tables. Threads share the rows in contiguous ranges; what is random depends on the seed, the
// run, the step and the membrane only, so that the number of threads changes nothing.
#pragma once

#include "kernels/cpu/abi.h"
#include "kernels/cpu/population.h"
#include "kernels/cpu/population_mail.h"
#include "kernels/cpu/population_shared.h"
#include "kernels/cpu/population_structure.h"

namespace echoc::population {

template <class S>
class Step : public MailRoom<S> {
 public:
  using MailRoom<S>::MailRoom;

  void run() {
    const Range rows = share_rows(before_.count);
    reset();
    if (call_.tid == 0) this->begin();
    this->begin_rows(rows);
    copy_environment();
    meet();
    if constexpr (S::kNeedsChildren) {
      if (shared_.listed != before_.family) {
        this->list_children();
        if (call_.tid == 0) shared_.listed = before_.family;  // read again in the next step
      }
    }
    copy_rows(rows);
    if constexpr (S::kHasShared) {
      this->gather(rows);
      work_.narrow = work_.candidates.size;
      meet();
      if (shared_.wide.size > 0) this->gather_wide();
    }
    for (int64_t row = rows.begin; row < rows.end && !failed(); ++row) {
      if (row + kAhead < rows.end) foresee(pool_, before_.content[row + kAhead]);
      evolve(static_cast<int32_t>(row));
    }
    count_all();
    meet();
    if constexpr (S::kHasShared || S::kSequential) {
      if (shared_.bindings > 0) settle_all();
    }
    if (call_.tid == 0) communicate();
    meet();
    if (shared_.stops) return finish(rows);
    if (shared_.has_mail) this->group_mail();
    for (int64_t row = rows.begin; row < rows.end && !failed(); ++row) deliver(static_cast<int32_t>(row));
    if (call_.tid == 0 && !failed()) deliver_to_environment();
    if constexpr (S::kHasStructure) {
      Structure<S> structure(call_);
      structure.find(rows);
      meet();
      structure.run();
    }
    meet();
    finish(rows);
  }

 private:
  using MailRoom<S>::after_;
  using MailRoom<S>::before_;
  using MailRoom<S>::call_;
  using MailRoom<S>::pool_;
  using MailRoom<S>::shared_;
  using MailRoom<S>::work_;
  using MailRoom<S>::fail;
  using MailRoom<S>::meet;
  using MailRoom<S>::share_rows;

  static constexpr int64_t kAhead = 4;  // rows whose memory is asked for beforehand

  void reset() {
    work_.mail.size = work_.settled = work_.narrow = 0;
    work_.retired.size = 0;
    work_.candidates.size = 0;
    work_.contested.size = 0;
    work_.applications.size = 0;
    work_.relinks.size = 0;
    work_.applied = 0;
    work_.possible = 0;
  }

  bool failed() const { return shared_.status.load(std::memory_order_relaxed) != kDone; }

  void copy_rows(Range rows) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      after_.label[i] = before_.label[i];
      after_.charge[i] = before_.charge[i];
      after_.parent[i] = before_.parent[i];
      after_.id[i] = before_.id[i];
      after_.content[i] = before_.content[i];
      after_.idle[i] = before_.idle[i];
      shared_.carried.data[i] = kCarried;
      if constexpr (S::kHasDelay) {
        after_.closed[i] = before_.closed[i] > 0 ? before_.closed[i] - 1 : 0;
        after_.pending[i] = before_.pending[i];
      }
    }
  }

  // What decides for all threads which phases there are.
  void count_all() {
    work_.settled = work_.mail.size;
    const uint64_t bindings = work_.candidates.size + work_.contested.size;
    if (bindings > 0) __atomic_fetch_add(&shared_.bindings, bindings, __ATOMIC_RELAXED);
    if (work_.mail.size > 0) __atomic_fetch_add(&shared_.mails, work_.mail.size, __ATOMIC_RELAXED);
  }

  void settle_all() {
    if (this->join() && !this->apply_all() && call_.tid == 0 && !failed()) this->settle();
    const uint64_t more = work_.mail.size - work_.settled;
    if (more > 0) __atomic_fetch_add(&shared_.mails, more, __ATOMIC_RELAXED);
    meet();
  }

  void communicate() {
    shared_.mail.size = shared_.mails;
    shared_.has_mail = shared_.mails > 0;
    if (!failed() && shared_.mails > shared_.mail.limit) fail(kOutOfWorkspace, 0, 0);
    shared_.stops = failed();  // asked once, so that no thread sees what another has come to since
  }

  // The content of a membrane by its own rules.
  void evolve(int32_t row) {
    if constexpr (S::kHasDelay) {
      if (before_.closed[row] > 0) {
        if (before_.closed[row] == 1) this->open(row);
        return;
      }
    }
    const bool contested = (S::kHasShared || S::kSequential) && shared_.contested.data[row] != 0;
    if (before_.idle[row] && !contested) return;
    const uint32_t* actions = S::actions(before_.label[row], before_.charge[row]);
    if (actions == nullptr && !S::kOrdered && !contested) {
      after_.idle[row] = 1;
      return;
    }
    uint32_t kinds = S::kOrdered || S::has_always(before_.label[row]) || contested ? kDecide : 0;
    bool moves = false;
    if (kinds == 0) {
      each_entry(pool_, before_.content[row], [&](uint32_t object, int64_t) {
        const uint32_t action = actions[object];
        const bool keeps = action == (kMove | object) || action == (kMerge | object);
        moves |= !keeps;
        kinds |= keeps ? 0 : action;
      });
      kinds = (kinds & kKindMask);
    }
    if ((kinds & kKindMask) == kDecide) {
      decide(row, actions);
    } else if (moves) {
      move(row, actions);
    } else {
      after_.idle[row] = 1;
    }
  }

  // Every object has one thing to do.
  void move(int32_t row, const uint32_t* actions) {
    Writer writer(pool_, work_);
    bool fits = true;
    int64_t applied = 0;
    const bool record = call_.record != 0;
    each_entry(pool_, before_.content[row], [&](uint32_t object, int64_t count) {
      const uint32_t action = actions[object];
      const uint32_t target = action & ~kKindMask;
      const uint32_t kind = action & kKindMask;
      if (kind == kMove) {
        fits &= writer.put(target, count);
      } else if (kind == kMerge) {
        fits &= give(row, target, count);
      }
      if (target != object || kind == kErase) {
        applied += count;
        if (record) this->note_move(row, object, count);
      }
    });
    work_.applied += applied > 0 ? 1 : 0;
    fits &= flush(writer);
    renew(row, writer, fits);
  }

  // Rules compete, or take and give more than one object.
  void decide(int32_t row, const uint32_t* actions) {
    this->load(row);
    if constexpr (S::kHasPlain) {
      const int32_t plain = S::plain(before_.label[row], before_.charge[row]);
      if (plain >= 0) return run_plain(row, plain, actions);
    }
    bool tried;
    if constexpr (S::kOrdered) {
      tried = this->decide_ordered(row);
    } else {
      tried = this->decide_cell(row, actions);
    }
    const bool applied = this->applied_here();
    if (!applied && !this->moved(actions)) {
      this->clear_counts();
      if constexpr (!S::kConditionsOutside && !S::kOrdered) after_.idle[row] = tried ? 0 : 1;
      return;
    }
    bool fits = keep_rest(row, actions);
    fits &= this->produce_cell(row, [&](uint32_t object, int64_t count) { return give(row, object, count); });
    Writer writer(pool_, work_);
    fits &= flush(writer);
    renew(row, writer, fits);
  }

  // What unrolled rules say of their applications.
  struct Sink {
    Step& step;
    int32_t row;
    bool any = false;

    bool give(uint32_t object, int64_t times, int64_t each) {
      int64_t amount;
      if (!__builtin_mul_overflow(times, each, &amount)) return step.give(row, object, amount);
      step.fail(kOverflow, row, object);
      return false;
    }
    bool out(uint32_t object, int64_t times, int64_t each) {
      int64_t amount;
      const int32_t around = step.before_.parent[row];
      if (__builtin_mul_overflow(times, each, &amount)) {
        step.fail(kOverflow, around, object);
        return false;
      }
      if (step.add_to_mail(around, object, amount)) return true;
      step.fail(kOutOfWorkspace, row, object);
      return false;
    }
    bool applied(int32_t rule, int64_t times) {
      any = true;
      if (step.call_.record != 0) step.note_rule(row, rule, times);
      return true;
    }
  };

  // Nothing is to be chosen: straight-line code over the loaded counts.
  void run_plain(int32_t row, int32_t which, const uint32_t* actions) {
    Sink sink{*this, row};
    bool fits = S::run_plain(which, work_.count, sink);
    if (!sink.any && !this->moved(actions)) {
      this->clear_counts();
      after_.idle[row] = 1;
      return;
    }
    work_.applied += sink.any ? 1 : 0;
    fits &= keep_rest(row, actions);
    Writer writer(pool_, work_);
    fits &= flush(writer);
    renew(row, writer, fits);
  }

  // Of the loaded counts, what no rule took: it moves, or stays.
  bool keep_rest(int32_t row, const uint32_t* actions) {
    bool fits = true;
    for (uint64_t i = 0; i < work_.touched.size; ++i) {
      const uint32_t object = work_.touched.data[i];
      const int64_t count = work_.count[object];
      work_.count[object] = 0;
      if (count == 0) continue;
      const uint32_t action = actions == nullptr ? (kDecide | object) : actions[object];
      const uint32_t kind = action & kKindMask;
      const uint32_t target = kind == kDecide ? object : action & ~kKindMask;
      if (kind != kErase) fits &= give(row, target, count);
      if (kind != kDecide && (target != object || kind == kErase)) {
        work_.applied += 1;
        if (call_.record != 0) this->note_move(row, object, count);
      }
    }
    work_.touched.size = 0;
    return fits;
  }

  bool give(int32_t row, uint32_t object, int64_t count) {
    int64_t& sum = work_.fresh[object];
    if (sum == 0) work_.renewed.push(object);
    if (__builtin_add_overflow(sum, count, &sum)) {
      fail(kOverflow, row, object);
      sum = INT64_MAX;
      return false;
    }
    return true;
  }

  bool flush(Writer& writer) {
    bool fits = true;
    for (uint64_t i = 0; i < work_.renewed.size; ++i) {
      const uint32_t object = work_.renewed.data[i];
      const int64_t count = work_.fresh[object];
      work_.fresh[object] = 0;
      if (count != 0) fits = fits && writer.put(object, count);
    }
    work_.renewed.size = 0;
    return fits;
  }

  void renew(int32_t row, Writer& writer, bool fits) {
    if (!fits) {
      writer.abandon();
      fail(kOutOfPages, row, 0);
      return;
    }
    drop(row);
    after_.content[row] = writer.finish();
    after_.idle[row] = 0;
  }

  // The row gives up what it holds: the old configuration's share is given back when the step is done.
  void drop(int32_t row) {
    if (shared_.carried.data[row] == kCarried) {
      shared_.carried.data[row] = retire(before_.content[row]) ? kRetired : kGivenBack;
    } else {
      release(pool_, work_, after_.content[row]);
    }
    after_.content[row] = 0;
  }

  // Lists the pages of a chain that only this row holds, while they are still in the cache.
  bool retire(uint32_t head) {
    if (head == 0 || pool_.pages[head].holders != 1) return false;
    const uint64_t size = work_.retired.size;
    for (; head != 0; head = pool_.pages[head].next) {
      if (work_.retired.push(head)) continue;
      work_.retired.size = size;
      return false;
    }
    return true;
  }

  void deliver(int32_t row) {
    const bool turned = after_.charge[row] != before_.charge[row] || after_.label[row] != before_.label[row];
    if (turned) after_.idle[row] = 0;
    if (!shared_.has_mail) return;
    const Span mail = this->mail_of(row);
    if (mail.size() == 0) return;
    const bool deaf = S::kHasDelay && after_.closed[row] > 0;
    bool any = false;
    for (int32_t i = mail.begin; i < mail.end; ++i) any |= !deaf || shared_.mail.data[i].delta < 0;
    if (!any) return;
    bool fits = true;
    each_entry(pool_, after_.content[row], [&](uint32_t object, int64_t count) {
      work_.fresh[object] = count;
      work_.renewed.push(object);
    });
    for (int32_t i = mail.begin; i < mail.end; ++i) {
      const Mail& m = shared_.mail.data[i];
      if (m.delta < 0) work_.fresh[m.object] += m.delta;
    }
    for (int32_t i = mail.begin; i < mail.end; ++i) {
      const Mail& m = shared_.mail.data[i];
      if (m.delta > 0 && !deaf) fits &= arrive(row, m);
    }
    Writer writer(pool_, work_);
    fits &= flush(writer);
    renew(row, writer, fits);
  }

  // Like give, but an object whose count fell to zero is on the list already.
  bool arrive(int32_t row, const Mail& mail) {
    int64_t& sum = work_.fresh[mail.object];
    if (sum == 0) work_.renewed.push(mail.object);
    if (__builtin_add_overflow(sum, mail.delta, &sum)) {
      fail(kOverflow, row, mail.object);
      sum = INT64_MAX;
      return false;
    }
    return true;
  }

  void copy_environment() {
    const Range objects = share_rows(S::kObjects);
    for (int64_t o = objects.begin; o < objects.end; ++o) call_.environment[o] = call_.environment_before[o];
  }

  void deliver_to_environment() {
    if (!shared_.has_mail) return;
    const Span mail = this->mail_of(-1);
    for (int32_t i = mail.begin; i < mail.end; ++i) {
      const Mail& m = shared_.mail.data[i];
      if (__builtin_add_overflow(call_.environment[m.object], m.delta, &call_.environment[m.object])) {
        fail(kOverflow, -1, m.object);
      }
    }
  }

  // The old configuration's pages go back, or the new one's if the step failed.
  void finish(Range rows) {
    const bool undo = failed();
    work_.held = pages::num_held(work_.cache);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (shared_.carried.data[row] == kCarried) continue;
      if (undo) {
        release(pool_, work_, after_.content[row]);
      } else if (shared_.carried.data[row] == kGivenBack) {
        release(pool_, work_, before_.content[row]);
      }
    }
    if (!undo) {
      for (uint64_t i = 0; i < work_.retired.size; ++i) pages::give(pool_.taken, work_.cache, work_.retired.data[i]);
    }
    if (undo && call_.tid == 0) {
      for (uint32_t row = before_.count; row < after_.count; ++row) release(pool_, work_, after_.content[row]);
    }
    meet();
  }
};

}  // namespace echoc::population
