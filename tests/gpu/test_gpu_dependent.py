"""The order of memory accesses around programmatic dependent launch, read from the PTX of compiled kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from device import port, program_of
from launches import Launches

from echoc.compiler.ir import make, symbol
from echoc.compiler.targets.gpu.build import triton_type
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.render import Device

COMPILE = """
import importlib.util, json, sys
import triton
from triton.backends.compiler import GPUTarget
job = json.load(sys.stdin)
spec = importlib.util.spec_from_file_location(job["name"], job["path"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
attributes = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(job["signature"].values()) if t[0] == "*"}
source = triton.compiler.ASTSource(getattr(module, job["name"]), job["signature"], {}, attributes)
options = {"num_warps": job["num_warps"], "num_stages": job["num_stages"]}
built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
print(json.dumps(built.asm["ptx"]))
"""
READ = re.compile(r"ld\.global|cp\.async\.c|st\.global|cp\.async\.bulk\.prefetch")


def ptx(kernel: Kernel, folder: Any) -> str:
    path = folder / f"{kernel.name}.py"
    path.write_text(kernel.source)
    signature = {a.name: triton_type(a) for a in kernel.arguments}
    signature |= {f"size{i}": "i32" for i in range(len(kernel.symbols))}
    job = {
        "name": kernel.name, "path": str(path), "signature": signature, "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
    }  # fmt: skip
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], input=json.dumps(job), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text: str = json.loads(done.stdout)
    return text


@pytest.mark.parametrize("form", [1, 64])
def test_weights_are_asked_for_before_the_wait_and_all_else_after_it(form: int, tmp_path: Any) -> None:
    t = symbol("T")
    w = make("weight", name="w", shape=(2048, 2048), dtype="f32")
    out = make("add", make("contract", port("x", t, 2048), w, spec="Tk,nk->Tn"), port("r", t, 2048))
    launches = Launches(program_of({"y": out}, {"T": (1, 64)}), form, "bf16", device=Device("cuda", dependent=True))
    kernel = launches.kernels[0]
    assert kernel.dependent
    text = ptx(kernel, tmp_path)
    launch, wait = text.index("griddepcontrol.launch_dependents"), text.index("griddepcontrol.wait")
    early = [m[0] for m in READ.finditer(text[:wait])]
    assert not READ.search(text[:launch])
    weights = "ld.global" if form == 1 else "cp.async.bulk.prefetch"
    assert early and set(early) == {weights}
    assert READ.search(text[wait:])
    if form == 1:  # 8 columns of 1024 values by 128 threads, 16 bytes a load
        assert len(early) == 8


def test_a_large_product_is_copied_in_boxes_and_multiplied_by_groups_of_warps(tmp_path: Any) -> None:
    t = symbol("T")
    first, second = (make("weight", name=f"w{i}", shape=(1024, 1024), dtype="f32") for i in range(2))
    x = make("contract", port("x", t, 1024), first, spec="Tk,nk->Tn")
    out = make("contract", x, second, spec="Tk,nk->Tn")
    device = Device("cuda", dependent=True, tensor_maps=True)
    launches = Launches(program_of({"y": out}, {"T": (1, 8192)}), None, "bf16", device=device)
    text = ptx(launches.kernels[1], tmp_path)
    assert "cp.async.bulk.tensor.2d" in text and "wgmma.mma_async" in text
    assert "cp.async.cg" not in text
    assert text.index("griddepcontrol.wait") < text.index("cp.async.bulk.tensor.2d")
