#include "runtime/native/population.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <stdexcept>

#include "kernels/cpu/population_pages.h"
#include "runtime/native/hands.h"

namespace echoc::population {
namespace {

constexpr uint64_t kBytesPerRow = 160;     // of both tables and of everything else that is counted by rows
constexpr uint32_t kAtHand = 1 << 16;      // pages that a thread keeps, 16 MiB
constexpr int64_t kLeast = 1 << 16;        // bytes for an instance
constexpr int64_t kAddresses = 1ll << 46;  // bytes of address space, half of what processes have
constexpr int64_t kReserved = 1400;        // of them for a row, on each thread

std::shared_ptr<Means> part(int64_t pages, int64_t rows, int64_t parts) {
  auto means = std::make_shared<Means>();
  means->pages.limit = means->pages.left = pages / parts;
  means->rows_left = 2 * (rows / parts);  // two tables
  return means;
}

}  // namespace

Reserved::Reserved(uint64_t bytes) : bytes_(std::max<uint64_t>(bytes, 4096)) {
  base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
}

Reserved::~Reserved() { munmap(base_, bytes_); }

Population::Population(const std::string& library, const std::string& entry, int num_threads, int64_t num_objects,
                       int64_t num_groups, int64_t num_rules, int64_t max_bytes, int64_t num_instances)
    : library_(library),
      kernel_(reinterpret_cast<void (*)(const StepCall*)>(library_.find(entry))),
      team_(num_threads),
      objects_(num_objects),
      num_rules_(num_rules),
      num_shares_(num_instances) {
  library_.check_abi(entry, kAbi);
  if (num_objects < 0 || num_groups < 0 || num_rules < 0) throw std::invalid_argument("sizes must not be negative");
  if (num_instances < 1 || max_bytes / num_instances < kLeast) {
    throw std::invalid_argument("a population needs one instance at least, and 64 KiB for each");
  }
  const uint64_t bytes = static_cast<uint64_t>(max_bytes);
  all_pages_ = static_cast<int64_t>(std::min<uint64_t>(bytes / 4 * 3 / sizeof(Page), UINT32_MAX / 2));
  all_rows_ = static_cast<int64_t>(bytes / 4 / kBytesPerRow);
  const int64_t most_rows = std::min<int64_t>(INT32_MAX - 64, kAddresses / kReserved / num_threads);
  rows_ = static_cast<uint32_t>(std::min(all_rows_ / num_instances, most_rows));
  at_hand_ = static_cast<uint32_t>(std::clamp<int64_t>(all_pages_ / num_threads / 16 * 2, 64, kAtHand));
  // page 0 is nobody's, and what threads have at hand between two runs is on nobody's account
  num_pages_ = static_cast<uint64_t>(all_pages_) + static_cast<uint64_t>(num_threads) * at_hand_ + 1;
  pool_.pages = reserve<Page>(num_pages_);
  pool_.taken.free = reserve<uint32_t>(num_pages_);
  pool_.taken.limit = static_cast<uint32_t>(num_pages_);
  pool_.taken.top = 1;
  for (int t = 0; t < num_threads; ++t) {
    reserve_shared(*shared_.emplace_back(std::make_unique<Shared>()));
    workspaces_.push_back(reserve_workspace(num_groups));
  }
  for (int64_t i = 0; i < num_instances; ++i) instances_.push_back(std::make_unique<Instance>());
}

// ---- memory

template <class T>
T* Population::reserve(uint64_t count) {
  memory_.push_back(std::make_unique<Reserved>(count * sizeof(T)));
  return static_cast<T*>(memory_.back()->base());
}

template <class T>
Vec<T> Population::reserve_vec(uint64_t count) {
  return {reserve<T>(count), 0, count};
}

void Population::reserve_shared(Shared& shared) {
  const uint64_t n = uint64_t{rows_} + 8;
  shared.candidates = reserve_vec<int32_t>(8 * (2 * n + kSpare));
  shared.mail = reserve_vec<Mail>(4 * n + kSpare);
  shared.mail_begin = reserve_vec<uint32_t>(n);
  shared.children = reserve_vec<int32_t>(n);
  shared.child_begin = reserve_vec<uint32_t>(n);
  shared.structure = reserve_vec<int32_t>(n);
  shared.dissolves = reserve_vec<uint8_t>(n);
  shared.carried = reserve_vec<uint8_t>(n);
  shared.contested = reserve_vec<uint8_t>(n);
  shared.charge_set = reserve_vec<int8_t>(n);
  const uint64_t slots = std::bit_ceil(16 * (2 * n + kSpare));
  shared.slots = reserve_vec<uint32_t>(slots);
  shared.resources = reserve_vec<Mail>(slots / 2 + 2);
  shared.link_begin = reserve_vec<uint32_t>(n);
  shared.order = reserve_vec<int32_t>(4 * n + kSpare);
}

Workspace Population::reserve_workspace(int64_t num_groups) {
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
  w.candidates = reserve_vec<int32_t>(8 * (2 * n + kSpare));
  w.contested = reserve_vec<int32_t>(8 * (2 * n + kSpare));
  w.applications = reserve_vec<int64_t>(8 * (4 * n + kSpare));
  w.relinks = reserve_vec<Link>(n);
  return w;
}

/// More rows for a table: twice as many as it has, at least `wanted`. False where there is no room for them.
bool Population::grow(Instance& instance, Table& table, uint64_t wanted) const {
  if (wanted > rows_) return false;
  const uint64_t limit = std::clamp<uint64_t>(std::max<uint64_t>(2 * wanted, 16), wanted, rows_);
  for (const uint64_t tried : {limit, wanted}) {
    const int64_t more = static_cast<int64_t>(tried) - table.cells.limit;
    if (!instance.means->take_rows(more)) continue;
    if (table.grow(static_cast<uint32_t>(tried))) return true;
    instance.means->rows_left += more;
  }
  return false;
}

int64_t Population::bytes(int64_t num_pages, int64_t rows) {
  return num_pages * static_cast<int64_t>(sizeof(Page)) + rows * static_cast<int64_t>(kBytesPerRow);
}

int64_t Population::pages_held() const {
  int64_t held = pages::num_taken(pool_.taken) - 1;
  for (const Workspace& work : workspaces_) held -= work.cache.size;
  return held;
}

int64_t Population::peak_bytes() const {
  int64_t rows = 0;
  for (const auto& instance : instances_) rows += instance->most_rows;
  return bytes(pool_.taken.top, rows);
}

// ---- the four verbs

Status Population::load(const Start& start) {
  check(start);
  const size_t rows = start.labels.size();
  start_.means = part(all_pages_, all_rows_, 1);
  start_.environment.assign(start.environment.begin(), start.environment.end());
  Table& table = start_.now;
  if (!grow(start_, table, rows)) return kOutOfCells;
  std::optional<Hands> hands(std::in_place, *this, start_, 0, 1);
  for (size_t i = 0; i < rows; ++i) {
    Writer writer(pool_, workspaces_[0]);
    for (int64_t e = start.offsets[i]; e < start.offsets[i + 1]; ++e) {
      const auto entry = static_cast<size_t>(e);
      if (!writer.put(start.objects[entry], start.counts[entry])) {
        writer.abandon();
        return kOutOfPages;
      }
    }
    Cells& cells = table.cells;
    cells.label[i] = start.labels[i];
    cells.charge[i] = start.charges[i];
    cells.parent[i] = start.parents[i];
    cells.idle[i] = 0;
    cells.id[i] = static_cast<int64_t>(i);
    cells.closed[i] = 0;
    cells.pending[i] = -1;
    cells.content[i] = writer.finish();
    cells.count = static_cast<uint32_t>(i + 1);
  }
  start_.links.grow(start.links.size() / 2);
  for (size_t i = 0; i + 1 < start.links.size(); i += 2) {
    start_.links.links.push({start.links[i], start.links[i + 1]});
  }
  start_.next_id = static_cast<int64_t>(rows);
  start_.alive = true;
  hands.reset();
  const int64_t pages = all_pages_ - (start_.means->pages.limit - start_.means->pages.left);
  for (auto& instance : instances_) instance->means = part(pages, all_rows_, num_shares_);
  return kDone;
}

void Population::check(const Start& start) const {
  const size_t rows = start.labels.size();
  if (start_.alive) throw std::invalid_argument("the population has a start");
  if (start.charges.size() != rows || start.parents.size() != rows || start.offsets.size() != rows + 1) {
    throw std::invalid_argument("the arrays of a start do not have one entry per membrane");
  }
  if (start.environment.size() != static_cast<size_t>(objects_)) {
    throw std::invalid_argument("the environment has the wrong size");
  }
  for (size_t i = 0; i < rows; ++i) {
    if (start.parents[i] < -1 || start.parents[i] >= static_cast<int64_t>(i) ||
        start.offsets[i] > start.offsets[i + 1]) {
      throw std::invalid_argument("a membrane comes before its parent");
    }
  }
  if (start.offsets[0] != 0 || start.offsets[rows] != static_cast<int64_t>(start.objects.size()) ||
      start.objects.size() != start.counts.size()) {
    throw std::invalid_argument("the contents of a start do not fit its offsets");
  }
  for (size_t i = 0; i < start.objects.size(); ++i) {
    if (start.objects[i] >= objects_ || start.counts[i] < 1) {
      throw std::invalid_argument("an object of a start is unknown");
    }
  }
  for (const int32_t link : start.links) {
    if (link < 0 || static_cast<size_t>(link) >= rows) throw std::invalid_argument("a link leads nowhere");
  }
}

Status Population::create(int64_t index, uint64_t seed, uint64_t number) {
  if (!start_.alive) throw std::invalid_argument("the population has no start");
  if (index < 0 || index >= num_shares_) throw std::invalid_argument("only the first instances begin at the start");
  Instance& instance = *instances_[static_cast<size_t>(index)];
  give_back(instance);
  if (!copy(instance, start_)) return kOutOfCells;
  instance.seed = seed;
  instance.number = number;
  return kDone;
}

int64_t Population::fork(int64_t index) {
  const Instance& parent = find(index);
  auto child = std::make_unique<Instance>();
  child->means = parent.means;
  if (!copy(*child, parent)) return -1;
  child->seed = parent.seed;
  child->number = parent.number;
  if (released_.empty()) {
    instances_.push_back(std::move(child));
    return num_instances() - 1;
  }
  const int64_t handle = released_.back();
  released_.pop_back();
  instances_[static_cast<size_t>(handle)] = std::move(child);
  return handle;
}

bool Population::copy(Instance& to, const Instance& from) {
  const Cells& held = from.now.cells;
  if (!grow(to, to.now, held.count)) return false;
  Cells& cells = to.now.cells;
  std::copy_n(held.label, held.count, cells.label);
  std::copy_n(held.charge, held.count, cells.charge);
  std::copy_n(held.idle, held.count, cells.idle);
  std::copy_n(held.parent, held.count, cells.parent);
  std::copy_n(held.content, held.count, cells.content);
  std::copy_n(held.id, held.count, cells.id);
  std::copy_n(held.closed, held.count, cells.closed);
  std::copy_n(held.pending, held.count, cells.pending);
  cells.count = held.count;
  for (uint32_t row = 0; row < held.count; ++row) share(pool_, held.content[row]);
  to.environment = from.environment;
  to.next_environment.resize(from.environment.size());
  to.links = from.links;
  to.links.grow(from.links.links.limit);
  to.step = from.step;
  to.next_id = from.next_id;
  to.halted = from.halted;
  to.forks = from.forks;
  to.releases = from.releases;
  to.most_rows = held.count;
  to.most_pages = to.means->pages.limit - to.means->pages.left;
  to.alive = true;
  return true;
}

Status Population::append(int64_t index, int64_t id, std::span<const uint32_t> objects,
                          std::span<const int64_t> counts) {
  Instance& instance = own(index);
  if (objects.size() != counts.size()) throw std::invalid_argument("as many counts as objects are wanted");
  for (size_t i = 0; i < objects.size(); ++i) {
    if (objects[i] >= objects_ || counts[i] < 0) throw std::invalid_argument("an object to put is unknown");
  }
  Cells& cells = instance.now.cells;
  const auto row = static_cast<uint32_t>(std::find(cells.id, cells.id + cells.count, id) - cells.id);
  if (id >= 0 && row == cells.count) throw std::invalid_argument("there is no membrane with this id");
  std::map<uint32_t, int64_t> sums;
  if (id >= 0) each_entry(pool_, cells.content[row], [&](uint32_t object, int64_t count) { sums[object] = count; });
  for (size_t i = 0; i < objects.size(); ++i) {
    const int64_t held = id >= 0 ? 0 : instance.environment[objects[i]];
    int64_t& sum = sums.try_emplace(objects[i], held).first->second;
    if (__builtin_add_overflow(sum, counts[i], &sum)) return kOverflow;
  }
  if (id < 0) {
    for (const auto& [object, count] : sums) instance.environment[object] = count;
  } else {
    const Hands hands(*this, instance, 0, 1);
    Writer writer(pool_, workspaces_[0]);
    for (const auto& [object, count] : sums) {
      if (count > 0 && !writer.put(object, count)) {
        writer.abandon();
        return kOutOfPages;
      }
    }
    population::release(pool_, workspaces_[0], cells.content[row]);
    cells.content[row] = writer.finish();
  }
  std::fill_n(cells.idle, cells.count, uint8_t{0});  // a rule of any membrane may look at this one
  instance.halted = false;
  return kDone;
}

std::vector<int64_t> Population::take(int64_t index, std::span<const uint32_t> objects) {
  Instance& instance = own(index);
  std::vector<int64_t> found(objects.size());
  for (size_t i = 0; i < objects.size(); ++i) {
    if (objects[i] >= objects_) throw std::invalid_argument("an object to take is unknown");
    std::swap(found[i], instance.environment[objects[i]]);
  }
  return found;
}

void Population::release(int64_t index) {
  give_back(own(index));
  if (index < num_shares_) return;
  instances_[static_cast<size_t>(index)]->means.reset();
  released_.push_back(index);
}

void Population::give_back(Instance& instance) {
  if (instance.alive) {
    const Hands hands(*this, instance, 0, 1);
    const Cells& cells = instance.now.cells;
    for (uint32_t row = 0; row < cells.count; ++row) population::release(pool_, workspaces_[0], cells.content[row]);
  }
  std::shared_ptr<Means> means = std::move(instance.means);
  means->rows_left += int64_t{instance.now.cells.limit} + instance.next.cells.limit;
  instance = Instance{};
  instance.means = std::move(means);
}

const Instance& Population::find(int64_t index) const {
  const bool known = index >= 0 && index < num_instances();
  if (!known || !instances_[static_cast<size_t>(index)]->alive) {
    throw std::invalid_argument("instance " + std::to_string(index) + " does not exist or was released");
  }
  return *instances_[static_cast<size_t>(index)];
}

}  // namespace echoc::population
