// Populations of membranes: the tables and pages of one run, and the loop over its steps.
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "kernels/cpu/population_pages.h"
#include "runtime/native/bindings.h"
#include "runtime/native/library.h"
#include "runtime/native/team.h"

namespace nb = nanobind;

namespace echoc {
namespace {

using namespace population;
using Kernel = void (*)(const StepCall*);

/// Address space that costs memory only where it has been written.
class Reserved {
 public:
  explicit Reserved(uint64_t bytes) : bytes_(std::max<uint64_t>(bytes, 4096)) {
    base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Reserved() { munmap(base_, bytes_); }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  void* base() const { return base_; }

 private:
  uint64_t bytes_;
  void* base_;
};

constexpr uint64_t kBytesPerRow = 160;    // of both tables and of everything else that is counted by rows
constexpr uint32_t kRowsPerThread = 256;  // fewer are not worth waking another thread for
constexpr uint32_t kAtHand = 1 << 16;     // pages that a thread keeps, 16 MiB
constexpr uint64_t kSpare = 1 << 20;      // entries of mail and candidates that a small table may have

template <class T>
using Array = nb::ndarray<nb::numpy, T, nb::c_contig>;
template <class T>
using Input = nb::ndarray<nb::ro, const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
Array<T> copied(const T* data, size_t count) {
  T* owned = new T[std::max<size_t>(count, 1)];
  std::copy_n(data, count, owned);
  nb::capsule owner(owned, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Array<T>(owned, {count}, owner);
}

class Population {
 public:
  Population(const std::string& library, const std::string& entry, int num_threads, int64_t num_objects,
             int64_t num_groups, int64_t num_rules, int64_t max_bytes)
      : library_(library),
        kernel_(reinterpret_cast<Kernel>(library_.find(entry))),
        team_(num_threads),
        objects_(num_objects),
        num_rules_(num_rules) {
    library_.check_abi(entry, kAbi);
    if (num_objects < 0 || num_groups < 0 || num_threads < 1) throw std::invalid_argument("sizes must not be negative");
    if (max_bytes < (1 << 20)) throw std::invalid_argument("a population needs a megabyte at least");
    const uint64_t bytes = static_cast<uint64_t>(max_bytes);
    account_.limit = static_cast<int64_t>(std::min<uint64_t>(bytes / 4 * 3 / sizeof(Page), UINT32_MAX / 2));
    rows_ = static_cast<uint32_t>(std::min<uint64_t>(bytes / 4 / kBytesPerRow, INT32_MAX - 64));
    at_hand_ = static_cast<uint32_t>(std::clamp<int64_t>(account_.limit / num_threads / 16 * 2, 64, kAtHand));
    // page 0 is nobody's, and what threads have at hand is on nobody's account
    num_pages_ = static_cast<uint64_t>(account_.limit) + static_cast<uint64_t>(num_threads) * at_hand_ + 1;
    pool_.pages = reserve<Page>(num_pages_);
    pool_.taken.free = reserve<uint32_t>(num_pages_);
    pool_.taken.limit = static_cast<uint32_t>(num_pages_);
    for (Cells& cells : tables_) reserve_cells(cells);
    reserve_shared();
    for (int t = 0; t < num_threads; ++t) workspaces_.push_back(reserve_workspace(num_groups));
    for (auto& environment : environments_) environment.resize(static_cast<size_t>(objects_));
  }

  /// The start of a run: one row a membrane, parents first; contents as offsets into objects and counts.
  void load(const Input<uint16_t>& labels, const Input<int8_t>& charges, const Input<int32_t>& parents,
            const Input<int64_t>& offsets, const Input<uint32_t>& objects, const Input<int64_t>& counts,
            const Input<int64_t>& environment, const Input<int32_t>& links) {
    const size_t rows = labels.size();
    if (charges.size() != rows || parents.size() != rows || offsets.size() != rows + 1) {
      throw std::invalid_argument("the arrays of a start do not have one entry per membrane");
    }
    if (environment.size() != static_cast<size_t>(objects_))
      throw std::invalid_argument("the environment has the wrong size");
    if (rows > rows_ || links.size() / 2 > shared_.links.limit)
      throw std::length_error("the start does not fit the memory");
    check_start(rows, parents, offsets, objects, counts, links);
    clear();
    Cells& cells = tables_[0];
    Workspace& work = workspaces_[0];
    const Turn turn(*this, 1);
    for (size_t i = 0; i < rows; ++i) {
      cells.label[i] = labels.data()[i];
      cells.charge[i] = charges.data()[i];
      cells.parent[i] = parents.data()[i];
      cells.idle[i] = 0;
      cells.id[i] = static_cast<int64_t>(i);
      cells.closed[i] = 0;
      cells.pending[i] = -1;
      Writer writer(pool_, work);
      for (int64_t e = offsets.data()[i]; e < offsets.data()[i + 1]; ++e) {
        if (!writer.put(objects.data()[e], counts.data()[e]))
          throw std::length_error("the start does not fit the memory");
      }
      cells.content[i] = writer.finish();
      cells.count = static_cast<uint32_t>(i + 1);
    }
    std::copy_n(environment.data(), objects_, environments_[0].data());
    for (size_t i = 0; i + 1 < links.size(); i += 2) {
      shared_.links_before.push({links.data()[i], links.data()[i + 1]});
    }
    shared_.next_id = static_cast<int64_t>(rows);
  }

  /// Takes at most `steps` steps from step number `first` on. Returns the status of the last one and the steps taken;
  /// a step that fails or finds nothing applicable leaves everything as it was and does not count.
  std::pair<int32_t, int64_t> run(int64_t steps, int64_t first, uint64_t seed, uint64_t index, bool record) {
    nb::gil_scoped_release release;
    for (int64_t done = 0; done < steps; ++done) {
      step(first + done, seed, index, record);
      const int32_t status = shared_.status.load();
      if (status != kDone) return {status, done};
    }
    return {kDone, steps};
  }

  /// Puts objects into the membrane with an id (-1: the environment) between two steps. Returns kDone, or what was in
  /// the way (kOutOfPages, kOverflow): then nothing has changed.
  int32_t put(int64_t id, const std::vector<uint32_t>& objects, const std::vector<int64_t>& counts) {
    if (objects.size() != counts.size()) throw std::invalid_argument("as many counts as objects are wanted");
    for (size_t i = 0; i < objects.size(); ++i) {
      if (objects[i] >= objects_ || counts[i] < 0) throw std::invalid_argument("an object to put is unknown");
    }
    Cells& cells = tables_[0];
    const auto row = static_cast<uint32_t>(std::find(cells.id, cells.id + cells.count, id) - cells.id);
    if (id >= 0 && row == cells.count) throw std::invalid_argument("there is no membrane with this id");
    std::map<uint32_t, int64_t> sums;
    if (id >= 0) each_entry(pool_, cells.content[row], [&](uint32_t object, int64_t count) { sums[object] = count; });
    for (size_t i = 0; i < objects.size(); ++i) {
      const uint32_t object = objects[i];
      const int64_t held = id >= 0 ? 0 : environments_[0][object];
      int64_t& sum = sums.try_emplace(object, held).first->second;
      if (__builtin_add_overflow(sum, counts[i], &sum)) return kOverflow;
    }
    if (id < 0) {
      for (const auto& [object, count] : sums) environments_[0][object] = count;
    } else {
      const Turn turn(*this, 1);
      Writer writer(pool_, workspaces_[0]);
      for (const auto& [object, count] : sums) {
        if (count > 0 && !writer.put(object, count)) {
          writer.abandon();
          return kOutOfPages;
        }
      }
      release(pool_, workspaces_[0], cells.content[row]);
      cells.content[row] = writer.finish();
    }
    std::fill_n(cells.idle, cells.count, uint8_t{0});  // a rule of any membrane may look at this one
    return kDone;
  }

  /// Takes all of some objects out of the environment between two steps; returns how many there were of each.
  std::vector<int64_t> take(const std::vector<uint32_t>& objects) {
    std::vector<int64_t> found(objects.size());
    for (size_t i = 0; i < objects.size(); ++i) {
      if (objects[i] >= objects_) throw std::invalid_argument("an object to take is unknown");
      std::swap(found[i], environments_[0][objects[i]]);
    }
    return found;
  }

  /// (rule, times, ids of the membranes it bound) of the last recorded step, in the order of rules and ids.
  std::vector<std::tuple<int32_t, int64_t, std::vector<int64_t>>> applications() const {
    std::vector<std::tuple<int32_t, int64_t, std::vector<int64_t>>> out;
    for (int t = 0; t < threads_used_; ++t) {
      const Vec<Application>& list = workspaces_[static_cast<size_t>(t)].applications;
      for (uint64_t i = 0; i < list.size; ++i) {
        const Application& a = list.data[i];
        out.emplace_back(a.rule, a.times, std::vector<int64_t>(a.cells, a.cells + a.members));
      }
    }
    std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
      return std::tie(std::get<0>(a), std::get<2>(a)) < std::tie(std::get<0>(b), std::get<2>(b));
    });
    return out;
  }

