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
#include <cstring>
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
  if (direct_shape(rows.shape) && (item.per_head() <= kDirectRows || Few<Rows>{rows}.suits_many()))
    Few<Rows>{rows}.run(item);
  else
    Many<Rows>{rows}.run(item);
  if (partial)
    rows.leave(item, partial);
  else
    rows.finish(item);
}

inline constexpr int64_t kHeader = 16;  // words of a workspace before its partial results

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

}  // namespace attn

// Memory that all threads of a call share: how many threads contexts were split between (0: they were not), and from
// byte 64 on the partial results of those contexts.
struct AttendWorkspace {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Bytes of a workspace with which a team of nthreads may split contexts. A smaller one is left unused.
constexpr int64_t attend_workspace_bytes(int v_head_dim, int nthreads) {
  return 4 * attn::kHeader + 2 * nthreads * attn::partial_floats(v_head_dim) * 4;
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
// With a workspace, after a barrier, attend_merge completes what was split, or Attended joins a token where it is read.
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
  float* const partials = workspace.data ? static_cast<float*>(workspace.data) + attn::kHeader : nullptr;
  if (call.tid == 0 && workspace.data) *static_cast<int32_t*>(workspace.data) = plan.split ? call.nthreads : 0;
  plan.mine(call.tid, [&](const attn::Item& item, int64_t slot) {
    attn::attend_item(rows, item, slot < 0 ? nullptr : partials + slot * attn::partial_floats(shape.v_head_dim));
  });
}

// What attend with the same arguments gave, after a barrier: tokens whose context was split are joined when asked for.
class Attended {
 public:
  Attended(const AttendShape& shape, const float* out, const float* sinks, int64_t T, const int32_t* seq,
           const int32_t* pos, const void* workspace)
      : threads_(workspace ? *static_cast<const int32_t*>(workspace) : 0),
        plan_(shape, threads_ ? T : 0, seq, pos, nullptr, 0, threads_ ? threads_ : 1, threads_ > 0),
        out_(out),
        sinks_(sinks),
        partials_(threads_ ? static_cast<const float*>(workspace) + attn::kHeader : nullptr) {}

  // The output of token t, [heads][v_head_dim] f32: in place, or in `room`, which may be that place.
  const float* row(int64_t t, float* room) const {
    const AttendShape& shape = plan_.shape;
    const float* const whole = out_ + t * shape.heads * shape.v_head_dim;
    if (!plan_.split) return whole;
    int64_t done = 0;
    plan_.each([&](const attn::Item& item) {
      if (item.run.begin <= t && t < item.run.end) join(item, done, t, whole, room);
      done += attn::Plan::cost(item);
    });
    return room;
  }

 private:
  void join(const attn::Item& item, int64_t done, int64_t t, const float* whole, float* room) const {
    const int v_dim = plan_.shape.v_head_dim, group = plan_.group();
    int64_t slots[attn::kMaxSplit], count = 0;
    for (int64_t tid = 0; tid < plan_.nthreads; ++tid) {
      const attn::Span pages = plan_.share_of(item, done, tid);
      if (pages.low < pages.high) slots[count++] = plan_.slot_of(done, tid);
    }
    for (int64_t r = 0; r < item.rows(); ++r) {
      const int64_t inside = item.row0 + r % item.per_head();
      if (item.run.begin + inside / group != t) continue;
      const int head =
          (item.kv_head + static_cast<int>(r / item.per_head())) * group + static_cast<int>(inside % group);
      float* const to = room + int64_t{head} * v_dim;
      if (count > 1)
        attn::merge_row(plan_, partials_, slots, count, r, sinks_, head, to);
      else
        std::memmove(to, whole + int64_t{head} * v_dim, static_cast<size_t>(v_dim) * sizeof(float));
    }
  }

  int32_t threads_;  // of the call that made it
  attn::Plan plan_;
  const float* out_;
  const float* sinks_;
  const float* partials_;
};

// Completes `out` where attend left contexts that were split between threads. Tokens are shared out.
inline void attend_merge(const Call& call, const AttendShape& shape, float* out, const float* sinks, int64_t T,
                         const int32_t* seq, const int32_t* pos, const void* workspace) {
  const Attended attended(shape, out, sinks, T, seq, pos, workspace);
  const Range tokens = share(T, call.tid, call.nthreads);
  for (int64_t t = tokens.begin; t < tokens.end; ++t) attended.row(t, out + t * shape.heads * shape.v_head_dim);
}

}  // namespace echoc
