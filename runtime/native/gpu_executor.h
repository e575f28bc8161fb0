// Runs the launch lists of an artifact on a GPU: one stream, ports through page-locked blocks, recurring steps as
// captured graphs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/native/gpu_launch.h"
#include "runtime/native/gpu_memory.h"

namespace echoc::gpu {

/// An array of the caller's: where its bytes are and how many.
using HostArray = std::pair<void*, int64_t>;

/// What a variant has done: `launch_ns` sums the device's time of each launch over the profiled steps.
struct Counters {
  int64_t steps = 0;
  int64_t step_ns = 0;
  int64_t graph_steps = 0;
  int64_t profiled_steps = 0;
  std::vector<int64_t> launch_ns;
};

/// Memory, kernels and launch lists on one device. One call at a time; a second thread is refused by
/// std::runtime_error.
class GpuExecutor {
 public:
  /// `synchronous`: every launch is waited for, so that a fault is that of the launch named.
  GpuExecutor(std::shared_ptr<const Driver> driver, int index, bool synchronous);
  ~GpuExecutor();
  GpuExecutor(const GpuExecutor&) = delete;
  GpuExecutor& operator=(const GpuExecutor&) = delete;

  // --- loading ---

  /// Takes the memory that launches refer to: zeroed, but for the weights. States: (bytes of a page, pages), or
  /// (bytes, 0) for one without pages.
  void bind(int64_t arena_bytes, const std::vector<int64_t>& weights,
            const std::vector<std::pair<int64_t, int64_t>>& states, const std::vector<bool>& ports_out);

  int add_module(std::span<const std::byte> image, const std::string& name);
  int add_kernel(int module, const std::string& name, const std::string& entry, int threads, int shared_bytes,
                 int extra_pointers, bool together);

  /// Resolves a launch list; returns its index. Steps whose sizes recur are captured and replayed, unless their
  /// symbol `token_symbol` (-1: none) is large: such steps run long and rarely recur.
  int add_variant(const std::vector<LaunchSpec>& launches, int num_symbols, int token_symbol);

  /// Copies a weight's bytes to its place.
  void upload_weight(int weight, std::span<const std::byte> data);

  /// Gives back what uploads needed.
  void end_uploads() { chunks_ = HostMemory(); }

  /// Runs one kernel by itself. Arguments are the bits of addresses and numbers, low bytes first.
  void launch(int kernel, std::vector<int64_t> arguments, const std::vector<unsigned>& grid);

  /// The kernels that choose tokens, and what they work on (compiler/targets/gpu/sample.py).
  struct Sampler {
    int peaks, sample;                        // kernels
    int64_t parts, row_bytes;                 // of a row of logits
    int64_t record_bytes;                     // of one request for a token
    bool dependent;                           // the kernels wait for what is in front of them themselves
    size_t logits, tokens, positions, table;  // ports
  };
  void set_sampler(const Sampler& sampler);

  // --- stepping ---

  /// Runs one launch list: dims are the symbols' values, ports the arrays in manifest order (outputs are written).
  void step(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports);

  /// A step that gives no ports back but the tokens chosen, one for each record; negative numbers are failures.
  std::vector<int32_t> draw(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports,
                            std::span<const std::byte> records);

  /// Begins a loop: steps of one token for each row, in which each step leaves its tokens and positions to the next.
  void begin_loop(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports,
                  std::span<const std::byte> records);

  /// Puts the next step of the loop in the stream and returns; behind a new block table if there is one. At most
  /// kMostAhead steps may wait to be collected.
  void advance_loop(std::span<const std::byte> table);
  static constexpr int64_t kMostAhead = 3;

  /// Waits for the earliest step that has not been collected, and returns its tokens.
  std::vector<int32_t> collect();

  /// Replays the launches of the last step `count` times, the host waiting only behind the last; returns the seconds
  /// from each to the next on the device's clock. States advance as the launches say, ports stay as they are.
  std::vector<double> run_loop(int index, const std::vector<int64_t>& dims, int count);

  /// Copies whole pages within every state that has pages, in the given order of (source, destination).
  void copy_pages(const std::vector<std::pair<int64_t, int64_t>>& pairs);

  /// Waits for everything in the stream.
  void wait();

  // --- looking ---

  /// Sets a state's bytes from its beginning on.
  void write_state(int index, std::span<const std::byte> data);

  /// Reads memory back: `kind` and `index` as in launch arguments, bytes from `offset` on.
  std::string read(const std::string& kind, int64_t index, int64_t offset, int64_t bytes);
  void read_into(const std::string& kind, int64_t index, int64_t offset, std::span<std::byte> out);

  /// Where a weight or state lies, for launches by themselves.
  int64_t address(const std::string& kind, int64_t index) const { return static_cast<int64_t>(resolve(kind, index)); }

