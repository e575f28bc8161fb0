#include <algorithm>
#include <tuple>

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "kernels/cpu/population_pages.h"
#include "runtime/native/bindings.h"
#include "runtime/native/population.h"
#include "runtime/native/turn.h"

namespace nb = nanobind;

namespace echoc {
namespace {

using population::Cells;
using population::Instance;
using population::Population;
using population::Task;

template <class T>
using Array = nb::ndarray<nb::numpy, T, nb::c_contig>;
template <class T>
using Input = nb::ndarray<nb::ro, const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
std::span<const T> span_of(const Input<T>& array) {
  return {array.data(), array.size()};
}

template <class T>
Array<T> copied(const T* data, size_t count) {
  T* owned = new T[std::max<size_t>(count, 1)];
  std::copy_n(data, count, owned);
  nb::capsule owner(owned, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Array<T>(owned, {count}, owner);
}

/// Statuses and steps taken, one per instance.
std::pair<std::vector<int32_t>, std::vector<int64_t>> advance(Population& all, const std::vector<int64_t>& instances,
                                                              const std::vector<int64_t>& steps, bool record,
                                                              double seconds) {
  if (instances.size() != steps.size()) throw std::invalid_argument("as many numbers of steps as instances are wanted");
  std::vector<Task> tasks;
  for (size_t i = 0; i < instances.size(); ++i) tasks.push_back({instances[i], steps[i], 0, population::kDone});
  {
    nb::gil_scoped_release release;
    all.advance(tasks, record, seconds);
  }
  std::pair<std::vector<int32_t>, std::vector<int64_t>> out;
  for (const Task& task : tasks) {
    out.first.push_back(task.status);
    out.second.push_back(task.done);
  }
  return out;
}

/// Status, steps taken, steps since the start, whether it has halted.
std::tuple<int, int64_t, int64_t, bool> advance_one(Population& all, int64_t instance, int64_t steps, bool record,
                                                    double seconds) {
  Task task{instance, steps, 0, population::kDone};
  {
    nb::gil_scoped_release release;
    all.advance({&task, 1}, record, seconds);
  }
  const Instance& found = std::as_const(all).find(instance);
  return {task.status, task.done, found.step, found.halted};
}

/// Offsets per row, objects in ascending order, counts.
std::tuple<Array<int64_t>, Array<uint32_t>, Array<int64_t>> contents(const Population& all, int64_t instance) {
  const Cells& c = all.find(instance).now.cells;
  std::vector<int64_t> offsets{0};
  std::vector<std::pair<uint32_t, int64_t>> entries;
  for (uint32_t row = 0; row < c.count; ++row) {
    const auto begin = static_cast<std::ptrdiff_t>(entries.size());
    population::each_entry(all.pool(), c.content[row],
                           [&](uint32_t object, int64_t count) { entries.emplace_back(object, count); });
    std::sort(entries.begin() + begin, entries.end());
    offsets.push_back(static_cast<int64_t>(entries.size()));
  }
  std::vector<uint32_t> objects;
  std::vector<int64_t> counts;
  for (const auto& [object, count] : entries) {
    objects.push_back(object);
    counts.push_back(count);
  }
  return {copied(offsets.data(), offsets.size()), copied(objects.data(), objects.size()),
          copied(counts.data(), counts.size())};
}

/// Membranes and objects per label: counts [labels], sums [labels, objects] (saturating).
std::pair<Array<int64_t>, Array<int64_t>> totals(const Population& all, int64_t instance, int64_t num_labels) {
  const Cells& c = all.find(instance).now.cells;
  std::vector<int64_t> membranes(static_cast<size_t>(num_labels));
  std::vector<int64_t> sums(static_cast<size_t>(num_labels * all.num_objects()));
  for (uint32_t row = 0; row < c.count; ++row) {
    ++membranes.at(c.label[row]);
    population::each_entry(all.pool(), c.content[row], [&](uint32_t object, int64_t count) {
      int64_t& sum = sums[static_cast<size_t>(c.label[row] * all.num_objects() + object)];
      if (__builtin_add_overflow(sum, count, &sum)) sum = INT64_MAX;
    });
  }
  return {copied(membranes.data(), membranes.size()), copied(sums.data(), sums.size())};
}

nb::dict cells(const Population& all, int64_t instance) {
  const Cells& c = all.find(instance).now.cells;
  nb::dict out;
  out["label"] = copied(c.label, c.count);
  out["charge"] = copied(c.charge, c.count);
  out["parent"] = copied(c.parent, c.count);
  out["id"] = copied(c.id, c.count);
  out["closed"] = copied(c.closed, c.count);
  return out;
}

/// (rule, times, ids of the membranes it bound) of the last recorded step, in the order of rules and ids.
std::vector<std::tuple<int32_t, int64_t, std::vector<int64_t>>> applications(const Instance& instance) {
  std::vector<std::tuple<int32_t, int64_t, std::vector<int64_t>>> out;
  const std::vector<int64_t>& list = instance.applications;
  for (auto at = list.begin(); at != list.end(); at += 3 + at[2]) {
    out.emplace_back(static_cast<int32_t>(at[0]), at[1], std::vector<int64_t>(at + 3, at + 3 + at[2]));
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return std::tie(std::get<0>(a), std::get<2>(a)) < std::tie(std::get<0>(b), std::get<2>(b));
  });
  return out;
}

nb::dict standing(const Population& all, int64_t index) {
  const Instance& instance = all.find(index);
  nb::dict out;
  out["steps"] = instance.step;
  out["halted"] = instance.halted;
  out["seed"] = instance.seed;
  out["number"] = instance.number;
  out["membranes"] = instance.now.cells.count;
  out["forks"] = instance.forks;
  out["releases"] = instance.releases;
  out["pages"] = instance.means->pages.limit - instance.means->pages.left;
  out["peak_bytes"] = Population::bytes(instance.most_pages, instance.most_rows);
  return out;
}

std::unique_ptr<Population> on_host(const std::string& library, const std::string& entry, int threads, int64_t objects,
                                    int64_t groups, int64_t rules, int64_t max_bytes, int64_t instances) {
  return std::make_unique<Population>(library, entry, threads,
                                      population::Sizes{objects, groups, rules, max_bytes, instances});
}

std::unique_ptr<Population> on_device(std::shared_ptr<gpu::Driver> driver, int index, const nb::bytes& image,
                                      const std::string& entry, int threads, int64_t objects, int64_t groups,
                                      int64_t rules, int64_t max_bytes, int64_t instances) {
  const std::span bytes(reinterpret_cast<const std::byte*>(image.c_str()), image.size());
  auto device = std::make_unique<population::DeviceKernel>(std::move(driver), index, bytes, entry, threads);
  return std::make_unique<Population>(std::move(device),
                                      population::Sizes{objects, groups, rules, max_bytes, instances});
}

/// A method of the population that no second thread may call meanwhile.
template <class Result, class... Arguments>
auto in_turn(Result (*function)(Population&, Arguments...)) {
  return [function](Population& all, Arguments... arguments) {
    const Turn turn(all.busy());
    return function(all, std::forward<Arguments>(arguments)...);
  };
}

}  // namespace

void bind_population(nb::module_& m) {
  nb::class_<Population>(m, "Population", "Runs of a compiled P system, their membranes in pages of one pool.")
      .def(nb::new_(&on_host), nb::arg("library"), nb::arg("entry"), nb::arg("num_threads"), nb::arg("num_objects"),
           nb::arg("num_groups"), nb::arg("num_rules"), nb::arg("max_bytes"), nb::arg("num_instances"))
      .def_static("on_device", &on_device, nb::arg("driver"), nb::arg("device_index"), nb::arg("image"),
                  nb::arg("entry"), nb::arg("threads"), nb::arg("num_objects"), nb::arg("num_groups"),
                  nb::arg("num_rules"), nb::arg("max_bytes"), nb::arg("num_instances"), "On a GPU.")
      .def(
          "load",
          [](Population& all, const Input<uint16_t>& labels, const Input<int8_t>& charges,
             const Input<int32_t>& parents, const Input<int64_t>& offsets, const Input<uint32_t>& objects,
             const Input<int64_t>& counts, const Input<int64_t>& environment, const Input<int32_t>& links) {
            return static_cast<int>(
                all.load({span_of(labels), span_of(charges), span_of(parents), span_of(offsets), span_of(objects),
                          span_of(counts), span_of(environment), span_of(links)}));
          },
          nb::arg("labels"), nb::arg("charges"), nb::arg("parents"), nb::arg("offsets"), nb::arg("objects"),
          nb::arg("counts"), nb::arg("environment"), nb::arg("links"))
      .def("create", in_turn(+[](Population& all, int64_t instance, uint64_t seed, uint64_t number) {
             return static_cast<int>(all.create(instance, seed, number));
           }),
           nb::arg("instance"), nb::arg("seed"), nb::arg("number"))
      .def("fork", in_turn(+[](Population& all, int64_t instance) { return all.fork(instance); }), nb::arg("instance"))
      .def("append",
           in_turn(+[](Population& all, int64_t instance, int64_t id, const std::vector<uint32_t>& objects,
                       const std::vector<int64_t>& counts) {
             return static_cast<int>(all.append(instance, id, objects, counts));
           }),
           nb::arg("instance"), nb::arg("id"), nb::arg("objects"), nb::arg("counts"))
      .def("release", in_turn(+[](Population& all, int64_t instance) { all.release(instance); }), nb::arg("instance"))
      .def("advance", in_turn(&advance), nb::arg("instances"), nb::arg("steps"), nb::arg("record"), nb::arg("seconds"))
      .def("advance_one", in_turn(&advance_one), nb::arg("instance"), nb::arg("steps"), nb::arg("record"),
           nb::arg("seconds"))
      .def("take", in_turn(+[](Population& all, int64_t instance, const std::vector<uint32_t>& objects) {
             return all.take(instance, objects);
           }),
           nb::arg("instance"), nb::arg("objects"))
      .def("applications", in_turn(+[](Population& all, int64_t instance) { return applications(all.find(instance)); }),
           nb::arg("instance"))
      .def("cells", in_turn(+[](Population& all, int64_t instance) { return cells(all, instance); }),
           nb::arg("instance"))
      .def("contents", in_turn(+[](Population& all, int64_t instance) { return contents(all, instance); }),
           nb::arg("instance"))
      .def("totals",
           in_turn(+[](Population& all, int64_t instance, int64_t labels) { return totals(all, instance, labels); }),
           nb::arg("instance"), nb::arg("num_labels"))
      .def("environment", in_turn(+[](Population& all, int64_t instance) {
             const population::Counts& counts = std::as_const(all).find(instance).environment;
             return copied(counts.data(), counts.size());
           }),
           nb::arg("instance"))
      .def("links", in_turn(+[](Population& all, int64_t instance) {
             static_assert(sizeof(population::Link) == 2 * sizeof(int32_t));
             const auto& list = std::as_const(all).find(instance).links.links;
             return copied(reinterpret_cast<const int32_t*>(list.data), static_cast<size_t>(list.size) * 2);
           }),
           nb::arg("instance"))
      .def("failure", in_turn(+[](Population& all, int64_t instance) {
             const Instance& found = std::as_const(all).find(instance);
             return std::pair(found.failed_id, found.failed_object);
           }),
           nb::arg("instance"))
      .def("standing", in_turn(+[](Population& all, int64_t instance) { return standing(all, instance); }),
           nb::arg("instance"))
      .def_prop_ro("pages_held", &Population::pages_held)
      .def_prop_ro("peak_bytes", &Population::peak_bytes);
}

}  // namespace echoc
