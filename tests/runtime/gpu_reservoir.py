"""Kernels of reservoirs for GPUs, built for the host: every thread of a block is one of the host's."""

import subprocess
from pathlib import Path

from echoc.compiler.targets.cpu.build import KERNELS
from echoc.compiler.targets.gpu.reservoir import ReservoirSource

HERE = Path(__file__).parent


def host_library(kernel: ReservoirSource, pointers: int, numbers: int, folder: Path) -> bytes:
    """A shared object whose function of the kernel's name is one that the tests' driver launches."""
    places = [f"*static_cast<{'std::byte' if i < 2 else 'T'}**>(p[{i}])" for i in range(2 + pointers)]
    places += [f"*static_cast<int32_t*>(p[{2 + pointers + i}])" for i in range(numbers)]
    sizes = ", ".join(["8"] * (2 + pointers) + ["4"] * numbers + ["0"])
    blocks = kernel.shape.blocks * kernel.shape.teams
    source = f"""
#include "gpu_host.h"
#include <cstddef>
namespace echoc {{
namespace device {{
inline void wait_a_little() {{ std::this_thread::yield(); }}
}}
namespace reservoir {{
static std::vector<std::max_align_t> memory[{blocks}];
inline std::byte* shared_memory() {{ return reinterpret_cast<std::byte*>(memory[device::block()].data()); }}
}}
}}
#define {kernel.name} kernel
{kernel.source}
#undef {kernel.name}
extern "C" const int {kernel.name}_sizes[] = {{{sizes}}};
extern "C" int {kernel.name}(void** p, const unsigned* grid, unsigned threads) {{
  if (threads != {kernel.shape.threads} || grid[0] != {blocks}) return 719;
  for (auto& each : echoc::reservoir::memory) each.resize({kernel.shared_bytes} / sizeof(std::max_align_t) + 1);
  return echoc::device::run_grid(grid[0], threads, [&] {{ kernel({", ".join(places)}); }});
}}
"""
    path = folder / f"{kernel.name}.cpp"
    path.write_text(source)
    library = path.with_suffix(".so")
    flags = ["-std=c++20", "-O1", "-mfma", "-pthread", "-shared", "-fPIC", f"-I{KERNELS.parent}", f"-I{HERE}"]
    subprocess.run(["g++", *flags, "-iquote", str(KERNELS / "cpu"), str(path), "-o", str(library)], check=True)
    return library.read_bytes()
