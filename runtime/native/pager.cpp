#include "runtime/native/pager.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "runtime/native/bindings.h"

namespace nb = nanobind;

namespace echoc {

Pager::Pager(int64_t num_pages, int page_size, bool prefix_cache, uint64_t salt)
    : page_size_(page_size), prefix_cache_(prefix_cache), salt_(salt) {
  if (num_pages < 1 || num_pages > INT32_MAX) throw std::invalid_argument("a pager needs 1 to 2^31-1 pages");
  if (page_size < 1) throw std::invalid_argument("a page holds at least one token");
  pages_.resize(static_cast<size_t>(num_pages));
  tokens_.resize(static_cast<size_t>(num_pages * page_size));
  free_.resize(static_cast<size_t>(num_pages));
  pool_.free = free_.data();
  pool_.limit = static_cast<uint32_t>(num_pages);
}

std::pair<int64_t, int64_t> Pager::create(std::span<const int32_t> tokens, uint64_t cache_salt, bool use_cache) {
  const int64_t handle = new_sequence();
  Sequence& sequence = find(handle);
  sequence.cache_salt = cache_salt;
  if (!prefix_cache_ || !use_cache || tokens.empty()) return {handle, 0};
  const int64_t whole_pages = (static_cast<int64_t>(tokens.size()) - 1) / page_size_;
  for (int64_t i = 0; i < whole_pages; ++i) {
    const int32_t* wanted = tokens.data() + i * page_size_;
    const int32_t page = lookup(hash(sequence, wanted), sequence, wanted);
    if (page < 0) break;
    hold(page);
    sequence.pages.push_back(page);
    sequence.node = pages_[static_cast<size_t>(page)].node;
  }
  sequence.committed = static_cast<int64_t>(sequence.pages.size());
  sequence.length = sequence.committed * page_size_;
  return {handle, sequence.length};
}

int64_t Pager::fork(int64_t sequence) {
  find(sequence);
  const int64_t handle = new_sequence();
  Sequence& child = find(handle);
  child = find(sequence);
  for (int32_t page : child.pages) hold(page);
  return handle;
}

std::optional<PageCopies> Pager::append(int64_t handle, std::span<const int32_t> tokens) {
  Sequence& sequence = find(handle);
  if (tokens.empty()) return PageCopies{};
  const int64_t length = sequence.length + std::ssize(tokens);
  int64_t wanted = pages_for(handle, std::ssize(tokens));
  if (wanted > num_available()) return std::nullopt;

  PageCopies copies;
  if (has_shared_tail(sequence)) {
    --wanted;
    const int32_t source = sequence.pages.back();
    const int32_t destination = take_page();
    std::copy_n(tokens_of(source), sequence.length % page_size_, tokens_of(destination));
    drop_reference(source);
    sequence.pages.back() = destination;
    copies.emplace_back(source, destination);
  }
  for (int64_t i = 0; i < wanted; ++i) sequence.pages.push_back(take_page());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int64_t position = sequence.length + static_cast<int64_t>(i);
    tokens_of(sequence.pages[static_cast<size_t>(position / page_size_)])[position % page_size_] = tokens[i];
  }
  sequence.length = length;
  return copies;
}

std::optional<PageCopies> Pager::extend(const std::vector<int64_t>& sequences) {
  int64_t wanted = 0;
  if (num_available() < std::ssize(sequences)) {
    for (const int64_t sequence : sequences) wanted += pages_for(sequence, 1);
  }
  if (wanted > num_available()) return std::nullopt;
  PageCopies copies;
  constexpr int32_t kUnknown[1] = {0};
  for (const int64_t sequence : sequences) {
    const PageCopies own = append(sequence, kUnknown).value();
    copies.insert(copies.end(), own.begin(), own.end());
  }
  return copies;
}

void Pager::settle(const std::vector<int64_t>& sequences, const std::vector<int32_t>& tokens) {
  if (sequences.size() != tokens.size()) throw std::invalid_argument("one token per sequence");
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t last = find(sequences[i]).length - 1;
    if (last < 0) throw std::invalid_argument("an empty sequence has no last token");
    tokens_of(find(sequences[i]).pages[static_cast<size_t>(last / page_size_)])[last % page_size_] = tokens[i];
    commit(sequences[i], last);
  }
}

int64_t Pager::pages_for(int64_t handle, int64_t num_tokens) const {
  const Sequence& sequence = find(handle);
  if (num_tokens <= 0) return 0;
  const int64_t pages = (sequence.length + num_tokens + page_size_ - 1) / page_size_;
  return pages - std::ssize(sequence.pages) + (has_shared_tail(sequence) ? 1 : 0);
}

bool Pager::has_shared_tail(const Sequence& sequence) const {
  return sequence.length % page_size_ != 0 && pages_[static_cast<size_t>(sequence.pages.back())].holders > 1;
}

