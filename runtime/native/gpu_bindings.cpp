// GpuDriver and GpuExecutor in Python. Everything that waits for the device does so without the GIL.
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "runtime/native/bindings.h"
#include "runtime/native/gpu_executor.h"

namespace nb = nanobind;

namespace echoc {
namespace {

using namespace gpu;
using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Writable = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Waits = nb::call_guard<nb::gil_scoped_release>;

std::span<const std::byte> span(const Bytes& data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

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

nb::list devices(const Driver& driver) {
  nb::list out;
  for (int i = 0; i < driver.num_devices(); ++i) out.append(describe(driver.info(i)));
  return out;
}

void upload_weight(GpuExecutor& self, int weight, const Bytes& data) {
  const nb::gil_scoped_release release;
  self.upload_weight(weight, span(data));
}

void write_state(GpuExecutor& self, int state, const Bytes& data) {
  const nb::gil_scoped_release release;
  self.write_state(state, span(data));
}

nb::bytes read(GpuExecutor& self, const std::string& kind, int64_t index, int64_t offset, int64_t nbytes) {
  const std::string found = [&] {
    const nb::gil_scoped_release release;
    return self.read(kind, index, offset, nbytes);
  }();
  return nb::bytes(found.data(), found.size());
}

void read_into(GpuExecutor& self, const std::string& kind, int64_t index, int64_t offset, const Writable& out) {
  const nb::gil_scoped_release release;
  self.read_into(kind, index, offset, {reinterpret_cast<std::byte*>(out.data()), out.size()});
}

std::vector<HostArray> host_arrays(const std::vector<Array>& ports) {
  std::vector<HostArray> arrays;
  for (const Array& port : ports) {
    arrays.emplace_back(const_cast<void*>(port.data()), static_cast<int64_t>(port.nbytes()));
  }
  return arrays;
}

void step(GpuExecutor& self, int variant, const std::vector<int64_t>& dims, const std::vector<Array>& ports) {
  const std::vector<HostArray> arrays = host_arrays(ports);
  const nb::gil_scoped_release release;
  self.step(variant, dims, arrays);
}

std::vector<int32_t> draw(GpuExecutor& self, int variant, const std::vector<int64_t>& dims,
                          const std::vector<Array>& ports, const Bytes& records) {
  const std::vector<HostArray> arrays = host_arrays(ports);
  const nb::gil_scoped_release release;
  return self.draw(variant, dims, arrays, span(records));
}

void begin_loop(GpuExecutor& self, int variant, const std::vector<int64_t>& dims, const std::vector<Array>& ports,
                const Bytes& records) {
  const std::vector<HostArray> arrays = host_arrays(ports);
  const nb::gil_scoped_release release;
  self.begin_loop(variant, dims, arrays, span(records));
}

void advance_loop(GpuExecutor& self, const Bytes& table) {
  const nb::gil_scoped_release release;
  self.advance_loop(span(table));
}

void set_sampler(GpuExecutor& self, int peaks, int sample, int64_t parts, int64_t row_bytes, int64_t record_bytes,
                 bool dependent, const std::array<size_t, 4>& ports) {
  self.set_sampler({peaks, sample, parts, row_bytes, record_bytes, dependent, ports[0], ports[1], ports[2], ports[3]});
}

std::vector<std::tuple<int64_t, int64_t, int64_t, std::vector<int64_t>, int64_t>> counters(const GpuExecutor& self) {
  std::vector<std::tuple<int64_t, int64_t, int64_t, std::vector<int64_t>, int64_t>> out;
  for (const Counters& c : self.counters()) {
    out.emplace_back(c.steps, c.step_ns, c.profiled_steps, c.launch_ns, c.graph_steps);
  }
  return out;
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Failure& failure) {
    const char* kind = failure.out_of_memory() ? "DeviceMemoryError" : "DeviceError";
    PyErr_SetString(nb::module_::import_("echoc.errors").attr(kind).ptr(), failure.what());
  }
}

}  // namespace

void bind_gpu(nb::module_& m) {
  nb::register_exception_translator(translate);
  nb::class_<Driver>(m, "GpuDriver", "The driver of a vendor's GPUs, loaded when this is made.")
      .def(nb::new_(&open_driver), nb::arg("vendor"), nb::arg("library") = "")
      .def_prop_ro("version", &Driver::version, "As the driver counts: 12040 is CUDA 12.4.")
      .def("devices", &devices, "Each device: name, architecture, sizes in bytes.");
  nb::class_<GpuExecutor>(m, "GpuExecutor", "Kernels, memory and launch lists on one GPU.")
      .def(nb::init<std::shared_ptr<Driver>, int, bool>(), nb::arg("driver"), nb::arg("device_index"),
           nb::arg("synchronous") = false)
      .def("bind", &GpuExecutor::bind, nb::arg("arena_bytes"), nb::arg("weights"), nb::arg("states"),
           nb::arg("ports_out"), Waits())
      .def(
          "add_module",
          [](GpuExecutor& self, const Bytes& image, const std::string& name) {
            return self.add_module(span(image), name);
          },
          nb::arg("image"), nb::arg("name"))
      .def("add_kernel", &GpuExecutor::add_kernel, nb::arg("module"), nb::arg("name"), nb::arg("entry"),
           nb::arg("threads"), nb::arg("shared_bytes"), nb::arg("extra_pointers"), nb::arg("together") = false)
      .def("add_variant", &GpuExecutor::add_variant, nb::arg("launches"), nb::arg("num_symbols"),
           nb::arg("token_symbol"))
      .def("upload_weight", &upload_weight, nb::arg("weight"), nb::arg("data"))
      .def("end_uploads", &GpuExecutor::end_uploads)
      .def("launch", &GpuExecutor::launch, nb::arg("kernel"), nb::arg("arguments"), nb::arg("grid"), Waits())
      .def("step", &step, nb::arg("variant"), nb::arg("dims"), nb::arg("ports"))
      .def("set_sampler", &set_sampler, nb::arg("peaks"), nb::arg("sample"), nb::arg("parts"), nb::arg("row_bytes"),
           nb::arg("record_bytes"), nb::arg("dependent"), nb::arg("ports"))
      .def("draw", &draw, nb::arg("variant"), nb::arg("dims"), nb::arg("ports"), nb::arg("records"))
      .def("begin_loop", &begin_loop, nb::arg("variant"), nb::arg("dims"), nb::arg("ports"), nb::arg("records"))
      .def("advance_loop", &advance_loop, nb::arg("table"))
      .def("collect", &GpuExecutor::collect, Waits())
      .def("run_loop", &GpuExecutor::run_loop, nb::arg("variant"), nb::arg("dims"), nb::arg("count"), Waits())
      .def("copy_pages", &GpuExecutor::copy_pages, nb::arg("pairs"), Waits())
      .def("wait", &GpuExecutor::wait, Waits())
      .def("write_state", &write_state, nb::arg("state"), nb::arg("data"))
      .def("read", &read, nb::arg("kind"), nb::arg("index"), nb::arg("offset"), nb::arg("nbytes"))
      .def("read_into", &read_into, nb::arg("kind"), nb::arg("index"), nb::arg("offset"), nb::arg("out"))
      .def("address", &GpuExecutor::address, nb::arg("kind"), nb::arg("index"))
      .def("time_copies", &GpuExecutor::time_copies, nb::arg("nbytes"), nb::arg("count"), Waits())
      .def("counters", &counters)
      .def("set_profiling", &GpuExecutor::set_profiling, nb::arg("on"))
      .def_prop_ro("device", [](const GpuExecutor& self) { return describe(self.info()); })
      .def_prop_ro("num_graphs", &GpuExecutor::num_graphs)
      .def_prop_ro("memory", &GpuExecutor::memory, "Free and total bytes of the device.");
}

}  // namespace echoc
