"""What NVRTC makes of generated CUDA: no spills on any architecture, and weights asked for before any wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from echoc.compiler.ir import Node, make, symbol
from echoc.compiler.passes.fuse import Fuser
from echoc.compiler.passes.pack import plan_packing
from echoc.compiler.targets.cuda import nvrtc
from echoc.compiler.targets.cuda.fusion import Chain
from echoc.compiler.targets.cuda.source import DEVICES
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.errors import CompileError

from device import port, program_of  # isort: skip

T = symbol("T")


def weight(name: str, *shape: int) -> Node:
    return make("weight", name=name, shape=shape, dtype="f32")


def gated(n: int, k: int, rows: int, weights_dtype: str, architecture: str) -> list[Kernel]:
    """The launches of a norm and two sister products whose gate bends the other."""
    x = port("x", T, k)
    mean = make("div", make("sum", make("mul", x, x), axes=(1,)), make("const", dtype="f32", value=float(k)))
    normed = make("mul", make("mul", x, make("reshape", make("rsqrt", mean), shape=(T, 1))), weight("gain", k))
    gate, up = (make("contract", normed, weight(name, n, k), spec="Tk,nk->Tn") for name in ("gate", "up"))
    program = program_of({"y": make("mul", make("mul", gate, make("sigmoid", gate)), up)}, {"T": (1, 16)})
    fuser = Fuser(program.skin.rules[0])
    groups = fuser.groups()
    boundary = frozenset(n for _, n in program.skin.rules[0].outputs)
    chain = Chain(groups, plan_packing(fuser, groups, weights_dtype, 32), boundary, ["T"], rows, DEVICES[architecture])
    return chain.kernels


CASES = [(8192, 2048, 1, "bf16"), (14336, 4096, 4, "bf16"), (9728, 2560, 1, "int8"), (2816, 1024, 2, "int4")]
CASES += [(8192, 2048, 2, "fp8"), (14336, 4096, 1, "int8")]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("n", "k", "rows", "weights_dtype"), CASES)
def test_kernels_keep_to_their_registers(n: int, k: int, rows: int, weights_dtype: str, architecture: str) -> None:
    (kernel,) = gated(n, k, rows, weights_dtype, architecture)
    built = nvrtc.build(kernel.source, kernel.name, architecture)
    assert built.spills == 0 and 0 < built.registers <= 168
    assert built.image[:4] == b"\x7fELF"
    assert int(kernel.schedule["shared_bytes"]) <= DEVICES[architecture].shared_bytes


def test_weights_are_asked_for_before_the_launches_before_are_done() -> None:
    (kernel,) = gated(8192, 2048, 1, "bf16", "sm_90a")
    assert kernel.dependent
    text, _ = nvrtc.compile_source(kernel.source, "compute_90a", ptx=True)
    entry = text.decode()
    wait = entry.index("griddepcontrol.wait")
    assert entry.count("griddepcontrol.wait") == 1  # in the branch of the eight warps
    assert entry.index("griddepcontrol.launch_dependents") < entry.index("cp.async.bulk.shared") < wait
    # what is loaded before the wait is the gain, which nothing writes
    assert "ld.global.cg" not in entry[:wait]


def test_older_devices_copy_for_themselves() -> None:
    (kernel,) = gated(8192, 2048, 1, "bf16", "sm_80")
    assert not kernel.dependent and kernel.num_warps == 8
    text, _ = nvrtc.compile_source(kernel.source, "compute_80", ptx=True)
    assert b"cp.async.cg" in text and b"cp.async.bulk" not in text and b"griddepcontrol" not in text


def test_built_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }'
    first = nvrtc.build(source, "twice", "sm_90a", tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(nvrtc, "compile_source", fail)
    assert nvrtc.build(source, "twice", "sm_90a", tmp_path) == first


def test_errors_name_the_compiler_and_the_line() -> None:
    with pytest.raises(CompileError, match=r"NVRTC \d+\.\d+ for sm_90a[\s\S]*undefined_name"):
        nvrtc.build('extern "C" __global__ void f(float* x) { *x = undefined_name; }', "f", "sm_90a")


def test_a_missing_compiler_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda _: None)
    nvrtc.library.cache_clear()
    try:
        with pytest.raises(CompileError, match=r"pip install 'echoc\[gpu\]'"):
            nvrtc.library()
    finally:
        nvrtc.library.cache_clear()
