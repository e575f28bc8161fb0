"""Packed weights on GPUs hold what the CPU's hold, read from files or drawn at random, and give single rows."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from interpreter import TORCH, function

from echoc import _native
from echoc.compiler.ir import make
from echoc.compiler.ir.types import dim_value
from echoc.compiler.passes.pack import Packed
from echoc.compiler.targets.gpu import fill, matmul, weights
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.render import Device
from echoc.compiler.weights import Weights

FORMATS = [("f32", 0), ("bf16", 0), ("f8", 0), ("i8", 32), ("i8", 128), ("i4", 32), ("i4", 64)]


def bytes_of(form: weights.Layout, matrix: np.ndarray) -> np.ndarray:
    data = np.concatenate([p.reshape(-1).view(np.uint8) for p in weights.slab(form, matrix, 1)])
    assert data.nbytes == form.nbytes
    return data


@pytest.mark.parametrize(("format_", "group"), FORMATS)
@pytest.mark.parametrize(("n", "k"), [(16, 128), (37, 203), (5, 192)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_values_are_those_of_the_cpu(format_: str, group: int, n: int, k: int, dtype: type) -> None:
    matrix = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
    stored = matrix.astype(dtype) if dtype is not np.uint16 else (matrix.view(np.uint32) >> 16).astype(np.uint16)
    form = weights.Layout(format_, group, n, k)
    wanted = _native.unpack(format_, group, _native.pack(format_, group, [stored]), 1, n, k)[0]
    assert np.array_equal(weights.unpack(form, bytes_of(form, stored)), wanted)


def test_a_weight_is_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(1).standard_normal((100, 64)).astype(np.float32)
    form = weights.Layout("i4", 32, 100, 64)
    whole = bytes_of(form, matrix)
    monkeypatch.setattr(weights, "CHUNK", 64 * 16)
    assert np.array_equal(bytes_of(form, matrix), whole)


@pytest.mark.parametrize("transposed", [False, True])
def test_sources_and_experts_lie_one_after_another(transposed: bool) -> None:
    generator = np.random.default_rng(2)
    shape = (3, 40, 24) if transposed else (3, 24, 40)
    values = {name: generator.standard_normal(shape).astype(np.float32) for name in ("gate", "up")}
    nodes = tuple(make("weight", name=name, shape=shape, dtype="f32") for name in values)
    packed = Packed("packed.0", "bf16", 0, nodes, transposed, 3, 24, 40)
    held = object.__new__(Weights)
    held.constants, held.source = values, values.__getitem__
    data = np.concatenate([p.reshape(-1).view(np.uint8) for p in weights.parts(packed, held, 1)])
    assert data.nbytes == weights.nbytes(packed)
    form = weights.layout(packed)
    for i, slab in enumerate(data.reshape(6, -1)):
        source = values[("gate", "up")[i // 3]][i % 3]
        wanted = source.T if transposed else source
        assert np.allclose(weights.unpack(form, slab), wanted, rtol=2**-8)


@pytest.mark.parametrize(("format_", "group"), FORMATS)
@pytest.mark.parametrize(("n", "k"), [(3, 256), (4, 1200), (2, 203)])
def test_random_weights_are_those_of_the_cpu(format_: str, group: int, n: int, k: int) -> None:
    seed, stream, std = 0x9123456789ABCDEF, 5 << 16 | 3, 0.02
    packed = _native.fill_random(format_, group, 2, n, k, seed, stream, std)
    wanted = _native.unpack(format_, group, packed, 2, n, k)
    form = weights.Layout(format_, group, n, k)
    kernel = fill.fill(format_, group, Device("cuda"))
    assert kernel.symbols == fill.SYMBOLS
    for source in range(2):
        data = torch.zeros(form.nbytes, dtype=torch.uint8)
        (bits,) = struct.unpack("<i", struct.pack("<f", std))
        values = [
            *np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32).view(np.int32).tolist(),
            stream,
            source,
            bits,
            n,
            k,
        ]
        symbols = dict(zip(fill.SYMBOLS, values, strict=True))
        grid = tuple(-(-dim_value(size, symbols) // tile) for size, tile in kernel.grid)
        function(kernel)[grid](data.view(TORCH[kernel.arguments[0].element]), *values)
        found = weights.unpack(form, data.numpy())
        if format_ == "i4":  # sums in another order may choose another scale of almost equal error
            same = (found == wanted[source]).mean()
            assert same > 0.9 and np.abs(found - wanted[source]).max() < std
        elif format_ == "bf16":  # the interpreter cuts where devices round
            assert np.allclose(found, wanted[source], rtol=2**-7, atol=0)
        else:
            assert np.array_equal(found, wanted[source])


@pytest.mark.parametrize(("format_", "group"), FORMATS)
def test_single_rows_of_a_table(format_: str, group: int) -> None:
    n, k = 20, 200
    values = {"w": np.random.default_rng(3).standard_normal((n, k)).astype(np.float32)}
    node = make("weight", name="w", shape=(n, k), dtype="f32")
    packed = Packed("packed.0", format_, group, (node, node), False, 1, n, k)
    held = object.__new__(Weights)
    held.constants, held.source = values, values.__getitem__
    data = np.concatenate([p.reshape(-1).view(np.uint8) for p in weights.parts(packed, held, 1)])
    text = matmul.packed_row(packed, 1, "table", "row", "column", "column < 200")
    source = (
        "import triton\nimport triton.language as tl\nfrom echoc.kernels.triton import weights\n\n@triton.jit\n"
        f"def pick_{format_}_{group}(table, rows, out):\n    t = tl.program_id(0)\n    row = tl.load(rows + t)\n"
        f"    column = tl.arange(0, 256)\n    value = {text}\n"
        "    tl.store(out + t * 200 + column, value, mask=column < 200)\n"
    )
    rows = np.array([0, 19, 7], np.int32)
    out = torch.zeros(3, k)
    kernel = Kernel(f"pick_{format_}_{group}", "rows", "triton", source, (), (), (), 4)
    table = torch.from_numpy(data).view(TORCH[weights.element(packed)])
    function(kernel)[(3,)](table, torch.from_numpy(rows), out)
    wanted = weights.unpack(weights.layout(packed), data.reshape(2, -1)[1])[rows]
    assert np.array_equal(out.numpy(), wanted)
