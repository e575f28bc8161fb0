// The steps of GpuExecutor: ports in, launches one by one or as a graph, ports out.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "runtime/native/gpu_executor.h"
#include "runtime/native/turn.h"

namespace echoc::gpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostGraphs = 64;
constexpr size_t kMostSeen = 1024;
constexpr int32_t kMostGraphTokens = 256;
constexpr int kCaptureThread = 1;    // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating
constexpr unsigned kRecordNode = 1;  // CU_EVENT_RECORD_EXTERNAL: a captured record is a node of the graph

}  // namespace

void GpuExecutor::step(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports) {
  const Turn turn(busy_);
  const auto begin = Clock::now();
  Variant& variant = find_variant(index, dims);
  if (ports.size() != ports_out_.size()) throw std::invalid_argument("a step needs one array per port");
  enter();
  leave_loop();
  place(ports, variant, true);
  fill_in(ports);
  const bool profiled = profiling_;
  if (profiled && variant.marks.empty()) variant.marks = events(variant.launches.size() + 1);
  guarded([&] { return "step of variant " + names_of(index); },
          [&] {
            run(index, variant, dims, profiled ? Content::profile : Content::step);
            synchronize();
          });
  for (size_t i = 0; i < ports.size(); ++i) {
    const auto [data, bytes] = ports[i];
    if (ports_out_[i]) std::memcpy(data, out_.host.data() + out_.offsets[i], static_cast<size_t>(bytes));
  }
  if (profiled) take_profile(variant);
  variant.counters.step_ns += std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
  variant.counters.steps += 1;
  last_ = {index, Content::launches, dims};
}

std::vector<double> GpuExecutor::run_loop(int index, const std::vector<int64_t>& dims, int count) {
  const Turn turn(busy_);
  const Variant& variant = find_variant(index, dims);
  const Key key{index, Content::launches, dims};
  if (!last_ || *last_ != key) throw Failure("a loop repeats a step: make one with these sizes first");
  if (count < 1 || count > 1 << 20) throw std::invalid_argument("a loop has 1 to 2^20 steps");
  enter();
  leave_loop();
  const std::vector<Event> marks = events(static_cast<size_t>(count) + 1);
  guarded([&] { return "loop over variant " + names_of(index); },
          [&] {
            const Graph* found = find_graph(key);
            const Graph& graph = found ? *found : capture(key, variant);
            record(marks[0]);
            for (size_t i = 1; i < marks.size(); ++i) {
              context_.driver->call(context_.api.graph_launch, graph.get(), stream_.get());
              record(marks[i]);
            }
            synchronize();
          });
  return between(marks);
}

void GpuExecutor::copy_pages(const std::vector<std::pair<int64_t, int64_t>>& pairs) {
  const Turn turn(busy_);
  enter();
  for (const State& state : states_) {
    if (state.pages == 0) continue;
    const auto page = [&](int64_t number) {
      if (number < 0 || number >= state.pages) throw std::out_of_range("a copy of pages reaches outside of the pool");
      return state.memory.address() + static_cast<Address>(number * state.bytes_per_page);
    };
    for (const auto& [source, destination] : pairs) {
      const Address from = page(source), to = page(destination);
      guarded([] { return "copy of a page"; },
              [&, bytes = static_cast<size_t>(state.bytes_per_page)] {
                context_.driver->call(context_.api.copy, to, from, bytes, stream_.get());
              });
    }
  }
}

GpuExecutor::Variant& GpuExecutor::find_variant(int index, const std::vector<int64_t>& dims) {
  if (index < 0 || static_cast<size_t>(index) >= variants_.size()) throw std::out_of_range("no such variant");
  Variant& variant = *variants_[static_cast<size_t>(index)];
  if (dims.size() != variant.dims.size()) throw std::invalid_argument("a step needs one value per symbol");
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] < 0 || dims[i] > 0x7FFFFFFF) throw std::invalid_argument("a size is outside of 0..2^31-1");
    variant.dims[i] = static_cast<int32_t>(dims[i]);
  }
  return variant;
}

void GpuExecutor::fill_in(const std::vector<HostArray>& ports) {
  for (size_t i = 0; i < ports.size(); ++i) {
    const auto [data, bytes] = ports[i];
    if (!ports_out_[i]) std::memcpy(in_.host.data() + in_.offsets[i], data, static_cast<size_t>(bytes));
  }
}

/// Lays the ports of a step into the two blocks, which grow to the largest step, and points the launches at them.
/// `gives`: the host gets the outputs.
void GpuExecutor::place(const std::vector<HostArray>& arrays, Variant& variant, bool gives) {
  for (Block* block : {&in_, &out_}) {
    const bool out = block == &out_;
    block->offsets.assign(arrays.size(), -1);
    block->bytes = 0;
    for (size_t i = 0; i < arrays.size(); ++i) {
      if (ports_out_[i] != out) continue;
      block->offsets[i] = block->bytes;
      block->bytes += aligned(arrays[i].second);
    }
    const int64_t held = block->device.bytes(), hosted = block->host.bytes();
    const bool copied = !out || gives;
    if (block->bytes <= held && (!copied || block->bytes <= hosted)) continue;
    graphs_.clear();  // they hold the old addresses
    if (copied && block->bytes > hosted) {
      block->host = HostMemory();
      block->host = HostMemory(context_, std::max(block->bytes, hosted * 3 / 2));
    }
    if (block->bytes > held) {
      block->device = DeviceMemory();
      block->device = DeviceMemory(context_, std::max(block->bytes, held * 3 / 2),
                                   out ? "the outputs of a step" : "the inputs of a step");
    }
  }
  for (const auto& [argument, port] : variant.port_uses) {
    const Block& block = ports_out_[port] ? out_ : in_;
    variant.arguments[argument] = block.device.address() + static_cast<Address>(block.offsets[port]);
  }
}