void Pager::commit(int64_t handle, int64_t length) {
  Sequence& sequence = find(handle);
  if (!prefix_cache_) return;
  for (; sequence.committed < length / page_size_; ++sequence.committed) {
    const int32_t index = sequence.pages[static_cast<size_t>(sequence.committed)];
    const uint64_t key = hash(sequence, tokens_of(index));
    const int32_t known = lookup(key, sequence, tokens_of(index));
    if (known >= 0) {  // another sequence computed the same prefix first: its page stays the one to be found
      sequence.node = pages_[static_cast<size_t>(known)].node;
      continue;
    }
    Page& page = pages_[static_cast<size_t>(index)];
    if (page.node != 0) forget(index);  // findable under an ancestor that was evicted meanwhile
    page.node = next_node_++;
    page.parent = sequence.node;
    page.cache_salt = sequence.cache_salt;
    page.hash = key;
    nodes_.emplace(key, index);
    sequence.node = page.node;
  }
}

void Pager::release(int64_t handle) {
  Sequence& sequence = find(handle);
  // Last page first, so that among equally old pages a child is evicted before its parent.
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) drop_reference(*page);
  sequence = Sequence{};
  free_handles_.push_back(handle);
  --num_sequences_;
}

void Pager::drop_cache() {
  while (oldest_ >= 0) {
    const int32_t page = oldest_;
    unlink(page);
    forget(page);
    pages::give(pool_, static_cast<uint32_t>(page));
  }
}

const Pager::Sequence& Pager::find(int64_t sequence) const {
  const bool exists = sequence >= 0 && static_cast<size_t>(sequence) < sequences_.size();
  if (!exists || !sequences_[static_cast<size_t>(sequence)].alive) {
    throw std::invalid_argument("sequence " + std::to_string(sequence) + " does not exist or was released");
  }
  return sequences_[static_cast<size_t>(sequence)];
}

int64_t Pager::new_sequence() {
  if (free_handles_.empty()) {
    free_handles_.push_back(static_cast<int64_t>(sequences_.size()));
    sequences_.emplace_back();
  }
  const int64_t handle = free_handles_.back();
  free_handles_.pop_back();
  sequences_[static_cast<size_t>(handle)].alive = true;
  ++num_sequences_;
  return handle;
}

int32_t Pager::take_page() {
  const uint32_t taken = pages::take(pool_);
  const int32_t page = taken == pages::kNone ? oldest_ : static_cast<int32_t>(taken);
  if (taken == pages::kNone) {
    unlink(page);
    forget(page);
  }
  pages_[static_cast<size_t>(page)].holders = 1;
  return page;
}

void Pager::hold(int32_t index) {
  if (pages::share(pages_[static_cast<size_t>(index)].holders) == 0) unlink(index);
}

void Pager::drop_reference(int32_t index) {
  Page& page = pages_[static_cast<size_t>(index)];
  if (!pages::drop(page.holders)) return;
  if (page.node != 0) {
    link_newest(index);
  } else {
    pages::give(pool_, static_cast<uint32_t>(index));
  }
}

void Pager::forget(int32_t index) {
  Page& page = pages_[static_cast<size_t>(index)];
  auto [first, last] = nodes_.equal_range(page.hash);
  nodes_.erase(std::find_if(first, last, [&](const auto& entry) { return entry.second == index; }));
  page.node = 0;
}

void Pager::link_newest(int32_t index) {
  Page& page = pages_[static_cast<size_t>(index)];
  page.older = newest_;
  page.newer = -1;
  (newest_ < 0 ? oldest_ : pages_[static_cast<size_t>(newest_)].newer) = index;
  newest_ = index;
  ++num_cached_;
}

void Pager::unlink(int32_t index) {
  Page& page = pages_[static_cast<size_t>(index)];
  (page.older < 0 ? oldest_ : pages_[static_cast<size_t>(page.older)].newer) = page.newer;
  (page.newer < 0 ? newest_ : pages_[static_cast<size_t>(page.newer)].older) = page.older;
  page.older = page.newer = -1;
  --num_cached_;
}

uint64_t Pager::hash(const Sequence& sequence, const int32_t* tokens) const {
  // The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) over salts, parent and tokens in turn.
  constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
  const auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  };
  uint64_t state = mix(salt_ ^ mix(sequence.cache_salt + kStep * (sequence.node + 1)));
  for (int i = 0; i < page_size_; ++i) state = mix(state + kStep + static_cast<uint32_t>(tokens[i]));
  return state;
}

int32_t Pager::lookup(uint64_t key, const Sequence& sequence, const int32_t* tokens) const {
  auto [first, last] = nodes_.equal_range(key);
  for (auto entry = first; entry != last; ++entry) {
    const Page& page = pages_[static_cast<size_t>(entry->second)];
    const bool same_parent = page.parent == sequence.node && page.cache_salt == sequence.cache_salt;
    if (same_parent && std::equal(tokens, tokens + page_size_, tokens_of(entry->second))) {
      return entry->second;
    }
  }
  return -1;
}

