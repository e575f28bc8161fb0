// Runs the launch lists of an artifact: one parallel region per step over kernels of a shared library.
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "kernels/cpu/abi.h"
#include "runtime/native/bindings.h"
#include "runtime/native/library.h"
#include "runtime/native/team.h"
#include "runtime/native/turn.h"

namespace nb = nanobind;

namespace echoc {
namespace {

using Clock = std::chrono::steady_clock;
using Kernel = void (*)(const Call*);

int64_t nanoseconds(Clock::duration d) { return std::chrono::duration_cast<std::chrono::nanoseconds>(d).count(); }

struct Launch {
  Kernel kernel;
  bool alike;          // every thread makes all of it
  uint32_t first_arg;  // into a thread's part of Variant::args
};

struct PortUse {
  uint32_t arg;
  uint32_t port;
};

struct Variant {
  std::vector<Launch> launches;
  std::vector<uint32_t> stages;    // where they begin, and the number of launches: threads meet between them
  uint32_t num_args = 0;           // of all launches
  std::vector<void*> args;         // [thread][num_args]
  std::vector<PortUse> port_uses;  // the entries of a thread's args that change from step to step
  int64_t steps = 0;
  int64_t step_ns = 0;
  int64_t profiled_steps = 0;
  std::vector<int64_t> launch_ns;  // summed over the profiled steps
};

struct State {
  std::byte* base;
  int64_t bytes_per_page;
};

using Port = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using LaunchSpec = std::tuple<std::string, bool, bool, std::vector<std::pair<std::string, int64_t>>>;

class Executor {
 public:
  Executor(const std::string& library, int num_threads)
      : library_(library), team_(num_threads), piles_(std::make_unique<Pile[]>(static_cast<size_t>(num_threads))) {}

  /// Sets the memory that launches refer to. Addresses must outlive the executor; scratch holds one stride per thread.
  void bind(uintptr_t arena, uintptr_t scratch, int64_t scratch_stride, const std::vector<uintptr_t>& weights,
            const std::vector<std::pair<uintptr_t, int64_t>>& states, int num_ports) {
    if (!variants_.empty()) throw std::logic_error("memory must be bound before variants are added");
    arena_ = reinterpret_cast<std::byte*>(arena);
    scratch_ = reinterpret_cast<std::byte*>(scratch);
    scratch_stride_ = scratch_stride;
    for (uintptr_t address : weights) weights_.push_back(reinterpret_cast<void*>(address));
    for (auto [address, bytes] : states) states_.push_back({reinterpret_cast<std::byte*>(address), bytes});
    ports_.resize(static_cast<size_t>(num_ports));
  }

  /// Resolves a launch list to pointers; returns its index. Launch: (kernel, barrier before it, whether each thread
  /// makes all of it, [(kind, value), ...]).
  int add_variant(const std::vector<LaunchSpec>& launches) {
    auto variant = std::make_unique<Variant>();
    for (const auto& [name, barrier, alike, args] : launches) {
      if (barrier || variant->launches.empty()) variant->stages.push_back(count(variant->launches));
      variant->launches.push_back({find(name), alike, variant->num_args});
      for (const auto& [kind, value] : args) {
        if (kind == "port") {
          check_index(kind, value, ports_.size());
          variant->port_uses.push_back({variant->num_args, static_cast<uint32_t>(value)});
        }
        variant->num_args += 1;
      }
    }
    for (int tid = 0; tid < team_.size(); ++tid) {
      for (const auto& [name, barrier, alike, args] : launches) {
        for (const auto& [kind, value] : args) variant->args.push_back(resolve(kind, value, tid));
      }
    }
    variant->stages.push_back(count(variant->launches));
    variant->launch_ns.resize(variant->launches.size());
    variants_.push_back(std::move(variant));
    return static_cast<int>(variants_.size()) - 1;
  }

  /// Runs one launch list: dims are the symbols' values, ports the arrays in manifest order (outputs are written).
  void step(int index, const std::vector<int64_t>& dims, const std::vector<Port>& ports) {
    if (index < 0 || static_cast<size_t>(index) >= variants_.size()) throw std::out_of_range("no such variant");
    if (ports.size() != ports_.size()) throw std::invalid_argument("a step needs one array per port");
    const Turn turn(busy_);
    for (size_t i = 0; i < ports.size(); ++i) ports_[i] = const_cast<void*>(ports[i].data());
    Variant& variant = *variants_[static_cast<size_t>(index)];
    for (size_t first = 0; first < variant.args.size(); first += variant.num_args) {
      for (const PortUse& use : variant.port_uses) variant.args[first + use.arg] = ports_[use.port];
    }
    nb::gil_scoped_release release;
    StepContext context{this, &variant, dims.data(), next_ticket_};
    next_ticket_ += count(variant.launches);
    const auto begin = Clock::now();
    if (profiling_) {
      team_.run(&run_profiled, &context);
    } else {
      team_.run_stages(count(variant.stages) - 1, &run_stage, &context);
    }
    variant.step_ns += nanoseconds(Clock::now() - begin);
    variant.steps += 1;
    variant.profiled_steps += profiling_ ? 1 : 0;
  }