  /// Seconds of each of `count` copies of `bytes` bytes within the device's memory.
  std::vector<double> time_copies(int64_t bytes, int count);

  std::vector<Counters> counters() const;
  void set_profiling(bool on) { profiling_ = on; }
  size_t num_graphs() const { return graphs_.size(); }
  const DeviceInfo& info() const { return context_.info; }

  /// (free, total) bytes of the device.
  std::pair<int64_t, int64_t> memory() const;

 private:
  struct State {
    DeviceMemory memory;
    int64_t bytes_per_page;
    int64_t pages;
  };

  /// The ports of one direction: packed into one block on either side, so that one copy moves them all.
  struct Block {
    std::vector<int64_t> offsets;  // of each port, -1 where the port has the other direction
    int64_t bytes = 0;
    HostMemory host;
    DeviceMemory device;
  };

  /// A launch list. Parameters point into `arguments`, `dims`, `maps` or `numbers`, or at a null pointer.
  struct Variant {
    std::vector<Launch> launches;
    std::vector<Address> arguments;                        // the pointers of all launches, one after another
    std::vector<void*> parameters;                         // what the driver reads, launch by launch
    std::vector<std::pair<uint32_t, uint32_t>> port_uses;  // (argument, port): these change from step to step
    std::vector<int32_t> dims;                             // the symbols' values as kernels get them
    std::vector<TensorMap> maps;
    std::vector<int64_t> numbers;  // sizes and strides behind the maps
    int token_symbol = -1;
    bool together = false;  // one of its kernels is launched together: no graph
    Counters counters;
    std::vector<Event> marks;  // one before each launch and one behind the last, made when profiling begins
  };

  /// What a graph holds: a whole step, a step with a time stamp around every launch, or the launches alone.
  /// A step and the choice of its tokens; the launches and the choice, which feeds the next.
  enum class Content { step, profile, launches, draw, loop };
  using Key = std::tuple<int, Content, std::vector<int64_t>>;
  using Describe = std::function<std::string()>;

  void enter() const;
  void guarded(const Describe& in_flight, const std::function<void()>& work);
  void synchronize() const;
  void record(const Event& event) const;
  double elapsed(const Event& from, const Event& to) const;
  std::vector<Event> events(size_t count) const;
  std::vector<double> between(const std::vector<Event>& marks) const;
  DeviceMemory zeroed(int64_t bytes, const std::string& what);
  void fill_zero(const DeviceMemory& memory);
  const HostMemory& staging(int64_t bytes);

  Variant& find_variant(int index, const std::vector<int64_t>& dims);
  Address resolve(const std::string& kind, int64_t value) const;
  TensorMap map_of(const Matrix& matrix, const std::string& kind, int64_t value, const Kernel& kernel) const;

  /// A step of the loop on its way: the block table that it was given and the tokens that it chose.
  struct Slot {
    HostMemory table, tokens;
    Event done;
  };
  struct Loop {
    Key key;
    int64_t begun = 0, collected = 0;
  };

  Key prepare(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports,
              std::span<const std::byte> records, Content content);
  void choose(int feed, bool early) const;
  void leave_loop();
  void place(const std::vector<HostArray>& arrays, Variant& variant, bool gives);
  void fill_in(const std::vector<HostArray>& ports);
  void run(int index, Variant& variant, const std::vector<int64_t>& dims, Content content);
  void launch_all(const Variant& variant, const std::vector<int64_t>& dims, Content content) const;
  void wait_for(size_t launch, const Variant& variant) const;
  void mark(const Event& event) const;
  void take_profile(Variant& variant) const;
  std::string names_of(int index) const;

  const Graph* find_graph(const Key& key);
  const Graph& capture(const Key& key, const Variant& variant);

  Context context_;
  const bool synchronous_;
  Stream stream_;
  Address null_ = 0;
  std::string lost_;  // what took the device away, if anything did
  std::vector<Module> modules_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  DeviceMemory arena_, weight_memory_;
  std::vector<std::pair<int64_t, int64_t>> weights_;  // (offset, bytes)
  std::vector<State> states_;
  HostMemory chunks_;
  HostMemory staging_;  // for transfers; kept, as to take it costs more than a few bytes do
  std::vector<bool> ports_out_;
  Block in_, out_;
  std::vector<std::unique_ptr<Variant>> variants_;
  std::list<std::pair<Key, Graph>> graphs_;  // the last used first
  std::set<Key> seen_;
  std::optional<Key> last_;
  bool profiling_ = false;
  std::optional<Sampler> sampler_;
  int64_t rows_ = 0, draws_ = 0;  // of logits, and tokens to choose, in the step being made
  DeviceMemory records_, peaks_, places_, sampled_;
  HostMemory records_host_, sampled_host_;
  std::vector<Slot> slots_;
  std::optional<Loop> loop_;
  std::atomic_flag busy_;
};

}  // namespace echoc::gpu
