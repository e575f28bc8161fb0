#include "runtime/native/sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/cpu/math.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define ECHOC_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ECHOC_CLONES
#endif

namespace echoc {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();
constexpr int64_t kBlock = 1024;

/// The highest logit, or NaN when a logit is NaN.
ECHOC_CLONES float highest_of(const float* x, int64_t n) {
  constexpr int64_t kLanes = 64;  // independent maxima, so that the loop runs as vectors
  float best[kLanes];
  int32_t nans[kLanes] = {};
  std::fill(best, best + kLanes, kBanned);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane];
      best[lane] = value > best[lane] ? value : best[lane];
      nans[lane] |= value != value;
    }
  }
  for (; i < n; ++i) {
    best[0] = x[i] > best[0] ? x[i] : best[0];
    nans[0] |= x[i] != x[i];
  }
  float highest = kBanned;
  int32_t any_nan = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    highest = best[lane] > highest ? best[lane] : highest;
    any_nan |= nans[lane];
  }
  return any_nan ? std::numeric_limits<float>::quiet_NaN() : highest;
}

/// The first of at most kBlock numbers that is above `bound`, or equals it where `or_equal`; n where there is none.
ECHOC_CLONES int64_t first_from(const float* x, int64_t n, float bound, bool or_equal) {
  int32_t found = 0;
  for (int64_t i = 0; i < n; ++i) found |= (x[i] > bound) | (or_equal & (x[i] == bound));
  if (!found) return n;
  return std::find_if(x, x + n, [&](float value) { return value > bound || (or_equal && value == bound); }) - x;
}

/// out[i] = exp((x[i] - highest) * scale), or 0 below `floor`; returns their sum. n is at most kBlock.
ECHOC_CLONES float weigh(const float* x, int64_t n, float highest, float scale, float floor, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float z = (x[i] - highest) * scale;
    out[i] = z >= floor ? m::exp(z) : 0.0f;
  }
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int64_t lane = 0; lane < 16; ++lane) lanes[lane] += out[i + lane];
  }
  for (; i < n; ++i) lanes[i % 16] += out[i];
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

ECHOC_CLONES int64_t count_above(const float* x, int64_t n, float bound) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += x[i] > bound;
  return count;
}

double sum_of_weights(std::span<const float> x, float highest, float scale, float floor) {
  float weights[kBlock];
  double total = 0;
  for (int64_t i = 0; i < std::ssize(x); i += kBlock) {
    total += weigh(x.data() + i, std::min(kBlock, std::ssize(x) - i), highest, scale, floor, weights);
  }
  return total;
}

/// Where the highest number stands first.
int32_t place_of_highest(std::span<const float> x, float highest) {
  for (int64_t i = 0; i < std::ssize(x); i += kBlock) {
    const int64_t count = std::min(kBlock, std::ssize(x) - i);
    const int64_t place = first_from(x.data() + i, count, highest, true);
    if (place < count) return static_cast<int32_t>(i + place);
  }
  return -1;
}

/// The tokens whose logits are above `bound`, in order of id.
std::vector<Candidate> tokens_above(std::span<const float> x, float bound) {
  constexpr int64_t kStride = 32;
  std::vector<Candidate> found;
  for (int64_t begin = 0; begin < std::ssize(x); begin += kStride) {
    const int64_t end = std::min(begin + kStride, std::ssize(x));
    for (int64_t i = begin + first_from(x.data() + begin, end - begin, bound, false); i < end; ++i) {
      if (x[i] > bound) found.push_back({x[i], static_cast<int32_t>(i)});
    }
  }
  return found;
}

