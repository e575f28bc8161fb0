// How a call of attention is cut into work for the threads of a team.
//
// An item is a block of (query, head) rows of one sequence that share key/value heads. Items go to threads by their
// share of the total cost, so causal prompts and ragged batches stay balanced. Where whole items are too coarse and the
// caller lends a workspace, long contexts are split between threads at multiples of 64 tokens.
#pragma once

#include <cstdint>

#include "abi.h"
#include "attend_pages.h"

namespace echoc {

struct AttendShape {
  int heads, kv_heads, head_dim, v_head_dim;
  float scale;
  float softcap;  // 0: off; else scores become cap * tanh(score / cap)
  int window;     // 0: off; else only keys with kpos > qpos - window are seen
  bool causal;    // only keys with kpos <= qpos are seen
};

namespace attn {

inline constexpr int kBlock = 64;              // tokens a softmax step
inline constexpr int kPages = kBlock / kPage;  // pages a softmax step
inline constexpr int kMaxRows = 96;            // (query, head) rows an item
inline constexpr int kMaxSplit = 64;           // threads among which contexts are split
inline constexpr int kDirectRows = 8;          // at most so many rows a kv head are served without widening keys first

inline constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// One sequence's tokens in this call: t in [begin, end), and its cached length including them.
struct Run {
  int64_t begin, end;
  int64_t length;
  const int32_t* table;
};

// Rows [row0, row1) of (query, head in group) of one run for each of `heads` kv heads, over the keys in the pages
// [page0, page1). Row r of an item is row row0 + r % per_head() of kv head kv_head + r / per_head().
struct Item {
  Run run;
  int kv_head, heads;
  int64_t row0, row1;
  int64_t page0, page1;

  int64_t per_head() const { return row1 - row0; }
  int64_t rows() const { return per_head() * heads; }
  int64_t block0() const { return page0 / kPages; }  // of softmax
  int64_t block1() const { return (page1 + kPages - 1) / kPages; }
};

struct Span {
  int64_t low, high;  // [low, high)
};

// The keys a query may see.
inline Span visible(const AttendShape& shape, int64_t qpos, int64_t length) {
  const int64_t low = shape.window > 0 && qpos - shape.window + 1 > 0 ? qpos - shape.window + 1 : 0;
  const int64_t high = shape.causal && qpos + 1 < length ? qpos + 1 : length;
  return {low, high};
}

// Whether items with few rows read keys and values in place (see attend.h).
inline bool direct_shape(const AttendShape& shape) { return shape.v_head_dim % 16 == 0 && shape.head_dim % 2 == 0; }

struct Plan {
  const AttendShape& shape;
  int64_t tokens;
  const int32_t* seq;
  const int32_t* pos;
  const int32_t* block_table;
  int64_t max_blocks;
  int nthreads;
  bool split;  // contexts may be cut between threads
  int64_t block_rows = kMaxRows;
  int heads_per_item = 1;  // of direct items
  int64_t total = 0;       // cost

  Plan(const AttendShape& s, int64_t T, const int32_t* seq_, const int32_t* pos_, const int32_t* table, int64_t blocks,
       int threads, bool may_split)
      : shape(s), tokens(T), seq(seq_), pos(pos_), block_table(table), max_blocks(blocks), nthreads(threads) {
    // Large items reuse keys best; smaller ones spread over the threads.
    while (block_rows > 12 && count() < 8 * nthreads) block_rows /= 2;
    split = may_split && nthreads > 1 && (all_direct() || count() < 8 * nthreads);
    choose_heads();
    each([&](const Item& item) { total += cost(item); });
  }

  int group() const { return shape.heads / shape.kv_heads; }
  bool direct(int64_t rows) const { return rows <= kDirectRows && direct_shape(shape); }

  bool all_direct() const {
    bool all = true;
    runs([&](const Run& run) { all &= direct((run.end - run.begin) * group()); });
    return all;
  }

