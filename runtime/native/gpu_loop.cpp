// The steps of GpuExecutor whose tokens are chosen on the device: one at a time, or in a loop that feeds itself while
// the host follows behind.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime/native/gpu_executor.h"
#include "runtime/native/turn.h"

namespace echoc::gpu {

void GpuExecutor::set_sampler(const Sampler& sampler) {
  for (const int kernel : {sampler.peaks, sampler.sample}) {
    if (kernel < 0 || static_cast<size_t>(kernel) >= kernels_.size()) throw std::out_of_range("no such kernel");
  }
  for (const size_t port : {sampler.logits, sampler.tokens, sampler.positions, sampler.table}) {
    if (port >= ports_out_.size() || ports_out_[port] != (port == sampler.logits)) {
      throw std::out_of_range("no such port");
    }
  }
  if (sampler.parts < 1 || sampler.row_bytes < 4 || sampler.record_bytes < 4) {
    throw std::invalid_argument("a sampler needs logits, parts and records");
  }
  sampler_ = sampler;
}

std::vector<int32_t> GpuExecutor::draw(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports,
                                       std::span<const std::byte> records) {
  const Turn turn(busy_);
  const Key key = prepare(index, dims, ports, records, Content::draw);
  Variant& variant = *variants_[static_cast<size_t>(index)];
  guarded([&] { return "step of variant " + names_of(index); },
          [&] {
            run(index, variant, std::get<2>(key), Content::draw);
            synchronize();
          });
  variant.counters.steps += 1;
  const auto* chosen = reinterpret_cast<const int32_t*>(sampled_host_.data());
  return {chosen, chosen + draws_};
}

void GpuExecutor::begin_loop(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports,
                             std::span<const std::byte> records) {
  const Turn turn(busy_);
  const Key key = prepare(index, dims, ports, records, Content::loop);
  if (draws_ != rows_) throw std::invalid_argument("a loop chooses one token for each row");
  const int64_t table = ports[sampler_->table].second;
  if (slots_.empty()) slots_.resize(kMostAhead);
  for (Slot& slot : slots_) {
    if (!slot.done) slot.done = make_event(context_);
    if (slot.table.bytes() < table) slot.table = HostMemory(context_, table);
    if (slot.tokens.bytes() < draws_ * 4) slot.tokens = HostMemory(context_, draws_ * 4);
  }
  guarded([] { return "the inputs of a loop"; },
          [&] {
            const void *from = in_.host.data(), *wanted = records_host_.data();
            const auto copy = context_.api.copy_in;
            context_.driver->call(copy, records_.address(), wanted, records.size(), stream_.get());
            context_.driver->call(copy, in_.device.address(), from, static_cast<size_t>(in_.bytes), stream_.get());
          });
  loop_ = Loop{key};
}

void GpuExecutor::advance_loop(std::span<const std::byte> table) {
  const Turn turn(busy_);
  if (!loop_) throw std::logic_error("there is no loop to advance: begin one");
  if (loop_->begun - loop_->collected >= kMostAhead) throw std::logic_error("the loop is too far ahead: collect first");
  enter();
  const auto& [index, content, dims] = loop_->key;
  Variant& variant = *variants_[static_cast<size_t>(index)];
  const Slot& slot = slots_[static_cast<size_t>(loop_->begun % kMostAhead)];
  if (static_cast<int64_t>(table.size()) > slot.table.bytes()) throw std::invalid_argument("the block table has grown");
  guarded([&] { return "loop over variant " + names_of(index); },
          [&] {
            const Handle stream = stream_.get();
            if (!table.empty()) {
              const void* from = slot.table.data();
              std::memcpy(slot.table.data(), table.data(), table.size());
              const Address to = in_.device.address() + static_cast<Address>(in_.offsets[sampler_->table]);
              context_.driver->call(context_.api.copy_in, to, from, table.size(), stream);
            }
            run(index, variant, dims, content);
            void* to = slot.tokens.data();
            context_.driver->call(context_.api.copy_out, to, sampled_.address(), static_cast<size_t>(draws_) * 4,
                                  stream);
            record(slot.done);
          });
  variant.counters.steps += 1;
  loop_->begun += 1;
}

std::vector<int32_t> GpuExecutor::collect() {
  const Turn turn(busy_);
  if (!loop_ || loop_->collected == loop_->begun) throw std::logic_error("no step of a loop is on its way");
  enter();
  const Slot& slot = slots_[static_cast<size_t>(loop_->collected % kMostAhead)];
  guarded([&] { return "loop over variant " + names_of(std::get<0>(loop_->key)); },
          [&] { context_.driver->call(context_.api.event_synchronize, slot.done.get()); });
  loop_->collected += 1;
  const auto* chosen = reinterpret_cast<const int32_t*>(slot.tokens.data());
  return {chosen, chosen + draws_};
}

/// Lays out a step that chooses tokens; what its graph is found by has the number of tokens behind the sizes.
GpuExecutor::Key GpuExecutor::prepare(int index, const std::vector<int64_t>& dims, const std::vector<HostArray>& ports,
                                      std::span<const std::byte> records, Content content) {
  if (!sampler_) throw Failure("the artifact has no kernels that choose tokens; compile the model again");
  Variant& variant = find_variant(index, dims);
  if (ports.size() != ports_out_.size()) throw std::invalid_argument("a step needs one array per port");
  enter();
  leave_loop();
  place(ports, variant, false);
  fill_in(ports);
  rows_ = ports[sampler_->logits].second / sampler_->row_bytes;
  draws_ = static_cast<int64_t>(records.size()) / sampler_->record_bytes;
  if (rows_ < 1 || draws_ < 1) throw std::invalid_argument("a step that chooses tokens has rows and records");
  if (draws_ * sampler_->record_bytes > records_.bytes() || rows_ * sampler_->parts * 4 > peaks_.bytes()) {
    graphs_.clear();  // they hold the old addresses
    constexpr int64_t kLeast = 64;
    const int64_t rows = std::max({rows_, draws_, kLeast, 2 * sampled_.bytes() / 4});
    const std::string what = "the choice of tokens";
    records_host_ = HostMemory(context_, rows * sampler_->record_bytes);
    sampled_host_ = HostMemory(context_, rows * 4);
    sampled_ = DeviceMemory(context_, rows * 4, what);
    places_ = DeviceMemory(context_, rows * sampler_->parts * 4, what);
    peaks_ = DeviceMemory(context_, rows * sampler_->parts * 4, what);
    records_ = DeviceMemory(context_, rows * sampler_->record_bytes, what);  // the last: it says that all are there
  }
  std::memcpy(records_host_.data(), records.data(), records.size());
  last_ = {index, Content::launches, dims};
  std::vector<int64_t> sizes = dims;
  sizes.push_back(draws_);
  return {index, content, sizes};
}

/// Puts the choice of tokens in the stream; `early`: it follows a kernel, which it may wait for itself.
void GpuExecutor::choose(int feed, bool early) const {
  const Sampler& by = *sampler_;
  const Kernel &first = *kernels_[static_cast<size_t>(by.peaks)], &second = *kernels_[static_cast<size_t>(by.sample)];
  const auto port = [&](const Block& block, size_t number) {
    return block.device.address() + static_cast<Address>(block.offsets[number]);
  };
  const auto launch = [&](const Kernel& kernel, std::vector<Address> pointers, const Grid& grid, bool numbered,
                          bool dependent) {
    std::vector<void*> parameters;
    for (Address& pointer : pointers) parameters.push_back(&pointer);
    if (numbered) parameters.push_back(const_cast<int*>(&feed));
    for (int i = 0; i < kernel.extra_pointers; ++i) parameters.push_back(const_cast<Address*>(&null_));
    start(context_, stream_.get(), kernel, grid, parameters.data(), dependent);
    if (synchronous_) synchronize();
  };
  const Address logits = port(out_, by.logits), peaks = peaks_.address(), places = places_.address();
  const auto rows = static_cast<unsigned>(rows_), parts = static_cast<unsigned>(by.parts);
  launch(first, {logits, peaks, places}, {rows, parts, 1}, false, by.dependent && early);
  launch(second,
         {logits, peaks, places, records_.address(), port(in_, by.tokens), port(in_, by.positions), sampled_.address()},
         {static_cast<unsigned>(draws_), 1, 1}, true, by.dependent && !synchronous_);
}

/// Waits for what a loop has in the stream and drops it: other work follows.
void GpuExecutor::leave_loop() {
  if (loop_ && loop_->begun != loop_->collected) {
    guarded([&] { return "loop over variant " + names_of(std::get<0>(loop_->key)); }, [&] { synchronize(); });
  }
  loop_.reset();
}

}  // namespace echoc::gpu
