// The pages of sequences, shared and found by prefix: pure bookkeeping, no device memory is touched here.
#pragma once

#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/cpu/pages.h"

namespace echoc {

using PageCopies = std::vector<std::pair<int64_t, int64_t>>;  // (source, destination), to be done in order

/// Hands out `num_pages` pages of `page_size` tokens each. A page is free, held by one or more sequences, or cached:
/// full, held by nobody, and kept for a later sequence with the same prefix until its room is needed (least recently
/// used first). Cached prefixes form a trie: a page's node is found by its parent's node and its own tokens, which are
/// compared on every hit, so a hash collision can only cost a miss.
class Pager {
 public:
  Pager(int64_t num_pages, int page_size, bool prefix_cache, uint64_t salt);
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  /// A new sequence that holds the longest cached prefix of `tokens` short of the last token (which must be computed
  /// anyway to continue). Returns its handle and the number of tokens it already holds.
  std::pair<int64_t, int64_t> create(std::span<const int32_t> tokens, uint64_t cache_salt, bool use_cache);

  /// A new sequence holding the same tokens; pages are shared until one of the two appends to them.
  int64_t fork(int64_t sequence);

  /// Makes room for `tokens` behind the sequence. Returns the page copies to be done before they are written, or
  /// nothing, leaving all as it was, when there are not enough pages.
  std::optional<PageCopies> append(int64_t sequence, std::span<const int32_t> tokens);

  /// The same for one token behind each of several sequences, which `settle` names later.
  std::optional<PageCopies> extend(const std::vector<int64_t>& sequences);

  /// The appended tokens' state has been written: full pages may be found by later sequences.
  void commit(int64_t sequence) { commit(sequence, find(sequence).length); }

  /// Names the last token of each sequence; the state of those before it has been written.
  void settle(const std::vector<int64_t>& sequences, const std::vector<int32_t>& tokens);

  void release(int64_t sequence);

  /// Pages that appending `num_tokens` would take, a copied tail included.
  int64_t pages_for(int64_t sequence, int64_t num_tokens) const;

  int64_t length(int64_t sequence) const { return find(sequence).length; }
  const std::vector<int32_t>& pages(int64_t sequence) const { return find(sequence).pages; }
  int64_t num_pages_of(int64_t sequence) const { return std::ssize(find(sequence).pages); }
  int32_t references(int64_t page) const { return pages_.at(static_cast<size_t>(page)).holders; }
  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  int64_t num_cached() const { return num_cached_; }
  int64_t num_available() const { return num_pages() - num_held(); }
  /// Pages that sequences hold, and the most that were ever held or cached at once.
  int64_t num_held() const { return pages::num_taken(pool_) - num_cached_; }
  int64_t peak_pages() const { return pool_.top; }
  int64_t num_sequences() const { return num_sequences_; }
  int page_size() const { return page_size_; }

  /// Forgets every cached prefix that no sequence holds.
  void drop_cache();

 private:
  struct Page {
    int32_t holders = 0;
    int32_t older = -1, newer = -1;  // neighbours in the list of cached pages
    uint64_t node = 0;               // 0: cannot be found
    uint64_t parent = 0;             // node of the page before, 0 for a first page
    uint64_t cache_salt = 0;
    uint64_t hash = 0;
  };
  struct Sequence {
    std::vector<int32_t> pages;
    int64_t length = 0;
    int64_t committed = 0;  // pages whose node is known
    uint64_t node = 0;      // of the last committed page
    uint64_t cache_salt = 0;
    bool alive = false;
  };

  void commit(int64_t sequence, int64_t length);
  const Sequence& find(int64_t sequence) const;
  Sequence& find(int64_t sequence) { return const_cast<Sequence&>(std::as_const(*this).find(sequence)); }
  int64_t new_sequence();
  bool has_shared_tail(const Sequence& sequence) const;
  int32_t take_page();
  void drop_reference(int32_t page);
  void hold(int32_t page);
  void forget(int32_t page);
  void link_newest(int32_t page);
  void unlink(int32_t page);
  uint64_t hash(const Sequence& sequence, const int32_t* tokens) const;
  int32_t lookup(uint64_t hash, const Sequence& sequence, const int32_t* tokens) const;
  int32_t* tokens_of(int32_t page) { return tokens_.data() + static_cast<int64_t>(page) * page_size_; }
  const int32_t* tokens_of(int32_t page) const { return tokens_.data() + static_cast<int64_t>(page) * page_size_; }

  const int page_size_;
  const bool prefix_cache_;
  const uint64_t salt_;
  std::vector<Page> pages_;
  std::vector<int32_t> tokens_;
  std::vector<uint32_t> free_;
  pages::Pool pool_{};
  int32_t oldest_ = -1, newest_ = -1;
  int64_t num_cached_ = 0;
  uint64_t next_node_ = 1;
  std::unordered_multimap<uint64_t, int32_t> nodes_;
  std::vector<Sequence> sequences_;
  std::vector<int64_t> free_handles_;
  int64_t num_sequences_ = 0;
};

}  // namespace echoc