/// One step: by its graph where there is one or the sizes occur again, else launch by launch.
void GpuExecutor::run(int index, Variant& variant, const std::vector<int64_t>& dims, Content content) {
  const bool profiled = content == Content::profile;
  const int tokens = variant.token_symbol < 0 ? 0 : variant.dims[static_cast<size_t>(variant.token_symbol)];
  const bool recurs = profiled ? static_cast<bool>(context_.api.event_record_in_graph) : tokens <= kMostGraphTokens;
  if (synchronous_ || !recurs || variant.together) return launch_all(variant, dims, content);
  const Key key{index, content, dims};
  const Graph* graph = find_graph(key);
  if (!graph) {
    if (seen_.size() >= kMostSeen) seen_.clear();
    if (seen_.insert(key).second && !profiled) return launch_all(variant, dims, content);
    graph = &capture(key, variant);
  }
  context_.driver->call(context_.api.graph_launch, graph->get(), stream_.get());
  variant.counters.graph_steps += 1;
}

void GpuExecutor::launch_all(const Variant& variant, const std::vector<int64_t>& dims, Content content) const {
  const Handle stream = stream_.get();
  const bool marks = content == Content::profile, chooses = content == Content::draw || content == Content::loop;
  const bool gives = content == Content::step || marks, takes = gives || content == Content::draw;
  if (content == Content::draw) {
    const void* from = records_host_.data();
    const auto bytes = static_cast<size_t>(draws_ * sampler_->record_bytes);
    context_.driver->call(context_.api.copy_in, records_.address(), from, bytes, stream);
  }
  if (takes && in_.bytes) {
    const void* from = in_.host.data();
    context_.driver->call(context_.api.copy_in, in_.device.address(), from, static_cast<size_t>(in_.bytes), stream);
  }
  bool behind_kernel = false;  // only a kernel can be started early behind a kernel
  for (size_t i = 0; i < variant.launches.size(); ++i) {
    const Launch& launch = variant.launches[i];
    if (marks) mark(variant.marks[i]);
    const Grid grid = evaluate(launch, dims);
    if (grid[0] == 0) continue;
    void** parameters = const_cast<void**>(variant.parameters.data()) + launch.first_parameter;
    const bool early = launch.dependent && behind_kernel && !marks && !synchronous_;
    start(context_, stream, *launch.kernel, grid, parameters, early);
    behind_kernel = true;
    if (synchronous_) wait_for(i, variant);
  }
  if (marks) mark(variant.marks.back());
  if (chooses) choose(content == Content::loop ? 1 : 0, behind_kernel && !synchronous_);
  if (content == Content::draw) {
    void* to = sampled_host_.data();
    context_.driver->call(context_.api.copy_out, to, sampled_.address(), static_cast<size_t>(draws_) * 4, stream);
  }
  if (gives && out_.bytes) {
    void* to = out_.host.data();
    context_.driver->call(context_.api.copy_out, to, out_.device.address(), static_cast<size_t>(out_.bytes), stream);
  }
}

void GpuExecutor::wait_for(size_t launch, const Variant& variant) const {
  const int status = context_.api.stream_synchronize(stream_.get());
  if (status == 0) return;
  context_.driver->fail(status, "kernel " + variant.launches[launch].kernel->name + " (launch " +
                                    std::to_string(launch) + " of " + std::to_string(variant.launches.size()) +
                                    ") failed");
}

void GpuExecutor::mark(const Event& event) const {
  if (context_.api.event_record_in_graph && !synchronous_) {
    context_.driver->call(context_.api.event_record_in_graph, event.get(), stream_.get(), kRecordNode);
  } else {
    record(event);
  }
}

void GpuExecutor::take_profile(Variant& variant) const {
  const std::vector<double> seconds = between(variant.marks);
  for (size_t i = 0; i < seconds.size(); ++i) {
    variant.counters.launch_ns[i] += static_cast<int64_t>(seconds[i] * 1e9);
  }
  variant.counters.profiled_steps += 1;
}

/// "0 with kernels rows_0a1b, gemm_2c3d".
std::string GpuExecutor::names_of(int index) const {
  return std::to_string(index) + " with kernels " + names(variants_[static_cast<size_t>(index)]->launches);
}

const Graph* GpuExecutor::find_graph(const Key& key) {
  const auto found =
      std::find_if(graphs_.begin(), graphs_.end(), [&](const auto& entry) { return entry.first == key; });
  if (found == graphs_.end()) return nullptr;
  graphs_.splice(graphs_.begin(), graphs_, found);
  return &graphs_.front().second;
}

/// Captures the launches of a variant; the graph goes in front, the one unused for longest goes.
const Graph& GpuExecutor::capture(const Key& key, const Variant& variant) {
  const Driver& driver = *context_.driver;
  Handle recorded = nullptr;
  driver.call(context_.api.capture_begin, stream_.get(), kCaptureThread);
  try {
    launch_all(variant, std::get<2>(key), std::get<1>(key));
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

}  // namespace echoc::gpu
