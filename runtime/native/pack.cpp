// Python bindings of the weight packer.
#include "kernels/cpu/pack.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <string>

#include "bindings.h"

namespace nb = nanobind;

namespace {

using echoc::packing::Element;
using echoc::packing::Format;
using echoc::packing::Source;
using Matrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using BytesIn = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

Format parse(const std::string& name, int group) {
  const bool floating = name == "f32" || name == "bf16" || name == "bf16c" || name == "f8";
  const bool eight = name == "f8" || name == "i8";
  const Format format{name == "f32"     ? 32
                      : name == "bf16"  ? 16
                      : name == "bf16c" ? 12
                      : eight           ? 8
                      : name == "i4"    ? 4
                                        : 0,
                      group};
  if (!format.valid() || floating != (group == 0))
    refuse("weight format " + name + " with group " + std::to_string(group) +
           "; wanted f32, bf16, bf16c or f8 with group 0, or i8 or i4 with group 32, 64 or 128");
  return format;
}

void check_sizes(int64_t num_sources, int64_t N, int64_t K) {
  if (num_sources < 1 || N < 1 || K < 1)
    refuse("weight of " + std::to_string(num_sources) + " sources of shape [" + std::to_string(N) + ", " +
           std::to_string(K) + "]; wanted at least 1 of each");
}

Element element_of(const Matrix& source) {
  if (source.dtype() == nb::dtype<float>()) return Element::f32;
  if (source.dtype() == nb::dtype<uint16_t>()) return Element::bf16;
  if (source.dtype() == nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1})
    return Element::f16;
  refuse("weight source of an unknown dtype; wanted float32, float16, or bfloat16 viewed as uint16");
}

template <class T, class... Shape>
auto make_array(size_t count, Shape... shape) {
  constexpr std::align_val_t kAlign{64};
  auto* data = static_cast<T*>(::operator new(count * sizeof(T), kAlign));
  nb::capsule owner(data, [](void* p) noexcept { ::operator delete(p, std::align_val_t{64}); });
  return nb::ndarray<nb::numpy, T, nb::ndim<sizeof...(shape)>>(data, {shape...}, owner);
}

struct Job {
  Format format;
  std::vector<Source> sources;
  int64_t N, K;
};

Job read_job(const std::string& fmt, int group, const std::vector<Matrix>& sources, bool transposed) {
  Job job{parse(fmt, group), {}, 0, 0};
  if (sources.empty()) refuse("no weight sources; wanted at least one");
  for (const Matrix& source : sources) {
    const auto N = static_cast<int64_t>(source.shape(transposed ? 1 : 0));
    const auto K = static_cast<int64_t>(source.shape(transposed ? 0 : 1));
    if (!job.sources.empty() && (N != job.N || K != job.K))
      refuse("interleaved weight sources of shapes [" + std::to_string(job.N) + ", " + std::to_string(job.K) +
             "] and [" + std::to_string(N) + ", " + std::to_string(K) + "]; wanted equal shapes");
    job.N = N;
    job.K = K;
    job.sources.push_back({source.data(), element_of(source), transposed});
  }
  check_sizes(static_cast<int64_t>(sources.size()), job.N, job.K);
  return job;
}

int64_t packed_nbytes(const std::string& fmt, int group, int64_t num_sources, int64_t N, int64_t K) {
  const Format format = parse(fmt, group);
  check_sizes(num_sources, N, K);
  return echoc::packing::packed_bytes(format, num_sources, N, K);
}

void check_bytes(size_t found, int64_t wanted) {
  if (static_cast<int64_t>(found) != wanted)
    refuse("packed weight of " + std::to_string(found) + " bytes; wanted " + std::to_string(wanted));
}

void pack_job(const Job& job, std::byte* out, int threads) {
  bool fits = false;
  {
    nb::gil_scoped_release release;
    fits = echoc::packing::pack(job.format, job.sources, job.N, job.K, out, threads);
  }
  if (!fits) refuse("values of too many exponents for bf16c; wanted values that `codable` is true of");
}

void pack_into(const std::string& fmt, int group, const std::vector<Matrix>& sources, bool transposed, BytesOut out,
               int threads) {
  const Job job = read_job(fmt, group, sources, transposed);
  check_bytes(out.size(), echoc::packing::packed_bytes(job.format, job.sources.size(), job.N, job.K));
  pack_job(job, reinterpret_cast<std::byte*>(out.data()), threads);
}