namespace {

using Tokens = nb::ndarray<nb::ro, const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BlockTable = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::span<const int32_t> as_span(const Tokens& tokens) { return {tokens.data(), tokens.size()}; }

/// The pages, zeros behind.
void fill_row(const std::vector<int32_t>& pages, int32_t* out, size_t columns) {
  std::fill(std::copy(pages.begin(), pages.end(), out), out + columns, 0);
}

void fill_block_table(const Pager& pager, const std::vector<int64_t>& sequences, BlockTable& table) {
  if (table.shape(0) < sequences.size()) throw std::invalid_argument("the block table has too few rows");
  const size_t columns = table.shape(1);
  for (size_t row = 0; row < sequences.size(); ++row) {
    const std::vector<int32_t>& pages = pager.pages(sequences[row]);
    if (pages.size() > columns) throw std::invalid_argument("the block table has too few columns");
    fill_row(pages, table.data() + row * columns, columns);
  }
}

using Table = nb::ndarray<nb::numpy, int32_t, nb::ndim<2>>;

Table new_table(size_t rows, size_t columns) {
  auto* const data = new int32_t[rows * columns];
  const nb::capsule owner(data, [](void* memory) noexcept { delete[] static_cast<int32_t*>(memory); });
  return {data, {rows, columns}, owner};
}

Table block_table(const Pager& pager, const std::vector<int64_t>& sequences) {
  size_t columns = 1;
  for (int64_t sequence : sequences) columns = std::max(columns, pager.pages(sequence).size());
  Table table = new_table(sequences.size(), columns);
  for (size_t row = 0; row < sequences.size(); ++row)
    fill_row(pager.pages(sequences[row]), table.data() + row * columns, columns);
  return table;
}

/// Places of pages where runs of 2^shift pages lie `skipped` pages apart.
Table page_places(const nb::ndarray<nb::ro, const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>& pages,
                  int shift, int32_t skipped) {
  Table places = new_table(pages.shape(0), pages.shape(1));
  for (size_t i = 0; i < pages.size(); ++i) places.data()[i] = pages.data()[i] + (pages.data()[i] >> shift) * skipped;
  return places;
}

}  // namespace

void bind_pager(nb::module_& m) {
  nb::class_<Pager>(m, "Pager", "Pages shared between sequences: reference counts, copy on write, prefix cache.")
      .def(nb::init<int64_t, int, bool, uint64_t>(), nb::arg("num_pages"), nb::arg("page_size"),
           nb::arg("prefix_cache") = true, nb::arg("salt") = 0)
      .def(
          "create",
          [](Pager& pager, const Tokens& tokens, uint64_t cache_salt, bool use_cache) {
            return pager.create(as_span(tokens), cache_salt, use_cache);
          },
          nb::arg("tokens"), nb::arg("cache_salt") = 0, nb::arg("use_cache") = true)
      .def("fork", &Pager::fork, nb::arg("sequence"))
      .def(
          "append",
          [](Pager& pager, int64_t sequence, const Tokens& tokens) { return pager.append(sequence, as_span(tokens)); },
          nb::arg("sequence"), nb::arg("tokens"))
      .def("commit", nb::overload_cast<int64_t>(&Pager::commit), nb::arg("sequence"))
      .def("extend", &Pager::extend, nb::arg("sequences"))
      .def("settle", &Pager::settle, nb::arg("sequences"), nb::arg("tokens"))
      .def("release", &Pager::release, nb::arg("sequence"))
      .def("length", &Pager::length, nb::arg("sequence"))
      .def("pages_for", &Pager::pages_for, nb::arg("sequence"), nb::arg("num_tokens"))
      .def("num_pages_of", &Pager::num_pages_of, nb::arg("sequence"))
      .def("pages", &Pager::pages, nb::arg("sequence"))
      .def("references", &Pager::references, nb::arg("page"))
      .def("drop_cache", &Pager::drop_cache)
      .def("block_table", &block_table, nb::arg("sequences"))
      .def("fill_block_table", &fill_block_table, nb::arg("sequences"), nb::arg("table"))
      .def_prop_ro("num_pages", &Pager::num_pages)
      .def_prop_ro("num_cached", &Pager::num_cached)
      .def_prop_ro("num_available", &Pager::num_available)
      .def_prop_ro("num_held", &Pager::num_held)
      .def_prop_ro("peak_pages", &Pager::peak_pages)
      .def_prop_ro("num_sequences", &Pager::num_sequences)
      .def_prop_ro("page_size", &Pager::page_size);
  m.def("page_places", &page_places, nb::arg("pages"), nb::arg("shift"), nb::arg("skipped"));
}

}  // namespace echoc