  nb::dict cells() const {
    const Cells& c = now();
    nb::dict out;
    out["label"] = copied(c.label, c.count);
    out["charge"] = copied(c.charge, c.count);
    out["parent"] = copied(c.parent, c.count);
    out["id"] = copied(c.id, c.count);
    out["closed"] = copied(c.closed, c.count);
    return out;
  }

  /// Offsets per row, objects, counts.
  std::tuple<Array<int64_t>, Array<uint32_t>, Array<int64_t>> contents() const {
    const Cells& c = now();
    std::vector<int64_t> offsets{0};
    std::vector<uint32_t> objects;
    std::vector<int64_t> counts;
    for (uint32_t row = 0; row < c.count; ++row) {
      const size_t begin = objects.size();
      each_entry(pool_, c.content[row], [&](uint32_t object, int64_t) { objects.push_back(object); });
      std::sort(objects.begin() + static_cast<int64_t>(begin), objects.end());
      for (size_t i = begin; i < objects.size(); ++i) counts.push_back(count_of(pool_, c.content[row], objects[i]));
      offsets.push_back(static_cast<int64_t>(objects.size()));
    }
    return {copied(offsets.data(), offsets.size()), copied(objects.data(), objects.size()),
            copied(counts.data(), counts.size())};
  }

  /// Membranes and objects per label: counts [labels], sums [labels, objects] (saturating).
  std::pair<Array<int64_t>, Array<int64_t>> totals(int64_t num_labels) const {
    const Cells& c = now();
    std::vector<int64_t> membranes(static_cast<size_t>(num_labels));
    std::vector<int64_t> sums(static_cast<size_t>(num_labels * objects_));
    for (uint32_t row = 0; row < c.count; ++row) {
      ++membranes[c.label[row]];
      each_entry(pool_, c.content[row], [&](uint32_t object, int64_t count) {
        int64_t& sum = sums[static_cast<size_t>(c.label[row] * objects_ + object)];
        if (__builtin_add_overflow(sum, count, &sum)) sum = INT64_MAX;
      });
    }
    return {copied(membranes.data(), membranes.size()), copied(sums.data(), sums.size())};
  }

