// The parts of echoc._native: every source file of this folder binds its own classes and functions.
#pragma once

#include <nanobind/nanobind.h>

namespace echoc {

void bind_team(nanobind::module_& m);
void bind_executor(nanobind::module_& m);
void bind_pager(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);
void bind_checksum(nanobind::module_& m);
void bind_pack(nanobind::module_& m);
void bind_runs(nanobind::module_& m);
void bind_population(nanobind::module_& m);
void bind_gpu(nanobind::module_& m);
void bind_placement(nanobind::module_& m);

}  // namespace echoc
