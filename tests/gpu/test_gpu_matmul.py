"""Matmuls with packed weights in Triton's interpreter against the numpy meanings, with the weights as packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device import interpret, port, program_of
from launches import Launches, close, dequantised

from echoc.compiler.ir import Node, make, symbol
from echoc.compiler.targets.gpu.render import Device
from echoc.errors import CompileError

T = symbol("T")
ROUNDED = 2e-2  # bf16 rows, or weights rounded to bf16 in registers
EXACT = 1e-6
FORMS = {1: 1, 3: 4, 11: 16, 70: 256, 130: None}  # rows -> the variant that they run in


def weight(name: str, *shape: int) -> Node:
    return make("weight", name=name, shape=shape, dtype="f32")


def matmul(x: Node, w: Node, spec: str = "Tk,nk->Tn") -> Node:
    return make("contract", x, w, spec=spec)


def check(outputs: dict[str, Node], rows: int, form: int | None, weights_dtype: str, group: int = 32, seed: int = 0,
          device: Device | None = None, **inputs: np.ndarray[Any, Any]) -> Launches:  # fmt: skip
    generator = np.random.default_rng(seed)
    program = program_of(outputs, {"T": (1, 1 << 14)})
    launches = Launches(program, form, weights_dtype, group, device=device)
    values, ports = {}, dict(inputs)
    for node in program.skin.rules[0].order:
        if node.op == "weight":
            shape: Any = node.shape
            values[node["name"]] = generator.standard_normal(shape).astype(np.float32)
        elif node.op == "port" and node["name"] not in ports:
            ports[node["name"]] = generator.standard_normal([rows, *node.shape[1:]]).astype(np.float32)
    found = launches.run(ports, values, {"T": rows})
    wanted = interpret(program, ports, dequantised(launches, values))
    exact = all(k.schedule.get("form") in ("gemv", None) or k.schedule["format"] == "f32" for k in launches.kernels)
    for name, array in wanted.items():
        close(found[name], array, EXACT if exact else ROUNDED)
    return launches


@pytest.mark.parametrize("rows", FORMS)
@pytest.mark.parametrize("weights_dtype", ["f32", "bf16", "fp8", "int8", "int4"])
def test_every_form_in_every_format(rows: int, weights_dtype: str) -> None:
    check({"y": matmul(port("x", T, 96), weight("w", 40, 96))}, rows, FORMS[rows], weights_dtype)


@pytest.mark.parametrize("weights_dtype", ["f32", "bf16", "fp8", "int8", "int4"])
@pytest.mark.parametrize("rows", [2, 9])
def test_a_row_need_not_fill_its_last_vector_or_group(rows: int, weights_dtype: str) -> None:
    check({"y": matmul(port("x", T, 171), weight("w", 21, 171))}, rows, 4 if rows < 4 else 16, weights_dtype)


@pytest.mark.parametrize(("weights_dtype", "group"), [("int8", 64), ("int8", 128), ("int4", 64), ("int4", 128)])
@pytest.mark.parametrize("rows", [1, 20])
def test_groups_of_other_sizes(rows: int, weights_dtype: str, group: int) -> None:
    check({"y": matmul(port("x", T, 256), weight("w", 8, 256))}, rows, 1 if rows == 1 else 256, weights_dtype, group)


@pytest.mark.parametrize("rows", [1, 11])
def test_weights_may_be_stored_the_other_way_round(rows: int) -> None:
    check({"y": matmul(port("x", T, 64), weight("w", 64, 24), "Tk,kn->Tn")}, rows, FORMS[rows], "int8")


@pytest.mark.parametrize("rows", [1, 11, 130])
@pytest.mark.parametrize("weights_dtype", ["bf16", "int4"])
def test_sisters_meet_in_the_epilogue(rows: int, weights_dtype: str) -> None:
    x = port("x", T, 64)
    gate, up = matmul(x, weight("gate", 48, 64)), matmul(x, weight("up", 48, 64))
    out = make("add", make("mul", make("mul", gate, make("sigmoid", gate)), up), port("residual", T, 48))
    launches = check({"y": out}, rows, FORMS[rows], weights_dtype)
    (kernel,) = launches.kernels
    assert kernel.schedule["interleave"] == 2


def boxed(launches: Launches) -> list[list[tuple[int, int]]]:
    """The boxes that every matmul reads: of rows, of weights."""
    return [[a.matrix.box for a in k.arguments if a.matrix is not None] for k in launches.kernels]


@pytest.mark.parametrize("rows", [70, 130])
@pytest.mark.parametrize("weights_dtype", ["f32", "bf16", "fp8", "int8", "int4"])
def test_a_device_with_tensor_maps_copies_boxes(rows: int, weights_dtype: str) -> None:
    x = matmul(port("x", T, 48), weight("first", 72, 48))
    gate, up = matmul(x, weight("gate", 40, 72)), matmul(x, weight("up", 40, 72))
    y = make("add", make("mul", make("mul", gate, make("sigmoid", gate)), up), port("residual", T, 40))
    launches = check({"y": y}, rows, FORMS[rows], weights_dtype, device=Device("cuda", tensor_maps=True))
    first, second = boxed(launches)
    assert len(first) == (weights_dtype == "bf16")  # x is a port, whose memory comes with the step
    assert len(second) == {"bf16": 2, "fp8": 1, "int8": 1}.get(weights_dtype, 0)
    assert all(columns <= 256 and of <= 256 for of, columns in first + second)


@pytest.mark.parametrize("ragged", [24, 256])
def test_siblings_and_long_rows_are_read_in_boxes(ragged: int) -> None:
    x = matmul(port("x", T, 32), weight("first", 1040, 32))
    outputs = {"q": make("add", matmul(x, weight("q", 136, 1040)), port("r", T, 136)), "k": make(
        "neg", matmul(x, weight("k", ragged, 1040)))}  # fmt: skip
    for rows in (70, 150):
        launches = check(outputs, rows, FORMS.get(rows), "bf16", device=Device("cuda", tensor_maps=True))
        assert [len(b) for b in boxed(launches)][:2] == [1, 3]


@pytest.mark.parametrize("k", [40, 2064])
@pytest.mark.parametrize("form", [64, 256])
def test_few_rows_are_read_in_boxes_too_and_long_ones_in_parts(form: int, k: int) -> None:
    x = matmul(port("x", T, 16), weight("first", k, 16))
    y = make("add", matmul(x, weight("w", 72, k)), port("residual", T, 72))
    launches = check({"y": y}, form - 13, form, "bf16", device=Device("cuda", tensor_maps=True))
    assert [len(b) for b in boxed(launches)][:2] == [1, 2]
    assert [k.family for k in launches.kernels][1:] == ["gemm", "gemm_merge"][: 1 + (k > 1000)]


@pytest.mark.parametrize("tensor_maps", [False, True])
def test_large_blocks_have_their_epilogue_by_halves(tensor_maps: bool) -> None:
    y = make("add", matmul(port("x", T, 48), weight("w", 1090, 48)), port("residual", T, 1090))
    launches = check({"y": y}, 130, None, "bf16", device=Device("cuda", tensor_maps=tensor_maps))
    assert "tl.split" in launches.kernels[0].source


def test_experts_of_rows_are_read_in_boxes() -> None:
    ids = np.random.default_rng(5).integers(0, 6, (90, 2)).astype(np.int32)
    launches = check(experts(7, 2), 90, None, "bf16", device=Device("cuda", tensor_maps=True), ids=ids)
    assert all(a.matrix is None for k in launches.kernels for a in k.arguments)  # of 16 rows


@pytest.mark.parametrize("rows", [3, 11, 130])
@pytest.mark.parametrize("weights_dtype", ["f32", "int8"])
def test_siblings_share_a_launch(rows: int, weights_dtype: str) -> None:
    x = port("x", T, 64)
    outputs = {
        "q": make("neg", matmul(x, weight("wq", 72, 64))),
        "k": matmul(x, weight("wk", 16, 64)),
        "v": make("add", matmul(x, weight("wv", 24, 64)), weight("bias", 24)),
    }
    launches = check(outputs, rows, FORMS[rows], weights_dtype)
    assert len(launches.kernels) == 1


@pytest.mark.parametrize("weights_dtype", ["bf16", "fp8", "int8", "int4"])
def test_long_rows_are_summed_in_parts(weights_dtype: str) -> None:
    x = port("x", T, 1040)
    gate, up = matmul(x, weight("gate", 24, 1040)), matmul(x, weight("up", 24, 1040))
    launches = check({"y": make("mul", gate, make("neg", up))}, 18, 64, weights_dtype)
    assert [k.family for k in launches.kernels] == ["gemm", "gemm_merge"]
    q, k = matmul(x, weight("q", 72, 1040)), matmul(x, weight("k", 24, 1040))
    launches = check({"q": make("add", q, port("r", T, 72)), "k": k}, 18, 64, weights_dtype)
    assert [k.family for k in launches.kernels] == ["gemm", "gemm_merge"]


@pytest.mark.parametrize("rows", [1, 11])
def test_an_epilogue_sees_views_and_rows(rows: int) -> None:
    x = port("x", T, 64)
    y = make("reshape", matmul(x, weight("w", 32, 64)), shape=(T, 1, 1, 32))
    scale = make("reshape", port("scale", T), shape=(T, 1, 1, 1))
    out = make("mul", make("add", port("residual", T, 1, 1, 32), y), scale)
    check({"y": out}, rows, FORMS[rows], "bf16")


def experts(count: int, chosen: int) -> dict[str, Node]:
    """A gated mixture's first half: `chosen` experts of `count` for each row."""
    x, ids = port("x", T, chosen, 64), port("ids", T, chosen, dtype="i32")
    gate = matmul(x, make("take", weight("gate", count, 40, 64), ids, axis=0), "tjk,tjnk->tjn")
    up = matmul(x, make("take", weight("up", count, 40, 64), ids, axis=0), "tjk,tjnk->tjn")
    return {"y": make("mul", make("mul", gate, make("sigmoid", gate)), up)}