  Array<int64_t> environment() const { return copied(environments_[0].data(), environments_[0].size()); }

  Array<int32_t> links() const {
    static_assert(sizeof(Link) == 2 * sizeof(int32_t));
    const auto& list = shared_.links_before;
    return copied(reinterpret_cast<const int32_t*>(list.data), static_cast<size_t>(list.size) * 2);
  }

  /// Row (-1 the environment), its id and the object that a failed step overflowed.
  std::tuple<int32_t, int64_t, uint32_t> failure() const {
    const int32_t row = shared_.failed_cell;
    const bool known = row >= 0 && static_cast<uint32_t>(row) < now().count;
    return {row, known ? now().id[row] : -1, shared_.failed_object};
  }

  int64_t num_membranes() const { return now().count; }
  int64_t pages_in_use() const { return account_.limit - account_.left; }
  int64_t peak_bytes() const {
    return static_cast<int64_t>(uint64_t{pool_.taken.top} * sizeof(Page) + uint64_t{most_rows_} * kBytesPerRow);
  }
  int64_t max_membranes() const { return rows_; }
  int64_t max_pages() const { return account_.limit; }
  std::pair<int64_t, int64_t> forks_and_releases() const { return {forks_, releases_}; }

 private:
  template <class T>
  T* reserve(uint64_t count) {
    memory_.push_back(std::make_unique<Reserved>(count * sizeof(T)));
    return static_cast<T*>(memory_.back()->base());
  }

  template <class T>
  Vec<T> reserve_vec(uint64_t count) {
    return {reserve<T>(count), 0, count};
  }

  void reserve_cells(Cells& c) {
    const uint64_t n = rows_;
    c = {0,
         rows_,
         reserve<uint16_t>(n),
         reserve<int8_t>(n),
         reserve<uint8_t>(n),
         reserve<int32_t>(n),
         reserve<uint32_t>(n),
         reserve<int64_t>(n),
         reserve<int32_t>(n),
         reserve<int32_t>(n)};
  }

