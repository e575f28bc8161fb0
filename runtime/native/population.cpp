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

constexpr uint64_t kBytesPerRow = 160;      // of both tables and of everything else that is counted by rows
constexpr uint32_t kAtHand = 1 << 16;       // pages that a thread keeps, 16 MiB
constexpr int64_t kLeast = 1 << 16;         // bytes for an instance
constexpr int64_t kAddresses = 1ll << 46;   // bytes of address space, half of what processes have
constexpr uint64_t kMapped = 1 << 17;       // bytes from which on memory comes from the system and not from the heap
constexpr int64_t kRowsOnDevice = 1 << 25;  // tables are reserved for so many at most
constexpr int64_t kReserved = 1400;         // of them for a row, on each thread

std::shared_ptr<Means> part(int64_t pages, int64_t rows, int64_t parts) {
  auto means = std::make_shared<Means>();
  means->pages.limit = means->pages.left = pages / parts;
  means->rows_left = 2 * (rows / parts);  // two tables
  return means;
}

}  // namespace

void* ProcessMemory::take(uint64_t bytes, bool) {
  if (bytes < kMapped) {
    void* memory = std::calloc(std::max<uint64_t>(bytes, 1), 1);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

void ProcessMemory::give(void* memory, uint64_t bytes) noexcept {
  if (bytes < kMapped) {
    std::free(memory);
  } else {
    munmap(memory, bytes);
  }
}

Population::Population(const std::string& library, const std::string& entry, int num_threads, const Sizes& sizes)
    : library_(std::in_place, library),
      kernel_(reinterpret_cast<void (*)(const StepCall*)>(library_->find(entry))),
      team_(num_threads),
      own_memory_(std::make_unique<ProcessMemory>()),
      memory_(own_memory_.get()),
      start_(*memory_) {
  library_->check_abi(entry, kAbi);
  set_up(num_threads, sizes);
}

Population::Population(std::unique_ptr<DeviceKernel> device, const Sizes& sizes)
    : device_(std::move(device)), team_(1), memory_(&device_->memory()), start_(*memory_) {
  set_up(device_->num_threads(), sizes);
}

void Population::set_up(int num_threads, const Sizes& sizes) {
  objects_ = sizes.objects;
  num_rules_ = sizes.rules;
  num_shares_ = sizes.instances;
  if (sizes.objects < 0 || sizes.groups < 0 || sizes.rules < 0) {
    throw std::invalid_argument("sizes must not be negative");
  }
  if (sizes.instances < 1 || sizes.max_bytes / sizes.instances < kLeast) {
    throw std::invalid_argument("a population needs one instance at least, and 64 KiB for each");
  }
  const uint64_t bytes = static_cast<uint64_t>(sizes.max_bytes);
  all_pages_ = static_cast<int64_t>(std::min<uint64_t>(bytes / 4 * 3 / sizeof(Page), UINT32_MAX / 2));
  all_rows_ = static_cast<int64_t>(bytes / 4 / kBytesPerRow);
  const int64_t most_rows = std::min<int64_t>(INT32_MAX - 64, kAddresses / kReserved / num_threads);
  rows_ = static_cast<uint32_t>(std::min(all_rows_ / num_shares_, device_ ? kRowsOnDevice : most_rows));
  const auto at_hand = static_cast<uint32_t>(std::clamp<int64_t>(all_pages_ / num_threads / 16 * 2, 64, kAtHand));
  // page 0 is nobody's, and what threads have at hand between two runs is on nobody's account
  num_pages_ = static_cast<uint64_t>(all_pages_) + static_cast<uint64_t>(num_threads + 1) * at_hand + 1;
  pool_.pages = reserve<Page>(num_pages_);
  pool_.taken.free = reserve<uint32_t>(num_pages_);
  pool_.taken.limit = static_cast<uint32_t>(num_pages_);
  pool_.taken.top = 1;
  pool_.families = 1;
  const auto threads = static_cast<uint64_t>(num_threads);
  const uint64_t n = uint64_t{rows_} + 8;
  const Room room{n, kSpare, num_pages_, at_hand};
  workspaces_.resize(device_ ? 1 : threads);
  reserve_workspaces(workspaces_.data(), workspaces_.size(), room, sizes.groups);
  for (size_t i = 0; i < workspaces_.size(); ++i) reserve_shared(*shared_.emplace_back(std::make_unique<Shared>()));
  if (device_) {
    on_device_ = {reserve<Workspace>(threads, true), threads};
    const Room part{4 * n / threads + 64, 256, 8 * num_pages_ / threads + 64, at_hand};
    reserve_workspaces(on_device_.data(), 1, room, sizes.groups);  // of the thread that some phases are left to
    if (threads > 1) reserve_workspaces(on_device_.data() + 1, threads - 1, part, sizes.groups);
  }
  for (int64_t i = 0; i < num_shares_; ++i) instances_.push_back(std::make_unique<Instance>(*memory_));
}

// ---- memory

template <class T>
T* Population::reserve(uint64_t count, bool zeros) {
  return static_cast<T*>(pieces_.emplace_back(*memory_, std::max<uint64_t>(count, 1) * sizeof(T), zeros).data());
}

template <class T>
Vec<T> Population::reserve_vec(uint64_t count) {
  return {reserve<T>(count), 0, count};
}

void Population::reserve_shared(Shared& shared) {
  const uint64_t n = uint64_t{rows_} + 8;
  shared.candidates = reserve_vec<int32_t>(8 * (2 * n + kSpare));
  shared.wide = reserve_vec<Wide>(kMostWide);
  shared.mail = reserve_vec<Mail>(4 * n + kSpare);
  shared.mail_order = reserve_vec<uint32_t>(4 * n + kSpare);
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

/// Arrays of one kind lie one behind another, those of a thread at a multiple of a cache line.
void Population::reserve_workspaces(Workspace* out, uint64_t count, const Room& room, int64_t num_groups) {
  const auto array = [&]<class T>(T* Workspace::* member, uint64_t size, bool zeros) {
    const uint64_t stride = (size * sizeof(T) + 63) / 64 * 64 / sizeof(T);
    T* all = reserve<T>(count * stride, zeros);
    for (uint64_t i = 0; i < count; ++i) out[i].*member = all + i * stride;
  };
  const auto list = [&]<class T>(Vec<T> Workspace::* member, uint64_t size) {
    const uint64_t stride = (size * sizeof(T) + 63) / 64 * 64 / sizeof(T);
    T* all = reserve<T>(count * stride);
    for (uint64_t i = 0; i < count; ++i) out[i].*member = {all + i * stride, 0, size};
  };
  const uint64_t n = room.rows, objects = static_cast<uint64_t>(objects_) + 1;
  const uint64_t rules = static_cast<uint64_t>(num_rules_) + 1;
  uint32_t* pages = reserve<uint32_t>(count * room.at_hand);
  for (uint64_t i = 0; i < count; ++i) {
    out[i].cache.pages = pages + i * room.at_hand;
    out[i].cache.limit = room.at_hand;
  }
  array(&Workspace::count, objects, true);
  array(&Workspace::fresh, objects, true);
  array(&Workspace::used, static_cast<uint64_t>(num_groups) + 1, true);
  list(&Workspace::touched, objects);
  list(&Workspace::renewed, 2 * objects);
  list(&Workspace::retired, room.pages);
  list(&Workspace::mail, 4 * n + room.spare);
  list(&Workspace::local, rules);
  list(&Workspace::order, 2 * std::max<uint64_t>(n, rules));
  list(&Workspace::candidates, 8 * (2 * n + room.spare));
  list(&Workspace::contested, 8 * (2 * n + room.spare));
  list(&Workspace::applications, 8 * (4 * n + room.spare));
  list(&Workspace::relinks, n);
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
  for (const Workspace& work : on_device_) held -= work.cache.size;
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
  start_.environment.assign(start.environment);
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
  table.cells.family = 1;
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
  auto child = std::make_unique<Instance>(*memory_);
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
  cells.family = held.family;
  for (uint32_t row = 0; row < held.count; ++row) share(pool_, held.content[row]);
  to.environment.assign(from.environment.values());
  to.next_environment.assign(from.environment.values());
  to.links.assign(from.links);
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
  instance = Instance(*memory_);
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
