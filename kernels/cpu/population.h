// Populations of membranes: the tables a step reads and writes, and the pages that hold multisets.
//
// A multiset is a chain of pages with (object, count) entries, each object once, in no order. Chains are immutable once
// written: a fork shares the head (one holder more), whoever changes a multiset writes a new chain.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/pages.h"

namespace echoc::population {

struct Entry {
  int64_t count;
  uint32_t object;
  uint32_t unused;
};

constexpr uint32_t kPageEntries = 15;

struct alignas(256) Page {
  uint32_t next;    // page index, 0 at the end
  uint32_t used;    // entries in this page
  int32_t holders;  // of the chain, counted in its head
  uint32_t unused;
  Entry entries[kPageEntries];
};
static_assert(sizeof(Page) == 256);

/// An array in reserved address space: it grows up to `limit` without moving. Reserved by the runtime.
template <class T>
struct Vec {
  T* data;
  uint64_t size;
  uint64_t limit;

  bool push(const T& value) {
    if (size == limit) return false;
    data[size++] = value;
    return true;
  }
};

/// All pages, as memory and as what there is to take. Page 0 is nobody's.
struct Pool {
  Page* pages;
  pages::Pool taken;
  uint64_t families;  // numbers given to tables
};

/// One row a membrane. The environment outside the skin is not a row: it is cell -1 where cells are named.
struct Cells {
  uint32_t count;
  uint32_t limit;
  uint16_t* label;
  int8_t* charge;
  uint8_t* idle;      // no rule applies to the content by itself: nothing to do until something comes in
  int32_t* parent;    // row, -1 for the skin and for cells of a graph
  uint32_t* content;  // head page, 0 when empty
  int64_t* id;        // never used twice in a run
  int32_t* closed;    // steps for which the cell neither fires nor receives
  int32_t* pending;   // rule whose products leave when the cell opens, -1
  uint64_t family;    // tables with the same number have the same parents in the same rows
};

/// `delta` objects for a row (-1: the environment).
struct Mail {
  int32_t cell;
  uint32_t object;
  int64_t delta;
};

/// A rule with the rows that it binds: holder (-1 the environment), inner ones. `most` of any rule of the system.
template <int64_t most>
struct Bound {
  int32_t rule;
  int32_t cells[most];
};

/// A list of words as a list of records.
template <class T>
class Records {
 public:
  explicit Records(Vec<int32_t>& words) : words_(words) {}

  uint64_t size() const { return words_.size / kWords; }
  void resize(uint64_t size) { words_.size = size * kWords; }
  T& operator[](uint64_t i) const { return reinterpret_cast<T*>(words_.data)[i]; }

  bool push(const T& record) {
    if (words_.size + kWords > words_.limit) return false;
    (*this)[size()] = record;
    words_.size += kWords;
    return true;
  }

