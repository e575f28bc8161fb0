// Attention over paged keys and values.
//
// Softmax runs over blocks of 64 tokens that start at multiples of 64 in the sequence, with a running maximum and sum
// (Milakov and Gimelshein 2018; Dao et al. 2022). For few queries (attend_few.h) and for many (attend_many.h) the
// same arithmetic is done in the same order for a query, so a result does not depend on which queries share the call,
// on how a prompt was cut into chunks, or on the number of threads. Two exceptions are switched off by `deterministic`:
// products of 16 bits (attend_dot.h, attend_pairs.h), and the split of long contexts between threads, which needs a
// workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "abi.h"
#include "attend_few.h"
#include "attend_many.h"
#include "attend_pages.h"
#include "attend_plan.h"
#include "attend_rows.h"

namespace echoc {

namespace attn {

template <class Rows>
void attend_item(const Rows& rows, const Item& item, float* partial) {
  rows.begin(item);
  if (direct_shape(rows.shape) && item.per_head() <= kDirectRows)
    Few<Rows>{rows}.run(item);
  else
    Many<Rows>{rows}.run(item);
  if (partial)
    rows.leave(item, partial);
  else
    rows.finish(item);
}

inline constexpr int64_t partial_floats(int v_head_dim) { return kMaxRows * (2 + round_up(v_head_dim, 16)); }

// One row from the partial results of `slots`: the sums meet at the largest maximum.
inline void merge_row(const Plan& plan, const float* partials, const int64_t* slots, int64_t count, int64_t row,
                      const float* sinks, int head, float* to) {
  const int64_t size = partial_floats(plan.shape.v_head_dim), v_dim = round_up(plan.shape.v_head_dim, 16);
  float maximum = -m::kInfinity, sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) maximum = m::max(maximum, partials[slots[i] * size + row]);
  for (int c = 0; c < plan.shape.v_head_dim; ++c) to[c] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float* const partial = partials + slots[i] * size;
    const float weight = maximum == -m::kInfinity ? 0.0f : m::exp2(partial[row] - maximum);
    const float* const from = partial + 2 * kMaxRows + row * v_dim;
    sum = m::fma(partial[kMaxRows + row], weight, sum);
    for (int c = 0; c < plan.shape.v_head_dim; ++c) to[c] = m::fma(from[c], weight, to[c]);
  }
  write_row(plan.shape, sinks, head, maximum, sum, to, to);
}

// Every row of every split item, shared out by row.
inline void merge(const Call& call, const Plan& plan, const float* partials, const float* sinks, float* out) {
  const int group = plan.group();
  int64_t done = 0, seen = 0;
  plan.each([&](const Item& item) {
    int64_t slots[kMaxSplit], count = 0;
    for (int64_t tid = 0; tid < call.nthreads; ++tid) {
      const Span blocks = plan.share_of(item, done, tid);
      if (blocks.low < blocks.high) slots[count++] = plan.slot_of(done, tid);
    }
    done += Plan::cost(item);
    if (count < 2) return;
    for (int64_t r = 0; r < item.rows(); ++r, ++seen) {
      if (seen % call.nthreads != call.tid) continue;
      const int64_t inside = item.row0 + r % item.per_head();
      const int head =
          (item.kv_head + static_cast<int>(r / item.per_head())) * group + static_cast<int>(inside % group);
      const int64_t t = item.run.begin + inside / group;
      merge_row(plan, partials, slots, count, r, sinks, head,
                out + (t * plan.shape.heads + head) * plan.shape.v_head_dim);
    }
  });
}

}  // namespace attn

// Memory that all threads of a call share, in which contexts split between threads leave their partial results.
struct AttendWorkspace {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Bytes of a workspace with which a team of nthreads may split contexts. A smaller one is left unused.
constexpr int64_t attend_workspace_bytes(int v_head_dim, int nthreads) {
  return 2 * nthreads * attn::partial_floats(v_head_dim) * 4;
}

// Bytes of call.scratch that attend needs, per thread.
constexpr int64_t attend_scratch_bytes(int head_dim, int v_head_dim) {
  return attn::round_up(attn::Layout(head_dim, v_head_dim).size * 4, 64);
}

namespace attn {

inline bool may_split(const Call& call, const AttendShape& shape, bool deterministic,
                      const AttendWorkspace& workspace) {
  return !deterministic && workspace.data && call.nthreads <= kMaxSplit &&
         workspace.bytes >= attend_workspace_bytes(shape.v_head_dim, call.nthreads);
}

}  // namespace attn

// Attention of T new tokens over their sequences' pages, in which their own keys and values already lie.
//   q     [T][heads][head_dim] f32, row stride ldq      out  [T][heads][v_head_dim] f32, dense
//   seq, pos  [T] i32: tokens of one sequence are adjacent with ascending positions
//   sinks [heads] f32 or null: a logit that enters only the softmax denominator
//   score (float s, int head, int64 qpos, int64 kpos) -> float: after scale and soft cap; -inf hides a key
//   deterministic: a query's result has the same bits whatever shares the call and however the work is cut; over pages
//                  of bf16 and 8 bits its queries and weights then stay f32, at the price of products of 16 bits
// With a workspace, attend_merge must follow with the same arguments after a barrier: it completes what was split.
template <class KV, class Score = PlainScore>
void attend(const Call& call, const AttendShape& shape, const float* q, int64_t ldq, float* out, const void* k_base,
            const void* v_base, const float* sinks, int64_t T, const int32_t* seq, const int32_t* pos,
            const int32_t* block_table, int64_t max_blocks, bool deterministic, Score&& score = Score{},
            AttendWorkspace workspace = {}) {
  const attn::Plan plan(shape, T, seq, pos, block_table, max_blocks, call.nthreads,
                        attn::may_split(call, shape, deterministic, workspace));
  const attn::Rows<KV, std::remove_cvref_t<Score>> rows{shape,
                                                        q,
                                                        ldq,
                                                        out,
                                                        static_cast<const KV*>(k_base),
                                                        static_cast<const KV*>(v_base),
                                                        sinks,
                                                        pos,
                                                        score,
                                                        reinterpret_cast<float*>(call.scratch),
                                                        !deterministic};
  plan.mine(call.tid, [&](const attn::Item& item, int64_t slot) {
    float* const partials = static_cast<float*>(workspace.data);
    attn::attend_item(rows, item, slot < 0 ? nullptr : partials + slot * attn::partial_floats(shape.v_head_dim));
  });
}

// Joins the partial results that attend left in the workspace and writes those rows of out.
inline void attend_merge(const Call& call, const AttendShape& shape, float* out, const float* sinks, int64_t T,
                         const int32_t* seq, const int32_t* pos, bool deterministic, AttendWorkspace workspace) {
  if (!attn::may_split(call, shape, deterministic, workspace)) return;
  const attn::Plan plan(shape, T, seq, pos, nullptr, 0, call.nthreads, true);
  if (plan.split) attn::merge(call, plan, static_cast<const float*>(workspace.data), sinks, out);
}

}  // namespace echoc
