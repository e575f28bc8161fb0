"""A process that compiles Triton kernels ahead of time: one JSON object a line in, one out.

    python -m echoc.compiler.targets.gpu.worker FOLDER

FOLDER takes the sources and Triton's own files. A request has `name`, `source`, `signature` (argument -> Triton type),
`backend`, `capability`, `warp`, `num_warps`, `num_stages` and `image` (the path that the machine code is written to);
the answer has what a launch must know, or `error`. It is a process of its own because Triton chooses between compiler
and interpreter when it is imported, and because a compiler that dies must not take the caller along.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from echoc.compiler.targets.gpu.code_object import kernels

UNITS = {"cuda": "cubin", "hip": "hsaco"}
SWIZZLES = (0, 32, 64, 128)  # CUtensorMapSwizzle, bytes
MAP_PARAMETERS = 4  # behind a map of a matrix: two sizes (i32), two strides (i64)


def compile_kernel(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compile one kernel and write its machine code; the fields of a `Binary` but the image."""
    import triton
    from triton.backends.compiler import GPUTarget

    path = folder / f"{job['name']}.py"
    path.write_text(job["source"])
    spec = importlib.util.spec_from_file_location(job["name"], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    signature = job["signature"]
    attributes = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = triton.compiler.ASTSource(getattr(module, job["name"]), signature, {}, attributes)
    target = GPUTarget(job["backend"], job["capability"], job["warp"])
    options = {"num_warps": job["num_warps"], "num_stages": job["num_stages"], "enable_fp_fusion": True}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        built = triton.compile(source, target=target, options=options)
    Path(job["image"]).write_bytes(built.asm[UNITS[job["backend"]]])
    facts = _cuda(built, said.getvalue()) if job["backend"] == "cuda" else _hip(built)
    if built.metadata.global_scratch_size:
        raise ValueError(f"needs {built.metadata.global_scratch_size} bytes of global scratch a block; wanted none")
    maps = getattr(built.metadata, "tensordesc_meta", None) or []
    return facts | {
        "entry": built.metadata.name, "shared_bytes": built.metadata.shared,
        "extra_pointers": facts["parameters"] - len(signature) - MAP_PARAMETERS * len(maps),
        "boxes": [[*m["block_size"], SWIZZLES[m["swizzle"]]] for m in maps],
    }  # fmt: skip


def _cuda(built: Any, log: str) -> dict[str, Any]:
    """Threads and parameters from the PTX, registers and spilled bytes from the assembler's report."""
    ptx = built.asm["ptx"]
    entry = re.search(r"\.entry\s+\w+\((.*?)\)\s*(.*?)\{", ptx, re.DOTALL)
    assert entry is not None
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry[2])
    used = re.search(r"Used (\d+) registers", log)
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    assert threads is not None and used is not None
    return {
        "threads": int(threads[1]), "parameters": entry[1].count(".param"), "registers": int(used[1]), "spills": spills,
    }  # fmt: skip


def _hip(built: Any) -> dict[str, Any]:
    """What the code object says: registers (scalar ones apart), spilled registers, the size of a workgroup."""
    (kernel,) = kernels(built.asm["hsaco"]).values()
    own = [a for a in kernel[".args"] if not a[".value_kind"].startswith("hidden_")]
    return {
        "threads": kernel[".max_flat_workgroup_size"], "parameters": len(own), "registers": kernel[".vgpr_count"],
        "spills": kernel[".vgpr_spill_count"] + kernel[".sgpr_spill_count"],
        "scalar_registers": kernel[".sgpr_count"], "wavefront": kernel[".wavefront_size"],
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    os.environ |= {
        "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "triton"), "TRITON_DISABLE_LINE_INFO": "1",
        "TRITON_DUMP_PTXAS_LOG": "1",
    }  # fmt: skip
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            answer = compile_kernel(json.loads(line), folder)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