  /// Copies whole pages within every state, in the given order of (source, destination).
  void copy_pages(const std::vector<std::pair<int64_t, int64_t>>& pairs) {
    const Turn turn(busy_);
    nb::gil_scoped_release release;
    for (const State& state : states_) {
      for (auto [source, destination] : pairs) {
        std::memcpy(state.base + destination * state.bytes_per_page, state.base + source * state.bytes_per_page,
                    static_cast<size_t>(state.bytes_per_page));
      }
    }
  }

  /// Per variant: steps taken, nanoseconds in them, profiled steps, and nanoseconds per launch in the profiled ones.
  std::vector<std::tuple<int64_t, int64_t, int64_t, std::vector<int64_t>>> counters() const {
    std::vector<std::tuple<int64_t, int64_t, int64_t, std::vector<int64_t>>> out;
    for (const auto& v : variants_) out.emplace_back(v->steps, v->step_ns, v->profiled_steps, v->launch_ns);
    return out;
  }

  void set_profiling(bool on) { profiling_ = on; }
  int num_threads() const { return team_.size(); }

 private:
  struct StepContext {
    Executor* executor;
    Variant* variant;
    const int64_t* dims;
    uint32_t first_ticket;
  };

  static void run_stage(void* context, uint32_t stage, int tid) {
    const auto& c = *static_cast<StepContext*>(context);
    for (uint32_t i = c.variant->stages[stage]; i < c.variant->stages[stage + 1]; ++i) c.executor->launch(c, i, tid);
  }

  /// All launches with a barrier after each, so that each launch's time is that of its slowest thread.
  static void run_profiled(void* context, int tid) {
    const auto& c = *static_cast<StepContext*>(context);
    c.executor->team_.barrier();
    auto begin = Clock::now();
    for (uint32_t i = 0; i < count(c.variant->launches); ++i) {
      c.executor->launch(c, i, tid);
      c.executor->team_.barrier();
      const auto end = Clock::now();
      if (tid == 0) c.variant->launch_ns[i] += nanoseconds(end - begin);
      begin = end;
    }
  }

  void launch(const StepContext& c, uint32_t index, int tid) const {
    const Launch& launch = c.variant->launches[index];
    void* const* args = c.variant->args.data() + static_cast<size_t>(tid) * c.variant->num_args + launch.first_arg;
    std::byte* scratch = scratch_ + tid * scratch_stride_;
    Call call{args, c.dims, tid, team_.size(), scratch, piles_.get(), c.first_ticket + index};
    if (launch.alike) call.tid = 0, call.nthreads = 1;
    launch.kernel(&call);
  }

  template <class T>
  static uint32_t count(const std::vector<T>& items) {
    return static_cast<uint32_t>(items.size());
  }

  Kernel find(const std::string& name) {
    auto [entry, missing] = kernels_.try_emplace(name, nullptr);
    if (missing) entry->second = reinterpret_cast<Kernel>(library_.find(name));
    return entry->second;
  }

  void* resolve(const std::string& kind, int64_t value, int tid) const {
    if (kind == "arena") return arena_ + value;
    if (kind == "scratch") return scratch_ + tid * scratch_stride_ + check_index(kind, value, scratch_stride_);
    if (kind == "weight") return weights_[check_index(kind, value, weights_.size())];
    if (kind == "state") return states_[check_index(kind, value, states_.size())].base;
    if (kind == "port") return nullptr;
    throw std::invalid_argument("unknown kind of launch argument: " + kind);
  }

  static size_t check_index(const std::string& kind, int64_t value, size_t count) {
    if (value < 0 || static_cast<size_t>(value) >= count) {
      throw std::out_of_range("a launch refers to " + kind + " " + std::to_string(value) + " of " +
                              std::to_string(count));
    }
    return static_cast<size_t>(value);
  }

  Library library_;
  Team team_;
  std::unique_ptr<Pile[]> piles_;
  uint32_t next_ticket_ = 1;
  std::unordered_map<std::string, Kernel> kernels_;
  std::byte* arena_ = nullptr;
  std::byte* scratch_ = nullptr;
  int64_t scratch_stride_ = 0;
  std::vector<void*> weights_;
  std::vector<State> states_;
  std::vector<void*> ports_;
  std::vector<std::unique_ptr<Variant>> variants_;
  bool profiling_ = false;
  std::atomic_flag busy_;
};

}  // namespace

void bind_executor(nb::module_& m) {
  nb::class_<Executor>(m, "Executor", "A kernel library, a thread team and the launch lists they run.")
      .def(nb::init<const std::string&, int>(), nb::arg("library"), nb::arg("num_threads"))
      .def("bind", &Executor::bind, nb::arg("arena"), nb::arg("scratch"), nb::arg("scratch_stride"), nb::arg("weights"),
           nb::arg("states"), nb::arg("num_ports"))
      .def("add_variant", &Executor::add_variant, nb::arg("launches"))
      .def("step", &Executor::step, nb::arg("variant"), nb::arg("dims"), nb::arg("ports"))
      .def("copy_pages", &Executor::copy_pages, nb::arg("pairs"))
      .def("counters", &Executor::counters)
      .def("set_profiling", &Executor::set_profiling, nb::arg("on"))
      .def_prop_ro("num_threads", &Executor::num_threads);
}

}  // namespace echoc
