"""Runs' kernels for GPUs, compiled for this machine in the form that the tests' driver takes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from gpu_fake import as_image

from echoc.compiler.targets.cpu.build import KERNELS, find_compiler

BEFORE = """
#define ECHOC_DEVICE 1
#define ECHOC_SINGLE_NUMBERS 1
#define ECHOC_KERNEL(threads) static
#include <cstdint>
namespace echoc::device {
inline uint32_t here[2];
inline uint32_t block() { return here[0]; }
inline uint32_t thread() { return here[1]; }
}
"""
AFTER = """
extern "C" const int %s_sizes[] = {8, 8, 0};
extern "C" int %s(void** p, const unsigned* grid, unsigned threads) {
  for (unsigned b = 0; b < grid[0]; ++b)
    for (unsigned t = 0; t < threads; ++t) {
      echoc::device::here[0] = b;
      echoc::device::here[1] = t;
      %s(*static_cast<const echoc::runs::Batch**>(p[0]), *static_cast<int64_t*>(p[1]));
    }
  return 0;
}
"""


def host_image(sources: Sequence[str], names: Sequence[str], vendor: str, folder: Path) -> bytes:
    """An image of the vendor's machine with the kernels of several sources."""
    text = BEFORE + "\n".join(sources) + "".join(AFTER % (name, name, name) for name in names)
    (folder / "kernels.cpp").write_text(text)
    flags = ["-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", f"-I{KERNELS.parent}"]
    command = [*find_compiler().command, *flags, "-iquote", str(KERNELS / "cpu"), "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, cwd=folder, check=True)
    return as_image((folder / "kernels.so").read_bytes(), vendor)
