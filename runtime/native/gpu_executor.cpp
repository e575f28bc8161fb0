// Runs the launch lists of an artifact on a GPU: one stream, ports through page-locked blocks, recurring steps as
// captured graphs.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "runtime/native/bindings.h"
#include "runtime/native/gpu_driver.h"
#include "runtime/native/gpu_launch.h"
#include "runtime/native/gpu_memory.h"
#include "runtime/native/turn.h"

namespace nb = nanobind;

namespace echoc::gpu {
namespace {

using Clock = std::chrono::steady_clock;
using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kAlign = 256;
constexpr size_t kMostGraphs = 64;
constexpr size_t kMostSeen = 1024;
constexpr int32_t kMostGraphTokens = 256;
constexpr int kCaptureThread = 1;          // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating
constexpr unsigned kRecordNode = 1;        // CU_EVENT_RECORD_EXTERNAL: a captured record is a node of the graph
constexpr int64_t kMostShared = 48 << 10;  // of dynamic shared memory without asking for more

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

/// The arrays of one direction: packed into one block on either side, so that one copy moves them all.
struct Block {
  std::vector<int64_t> offsets;  // of each port, -1 where the port has the other direction
  int64_t bytes = 0;
  HostMemory host;
  DeviceMemory device;
};

/// What a graph holds: a whole step, a step with a time stamp around every launch, or the launches alone.
enum class Content { step, profile, launches };
using Key = std::tuple<int, Content, std::vector<int64_t>>;

class GpuExecutor {
 public:
  GpuExecutor(std::shared_ptr<const Driver> driver, int index, bool synchronous)
      : context_(std::move(driver), index), synchronous_(synchronous), stream_(make_stream(context_)) {}

  ~GpuExecutor() {
    try {
      context_.enter();
      context_.api.stream_synchronize(stream_.get());
    } catch (const std::exception&) {  // a lost device gives nothing back
    }
  }