  // Reading neighbouring heads of a page together is kinder to caches and page tables; a head each balances best.
  void choose_heads() {
    int64_t direct_runs = 0, most = 1;
    runs([&](const Run& run) {
      const int64_t rows = (run.end - run.begin) * group();
      direct_runs += direct(rows);
      most = direct(rows) && rows > most ? rows : most;
    });
    int64_t shortest = INT64_MAX;
    const int room = static_cast<int>(kMaxRows / most);
    for (int heads = shape.kv_heads < room ? shape.kv_heads : room; heads >= 1; --heads) {
      const int64_t pieces = direct_runs * ((shape.kv_heads + heads - 1) / heads);
      const int64_t time = split ? 0 : (pieces + nthreads - 1) / nthreads * heads;
      if (time < shortest) {
        shortest = time;
        heads_per_item = heads;
      }
    }
  }

  template <class Visit>
  void runs(Visit&& visit) const {
    for (int64_t t = 0; t < tokens;) {
      int64_t end = t + 1;
      while (end < tokens && seq[end] == seq[t]) ++end;
      visit(Run{t, end, int64_t{pos[end - 1]} + 1, block_table + int64_t{seq[t]} * max_blocks});
      t = end;
    }
  }

  int64_t count() const {
    int64_t items = 0;
    runs([&](const Run& run) {
      items += ((run.end - run.begin) * group() + block_rows - 1) / block_rows * shape.kv_heads;
    });
    return items;
  }

  template <class Visit>
  void each(Visit&& visit) const {
    runs([&](const Run& run) {
      const int64_t rows = (run.end - run.begin) * group();
      const int step = direct(rows) ? heads_per_item : 1;
      for (int h = 0; h < shape.kv_heads; h += step)
        for (int64_t r = 0; r < rows; r += block_rows) {
          const int64_t end = r + block_rows < rows ? r + block_rows : rows;
          const Span first = visible(shape, pos[run.begin + r / group()], run.length);
          const Span last = visible(shape, pos[run.begin + (end - 1) / group()], run.length);
          visit(Item{run, h, h + step < shape.kv_heads ? step : shape.kv_heads - h, r, end, first.low / kBlock * kPages,
                     (last.high + kPage - 1) / kPage});
        }
    });
  }

  // Work in units of one row against one page; reading and widening a page costs about as much as a few rows.
  static int64_t cost(const Item& item) { return (item.page1 - item.page0) * (item.per_head() + 4) * item.heads + 1; }

  // The pages of an item (whose cost begins at `done`) that thread `tid` takes.
  Span share_of(const Item& item, int64_t done, int64_t tid) const {
    const int64_t price = cost(item);
    if (!split) {
      // An item belongs to the thread in whose share of the total its middle falls.
      const bool mine = (2 * done + price) * nthreads / (2 * total) == tid;
      return {item.page0, mine ? item.page1 : item.page0};
    }
    const int64_t unit = direct(item.per_head()) ? 1 : kPages;
    const int64_t units = (item.page1 - item.page0 + unit - 1) / unit;
    const auto place = [&](int64_t edge) {
      const int64_t inside = edge < done ? 0 : edge > done + price ? price : edge - done;
      const int64_t page = item.page0 + (inside * units + price / 2) / price * unit;
      return page < item.page1 ? page : item.page1;
    };
    return {place(total * tid / nthreads), place(total * (tid + 1) / nthreads)};
  }

  // visit(item, slot) for the share of one thread; slot is -1 for a whole item, else where its partial result goes.
  template <class Visit>
  void mine(int64_t tid, Visit&& visit) const {
    int64_t done = 0;
    each([&](const Item& item) {
      const Span pages = share_of(item, done, tid);
      if (pages.low < pages.high || (item.page0 == item.page1 && tid == 0)) {
        Item part = item;
        part.page0 = pages.low;
        part.page1 = pages.high;
        const bool whole = pages.low == item.page0 && pages.high == item.page1;
        visit(part, whole ? -1 : slot_of(done, tid));
      }
      done += cost(item);
    });
  }

  // A thread leaves at most two items unfinished: the one that began before its share, and the one that ends after it.
  int64_t slot_of(int64_t done, int64_t tid) const { return 2 * tid + (done < total * tid / nthreads ? 0 : 1); }
};

}  // namespace attn
}  // namespace echoc