Bytes pack(const std::string& fmt, int group, const std::vector<Matrix>& sources, bool transposed, int threads) {
  const Job job = read_job(fmt, group, sources, transposed);
  const auto bytes = static_cast<size_t>(echoc::packing::packed_bytes(job.format, job.sources.size(), job.N, job.K));
  Bytes out = make_array<uint8_t>(bytes, bytes);
  pack_job(job, reinterpret_cast<std::byte*>(out.data()), threads);
  return out;
}

bool codable(const std::vector<Matrix>& sources, bool transposed, int threads) {
  const Job job = read_job("bf16c", 0, sources, transposed);
  nb::gil_scoped_release release;
  return echoc::packing::codable(job.sources, job.N, job.K, threads);
}

void fill_random_into(const std::string& fmt, int group, int64_t num_sources, int64_t N, int64_t K, uint64_t seed,
                      uint64_t index, float std, BytesOut out, int threads) {
  const Format format = parse(fmt, group);
  check_bytes(out.size(), packed_nbytes(fmt, group, num_sources, N, K));
  nb::gil_scoped_release release;
  echoc::packing::fill_random(format, num_sources, N, K, seed, index, std, reinterpret_cast<std::byte*>(out.data()),
                              threads);
}

Bytes fill_random(const std::string& fmt, int group, int64_t num_sources, int64_t N, int64_t K, uint64_t seed,
                  uint64_t index, float std, int threads) {
  const Format format = parse(fmt, group);
  const auto bytes = static_cast<size_t>(packed_nbytes(fmt, group, num_sources, N, K));
  Bytes out = make_array<uint8_t>(bytes, bytes);
  nb::gil_scoped_release release;
  echoc::packing::fill_random(format, num_sources, N, K, seed, index, std, reinterpret_cast<std::byte*>(out.data()),
                              threads);
  return out;
}

auto unpack(const std::string& fmt, int group, BytesIn packed, int64_t num_sources, int64_t N, int64_t K) {
  const Format format = parse(fmt, group);
  check_bytes(packed.size(), packed_nbytes(fmt, group, num_sources, N, K));
  const auto sources = static_cast<size_t>(num_sources);
  const auto rows = static_cast<size_t>(N);
  const auto columns = static_cast<size_t>(K);
  auto out = make_array<float>(sources * rows * columns, sources, rows, columns);
  nb::gil_scoped_release release;
  echoc::packing::unpack(format, num_sources, N, K, reinterpret_cast<const std::byte*>(packed.data()), out.data());
  return out;
}

int64_t row_nbytes(const std::string& fmt, int group, int64_t K) {
  const Format format = parse(fmt, group);
  return echoc::layout::row_bytes(format.bits, format.group, K);
}

}  // namespace

void echoc::bind_pack(nb::module_& module) {
  using namespace nb::literals;
  module.def("packed_nbytes", &packed_nbytes, "fmt"_a, "group"_a, "num_sources"_a, "N"_a, "K"_a,
             "Bytes of `num_sources` weights [N, K] packed together.");
  module.def("row_nbytes", &row_nbytes, "fmt"_a, "group"_a, "K"_a,
             "Bytes from one prepared activation row to the next.");
  module.def("pack", &pack, "fmt"_a, "group"_a, "sources"_a, "transposed"_a = false, "threads"_a = 1,
             "Packs 2-D sources of equal shape ([N, K], or [K, N] when transposed; float32, float16, or bfloat16 "
             "viewed as uint16) with interleaved panels into a new uint8 array.");
  module.def("pack_into", &pack_into, "fmt"_a, "group"_a, "sources"_a, "transposed"_a, "out"_a.noconvert(),
             "threads"_a = 1, "Like pack, into a given uint8 array of packed_nbytes bytes.");
  module.def("codable", &codable, "sources"_a, "transposed"_a = false, "threads"_a = 1,
             "Whether the format bf16c holds the values of sources, as pack takes them, exactly as bf16 does.");
  module.def("fill_random", &fill_random, "fmt"_a, "group"_a, "num_sources"_a, "N"_a, "K"_a, "seed"_a, "index"_a,
             "std"_a, "threads"_a = 1,
             "Random packed weights, nearly normal. An element depends on (seed, index, source, n, k) alone and every "
             "format rounds the same values.");
  module.def("fill_random_into", &fill_random_into, "fmt"_a, "group"_a, "num_sources"_a, "N"_a, "K"_a, "seed"_a,
             "index"_a, "std"_a, "out"_a.noconvert(), "threads"_a = 1,
             "Like fill_random, into a given uint8 array of packed_nbytes bytes.");
  module.def("unpack", &unpack, "fmt"_a, "group"_a, "packed"_a, "num_sources"_a, "N"_a, "K"_a,
             "The values of packed weights as f32 [num_sources, N, K].");
}