  /// Takes the memory that launches refer to: zeroed, but for the weights. States: (bytes of a
  /// page, pages), or (bytes, 0) for one without pages.
  void bind(int64_t arena_bytes, const std::vector<int64_t>& weights,
            const std::vector<std::pair<int64_t, int64_t>>& states, const std::vector<bool>& ports_out) {
    if (!variants_.empty()) throw std::logic_error("memory must be bound before variants are added");
    nb::gil_scoped_release release;
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

  int add_module(const Bytes& image, const std::string& name) {
    context_.enter();
    const auto* data = reinterpret_cast<const std::byte*>(image.data());
    modules_.push_back(load_module(context_, {data, image.size()}, name));
    return static_cast<int>(modules_.size()) - 1;
  }

  int add_kernel(int module, const std::string& name, const std::string& entry, int threads, int shared_bytes,
                 int extra_pointers) {
    context_.enter();
    auto kernel = std::make_unique<Kernel>();
    *kernel = {name, nullptr, static_cast<unsigned>(threads), static_cast<unsigned>(shared_bytes), extra_pointers};
    const Handle loaded = modules_.at(static_cast<size_t>(module)).get();
    const int status = context_.api.module_function(&kernel->function, loaded, entry.c_str());
    if (status != 0) context_.driver->fail(status, "entry " + entry + " of kernel " + name);
    if (shared_bytes > context_.info.shared_memory) {
      throw Failure("kernel " + name + " wants " + std::to_string(shared_bytes) +
                    " bytes of shared memory, a block on " + context_.info.name + " has " +
                    std::to_string(context_.info.shared_memory) + ": compile the model for this device");
    }
    if (shared_bytes > kMostShared && context_.api.function_set) {
      constexpr int kMaxDynamicShared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
      context_.driver->call(context_.api.function_set, kernel->function, kMaxDynamicShared, shared_bytes);
    }
    kernels_.push_back(std::move(kernel));
    return static_cast<int>(kernels_.size()) - 1;
  }

  /// Resolves a launch list; returns its index. Steps whose sizes recur are captured and replayed, unless their
  /// symbol `token_symbol` (-1: none) is large: such steps run long and rarely recur.
  int add_variant(const std::vector<LaunchSpec>& launches, int num_symbols, int token_symbol) {
    if (token_symbol >= num_symbols) throw std::out_of_range("no such symbol");
    auto variant = std::make_unique<Variant>();
    variant->token_symbol = token_symbol;
    variant->dims.resize(static_cast<size_t>(num_symbols));
    std::vector<std::pair<char, size_t>> plan;  // what each parameter points to: an argument, a symbol, null
    for (const auto& [kernel, arguments, symbols, grid, dependent] : launches) {
      if (kernel >= kernels_.size()) throw std::out_of_range("a launch refers to a kernel that was not added");
      const Kernel& used = *kernels_[kernel];
      Launch launch{&used, static_cast<uint32_t>(plan.size()), {}, dependent};
      for (const auto& [kind, value] : arguments) {
        const auto at = static_cast<uint32_t>(variant->arguments.size());
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
      variant->launches.push_back(std::move(launch));
    }
    for (const auto& [kind, at] : plan) {
      variant->parameters.push_back(kind == 'a'   ? static_cast<void*>(&variant->arguments[at])
                                    : kind == 's' ? static_cast<void*>(&variant->dims[at])
                                                  : static_cast<void*>(&null_));
    }
    variant->launch_ns.resize(variant->launches.size());
    variants_.push_back(std::move(variant));
    return static_cast<int>(variants_.size()) - 1;
  }

  /// Copies a weight's bytes to its place.
  void upload_weight(int weight, const Bytes& data) {
    const auto [offset, bytes] = weights_.at(static_cast<size_t>(weight));
    if (static_cast<int64_t>(data.size()) > aligned(bytes))
      throw std::invalid_argument("more bytes than the weight has");
    const Turn turn(busy_);
    nb::gil_scoped_release release;
    enter();
    if (!chunks_.data()) chunks_ = HostMemory(context_, kUploadBytes);
    guarded([] { return "upload of a weight"; },
            [&] {
              upload(context_, stream_.get(), chunks_, weight_memory_.address() + static_cast<Address>(offset),
                     {reinterpret_cast<const std::byte*>(data.data()), data.size()});
            });
  }

  /// Gives back what uploads needed.
  void end_uploads() { chunks_ = HostMemory(); }

  /// Runs one kernel by itself. Arguments are the bits of addresses and numbers, low bytes first.
  void launch(int kernel, const std::vector<int64_t>& arguments, const std::vector<unsigned>& grid) {
    const Kernel& used = *kernels_.at(static_cast<size_t>(kernel));
    if (grid.size() != 3) throw std::invalid_argument("a grid of blocks has three axes");
    const Turn turn(busy_);
    enter();
    std::vector<int64_t> values = arguments;
    std::vector<void*> parameters;
    for (int64_t& value : values) parameters.push_back(&value);
    for (int i = 0; i < used.extra_pointers; ++i) parameters.push_back(&null_);
    nb::gil_scoped_release release;
    guarded([&] { return "kernel " + used.name; },
            [&] {
              start(context_, stream_.get(), used, {grid[0], grid[1], grid[2]}, parameters.data(), false);
              if (synchronous_) synchronize();
            });
  }

  /// Runs one launch list: dims are the symbols' values, ports the arrays in manifest order (outputs are written).
  void step(int index, const std::vector<int64_t>& dims, const std::vector<Array>& ports) {
    Variant& variant = find_variant(index, dims);
    if (ports.size() != ports_out_.size()) throw std::invalid_argument("a step needs one array per port");
    const Turn turn(busy_);
    std::vector<std::pair<void*, int64_t>> arrays;
    for (const Array& port : ports)
      arrays.emplace_back(const_cast<void*>(port.data()), static_cast<int64_t>(port.nbytes()));
    nb::gil_scoped_release release;
    const auto begin = Clock::now();
    enter();
    place(arrays, dims, variant);
    for (size_t i = 0; i < arrays.size(); ++i) {
      if (!ports_out_[i])
        std::memcpy(in_.host.data() + in_.offsets[i], arrays[i].first, static_cast<size_t>(arrays[i].second));
    }
    const bool profiled = profiling_;
    guarded([&] { return "step of variant " + std::to_string(index) + " with kernels " + names(variant); },
            [&] {
              run(index, variant, dims, profiled);
              synchronize();
            });
    for (size_t i = 0; i < arrays.size(); ++i) {
      if (ports_out_[i])
        std::memcpy(arrays[i].first, out_.host.data() + out_.offsets[i], static_cast<size_t>(arrays[i].second));
    }
    if (profiled) take_profile(variant);
    variant.step_ns += std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
    variant.steps += 1;
    last_ = {index, Content::launches, dims};
  }

  /// Replays the launches of the last step `count` times, the host waiting only behind the last; returns the seconds
  /// from each to the next on the device's clock. States advance as the launches say, ports stay as they are.
  std::vector<double> run_loop(int index, const std::vector<int64_t>& dims, int count) {
    Variant& variant = find_variant(index, dims);
    const Key key{index, Content::launches, dims};
    if (!last_ || *last_ != key) throw Failure("a loop repeats a step: make one with these sizes first");
    if (count < 1 || count > 1 << 20) throw std::invalid_argument("a loop has 1 to 2^20 steps");
    const Turn turn(busy_);
    nb::gil_scoped_release release;
    enter();
    const Graph* graph = find_graph(key);
    if (!graph) graph = &capture(key, [&] { launch_all(variant, dims, Content::launches); });
    std::vector<Event> marks;
    for (int i = 0; i <= count; ++i) marks.push_back(make_event(context_));
    guarded([&] { return "loop over variant " + std::to_string(index) + " with kernels " + names(variant); },
            [&] {
              record(marks[0]);
              for (int i = 0; i < count; ++i) {
                context_.driver->call(context_.api.graph_launch, graph->get(), stream_.get());
                record(marks[static_cast<size_t>(i) + 1]);
              }
              synchronize();
            });
    std::vector<double> seconds;
    for (int i = 0; i < count; ++i)
      seconds.push_back(elapsed(marks[static_cast<size_t>(i)], marks[static_cast<size_t>(i) + 1]));
    return seconds;
  }

  /// Copies whole pages within every state that has pages, in the given order of (source, destination).
  void copy_pages(const std::vector<std::pair<int64_t, int64_t>>& pairs) {
    const Turn turn(busy_);
    nb::gil_scoped_release release;
    enter();
    for (const State& state : states_) {
      if (state.pages == 0) continue;
      for (const auto& [source, destination] : pairs) {
        for (const int64_t page : {source, destination}) {
          if (page < 0 || page >= state.pages) throw std::out_of_range("a copy of pages reaches outside of the pool");
        }
        guarded([] { return "copy of a page"; },
                [&] {
                  context_.driver->call(context_.api.copy, at(state, destination), at(state, source),
                                        static_cast<size_t>(state.bytes_per_page), stream_.get());
                });
      }
    }
  }

  /// Sets a state's bytes from its beginning on.
  void write_state(int index, const Bytes& data) {
    const State& state = states_.at(static_cast<size_t>(index));
    const auto bytes = static_cast<int64_t>(data.size());
    if (bytes > state.memory.bytes()) throw std::invalid_argument("more bytes than the state has");
    if (bytes == 0) return;
    const Turn turn(busy_);
    nb::gil_scoped_release release;
    enter();
    const HostMemory memory(context_, bytes);
    std::memcpy(memory.data(), data.data(), data.size());
    guarded([] { return "setting a state"; },
            [&] {
              context_.driver->call(context_.api.copy_in, state.memory.address(),
                                    static_cast<const void*>(memory.data()), data.size(), stream_.get());
              synchronize();
            });
  }

  /// Where a weight or state lies, for launches by themselves.
  int64_t address(const std::string& kind, int64_t index) const { return static_cast<int64_t>(resolve(kind, index)); }

  const DeviceInfo& info() const { return context_.info; }

  /// Reads memory back: `kind` and `index` as in launch arguments, bytes from `offset` on.
  nb::bytes read(const std::string& kind, int64_t index, int64_t offset, int64_t bytes) {
    const Turn turn(busy_);
    enter();
    int64_t size = 0;
    if (kind == "arena") size = arena_.bytes() - index;
    if (kind == "weight") size = weights_.at(static_cast<size_t>(index)).second;
    if (kind == "state") size = states_.at(static_cast<size_t>(index)).memory.bytes();
    if (offset < 0 || bytes < 0 || offset > size || bytes > size - offset) {
      throw std::out_of_range("bytes outside of " + kind + " " + std::to_string(index));
    }
    const Address from = resolve(kind, index) + static_cast<Address>(offset);
    const HostMemory memory(context_, bytes);
    guarded([] { return "reading memory"; },
            [&] {
              if (bytes)
                context_.driver->call(context_.api.copy_out, static_cast<void*>(memory.data()), from,
                                      static_cast<size_t>(bytes), stream_.get());
              synchronize();
            });
    return nb::bytes(memory.data(), static_cast<size_t>(bytes));
  }

  /// Seconds of each of `count` copies of `bytes` bytes within the device's memory.
  std::vector<double> time_copies(int64_t bytes, int count) {
    const Turn turn(busy_);
    nb::gil_scoped_release release;
    enter();
    const DeviceMemory from(context_, bytes, "a copy"), to(context_, bytes, "a copy");
    std::vector<Event> marks;
    for (int i = 0; i <= count; ++i) marks.push_back(make_event(context_));
    std::vector<double> seconds;
    guarded([] { return "copying memory"; },
            [&] {
              fill_zero(from);
              for (int i = 0; i <= count; ++i) {
                record(marks[static_cast<size_t>(i)]);
                if (i < count) {
                  context_.driver->call(context_.api.copy, to.address(), from.address(), static_cast<size_t>(bytes),
                                        stream_.get());
                }
              }
              synchronize();
              for (int i = 0; i < count; ++i)
                seconds.push_back(elapsed(marks[static_cast<size_t>(i)], marks[static_cast<size_t>(i) + 1]));
            });
    return seconds;
  }

  /// Waits for everything in the stream.
  void wait() {
    const Turn turn(busy_);
    nb::gil_scoped_release release;
    enter();
    guarded([] { return "waiting for the device"; }, [&] { synchronize(); });
  }

  /// Per variant: steps, nanoseconds in them, profiled steps, nanoseconds per launch in those, steps by graph replay.
  std::vector<std::tuple<int64_t, int64_t, int64_t, std::vector<int64_t>, int64_t>> counters() const {
    std::vector<std::tuple<int64_t, int64_t, int64_t, std::vector<int64_t>, int64_t>> out;
    for (const auto& v : variants_)
      out.emplace_back(v->steps, v->step_ns, v->profiled_steps, v->launch_ns, v->graph_steps);
    return out;
  }

  void set_profiling(bool on) { profiling_ = on; }
  size_t num_graphs() const { return graphs_.size(); }

  std::pair<int64_t, int64_t> memory() const {
    context_.enter();
    return context_.memory();
  }

 private:
  struct State {
    DeviceMemory memory;
    int64_t bytes_per_page;
    int64_t pages;
  };

  static Address at(const State& state, int64_t page) {
    return state.memory.address() + static_cast<Address>(page * state.bytes_per_page);
  }

  DeviceMemory zeroed(int64_t bytes, const std::string& what) {
    DeviceMemory memory(context_, bytes, what);
    fill_zero(memory);
    return memory;
  }

  void fill_zero(const DeviceMemory& memory) {
    if (memory.bytes() <= 0) return;
    context_.driver->call(context_.api.fill, memory.address(), static_cast<unsigned char>(0),
                          static_cast<size_t>(memory.bytes()), stream_.get());
  }

  /// Enters the context, unless an earlier fault took it away.
  void enter() const {
    if (!lost_.empty()) throw Failure(lost_);
    context_.enter();
  }

  void synchronize() const { context_.driver->call(context_.api.stream_synchronize, stream_.get()); }

  void record(const Event& event) const {
    context_.driver->call(context_.api.event_record, event.get(), stream_.get());
  }

  double elapsed(const Event& from, const Event& to) const {
    float milliseconds = 0;
    context_.driver->call(context_.api.event_elapsed, &milliseconds, from.get(), to.get());
    return milliseconds * 1e-3;
  }

  /// Runs `work`; where it fails for good, remembers that the device is lost and what was in flight.
  template <typename Describe, typename Work>
  void guarded(Describe describe, Work work) {
    try {
      work();
    } catch (const Failure& failure) {
      if (!failure.sticky()) {
        context_.api.stream_synchronize(stream_.get());  // what was begun must not meet the next step
        throw;
      }
      lost_ = std::string("the device is lost to this process: ") + failure.what() + ", in flight: " + describe() +
              "; start the process anew, the artifact is not damaged";
      if (!synchronous_)
        lost_ += " (with ECHOC_GPU_SYNCHRONOUS=1 every launch is waited for, which names the one that fails)";
      throw Failure(lost_, failure.status);
    }
  }

  Variant& find_variant(int index, const std::vector<int64_t>& dims) {
    if (index < 0 || static_cast<size_t>(index) >= variants_.size()) throw std::out_of_range("no such variant");
    Variant& variant = *variants_[static_cast<size_t>(index)];
    if (dims.size() != variant.dims.size()) throw std::invalid_argument("a step needs one value per symbol");
    for (const int64_t dim : dims) {
      if (dim < 0 || dim > 0x7FFFFFFF) throw std::invalid_argument("a size is outside of 0..2^31-1");
    }
    return variant;
  }

  /// Lays the ports of a step into the two blocks, which grow to the largest step, and points the launches at them.
  void place(const std::vector<std::pair<void*, int64_t>>& arrays, const std::vector<int64_t>& dims, Variant& variant) {
    for (Block* block : {&in_, &out_}) {
      const bool out = block == &out_;
      block->offsets.assign(arrays.size(), -1);
      block->bytes = 0;
      for (size_t i = 0; i < arrays.size(); ++i) {
        if (ports_out_[i] != out) continue;
        block->offsets[i] = block->bytes;
        block->bytes += aligned(arrays[i].second);
      }
      if (block->bytes <= block->device.bytes()) continue;
      graphs_.clear();  // they hold the old addresses
      const int64_t bytes = std::max(block->bytes, block->device.bytes() * 3 / 2);
      block->device = DeviceMemory();
      block->host = HostMemory();
      block->device = DeviceMemory(context_, bytes, out ? "the outputs of a step" : "the inputs of a step");
      block->host = HostMemory(context_, bytes);
    }
    for (size_t i = 0; i < dims.size(); ++i) variant.dims[i] = static_cast<int32_t>(dims[i]);
    for (const auto& [argument, port] : variant.port_uses) {
      const Block& block = ports_out_[port] ? out_ : in_;
      variant.arguments[argument] = block.device.address() + static_cast<Address>(block.offsets[port]);
    }
  }

  /// One step: by its graph where there is one or the sizes occur again, else launch by launch.
  void run(int index, Variant& variant, const std::vector<int64_t>& dims, bool profiled) {
    const Content content = profiled ? Content::profile : Content::step;
    if (profiled) make_marks(variant);
    const bool in_graph = profiled ? static_cast<bool>(context_.api.event_record_in_graph) : recurs(variant);
    if (synchronous_ || !in_graph) return launch_all(variant, dims, content);
    const Key key{index, content, dims};
    const Graph* graph = find_graph(key);
    if (!graph) {
      if (seen_.size() >= kMostSeen) seen_.clear();
      if (seen_.insert(key).second && !profiled) return launch_all(variant, dims, content);
      graph = &capture(key, [&] { launch_all(variant, dims, content); });
    }
    context_.driver->call(context_.api.graph_launch, graph->get(), stream_.get());
    variant.graph_steps += 1;
  }

  static bool recurs(const Variant& variant) {
    return variant.token_symbol < 0 || variant.dims[static_cast<size_t>(variant.token_symbol)] <= kMostGraphTokens;
  }

  void launch_all(Variant& variant, const std::vector<int64_t>& dims, Content content) {
    const Handle stream = stream_.get();
    const bool copies = content != Content::launches, marks = content == Content::profile;
    if (copies && in_.bytes) {
      context_.driver->call(context_.api.copy_in, in_.device.address(), static_cast<const void*>(in_.host.data()),
                            static_cast<size_t>(in_.bytes), stream);
    }
    bool behind_kernel = false;  // only a kernel can be started early behind a kernel
    for (size_t i = 0; i < variant.launches.size(); ++i) {
      const Launch& launch = variant.launches[i];
      if (marks) mark(variant.marks[i]);
      const Grid grid = evaluate(launch, dims);
      if (grid[0] == 0) continue;
      start(context_, stream, *launch.kernel, grid, variant.parameters.data() + launch.first_parameter,
            launch.dependent && behind_kernel && !marks && !synchronous_);
      behind_kernel = true;
      if (synchronous_) wait_for(launch, i, variant);
    }
    if (marks) mark(variant.marks.back());
    if (copies && out_.bytes) {
      context_.driver->call(context_.api.copy_out, static_cast<void*>(out_.host.data()), out_.device.address(),
                            static_cast<size_t>(out_.bytes), stream);
    }
  }

  void wait_for(const Launch& launch, size_t i, const Variant& variant) const {
    const int status = context_.api.stream_synchronize(stream_.get());
    if (status == 0) return;
    context_.driver->fail(status, "kernel " + launch.kernel->name + " (launch " + std::to_string(i) + " of " +
                                      std::to_string(variant.launches.size()) + ") failed");
  }

  void mark(const Event& event) const {
    if (context_.api.event_record_in_graph && !synchronous_) {
      context_.driver->call(context_.api.event_record_in_graph, event.get(), stream_.get(), kRecordNode);
    } else {
      record(event);
    }
  }

  void make_marks(Variant& variant) {
    while (variant.marks.size() <= variant.launches.size()) variant.marks.push_back(make_event(context_));
  }

  void take_profile(Variant& variant) {
    for (size_t i = 0; i < variant.launches.size(); ++i) {
      variant.launch_ns[i] += static_cast<int64_t>(elapsed(variant.marks[i], variant.marks[i + 1]) * 1e9);
    }
    variant.profiled_steps += 1;
  }

  const Graph* find_graph(const Key& key) {
    const auto found =
        std::find_if(graphs_.begin(), graphs_.end(), [&](const auto& entry) { return entry.first == key; });
    if (found == graphs_.end()) return nullptr;
    graphs_.splice(graphs_.begin(), graphs_, found);
    return &graphs_.front().second;
  }

  /// Captures what `work` puts in the stream; the graph goes in front, the one unused for longest goes.
  template <typename Work>
  const Graph& capture(const Key& key, Work work) {
    const Driver& driver = *context_.driver;
    Handle recorded = nullptr;
    driver.call(context_.api.capture_begin, stream_.get(), kCaptureThread);
    try {
      work();
    } catch (...) {
      context_.api.capture_end(stream_.get(), &recorded);
      if (recorded) context_.api.graph_destroy(recorded);
      throw;
    }
    driver.call(context_.api.capture_end, stream_.get(), &recorded);
    Handle executable = nullptr;
    const int status = context_.api.graph_instantiate(&executable, recorded, 0ull);
    context_.api.graph_destroy(recorded);
    if (status != 0) driver.fail(status, context_.api.graph_instantiate.name);
    graphs_.emplace_front(key, Graph(context_, executable));
    if (graphs_.size() > kMostGraphs) graphs_.pop_back();
    return graphs_.front().second;
  }

  Address resolve(const std::string& kind, int64_t value) const {
    if (kind == "arena") return arena_.address() + check(kind, value, static_cast<size_t>(arena_.bytes()));
    if (kind == "weight")
      return weight_memory_.address() + static_cast<Address>(weights_[check(kind, value, weights_.size())].first);
    if (kind == "state") return states_[check(kind, value, states_.size())].memory.address();
    if (kind == "port") return 0;
    throw std::invalid_argument("unknown kind of launch argument: " + kind);
  }

  static uint32_t check(const std::string& kind, int64_t value, size_t count) {
    if (value < 0 || static_cast<size_t>(value) >= count) {
      throw std::out_of_range("a launch refers to " + kind + " " + std::to_string(value) + " of " +
                              std::to_string(count));
    }
    return static_cast<uint32_t>(value);
  }

  Context context_;
  const bool synchronous_;
  Stream stream_;
  Address null_ = 0;
  std::string lost_;
  std::vector<Module> modules_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  DeviceMemory arena_, weight_memory_;
  std::vector<std::pair<int64_t, int64_t>> weights_;  // (offset, bytes)
  std::vector<State> states_;
  HostMemory chunks_;
  std::vector<bool> ports_out_;
  Block in_, out_;
  std::vector<std::unique_ptr<Variant>> variants_;
  std::list<std::pair<Key, Graph>> graphs_;  // the last used first
  std::set<Key> seen_;
  std::optional<Key> last_;
  bool profiling_ = false;
  std::atomic_flag busy_;
};

std::shared_ptr<Driver> open_driver(const std::string& vendor, const std::string& library) {
  if (vendor != "cuda" && vendor != "rocm") throw std::invalid_argument("the vendor is cuda or rocm");
  return std::make_shared<Driver>(vendor == "cuda" ? Vendor::cuda : Vendor::rocm, library);
}

nb::dict describe(const DeviceInfo& info) {
  nb::dict out;
  out["name"] = info.name;
  out["architecture"] = info.architecture;
  out["memory_bytes"] = info.memory;
  out["multiprocessors"] = info.multiprocessors;
  out["warp_size"] = info.warp_size;
  out["shared_memory_bytes"] = info.shared_memory;
  out["l2_cache_bytes"] = info.l2_cache;
  return out;
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Failure& failure) {
    PyErr_SetString(nb::module_::import_("echoc.errors").attr("DeviceError").ptr(), failure.what());
  }
}

}  // namespace
}  // namespace echoc::gpu

namespace echoc {

void bind_gpu(nb::module_& m) {
  using namespace gpu;
  nb::register_exception_translator(translate);
  nb::class_<Driver>(m, "GpuDriver", "The driver of a vendor's GPUs, loaded when this is made.")
      .def(nb::new_(&open_driver), nb::arg("vendor"), nb::arg("library") = "")
      .def_prop_ro("version", &Driver::version, "As the driver counts: 12040 is CUDA 12.4.")
      .def(
          "devices",
          [](const Driver& driver) {
            nb::list out;
            for (int i = 0; i < driver.num_devices(); ++i) out.append(describe(driver.info(i)));
            return out;
          },
          "Each device: name, architecture, sizes in bytes.");
  nb::class_<GpuExecutor>(m, "GpuExecutor", "Kernels, memory and launch lists on one GPU.")
      .def(
          "__init__",
          [](GpuExecutor* self, const std::shared_ptr<Driver>& driver, int index, bool synchronous) {
            new (self) GpuExecutor(driver, index, synchronous);
          },
          nb::arg("driver"), nb::arg("device_index"), nb::arg("synchronous") = false)
      .def("bind", &GpuExecutor::bind, nb::arg("arena_bytes"), nb::arg("weights"), nb::arg("states"),
           nb::arg("ports_out"))
      .def("add_module", &GpuExecutor::add_module, nb::arg("image"), nb::arg("name"))
      .def("add_kernel", &GpuExecutor::add_kernel, nb::arg("module"), nb::arg("name"), nb::arg("entry"),
           nb::arg("threads"), nb::arg("shared_bytes"), nb::arg("extra_pointers"))
      .def("add_variant", &GpuExecutor::add_variant, nb::arg("launches"), nb::arg("num_symbols"),
           nb::arg("token_symbol"))
      .def("upload_weight", &GpuExecutor::upload_weight, nb::arg("weight"), nb::arg("data"))
      .def("end_uploads", &GpuExecutor::end_uploads)
      .def("launch", &GpuExecutor::launch, nb::arg("kernel"), nb::arg("arguments"), nb::arg("grid"))
      .def("step", &GpuExecutor::step, nb::arg("variant"), nb::arg("dims"), nb::arg("ports"))
      .def("run_loop", &GpuExecutor::run_loop, nb::arg("variant"), nb::arg("dims"), nb::arg("count"))
      .def("copy_pages", &GpuExecutor::copy_pages, nb::arg("pairs"))
      .def("write_state", &GpuExecutor::write_state, nb::arg("state"), nb::arg("data"))
      .def("address", &GpuExecutor::address, nb::arg("kind"), nb::arg("index"))
      .def("read", &GpuExecutor::read, nb::arg("kind"), nb::arg("index"), nb::arg("offset"), nb::arg("nbytes"))
      .def("time_copies", &GpuExecutor::time_copies, nb::arg("nbytes"), nb::arg("count"))
      .def("wait", &GpuExecutor::wait)
      .def("counters", &GpuExecutor::counters)
      .def("set_profiling", &GpuExecutor::set_profiling, nb::arg("on"))
      .def_prop_ro("device", [](const GpuExecutor& self) { return describe(self.info()); })
      .def_prop_ro("num_graphs", &GpuExecutor::num_graphs)
      .def_prop_ro("memory", &GpuExecutor::memory, "Free and total bytes of the device.");
}

}  // namespace echoc