/// The `count` best tokens that are not banned, best first.
std::vector<Candidate> best_tokens(std::span<const float> x, int64_t count) {
  constexpr int64_t kStride = 128, kHeapLimit = 2048;
  std::vector<Candidate> best;
  if (count > kHeapLimit) {
    best = tokens_above(x, kBanned);
    const auto middle = best.begin() + std::min<int64_t>(count, std::ssize(best));
    std::partial_sort(best.begin(), middle, best.end(), better);
    best.erase(middle, best.end());
    return best;
  }
  float bound = kBanned;  // of the worst kept candidate once there are `count`; the heap keeps the worst on top
  for (int64_t begin = 0; begin < std::ssize(x); begin += kStride) {
    const int64_t end = std::min(begin + kStride, std::ssize(x));
    const int64_t first = first_from(x.data() + begin, end - begin, bound, false);
    for (int64_t i = begin + first; i < end; ++i) {
      if (!(x[i] > bound)) continue;
      if (std::ssize(best) == count) {
        std::pop_heap(best.begin(), best.end(), better);
        best.pop_back();
      }
      best.push_back({x[i], static_cast<int32_t>(i)});
      std::push_heap(best.begin(), best.end(), better);
      if (std::ssize(best) == count) bound = best.front().value;
    }
  }
  std::sort(best.begin(), best.end(), better);
  return best;
}

constexpr int64_t kUsualNucleus = 256;

struct Weighted {
  double weight;
  int32_t token;
};

bool heavier(const Weighted& a, const Weighted& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

std::vector<Weighted> weighted(std::span<const Candidate> tokens, float highest, float scale, float floor) {
  std::vector<Weighted> out;
  for (auto [logit, token] : tokens) {
    const float z = (logit - highest) * scale;
    if (z >= floor) out.push_back({m::exp(z), token});
  }
  return out;
}

double mass_of(std::span<const Weighted> candidates) {
  double mass = 0;
  for (const Weighted& candidate : candidates) mass += candidate.weight;
  return mass;
}

/// Leaves the fewest heaviest candidates that together reach `wanted`, at least one: a quickselect by mass.
void keep_nucleus(std::vector<Weighted>& candidates, double wanted) {
  constexpr int64_t kSmall = 32;
  auto begin = candidates.begin(), end = candidates.end();  // the nucleus ends between them; all before begin is in it
  while (end - begin > kSmall) {
    const std::array<Weighted, 3> probes{*begin, begin[(end - begin) / 2], end[-1]};
    const Weighted pivot = heavier(probes[0], probes[1]) == heavier(probes[1], probes[2])   ? probes[1]
                           : heavier(probes[1], probes[0]) == heavier(probes[0], probes[2]) ? probes[0]
                                                                                            : probes[2];
    const auto middle = std::partition(begin, end, [&](const Weighted& c) { return !heavier(pivot, c); });
    const double mass = mass_of({begin, middle});
    if (mass >= wanted && middle != end) {
      end = middle;
    } else if (mass < wanted) {
      wanted -= mass;
      begin = middle;
    } else {
      break;  // the pivot was the lightest of them
    }
  }
  std::sort(begin, end, heavier);
  while (begin != end && (wanted > 0 || begin == candidates.begin())) wanted -= (begin++)->weight;
  candidates.erase(begin, candidates.end());
}

/// The candidate in which u of the mass ends.
int32_t pick(std::span<const Weighted> kept, double u) {
  const double target = u * mass_of(kept);
  double below = 0;
  for (const Weighted& candidate : kept) {
    below += candidate.weight;
    if (below > target) return candidate.token;
  }
  return kept.back().token;
}

}  // namespace