  void reserve_shared() {
    const uint64_t n = uint64_t{rows_} + 8;
    shared_.candidates = reserve_vec<Candidate>(2 * n + kSpare);
    shared_.mail = reserve_vec<Mail>(4 * n + kSpare);
    shared_.mail_begin = reserve_vec<uint32_t>(n);
    shared_.children = reserve_vec<int32_t>(n);
    shared_.child_begin = reserve_vec<uint32_t>(n);
    shared_.structure = reserve_vec<int32_t>(n);
    shared_.dissolves = reserve_vec<uint8_t>(n);
    shared_.carried = reserve_vec<uint8_t>(n);
    shared_.contested = reserve_vec<uint8_t>(n);
    shared_.charge_set = reserve_vec<int8_t>(n);
    const uint64_t slots = std::bit_ceil(16 * (2 * n + kSpare));
    shared_.slots = reserve_vec<uint32_t>(slots);
    shared_.resources = reserve_vec<Mail>(slots / 2 + 2);
    const uint64_t links = 4 * n + kSpare;
    shared_.links_before = reserve_vec<Link>(links);
    shared_.links = reserve_vec<Link>(links);
    shared_.link_begin = reserve_vec<uint32_t>(n);
    shared_.order = reserve_vec<int32_t>(links);
  }

  Workspace reserve_workspace(int64_t num_groups) {
    const uint64_t n = uint64_t{rows_} + 8, objects = static_cast<uint64_t>(objects_) + 1;
    Workspace w{};
    w.count = reserve<int64_t>(objects);
    w.fresh = reserve<int64_t>(objects);
    w.touched = reserve_vec<uint32_t>(objects);
    w.renewed = reserve_vec<uint32_t>(2 * objects);
    w.cache.pages = reserve<uint32_t>(at_hand_);
    w.cache.limit = at_hand_;
    w.retired = reserve_vec<uint32_t>(num_pages_);
    w.mail = reserve_vec<Mail>(4 * n + kSpare);
    w.local = reserve_vec<Local>(static_cast<uint64_t>(num_rules_) + 1);
    w.order = reserve_vec<int32_t>(2 * std::max<uint64_t>(n, static_cast<uint64_t>(num_rules_) + 1));
    w.used = reserve<int32_t>(static_cast<uint64_t>(num_groups) + 1);
    w.candidates = reserve_vec<Candidate>(2 * n + kSpare);
    w.contested = reserve_vec<Candidate>(2 * n + kSpare);
    w.applications = reserve_vec<population::Application>(4 * n + kSpare);
    w.relinks = reserve_vec<Link>(n);
    return w;
  }

  void check_start(size_t rows, const Input<int32_t>& parents, const Input<int64_t>& offsets,
                   const Input<uint32_t>& objects, const Input<int64_t>& counts, const Input<int32_t>& links) const {
    for (size_t i = 0; i < rows; ++i) {
      const int32_t parent = parents.data()[i];
      const bool fits = parent >= -1 && parent < static_cast<int32_t>(i);
      if (!fits || offsets.data()[i] > offsets.data()[i + 1])
        throw std::invalid_argument("a membrane comes before its parent");
    }
    const int64_t last = rows > 0 ? offsets.data()[rows] : 0;
    if ((rows > 0 && offsets.data()[0] != 0) || last != static_cast<int64_t>(objects.size()) ||
        objects.size() != counts.size()) {
      throw std::invalid_argument("the contents of a start do not fit its offsets");
    }
    for (size_t i = 0; i < objects.size(); ++i) {
      if (objects.data()[i] >= objects_ || counts.data()[i] < 1)
        throw std::invalid_argument("an object of a start is unknown");
    }
    for (size_t i = 0; i < links.size(); ++i) {
      if (links.data()[i] < 0 || static_cast<size_t>(links.data()[i]) >= rows)
        throw std::invalid_argument("a link leads nowhere");
    }
  }

  const Cells& now() const { return tables_[0]; }

  void clear() {
    pool_.taken.top = 1;
    pool_.taken.num_free = 0;
    account_.left = account_.limit;
    for (Workspace& work : workspaces_) work.cache.size = 0;
    for (Cells& cells : tables_) cells.count = 0;
    shared_.links_before.size = shared_.links.size = 0;
    forks_ = releases_ = 0;
    most_rows_ = 0;
  }

  /// Threads that take and give pages.
  class Turn {
   public:
    Turn(Population& population, int threads) : population_(population), threads_(threads) {
      for (int t = 0; t < threads_; ++t) pages::open(population_.pool_.taken, cache(t), population_.account_);
    }
    ~Turn() {
      for (int t = 0; t < threads_; ++t) pages::close(cache(t));
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    pages::Cache& cache(int t) { return population_.workspaces_[static_cast<size_t>(t)].cache; }
    Population& population_;
    int threads_;
  };

