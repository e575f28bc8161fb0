// Loading, memory and faults; gpu_steps.cpp has the steps.
#include "runtime/native/gpu_executor.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime/native/turn.h"

namespace echoc::gpu {
namespace {

constexpr int64_t kStaging = 1 << 21, kStagingUnit = 1 << 16;
constexpr int64_t kMostShared = 48 << 10;  // of dynamic shared memory without asking for more

size_t check(const std::string& kind, int64_t value, size_t count) {
  if (value < 0 || static_cast<size_t>(value) >= count) {
    throw std::out_of_range("a launch refers to " + kind + " " + std::to_string(value) + " of " +
                            std::to_string(count));
  }
  return static_cast<size_t>(value);
}

}  // namespace

GpuExecutor::GpuExecutor(std::shared_ptr<const Driver> driver, int index, bool synchronous)
    : context_(std::move(driver), index), synchronous_(synchronous), stream_(make_stream(context_)) {}

GpuExecutor::~GpuExecutor() {
  try {
    context_.enter();
    context_.api.stream_synchronize(stream_.get());
  } catch (const std::exception&) {  // a lost device gives nothing back
  }
}

void GpuExecutor::bind(int64_t arena_bytes, const std::vector<int64_t>& weights,
                       const std::vector<std::pair<int64_t, int64_t>>& states, const std::vector<bool>& ports_out) {
  if (!variants_.empty()) throw std::logic_error("memory must be bound before variants are added");
  context_.enter();
  int64_t total = 0;
  for (const int64_t bytes : weights) {
    weights_.emplace_back(total, bytes);
    total += aligned(bytes);
  }
  weight_memory_ = DeviceMemory(context_, total, "the weights");
  arena_ = zeroed(arena_bytes, "intermediate values");
  for (const auto& [bytes, pages] : states) {
    int64_t size = 0;
    if (bytes < 0 || pages < 0 || __builtin_mul_overflow(bytes, std::max<int64_t>(pages, 1), &size)) {
      throw Failure("a state of " + std::to_string(pages) + " pages of " + std::to_string(bytes) +
                    " bytes; ask for fewer pages");
    }
    states_.push_back({zeroed(size, "state"), bytes, pages});
  }
  ports_out_ = ports_out;
  synchronize();
}

int GpuExecutor::add_module(std::span<const std::byte> image, const std::string& name) {
  context_.enter();
  modules_.push_back(load_module(context_, image, name));
  return static_cast<int>(modules_.size()) - 1;
}

int GpuExecutor::add_kernel(int module, const std::string& name, const std::string& entry, int threads,
                            int shared_bytes, int extra_pointers, bool together) {
  context_.enter();
  auto kernel = std::make_unique<Kernel>();
  *kernel = {name,           nullptr, static_cast<unsigned>(threads), static_cast<unsigned>(shared_bytes),
             extra_pointers, together};
  const Handle loaded = modules_.at(static_cast<size_t>(module)).get();
  const int status = context_.api.module_function(&kernel->function, loaded, entry.c_str());
  if (status != 0) context_.driver->fail(status, "entry " + entry + " of kernel " + name);
  if (shared_bytes > context_.info.shared_memory) {
    throw Failure("kernel " + name + " wants " + std::to_string(shared_bytes) + " bytes of shared memory, a block on " +
                  context_.info.name + " has " + std::to_string(context_.info.shared_memory) +
                  ": compile the model for this device");
  }
  if (shared_bytes > kMostShared && context_.api.function_set) {
    constexpr int kMaxDynamicShared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    context_.driver->call(context_.api.function_set, kernel->function, kMaxDynamicShared, shared_bytes);
  }
  kernels_.push_back(std::move(kernel));
  return static_cast<int>(kernels_.size()) - 1;
}

int GpuExecutor::add_variant(const std::vector<LaunchSpec>& launches, int num_symbols, int token_symbol) {
  if (token_symbol >= num_symbols) throw std::out_of_range("no such symbol");
  auto variant = std::make_unique<Variant>();
  variant->token_symbol = token_symbol;
  variant->dims.resize(static_cast<size_t>(num_symbols));
  std::vector<std::pair<char, size_t>> plan;  // what each parameter points to: argument, symbol, map, number or null
  for (const auto& [kernel, arguments, symbols, grid, dependent, matrices] : launches) {
    const Kernel& used = *kernels_[check("kernel", kernel, kernels_.size())];
    Launch launch{&used, static_cast<uint32_t>(plan.size()), {}, dependent};
    const size_t first = variant->arguments.size();
    for (const auto& [kind, value] : arguments) {
      const size_t at = variant->arguments.size();
      const auto matrix = std::find_if(matrices.begin(), matrices.end(),
                                       [place = at - first](const auto& m) { return std::get<0>(m) == place; });
      if (matrix != matrices.end()) {
        const Matrix found = std::make_from_tuple<Matrix>(*matrix);
        plan.emplace_back('m', variant->maps.size());
        variant->maps.push_back(map_of(found, kind, value, used));
        for (const int64_t number : {found.rows, found.columns, found.columns, int64_t{1}}) {
          plan.emplace_back('i', variant->numbers.size());
          variant->numbers.push_back(number);
        }
        variant->arguments.push_back(0);
        continue;
      }
      if (kind == "port") variant->port_uses.emplace_back(at, check(kind, value, ports_out_.size()));
      plan.emplace_back('a', at);
      variant->arguments.push_back(resolve(kind, value));
    }
    for (const uint32_t symbol : symbols) plan.emplace_back('s', check("symbol", symbol, variant->dims.size()));
    for (int i = 0; i < used.extra_pointers; ++i) plan.emplace_back('n', 0);
    if (grid.empty() || grid.size() > 3) throw std::invalid_argument("a grid has one to three axes");
    for (const auto& [terms, tile] : grid) {
      if (tile < 1) throw std::invalid_argument("a tile of a grid is below 1");
      for (const auto& term : terms) {
        for (const uint32_t symbol : term.second) check("symbol", symbol, variant->dims.size());
      }
      launch.axes.push_back({terms, tile});
    }
    if (used.together) {
      const std::vector<int64_t> none(variant->dims.size());
      const unsigned blocks = evaluate(launch, none)[0], most = resident_blocks(context_, used);
      if (blocks > most) {
        throw Failure("the " + std::to_string(blocks) + " blocks of kernel " + used.name +
                      " wait for each other, and " + context_.info.name + " holds " + std::to_string(most) +
                      " at once: use a device with more multiprocessors, or compile for a CPU");
      }
      variant->together = true;
    }
    variant->launches.push_back(std::move(launch));
  }
  for (const auto& [kind, at] : plan) {
    variant->parameters.push_back(kind == 'a'   ? static_cast<void*>(&variant->arguments[at])
                                  : kind == 's' ? static_cast<void*>(&variant->dims[at])
                                  : kind == 'm' ? static_cast<void*>(&variant->maps[at])
                                  : kind == 'i' ? static_cast<void*>(&variant->numbers[at])
                                                : static_cast<void*>(&null_));
  }
  variant->counters.launch_ns.resize(variant->launches.size());
  variants_.push_back(std::move(variant));
  return static_cast<int>(variants_.size()) - 1;
}

void GpuExecutor::upload_weight(int weight, std::span<const std::byte> data) {
  const auto [offset, bytes] = weights_.at(static_cast<size_t>(weight));
  if (static_cast<int64_t>(data.size()) > bytes) throw std::invalid_argument("more bytes than the weight has");
  const Turn turn(busy_);
  enter();
  const Address to = weight_memory_.address() + static_cast<Address>(offset);
  if (static_cast<int64_t>(data.size()) <= kStaging) {
    if (data.empty()) return;
    const HostMemory& memory = staging(static_cast<int64_t>(data.size()));
    std::memcpy(memory.data(), data.data(), data.size());
    guarded([] { return "upload of a weight"; },
            [&] {
              const void* from = memory.data();
              context_.driver->call(context_.api.copy_in, to, from, data.size(), stream_.get());
              synchronize();
            });
    return;
  }
  if (!chunks_.data()) chunks_ = HostMemory(context_, kUploadBytes);
  guarded([] { return "upload of a weight"; }, [&] { upload(context_, stream_.get(), chunks_, to, data); });
}

void GpuExecutor::launch(int kernel, std::vector<int64_t> arguments, const std::vector<unsigned>& grid) {
  const Kernel& used = *kernels_.at(static_cast<size_t>(kernel));
  if (grid.size() != 3) throw std::invalid_argument("a grid of blocks has three axes");
  const Turn turn(busy_);
  enter();
  std::vector<void*> parameters;
  for (int64_t& value : arguments) parameters.push_back(&value);
  for (int i = 0; i < used.extra_pointers; ++i) parameters.push_back(&null_);
  guarded([&] { return "kernel " + used.name; },
          [&] {
            start(context_, stream_.get(), used, {grid[0], grid[1], grid[2]}, parameters.data(), false);
            if (synchronous_) synchronize();
          });
}

void GpuExecutor::write_state(int index, std::span<const std::byte> data) {
  const State& state = states_.at(static_cast<size_t>(index));
  const auto bytes = static_cast<int64_t>(data.size());
  if (bytes > state.memory.bytes()) throw std::invalid_argument("more bytes than the state has");
  if (bytes == 0) return;
  const Turn turn(busy_);
  enter();
  const HostMemory memory(context_, bytes);
  std::memcpy(memory.data(), data.data(), data.size());
  guarded([] { return "setting a state"; },
          [&] {
            const void* from = memory.data();
            context_.driver->call(context_.api.copy_in, state.memory.address(), from, data.size(), stream_.get());
            synchronize();
          });
}

std::string GpuExecutor::read(const std::string& kind, int64_t index, int64_t offset, int64_t bytes) {
  std::string out(static_cast<size_t>(std::max<int64_t>(bytes, 0)), '\0');
  if (bytes < 0) throw std::out_of_range("bytes outside of " + kind + " " + std::to_string(index));
  read_into(kind, index, offset, {reinterpret_cast<std::byte*>(out.data()), out.size()});
  return out;
}

void GpuExecutor::read_into(const std::string& kind, int64_t index, int64_t offset, std::span<std::byte> out) {
  const Turn turn(busy_);
  enter();
  const auto bytes = static_cast<int64_t>(out.size());
  int64_t size = 0;
  if (kind == "arena") size = arena_.bytes() - index;
  if (kind == "weight") size = weights_.at(static_cast<size_t>(index)).second;
  if (kind == "state") size = states_.at(static_cast<size_t>(index)).memory.bytes();
  if (offset < 0 || offset > size || bytes > size - offset) {
    throw std::out_of_range("bytes outside of " + kind + " " + std::to_string(index));
  }
  if (bytes == 0) return;
  const Address from = resolve(kind, index) + static_cast<Address>(offset);
  const HostMemory& memory = staging(bytes);
  guarded([] { return "reading memory"; },
          [&] {
            for (int64_t at = 0; at < bytes; at += memory.bytes()) {
              void* to = memory.data();
              const auto part = static_cast<size_t>(std::min(memory.bytes(), bytes - at));
              context_.driver->call(context_.api.copy_out, to, from + static_cast<Address>(at), part, stream_.get());
              synchronize();
              std::memcpy(out.data() + at, to, part);
            }
          });
}

std::vector<double> GpuExecutor::time_copies(int64_t bytes, int count) {
  const Turn turn(busy_);
  enter();
  const DeviceMemory from(context_, bytes, "a copy"), to(context_, bytes, "a copy");
  const std::vector<Event> marks = events(static_cast<size_t>(count) + 1);
  guarded([] { return "copying memory"; },
          [&] {
            fill_zero(from);
            record(marks[0]);
            for (size_t i = 1; i < marks.size(); ++i) {
              context_.driver->call(context_.api.copy, to.address(), from.address(), static_cast<size_t>(bytes),
                                    stream_.get());
              record(marks[i]);
            }
            synchronize();
          });
  return between(marks);
}

void GpuExecutor::wait() {
  const Turn turn(busy_);
  enter();
  guarded([] { return "launches by themselves"; }, [&] { synchronize(); });
}

std::vector<Counters> GpuExecutor::counters() const {
  std::vector<Counters> out;
  for (const auto& variant : variants_) out.push_back(variant->counters);
  return out;
}

std::pair<int64_t, int64_t> GpuExecutor::memory() const {
  context_.enter();
  return context_.memory();
}

/// Enters the context, unless an earlier fault took it away.
void GpuExecutor::enter() const {
  if (!lost_.empty()) throw Failure(lost_);
  context_.enter();
}

/// Runs `work`; where it fails for good, remembers that the device is lost and what was in flight.
void GpuExecutor::guarded(const Describe& in_flight, const std::function<void()>& work) {
  try {
    work();
  } catch (const Failure& failure) {
    if (!failure.sticky()) {
      context_.api.stream_synchronize(stream_.get());  // what was begun must not meet the next step
      throw;
    }
    lost_ = std::string("the device is lost to this process: ") + failure.what() + ", in flight: " + in_flight() +
            "; start the process anew, the artifact is not damaged";
    if (!synchronous_) {
      lost_ += " (with ECHOC_GPU_SYNCHRONOUS=1 every launch is waited for, which names the one that fails)";
    }
    throw Failure(lost_, failure.status);
  }
}

void GpuExecutor::synchronize() const { context_.driver->call(context_.api.stream_synchronize, stream_.get()); }

void GpuExecutor::record(const Event& event) const {
  context_.driver->call(context_.api.event_record, event.get(), stream_.get());
}

double GpuExecutor::elapsed(const Event& from, const Event& to) const {
  float milliseconds = 0;
  context_.driver->call(context_.api.event_elapsed, &milliseconds, from.get(), to.get());
  return milliseconds * 1e-3;
}

std::vector<Event> GpuExecutor::events(size_t count) const {
  std::vector<Event> out;
  for (size_t i = 0; i < count; ++i) out.push_back(make_event(context_));
  return out;
}

std::vector<double> GpuExecutor::between(const std::vector<Event>& marks) const {
  std::vector<double> seconds;
  for (size_t i = 1; i < marks.size(); ++i) seconds.push_back(elapsed(marks[i - 1], marks[i]));
  return seconds;
}

/// Page-locked memory for a transfer of so many bytes, or for parts of it.
const HostMemory& GpuExecutor::staging(int64_t bytes) {
  const int64_t wanted = std::min((bytes + kStagingUnit - 1) / kStagingUnit * kStagingUnit, kStaging);
  if (staging_.bytes() < wanted) staging_ = HostMemory(context_, wanted);
  return staging_;
}

DeviceMemory GpuExecutor::zeroed(int64_t bytes, const std::string& what) {
  DeviceMemory memory(context_, bytes, what);
  fill_zero(memory);
  return memory;
}

void GpuExecutor::fill_zero(const DeviceMemory& memory) {
  if (memory.bytes() <= 0) return;
  context_.driver->call(context_.api.fill, memory.address(), static_cast<unsigned char>(0),
                        static_cast<size_t>(memory.bytes()), stream_.get());
}

/// The tensor map of a launch argument. Only memory that stays where it is has one: ports do not.
TensorMap GpuExecutor::map_of(const Matrix& matrix, const std::string& kind, int64_t value,
                              const Kernel& kernel) const {
  const Address address = resolve(kind, value);
  if (kind == "arena") return encode(context_, matrix, address, arena_.bytes() - value, kernel.name);
  if (kind == "weight") {
    return encode(context_, matrix, address, weights_[static_cast<size_t>(value)].second, kernel.name);
  }
  throw std::invalid_argument("a tensor map is of the arena or of a weight, not of a " + kind);
}

Address GpuExecutor::resolve(const std::string& kind, int64_t value) const {
  if (kind == "arena") return arena_.address() + check(kind, value, static_cast<size_t>(arena_.bytes()));
  if (kind == "weight") {
    return weight_memory_.address() + static_cast<Address>(weights_[check(kind, value, weights_.size())].first);
  }
  if (kind == "state") return states_[check(kind, value, states_.size())].memory.address();
  if (kind == "port") return 0;
  throw std::invalid_argument("unknown kind of launch argument: " + kind);
}

}  // namespace echoc::gpu