std::array<uint32_t, 4> philox(uint64_t key, std::array<uint32_t, 4> c) {
  auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

double uniform(uint64_t seed, uint32_t stream, uint64_t position) {
  const auto words = philox(seed, {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), stream, 0});
  const uint64_t bits = (uint64_t{words[0]} << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

TokenLogprobs token_logprobs(std::span<const float> logits, int32_t token, int32_t count) {
  if (token < 0 || token >= std::ssize(logits)) throw std::out_of_range("token outside of the vocabulary");
  const float highest = highest_of(logits.data(), std::ssize(logits));
  const double total = sum_of_weights(logits, highest, 1.0f, kBanned);
  const auto shift = static_cast<float>(highest + std::log(total));
  TokenLogprobs result;
  result.logprob = logits[token] - shift;
  result.rank = 1 + count_above(logits.data(), std::ssize(logits), logits[token]);
  if (count > 0) {
    for (const Candidate& c : best_tokens(logits, count)) result.top.emplace_back(c.id, c.value - shift);
  }
  return result;
}

Sampler::Sampler(SamplingSpec spec, std::span<const int32_t> prompt) : spec_(std::move(spec)) {
  if (spec_.repetition_penalty != 1) {
    for (int32_t token : prompt) counts_.try_emplace(token, 0);
  }
}

Sampler Sampler::fork(uint32_t stream) const {
  Sampler child = *this;
  child.spec_.stream = stream;
  return child;
}

void Sampler::accept(int32_t token) {
  ++counts_[token];
  output_.push_back(token);
}

Sampled Sampler::sample(std::span<const float> logits, std::vector<float>& work) const {
  Sampled result;
  float highest = highest_of(logits.data(), std::ssize(logits));
  if (!(highest < std::numeric_limits<float>::infinity())) return result;
  std::span<const float> edited = logits;
  const bool greedy = spec_.temperature == 0;
  if (edits()) {
    work.assign(logits.begin(), logits.end());
    edit(work);
    edited = work;
    highest = highest_of(work.data(), std::ssize(work));
    if (!(highest < std::numeric_limits<float>::infinity())) return result;
  }
  if (highest == kBanned) {
    result.token = Sampled::kNothingLeft;
    return result;
  }
  if (greedy) {
    result.token = place_of_highest(edited, highest);
  } else {
    work.resize(logits.size());
    result.token = draw(edited, highest, work);
  }
  if (spec_.logprobs >= 0) result.logprobs = token_logprobs(logits, result.token, spec_.logprobs);
  return result;
}

int32_t Sampler::num_candidates(int64_t vocabulary) const {
  if (edits() || spec_.logprobs >= 0) return 0;
  if (spec_.temperature == 0) return 1;
  return spec_.top_k > 0 && spec_.top_k < vocabulary ? spec_.top_k : 0;
}

int32_t Sampler::choose(std::span<const Candidate> best, bool unbounded) const {
  if (unbounded) return Sampled::kNotFinite;
  if (best.empty()) return Sampled::kNothingLeft;
  if (spec_.temperature == 0) return best.front().id;
  return draw_best(best, uniform(spec_.seed, spec_.stream, output_.size()));
}

bool Sampler::edits() const {
  const bool too_short = std::ssize(output_) < spec_.min_tokens && !spec_.end_tokens.empty();
  const bool penalties = spec_.repetition_penalty != 1 || spec_.presence_penalty != 0 || spec_.frequency_penalty != 0;
  return too_short || penalties || !spec_.logit_bias.empty() || !spec_.banned.empty() || !spec_.allowed.empty() ||
         !spec_.bad_sequences.empty();
}

void Sampler::edit(std::span<float> logits) const {
  const auto inside = [&](int32_t token) { return token >= 0 && token < std::ssize(logits); };
  const auto ban = [&](int32_t token) {
    if (inside(token)) logits[token] = kBanned;
  };
  if (!spec_.allowed.empty()) {
    std::vector<std::pair<int32_t, float>> kept;
    for (int32_t token : spec_.allowed) {
      if (inside(token)) kept.emplace_back(token, logits[token]);
    }
    std::fill(logits.begin(), logits.end(), kBanned);
    for (auto [token, logit] : kept) logits[token] = logit;
  }
  for (int32_t token : spec_.banned) ban(token);
  for (const auto& words : spec_.bad_sequences) {
    const size_t before = words.size() - 1;
    if (words.empty() || before > output_.size()) continue;
    if (std::equal(words.begin(), words.end() - 1, output_.end() - static_cast<int64_t>(before))) ban(words.back());
  }
  if (std::ssize(output_) < spec_.min_tokens) {
    for (int32_t token : spec_.end_tokens) ban(token);
  }
  for (auto [token, bias] : spec_.logit_bias) {
    if (inside(token)) logits[token] += bias;
  }
  penalise(logits);
}

void Sampler::penalise(std::span<float> logits) const {
  for (auto [token, count] : counts_) {
    if (token < 0 || token >= std::ssize(logits)) continue;
    float& logit = logits[token];
    // Keskar et al., "CTRL", 2019: seen tokens' logits shrink towards the unlikely side.
    if (spec_.repetition_penalty != 1) {
      logit = logit > 0 ? logit / spec_.repetition_penalty : logit * spec_.repetition_penalty;
    }
    if (count > 0) logit -= spec_.presence_penalty + spec_.frequency_penalty * static_cast<float>(count);
  }
}

float Sampler::floor() const { return spec_.min_p > 0 ? std::log(spec_.min_p) : kBanned; }

/// One draw from exp((logit - highest) / temperature) after min-p, top-k and top-p. `weights` has room for as many; it
/// may be the logits' own memory.
int32_t Sampler::draw(std::span<const float> logits, float highest, std::span<float> weights) const {
  const double u = uniform(spec_.seed, spec_.stream, output_.size());
  if (spec_.top_k > 0 && spec_.top_k < std::ssize(logits)) return draw_best(best_tokens(logits, spec_.top_k), u);
  if (spec_.top_p < 1) return draw_ranked(logits, highest, sum_of_weights(logits, highest, scale(), floor()), u);
  std::vector<double> sums;
  double total = 0;
  for (int64_t i = 0; i < std::ssize(logits); i += kBlock) {
    const int64_t count = std::min(kBlock, std::ssize(logits) - i);
    total += weigh(logits.data() + i, count, highest, scale(), floor(), weights.data() + i);
    sums.push_back(total);
  }
  const double target = u * total;
  int64_t block = std::upper_bound(sums.begin(), sums.end(), target) - sums.begin();
  block = std::min(block, std::ssize(sums) - 1);
  double below = block > 0 ? sums[block - 1] : 0;
  int64_t chosen = -1;
  for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, std::ssize(weights)); ++i) {
    if (weights[i] <= 0) continue;
    chosen = i;  // rounding may leave the target a hair above the block's last weight: that one is taken then
    below += weights[i];
    if (below > target) break;
  }
  return static_cast<int32_t>(chosen);
}