  struct Context {
    Population* population;
    StepCall call;
  };

  static void region(void* context, int tid) {
    auto& c = *static_cast<Context*>(context);
    StepCall call = c.call;
    call.tid = tid;
    c.population->kernel_(&call);
  }

  static void meet(void* team) { static_cast<Team*>(team)->barrier(); }
  static void alone(void*) {}

  void step(int64_t number, uint64_t seed, uint64_t index, bool record) {
    shared_.status.store(kDone);
    shared_.has_mail = false;
    const int threads = tables_[0].count >= kRowsPerThread ? team_.size() : 1;
    threads_used_ = threads;
    Context context{
        this,
        {&tables_[0], &tables_[1], &pool_, workspaces_.data(), &shared_, environments_[0].data(),
         environments_[1].data(), seed, index, number, record, 0, threads, threads > 1 ? meet : alone, &team_}};
    {
      const Turn turn(*this, threads);
      if (threads > 1) {
        team_.run(region, &context);
      } else {
        region(&context, 0);
      }
    }
    if (shared_.status.load() != kDone) return;
    shared_.applied = 0;
    for (int t = 0; t < threads; ++t) {
      const Workspace& work = workspaces_[static_cast<size_t>(t)];
      shared_.applied += work.applied + work.possible;
    }
    const bool waiting =
        std::any_of(tables_[0].closed, tables_[0].closed + tables_[0].count, [](int32_t c) { return c > 0; });
    std::swap(tables_[0], tables_[1]);
    std::swap(environments_[0], environments_[1]);
    if (kernel_changes_links()) std::swap(shared_.links_before, shared_.links);
    forks_ += shared_.divided;
    releases_ += shared_.dissolved;
    most_rows_ = std::max(most_rows_, std::max(tables_[0].count, tables_[1].count));
    if (shared_.applied == 0 && !waiting) shared_.status.store(kHalted);  // both tables say the same
  }

  // Only a step of a system with links writes the second list.
  bool kernel_changes_links() const { return shared_.links_before.size > 0 || shared_.links.size > 0; }

  Library library_;
  Kernel kernel_;
  Team team_;
  int64_t objects_;
  int64_t num_rules_;
  uint32_t rows_ = 0;
  std::vector<std::unique_ptr<Reserved>> memory_;
  uint64_t num_pages_ = 0;
  uint32_t at_hand_ = 0;
  Pool pool_{};
  pages::Account account_{};
  Cells tables_[2]{};
  Shared shared_{};
  std::vector<Workspace> workspaces_;
  std::vector<int64_t> environments_[2];
  int threads_used_ = 1;
  int64_t forks_ = 0, releases_ = 0;
  uint32_t most_rows_ = 0;
};

}  // namespace

void bind_population(nb::module_& m) {
  nb::class_<Population>(m, "Population", "The membranes of one run, in pages, and the kernel that steps them.")
      .def(nb::init<const std::string&, const std::string&, int, int64_t, int64_t, int64_t, int64_t>(),
           nb::arg("library"), nb::arg("entry"), nb::arg("num_threads"), nb::arg("num_objects"), nb::arg("num_groups"),
           nb::arg("num_rules"), nb::arg("max_bytes"))
      .def("load", &Population::load, nb::arg("labels"), nb::arg("charges"), nb::arg("parents"), nb::arg("offsets"),
           nb::arg("objects"), nb::arg("counts"), nb::arg("environment"), nb::arg("links"))
      .def("run", &Population::run, nb::arg("steps"), nb::arg("first"), nb::arg("seed"), nb::arg("index"),
           nb::arg("record") = false)
      .def("put", &Population::put, nb::arg("id"), nb::arg("objects"), nb::arg("counts"))
      .def("take", &Population::take, nb::arg("objects"))
      .def("applications", &Population::applications)
      .def("cells", &Population::cells)
      .def("contents", &Population::contents)
      .def("totals", &Population::totals, nb::arg("num_labels"))
      .def("environment", &Population::environment)
      .def("links", &Population::links)
      .def("failure", &Population::failure)
      .def("forks_and_releases", &Population::forks_and_releases)
      .def_prop_ro("num_membranes", &Population::num_membranes)
      .def_prop_ro("pages_in_use", &Population::pages_in_use)
      .def_prop_ro("peak_bytes", &Population::peak_bytes)
      .def_prop_ro("max_membranes", &Population::max_membranes)
      .def_prop_ro("max_pages", &Population::max_pages);
}

}  // namespace echoc
