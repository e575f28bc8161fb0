"""Products of a few rows with weights through the ring: what the generated CUDA computes, on a host machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_chains import ChainLaunches
from device import interpret, port, program_of
from launches import close, dequantised

from echoc.compiler.ir import Node, make, symbol

T = symbol("T")
SPLIT = 2e-5  # x as two bf16
BYTES = 5e-5  # x as two bytes
ROUNDED = 6e-3  # x as one


def weight(name: str, *shape: int) -> Node:
    return make("weight", name=name, shape=shape, dtype="f32")


def matmul(x: Node, w: Node) -> Node:
    return make("contract", x, w, spec="Tk,nk->Tn")


def norm(x: Node, gain: Node, k: int) -> Node:
    mean = make("div", make("sum", make("mul", x, x), axes=(1,)), make("const", dtype="f32", value=float(k)))
    scale = make("rsqrt", make("add", mean, make("const", dtype="f32", value=1e-5)))
    return make("mul", make("mul", x, make("reshape", scale, shape=(T, 1))), gain)


def check(outputs: dict[str, Node], rows: int, most: int, architecture: str = "sm_90a", weights_dtype: str = "bf16",
          tolerance: float = SPLIT, group: int = 32) -> ChainLaunches:  # fmt: skip
    generator = np.random.default_rng(rows)
    program = program_of(outputs, {"T": (1, 16)})
    launches = ChainLaunches(program, most, architecture, weights_dtype, group)
    values: dict[str, np.ndarray[Any, Any]] = {}
    ports: dict[str, np.ndarray[Any, Any]] = {}
    for node in program.skin.rules[0].order:
        shape: Any = node.shape[1:] if node.op == "port" else node.shape
        if node.op == "weight":
            values[node["name"]] = generator.standard_normal(shape).astype(np.float32)
        elif node.op == "port":
            ports[node["name"]] = generator.standard_normal([rows, *shape]).astype(np.float32)
    found = launches.run(ports, values, {"T": rows})
    wanted = interpret(program, ports, dequantised(launches, values))
    for name, array in wanted.items():
        close(found[name], array, tolerance)
    return launches


@pytest.mark.parametrize("weights_dtype", ["bf16", "fp8", "int8", "int4"])
@pytest.mark.parametrize(("rows", "architecture"), [(1, "sm_90a"), (3, "sm_80"), (4, "sm_90a")])
def test_every_format(rows: int, weights_dtype: str, architecture: str) -> None:
    launches = check({"y": matmul(port("x", T, 512), weight("w", 600, 512))}, rows, 1 if rows == 1 else 4, architecture,
                     weights_dtype, BYTES if weights_dtype.startswith("int") else SPLIT)  # fmt: skip
    (kernel,) = launches.kernels
    assert kernel.language == "cuda"


@pytest.mark.parametrize("weights_dtype", ["fp8", "int8", "int4"])
def test_a_norm_and_sisters_in_every_format(weights_dtype: str) -> None:
    """The last columns of x are made by some of the threads, and its rows are of very different size."""
    x = port("x", T, 2304)
    gain = weight("gain", 2304)
    n = make("mul", norm(x, gain, 2304), make("reshape", make("exp", port("size", T)), shape=(T, 1)))
    gate, up = matmul(n, weight("gate", 150, 2304)), matmul(n, weight("up", 150, 2304))
    launches = check({"y": make("sub", gate, make("neg", up))}, 2, 2, "sm_90a", weights_dtype, BYTES)
    (kernel,) = launches.kernels
    assert kernel.language == "cuda" and kernel.schedule["height"] > 2


@pytest.mark.parametrize("rows", [1, 2])
def test_a_norm_becomes_the_prologue_of_all_that_read_it(rows: int) -> None:
    x = port("x", T, 320)
    n = norm(x, weight("gain", 320), 320)
    q, k, v = (matmul(n, weight(name, size, 320)) for name, size in (("q", 64), ("k", 16), ("v", 17)))
    launches = check({"q": q, "k": make("add", k, weight("bias", 16)), "v": v}, rows, 2)
    (kernel,) = launches.kernels
    assert kernel.language == "cuda"


@pytest.mark.parametrize(("rows", "architecture"), [(1, "sm_80"), (4, "sm_90a")])
def test_a_gated_mlp_is_two_launches(rows: int, architecture: str) -> None:
    x = port("x", T, 256)
    n = norm(x, weight("gain", 256), 256)
    gate, up = matmul(n, weight("gate", 1184, 256)), matmul(n, weight("up", 1184, 256))
    hidden = make("mul", make("mul", gate, make("sigmoid", gate)), up)
    out = make("add", x, matmul(hidden, weight("down", 256, 1184)))
    launches = check({"y": out}, rows, rows, architecture, tolerance=ROUNDED)
    assert [k.language for k in launches.kernels] == ["cuda", "cuda"]
