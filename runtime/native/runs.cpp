// Many independent runs of a system whose membranes stay, over threads.
#include "kernels/cpu/runs.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "runtime/native/bindings.h"
#include "runtime/native/library.h"

namespace nb = nanobind;

namespace echoc {
namespace {

using Kernel = void (*)(runs::Run*);

template <class T, int dimensions>
using Array = nb::ndarray<T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};

/// A kernel of a shared library, which is closed with the object.
class RunKernel {
 public:
  RunKernel(const std::string& path, const std::string& entry, int64_t places, int64_t cells, int64_t instances,
            int64_t scratch_bytes)
      : library_(path),
        places_(places),
        cells_(cells),
        instances_(instances),
        scratch_bytes_((scratch_bytes + 127) / 64 * 64) {
    if (places < 0 || cells < 1 || instances < 0 || scratch_bytes < 0) {
      throw std::invalid_argument("sizes of a run must not be negative");
    }
    kernel_ = reinterpret_cast<Kernel>(library_.find(entry));
    library_.check_abi(entry, runs::kAbi);
  }
  RunKernel(const RunKernel&) = delete;
  RunKernel& operator=(const RunKernel&) = delete;

  /// Advances every row of the arrays as one run. See runtime/runs.py.
  void advance(Array<int64_t, 2> counts, Array<int8_t, 2> charges, Array<double, 1> time, Array<int64_t, 1> step,
               Array<uint64_t, 1> index, uint64_t seed, int64_t steps, double until, Array<const int32_t, 1> recorded,
               int64_t every, std::optional<Array<const double, 1>> times, Array<int64_t, 3> records,
               Array<int64_t, 1> records_done, std::optional<Array<int64_t, 2>> applications, Array<int32_t, 1> halted,
               Array<int32_t, 1> error, Array<int64_t, 1> where, int num_threads) const {
    const size_t rows = counts.shape(0);
    const auto is_rows = [&](size_t n, const char* name) {
      if (n != rows) throw std::invalid_argument(std::string(name) + " must have one row per run");
    };
    is_rows(charges.shape(0), "charges");
    is_rows(time.shape(0), "time");
    is_rows(step.shape(0), "step");
    is_rows(index.shape(0), "index");
    is_rows(records.shape(0), "records");
    is_rows(records_done.shape(0), "records_done");
    is_rows(halted.shape(0), "halted");
    is_rows(error.shape(0), "error");
    is_rows(where.shape(0), "where");
    if (applications) is_rows(applications->shape(0), "applications");
    const bool fits = counts.shape(1) == static_cast<size_t>(places_) &&
                      charges.shape(1) == static_cast<size_t>(cells_) && records.shape(2) == recorded.shape(0) &&
                      (!applications || applications->shape(1) == static_cast<size_t>(instances_)) &&
                      (!times || times->shape(0) == records.shape(1));
    if (!fits) throw std::invalid_argument("an array of a run does not have the size that its kernel wants");
    for (size_t i = 0; i < recorded.shape(0); ++i) {
      if (recorded.data()[i] < 0 || recorded.data()[i] >= places_) {
        throw std::out_of_range("a recorded place is outside the counts");
      }
    }
    nb::gil_scoped_release release;
    const auto one = [&](size_t i, std::byte* scratch) {
      runs::Run run{};
      run.counts = counts.data() + i * counts.shape(1);
      run.charges = charges.data() + i * charges.shape(1);
      run.time = time.data()[i];
      run.seed = seed;
      run.index = index.data()[i];
      run.step = step.data()[i];
      run.steps = steps;
      run.until = until;
      run.recorded = recorded.data();
      run.num_recorded = static_cast<int64_t>(recorded.shape(0));
      run.every = every;
      run.times = times ? times->data() : nullptr;
      run.num_records = static_cast<int64_t>(records.shape(1));
      run.records = records.data() + i * records.shape(1) * records.shape(2);
      run.records_done = records_done.data()[i];
      run.applications = applications ? applications->data() + i * applications->shape(1) : nullptr;
      run.scratch = scratch;
      kernel_(&run);
      time.data()[i] = run.time;
      step.data()[i] = run.step;
      records_done.data()[i] = run.records_done;
      halted.data()[i] = run.halted;
      error.data()[i] = static_cast<int32_t>(run.error);
      where.data()[i] = run.where;
    };
    spread(rows, num_threads, one);
  }

 private:
  /// Calls work(row, scratch) for every row, rows dealt out one by one over at most `num_threads` threads.
  template <class Work>
  void spread(size_t rows, int num_threads, const Work& work) const {
    const size_t team = std::max<size_t>(1, std::min<size_t>(rows, static_cast<size_t>(std::max(1, num_threads))));
    std::vector<std::unique_ptr<std::byte, Free>> scratch(team);
    for (auto& memory : scratch) {
      memory.reset(static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>(scratch_bytes_))));
      if (!memory) throw std::bad_alloc();
    }
    std::atomic<size_t> next{0};
    const auto serve = [&](size_t member) {
      for (size_t row = next++; row < rows; row = next++) work(row, scratch[member].get());
    };
    std::vector<std::thread> helpers;
    try {
      for (size_t member = 1; member < team; ++member) helpers.emplace_back(serve, member);
    } catch (const std::system_error&) {
      // the system gives no more threads: those that there are do all the rows
    }
    serve(0);
    for (auto& helper : helpers) helper.join();
  }

  Library library_;
  int64_t places_, cells_, instances_, scratch_bytes_;
  Kernel kernel_ = nullptr;
};

}  // namespace

void bind_runs(nb::module_& m) {
  nb::class_<RunKernel>(m, "RunKernel", "A compiled system whose membranes stay.")
      .def(nb::init<const std::string&, const std::string&, int64_t, int64_t, int64_t, int64_t>(), nb::arg("path"),
           nb::arg("entry"), nb::arg("places"), nb::arg("cells"), nb::arg("instances"), nb::arg("scratch_bytes"))
      .def("advance", &RunKernel::advance, nb::kw_only(), nb::arg("counts"), nb::arg("charges"), nb::arg("time"),
           nb::arg("step"), nb::arg("index"), nb::arg("seed"), nb::arg("steps"), nb::arg("until"), nb::arg("recorded"),
           nb::arg("every"), nb::arg("times").none(), nb::arg("records"), nb::arg("records_done"),
           nb::arg("applications").none(), nb::arg("halted"), nb::arg("error"), nb::arg("where"),
           nb::arg("num_threads"));
}

}  // namespace echoc