 private:
  static constexpr uint64_t kWords = sizeof(T) / sizeof(int32_t);
  Vec<int32_t>& words_;
};

/// A rule that may be applied in the membrane at hand, and how often it has been.
struct Local {
  int32_t rule;
  int64_t times;
};

/// A directed edge between rows. As a wish: `to` below -1 asks for the edge to row -2 - to to be cut.
struct Link {
  int32_t from;
  int32_t to;
};

/// What one thread works with. `count` and `fresh` are dense over objects and all zero between membranes.
struct alignas(64) Workspace {
  int64_t* count;
  int64_t* fresh;
  Vec<uint32_t> touched;
  Vec<uint32_t> renewed;
  pages::Cache cache;
  Vec<uint32_t> retired;  // pages of the old configuration that nobody holds once the step is done
  Vec<Mail> mail;
  Vec<Local> local;
  Vec<int32_t> order;
  int32_t* used;              // applications per group in the membrane at hand, all zero between membranes
  Vec<int32_t> candidates;    // bindings of rules that share
  Vec<int32_t> contested;     // bindings of other rules in membranes that those want something of
  Vec<int64_t> applications;  // rule, times, how many cells it bound, their ids (-1 the environment); and so on
  Vec<Link> relinks;
  int64_t applied;
  int64_t possible;  // applications that were left out though they could have been made
  int64_t held;      // pages taken for the run by this thread when the old and the new configuration are both there
  // Of something that all threads have some of, what those with lower numbers have.
  uint64_t before, behind, counted, partial;
  uint64_t settled;  // mail of this thread's membranes; what is behind comes after all other threads'
  uint64_t narrow;   // words of candidates that were found row by row
};

enum Status : int32_t {
  kDone = 0,
  kHalted = 1,
  kOutOfPages = 2,
  kOutOfCells = 3,
  kOverflow = 4,
  kOutOfWorkspace = 5,
  kOutOfLinks = 6,
};

/// What becomes of an old row's content: it is given back when the step is done, it is the new configuration's as well,
/// or its pages are on a list already.
constexpr uint8_t kGivenBack = 0, kCarried = 1, kRetired = 2;

/// A rule that may bind any of very many membranes inside a row: all threads look at these together.
struct Wide {
  int32_t row;
  int32_t ordinal;  // among those of the row
  int32_t rule;
  int32_t children;
  uint64_t before;  // children of those before it
};
constexpr int32_t kWideFrom = 256;
constexpr uint64_t kMostWide = 1 << 16;

/// What all threads of a step share.
struct Shared {
  std::atomic<int32_t> status;
  int32_t failed_cell;  // row of an overflow, -1 the environment
  uint32_t failed_object;
  int64_t next_id;
  int64_t applied;  // and what could have been
  bool has_mail;
  bool stops;       // the step has failed before anything was delivered
  uint64_t listed;  // family of the table that children and child_begin are of
  // sums of all threads
  uint64_t bindings;
  uint64_t mails;
  uint64_t dividing;
  uint64_t dissolving;
  uint64_t total;
  bool refused;         // not all bindings can be applied as often as each of them could by itself
  uint32_t first_part;  // row and id of the first part of all
  int64_t first_id;
  int64_t divided;
  int64_t dissolved;
  Vec<int32_t> candidates;
  Vec<Wide> wide;
  Vec<Mail> mail;            // grouped by row
  Vec<uint32_t> mail_order;  // of grouped mail, which it was of all
  Vec<uint32_t> mail_begin;  // per row + 1, where its mail starts; the environment's comes first
  Vec<int32_t> children;     // rows grouped by parent
  Vec<uint32_t> child_begin;
  Vec<int32_t> structure;  // per row: inner index of the rule that divides or dissolves it, -1
  Vec<uint8_t> dissolves;
  Vec<uint8_t> carried;  // per old row: what becomes of its content, see below
  Vec<uint8_t> contested;
  Vec<int8_t> charge_set;  // kUnset, or the charge that an application has given
  Vec<uint32_t> slots;     // open addressing over (row, object)
  Vec<Mail> resources;     // what is left of them
  Vec<uint32_t> link_begin;
  Vec<int32_t> order;
};

/// One step of one run on one thread. Threads that share a run call the kernel with the same tables.
struct StepCall {
  const Cells* before;
  Cells* after;
  Pool* pool;
  Workspace* workspaces;
  Shared* shared;
  const int64_t* environment_before;  // dense over objects
  int64_t* environment;
  const Vec<Link>* links_before;
  Vec<Link>* links;
  uint64_t seed;
  uint64_t run;
  int64_t step;
  int32_t record;  // whether to list applications
  int32_t tid;
  int32_t nthreads;
  void (*barrier)(void*);
  void* team;
};

/// All threads of a step meet here.
#if defined(ECHOC_DEVICE)
inline void meet(const StepCall& call);
#else
inline void meet(const StepCall& call) { call.barrier(call.team); }
#endif

/// What a kernel and the runtime that calls it must agree on; kVersion counts changes of meaning that keep the sizes.
constexpr int64_t kVersion = 5;
constexpr int64_t kAbi =
    ((((kVersion << 12 | sizeof(StepCall)) << 12 | sizeof(Shared)) << 12 | sizeof(Workspace)) << 12) | sizeof(Cells);

}  // namespace echoc::population
