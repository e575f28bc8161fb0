#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "runtime/native/bindings.h"
#include "runtime/native/sampler.h"

namespace nb = nanobind;

namespace echoc {
namespace {

using Logits = nb::ndarray<nb::ro, const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<nb::ro, const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Lists = nb::ndarray<nb::ro, const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Entry = std::tuple<float, int64_t, std::vector<std::pair<int32_t, float>>>;  // logprob, rank, top

std::span<const float> row_of(const Logits& logits, int64_t row) {
  if (row < 0 || static_cast<size_t>(row) >= logits.shape(0)) throw std::out_of_range("no such row of logits");
  return {logits.data() + static_cast<size_t>(row) * logits.shape(1), logits.shape(1)};
}

/// Samples for every sampler from its row and adds the token to its history.
/// Returns [(token, None | (logprob, rank, top))]; a negative token is a failure and changes no history.
std::vector<std::pair<int32_t, std::optional<Entry>>> sample(const std::vector<Sampler*>& samplers,
                                                             const Logits& logits, const std::vector<int64_t>& rows) {
  if (rows.size() != samplers.size()) throw std::invalid_argument("one row per sampler");
  std::vector<std::span<const float>> spans;
  for (int64_t row : rows) spans.push_back(row_of(logits, row));
  std::vector<std::pair<int32_t, std::optional<Entry>>> out;
  nb::gil_scoped_release release;
  std::vector<float> work;
  for (size_t i = 0; i < samplers.size(); ++i) {
    Sampled sampled = samplers[i]->sample(spans[i], work);
    if (sampled.token >= 0) samplers[i]->accept(sampled.token);
    auto& [logprob, rank, top] = sampled.logprobs;
    out.emplace_back(sampled.token, std::nullopt);
    if (rank > 0) out.back().second.emplace(logprob, rank, std::move(top));
  }
  return out;
}

/// The best candidates of a row over all threads' lists, best first, and whether a logit is not below +infinity.
std::pair<std::vector<Candidate>, bool> best_of(const BestLayout& layout, const Lists& lists, int64_t threads,
                                                int64_t row) {
  if (row < 0 || row >= layout.rows) throw std::out_of_range("no such row of candidates");
  const auto* memory = reinterpret_cast<const std::byte*>(lists.data());
  std::pair<std::vector<Candidate>, bool> out;
  auto& [best, unbounded] = out;
  for (int64_t thread = 0; thread < threads; ++thread) {
    const BestOfRow& part = *layout.list(memory, thread, row);
    if (part.count < 0 || part.count > layout.most) throw std::invalid_argument("a list of candidates is damaged");
    best.insert(best.end(), part.candidates(), part.candidates() + part.count);
    unbounded |= part.unbounded != 0;
  }
  std::sort(best.begin(), best.end(), better);
  return out;
}

BestLayout layout_of(const Lists& lists, int64_t threads, int64_t num_rows, int64_t most) {
  const BestLayout layout{num_rows, most};
  if (num_rows < 0 || most < 1 || threads < 1 || static_cast<int64_t>(lists.size()) < layout.bytes(threads)) {
    throw std::invalid_argument("the lists of candidates have another size");
  }
  return layout;
}

/// ([(token, logit)], whether a logit is NaN or +infinity) of a row, best first.
std::pair<std::vector<std::pair<int32_t, float>>, bool> candidates(const Lists& lists, int64_t threads,
                                                                   int64_t num_rows, int64_t most, int64_t row) {
  const auto [best, unbounded] = best_of(layout_of(lists, threads, num_rows, most), lists, threads, row);
  std::vector<std::pair<int32_t, float>> out;
  for (auto [value, id] : best) out.emplace_back(id, value);
  return {std::move(out), unbounded};
}

/// Chooses for every sampler from the lists of its row, which kernels/cpu/choose.h describes, and adds the token to its
/// history. Returns tokens; a negative one is a failure and changes no history.
std::vector<int32_t> choose(const std::vector<Sampler*>& samplers, const Lists& lists, int64_t threads,
                            int64_t num_rows, int64_t most, int64_t vocabulary, const std::vector<int64_t>& rows) {
  if (rows.size() != samplers.size()) throw std::invalid_argument("one row per sampler");
  const BestLayout layout = layout_of(lists, threads, num_rows, most);
  std::vector<int32_t> out;
  for (size_t i = 0; i < samplers.size(); ++i) {
    const int32_t wanted = samplers[i]->num_candidates(vocabulary);
    if (wanted < 1 || wanted > most) throw std::invalid_argument("a sampler needs more than the candidates");
    const auto [best, unbounded] = best_of(layout, lists, threads, rows[i]);
    const std::span<const Candidate> used(best.data(), std::min(best.size(), static_cast<size_t>(wanted)));
    out.push_back(samplers[i]->choose(used, unbounded));
    if (out.back() >= 0) samplers[i]->accept(out.back());
  }
  return out;
}

std::vector<Entry> logprobs(const Logits& logits, const std::vector<int64_t>& rows, const std::vector<int32_t>& tokens,
                            int32_t count) {
  if (rows.size() != tokens.size()) throw std::invalid_argument("one row per token");
  std::vector<Entry> out;
  for (size_t i = 0; i < rows.size(); ++i) {
    auto [logprob, rank, top] = token_logprobs(row_of(logits, rows[i]), tokens[i], count);
    out.emplace_back(logprob, rank, std::move(top));
  }
  return out;
}

}  // namespace

void bind_sampler(nb::module_& m) {
  nb::class_<SamplingSpec>(m, "SamplingSpec", "The numbers behind one output of a request; see SamplingParams.")
      .def(nb::init<>())
      .def_rw("temperature", &SamplingSpec::temperature)
      .def_rw("top_k", &SamplingSpec::top_k)
      .def_rw("top_p", &SamplingSpec::top_p)
      .def_rw("min_p", &SamplingSpec::min_p)
      .def_rw("repetition_penalty", &SamplingSpec::repetition_penalty)
      .def_rw("presence_penalty", &SamplingSpec::presence_penalty)
      .def_rw("frequency_penalty", &SamplingSpec::frequency_penalty)
      .def_rw("min_tokens", &SamplingSpec::min_tokens)
      .def_rw("logprobs", &SamplingSpec::logprobs)
      .def_rw("seed", &SamplingSpec::seed)
      .def_rw("stream", &SamplingSpec::stream)
      .def_rw("logit_bias", &SamplingSpec::logit_bias)
      .def_rw("banned", &SamplingSpec::banned)
      .def_rw("allowed", &SamplingSpec::allowed)
      .def_rw("bad_sequences", &SamplingSpec::bad_sequences)
      .def_rw("end_tokens", &SamplingSpec::end_tokens);
  nb::class_<Sampler>(m, "Sampler", "The sampling state of one sequence.")
      .def(
          "__init__",
          [](Sampler* self, const SamplingSpec& spec, const Tokens& prompt) {
            new (self) Sampler(spec, {prompt.data(), prompt.size()});
          },
          nb::arg("spec"), nb::arg("prompt"))
      .def("num_candidates", &Sampler::num_candidates, nb::arg("vocabulary"))
      .def("fork", &Sampler::fork, nb::arg("stream"))
      .def("accept", &Sampler::accept, nb::arg("token"));
  m.def("sample", &sample, nb::arg("samplers"), nb::arg("logits"), nb::arg("rows"));
  m.def("candidates", &candidates, nb::arg("lists"), nb::arg("threads"), nb::arg("num_rows"), nb::arg("most"),
        nb::arg("row"));
  m.def("choose", &choose, nb::arg("samplers"), nb::arg("lists"), nb::arg("threads"), nb::arg("num_rows"),
        nb::arg("most"), nb::arg("vocabulary"), nb::arg("rows"));
  m.def(
      "candidates_nbytes",
      [](int64_t threads, int64_t num_rows, int64_t most) { return BestLayout{num_rows, most}.bytes(threads); },
      nb::arg("threads"), nb::arg("num_rows"), nb::arg("most"));
  m.def("token_logprobs", &logprobs, nb::arg("logits"), nb::arg("rows"), nb::arg("tokens"), nb::arg("count"));
  m.def("uniform", &uniform, nb::arg("seed"), nb::arg("stream"), nb::arg("position"));
  m.def("philox", &philox, nb::arg("key"), nb::arg("counter"));
}

}  // namespace echoc
