// Choosing the next token of one sequence from its logits.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/cpu/choose.h"

namespace echoc {

/// Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2,
/// 3", SC 2011): the four words depend on key and counter only, so a draw can be repeated without the ones before it.
std::array<uint32_t, 4> philox(uint64_t key, std::array<uint32_t, 4> counter);

/// A number in [0, 1) for draw `position` of output `stream` of a request with `seed`.
double uniform(uint64_t seed, uint32_t stream, uint64_t position);

struct SamplingSpec {
  float temperature = 1;  // 0: greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t min_tokens = 0;
  int32_t logprobs = -1;  // how many to report besides the sampled token; -1: none at all
  uint64_t seed = 0;
  uint32_t stream = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> banned;
  std::vector<int32_t> allowed;                     // empty: every token
  std::vector<std::vector<int32_t>> bad_sequences;  // whose last token is banned where the others precede it
  std::vector<int32_t> end_tokens;                  // banned until min_tokens
};

struct TokenLogprobs {
  float logprob = 0;
  int64_t rank = 0;  // 1: the likeliest
  std::vector<std::pair<int32_t, float>> top;
};

struct Sampled {
  static constexpr int32_t kNotFinite = -1;    // a logit is NaN or +infinity
  static constexpr int32_t kNothingLeft = -2;  // every token is banned
  int32_t token = kNotFinite;
  TokenLogprobs logprobs;  // of the raw logits; filled when asked for
};

/// The log-softmax of logits[0..vocab) at `token`, its rank, and the `count` likeliest tokens with theirs.
TokenLogprobs token_logprobs(std::span<const float> logits, int32_t token, int32_t count);

/// The parameters and the history of one sequence.
class Sampler {
 public:
  Sampler(SamplingSpec spec, std::span<const int32_t> prompt);

  /// The same history continued as output `stream` of the request.
  Sampler fork(uint32_t stream) const;

  /// Order of work: allowed and banned tokens, bad sequences, end tokens before min_tokens, bias, penalties; then
  /// greedy or temperature, min-p, top-k, top-p and one draw. Ties go to the lower token id. `work` is reused between
  /// calls.
  Sampled sample(std::span<const float> logits, std::vector<float>& work) const;

  /// How many of the best of `vocabulary` logits decide the next token; 0 where it takes all, or edits or reports them.
  int32_t num_candidates(int64_t vocabulary) const;

  /// The token that sample() takes, from so many of the best logits, best first, of those above -infinity.
  /// `unbounded`: a logit is NaN or +infinity.
  int32_t choose(std::span<const Candidate> best, bool unbounded) const;

  /// Appends `token` to the history.
  void accept(int32_t token);

 private:
  bool edits() const;
  void edit(std::span<float> logits) const;
  void penalise(std::span<float> logits) const;
  int32_t draw(std::span<const float> logits, float highest, std::span<float> weights) const;
  int32_t draw_ranked(std::span<const float> logits, float highest, double total, double u) const;
  int32_t draw_best(std::span<const Candidate> best, double u) const;
  float scale() const { return 1.0f / spec_.temperature; }
  float floor() const;

  SamplingSpec spec_;
  std::unordered_map<int32_t, int32_t> counts_;  // token -> times in the output; 0: in the prompt only
  std::vector<int32_t> output_;
};

}  // namespace echoc