@pytest.mark.parametrize("weights_dtype", ["f32", "bf16", "fp8", "int4"])
@pytest.mark.parametrize(("rows", "form"), [(1, 1), (40, 256), (90, None)])
def test_experts_of_rows(rows: int, form: int | None, weights_dtype: str) -> None:
    ids = np.random.default_rng(rows).integers(0, 6, (rows, 2)).astype(np.int32)
    ids[rows // 2 :, 0] = 3  # some experts have many rows, some none
    launches = check(experts(7, 2), rows, form, weights_dtype, ids=ids)
    assert [k.family for k in launches.kernels] == (["gemv"] if form == 1 else ["route", "gemm"])


def test_rows_are_sorted_by_expert_once() -> None:
    (hidden,) = experts(7, 2).values()
    ids = hidden.inputs[0].inputs[0].inputs[1].inputs[1]
    down = matmul(hidden, make("take", weight("down", 7, 16, 40), ids, axis=0), "tjk,tjnk->tjn")
    chosen = np.random.default_rng(1).integers(0, 7, (30, 2)).astype(np.int32)
    launches = check({"y": down}, 30, None, "bf16", ids=chosen)
    assert [k.family for k in launches.kernels] == ["route", "gemm", "gemm"]


def test_ids_of_no_expert_are_cut_to_the_last() -> None:
    ids = np.array([[-3, 99], [0, 6]], np.int32)
    check(experts(7, 2), 2, 1, "f32", ids=ids)
    check(experts(7, 2), 2, None, "f32", ids=ids)


@pytest.mark.parametrize("name", ["n", "tile", "tl", "load"])
def test_symbols_with_the_names_of_kernels_are_refused(name: str) -> None:
    x = port("x", symbol(name), 32)
    program = program_of({"y": matmul(x, weight("w", 16, 32))}, {name: (1, 64)})
    with pytest.raises(CompileError, match=f"symbol '{name}'"):
        Launches(program, None)


@pytest.mark.parametrize("form", [16, None])
@pytest.mark.parametrize("weights_dtype", ["bf16", "int4"])
def test_a_row_does_not_depend_on_the_rows_beside_it(form: int | None, weights_dtype: str) -> None:
    program = program_of({"y": matmul(port("x", T, 96), weight("w", 24, 96))}, {"T": (1, 512)})
    launches = Launches(program, form, weights_dtype, deterministic=True)
    generator = np.random.default_rng(3)
    x = generator.standard_normal((9, 96)).astype(np.float32)
    values = {"w": generator.standard_normal((24, 96)).astype(np.float32)}
    whole = launches.run({"x": x}, values, {"T": 9})["y"]
    alone = launches.run({"x": x[5:6]}, values, {"T": 1})["y"]
    assert np.array_equal(whole[5:6], alone)