/// The same of the best, best first, without the others.
int32_t Sampler::draw_best(std::span<const Candidate> best, double u) const {
  std::vector<Weighted> kept = weighted(best, best.front().value, scale(), floor());
  keep_nucleus(kept, spec_.top_p * mass_of(kept));
  return pick(kept, u);
}

/// The same for the nucleus of all of them, whose weights are `total` together.
int32_t Sampler::draw_ranked(std::span<const float> logits, float highest, double total, double u) const {
  std::vector<Weighted> kept = weighted(best_tokens(logits, kUsualNucleus), highest, scale(), floor());
  const double wanted = spec_.top_p * total;
  if (mass_of(kept) < wanted && std::ssize(kept) == kUsualNucleus) {
    // Tokens below the mean's share of what top-p drops weigh less than that together, so none is in the nucleus.
    const double share = (1 - spec_.top_p) * total / static_cast<double>(logits.size());
    const auto bound = static_cast<float>(highest + std::log(share) / scale() * 1.001);
    kept = weighted(tokens_above(logits, bound), highest, scale(), floor());
    std::vector<Weighted> in_order = kept;
    keep_nucleus(kept, wanted);
    const Weighted last = *std::max_element(kept.begin(), kept.end(), heavier);
    std::erase_if(in_order, [&](const Weighted& candidate) { return heavier(last, candidate); });
    kept = std::move(in_order);  // so many are drawn from in the order of their ids, as on other devices
  } else {
    keep_nucleus(kept, wanted);
  }
  return pick(kept, u);
}

}  // namespace echoc
