"""CUDA kernels run on the host, every thread a fiber: for tests of what they compute."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echoc.compiler.ir.types import dim_value
from echoc.compiler.targets.cuda.nvrtc import HEADERS
from echoc.compiler.targets.cuda.source import TYPES
from echoc.compiler.targets.gpu.kernel import Kernel

HERE = Path(__file__).parent
ENTRY = """extern "C" void run_{name}(unsigned* g, int threads, unsigned bytes, unsigned seed, void** p, int* s) {{
  echoc::run_grid({{g[0], g[1], g[2]}}, threads, bytes, seed, [&] {{ {call}; }});
}}
"""


class HostMachine:
    """Compiles kernels into `folder` and runs them on numpy arrays. `level` is the compute capability, times ten."""

    def __init__(self, folder: Path, level: int) -> None:
        self.folder, self.level = folder, level
        self.functions: dict[str, Any] = {}
        include = folder / "kernels" / "cuda"
        include.mkdir(parents=True, exist_ok=True)
        for header in (*HEADERS.glob("*.cuh"), HERE / "ptx.cuh"):
            shutil.copy(header, include)

    def compile(self, kernels: Sequence[Kernel]) -> None:
        """Build the kernels, those of one call in one library."""
        fresh = {k.name: k for k in kernels if k.language == "cuda" and k.name not in self.functions}
        if not fresh:
            return
        source = (
            '#include "kernels/cuda/attend.cuh"\n#include "kernels/cuda/gemv.cuh"\n#include "kernels/cuda/math.cuh"\n'
        )
        for kernel in fresh.values():
            casts = [
                f"({'' if a.written else 'const '}{TYPES[a.element]}*)p[{i}]" for i, a in enumerate(kernel.arguments)
            ]
            casts += [f"s[{i}]" for i in range(len(kernel.symbols))]
            lines = "\n".join(line for line in kernel.source.splitlines() if not line.startswith("#include"))
            call = f"host_{kernel.name}::{kernel.name}({', '.join(casts)})"
            source += f"namespace host_{kernel.name} {{\n{lines}\n}}\n" + ENTRY.format(name=kernel.name, call=call)
        key = hashlib.sha256(source.encode())
        for header in (*sorted(HEADERS.glob("*.cuh")), HERE / "ptx.cuh"):
            key.update(header.read_bytes())
        stem = self.folder / f"host_{self.level}_{key.hexdigest()[:16]}"
        library = stem.with_suffix(".so")
        if not library.exists():
            stem.with_suffix(".cpp").write_text(source)
            command = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-w", f"-D__CUDA_ARCH__={self.level * 10}",
                       f"-I{self.folder}", "-o", str(library), str(stem.with_suffix(".cpp"))]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:4000]
        loaded = ctypes.CDLL(str(library))
        for name in fresh:
            self.functions[name] = getattr(loaded, f"run_{name}")

    def run(self, kernel: Kernel, arrays: Sequence[np.ndarray], symbols: Mapping[str, int], seed: int = 0) -> None:
        """Launch a kernel on the arrays of its arguments, in order; they are written in place."""
        grid = [-(-dim_value(size, symbols) // tile) for size, tile in kernel.grid]
        grid += [1] * (3 - len(grid))
        pointers = (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
        for argument, array in zip(kernel.arguments, arrays, strict=True):
            assert array.flags.c_contiguous and array.ctypes.data % 16 == 0, argument
        values = (ctypes.c_int * max(len(kernel.symbols), 1))(*(symbols[n] for n in kernel.symbols))
        self.compile([kernel])
        self.functions[kernel.name](
            (ctypes.c_uint * 3)(*grid),
            kernel.num_warps * 32,
            int(kernel.schedule["shared_bytes"]),
            seed,
            pointers,
            values,
        )
