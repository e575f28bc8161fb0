"""Schedules of Triton matmuls and attention on a GPU: how long a launch takes with each, the default one marked.

    python tools/gpu_schedules.py build FOLDER [--architecture sm_90a] [--only TEXT]
    PYTHONPATH=src python tools/gpu_schedules.py run FOLDER [--only TEXT]

`build` compiles kernels for the shapes of Llama 3.2 1B and 3.1 8B ahead of time and needs no GPU. `run` needs a GPU and
torch for its memory: it replays a graph of launches over so many weights that none is found in the cache. The times
are medians of that run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gpu_ring_check import Attribute, Configuration
from gpu_ring_check import Driver as RingDriver

SHAPES = {"1b": (2048, 8192, 32, 8, 64), "8b": (4096, 14336, 32, 8, 128)}  # width, inner width, heads, kv heads, dim
ROWS = (16, 64, 256, 8192)
SPREAD = 300e6  # bytes of weights that a graph goes through


class Writer:
    """Collects kernels and the cases that `run` reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernels: dict[str, Any] = {}
        self.cases: list[dict[str, Any]] = []

    def add(self, name: str, kernels: Any, symbols: dict[str, int], schedule: Any, default: bool, **facts: Any) -> None:
        from echoc.compiler.ir import Node
        from echoc.compiler.ir.types import dim_value
        from echoc.compiler.passes.pack import Packed
        from echoc.compiler.targets.gpu import weights
        from echoc.compiler.targets.gpu.printer import ELEMENT_BYTES, Workspace

        places: dict[object, int] = {}
        buffers: list[dict[str, Any]] = []
        launches = []
        for kernel in kernels:
            self.kernels[kernel.name] = kernel
            for a in kernel.arguments:
                if a.key in places:
                    continue
                places[a.key] = len(buffers)
                if isinstance(a.key, Packed):
                    form = weights.layout(a.key)
                    slabs = {f: getattr(form, f) for f in ("format", "n", "row", "groups", "nbytes")}
                    buffers.append({"kind": "weight", "nbytes": weights.nbytes(a.key), "element": a.element,
                                    "slabs": slabs})  # fmt: skip
                elif isinstance(a.key, Workspace):
                    buffers.append({"kind": "zero", "nbytes": dim_value(a.key.size, symbols)})
                elif isinstance(a.key, str):
                    buffers.append({"kind": "state", "nbytes": facts["state"], "element": a.element})
                else:
                    assert isinstance(a.key, Node)
                    size = dim_value(a.key.tensor.size, symbols) * ELEMENT_BYTES[a.element]
                    label = a.key["name"] if a.key.op == "port" else ""
                    buffers.append({"kind": "value", "nbytes": size, "element": a.element, "name": label})
            launches.append(
                {
                    "kernel": kernel.name, "arguments": [places[a.key] for a in kernel.arguments],
                    "symbols": [symbols[s] for s in kernel.symbols], "dependent": kernel.dependent,
                    "grid": [-(-dim_value(size, symbols) // tile) for size, tile in kernel.grid],
                    "matrices": {
                        i: [a.element, dim_value(a.matrix.rows, symbols), a.matrix.columns]
                        for i, a in enumerate(kernel.arguments) if a.matrix is not None
                    },
                    "written": [i for i, a in enumerate(kernel.arguments) if a.written],
                }
            )  # fmt: skip
        case = {"name": name, "schedule": str(schedule), "default": default, "launches": launches, "buffers": buffers}
        self.cases.append(case | facts)

    def finish(self, architecture: str) -> None:
        from echoc.compiler.targets.gpu.build import build_kernels
        from echoc.compiler.targets.gpu.levels import level_of

        def report(stage: str, done: int, total: int) -> None:
            if done % 20 == 0 or done == total:
                print(f"{stage} {done}/{total}", flush=True)

        (self.folder / "cubins").mkdir(parents=True, exist_ok=True)
        built = build_kernels(self.kernels, level_of(f"cuda:{architecture}"), report)
        facts = {}
        for name, binary in built.items():
            (self.folder / "cubins" / f"{name}.cubin").write_bytes(binary.image)
            facts[name] = binary.facts()
        plan = {"architecture": architecture, "kernels": facts, "cases": self.cases}
        (self.folder / "plan.json").write_text(json.dumps(plan))


def tiles(rows: int, sisters: int, default: Any) -> Iterator[Any]:
    """Schedules of a matmul to try."""
    if rows <= 16:
        for columns, depth, warps, stages in (
            (16, 256, 2, 5), (16, 128, 2, 8), (16, 256, 4, 5), (32, 128, 4, 5), (32, 128, 2, 6), (16, 512, 4, 4)
        ):  # fmt: skip
            yield replace(default, columns=columns // sisters if columns > 16 else 16, depth=depth, num_warps=warps,
                          num_stages=stages)  # fmt: skip
        return
    if rows <= 256:
        for block, columns, depth, warps, stages, splits in (
            (64, 32, 128, 4, 4, 1), (64, 32, 128, 4, 4, 2), (64, 64, 64, 4, 4, 2), (64, 64, 64, 4, 4, 8),
            (64, 64, 128, 4, 4, 4), (64, 128, 64, 4, 4, 4), (64, 128, 64, 8, 4, 4), (128, 64, 64, 4, 4, 2),
            (128, 64, 64, 4, 4, 4), (128, 128, 64, 8, 4, 4), (128, 128, 64, 8, 3, 8), (128, 64, 64, 4, 6, 1),
            (128, 128, 64, 8, 4, 1), (128, 128, 64, 8, 6, 1), (128, 128, 128, 8, 3, 1), (128, 256, 64, 8, 4, 1),
            (256, 64, 64, 8, 4, 1), (256, 128, 64, 8, 4, 1), (256, 128, 64, 8, 4, 2), (256, 128, 64, 8, 3, 4),
            (256, 64, 64, 8, 4, 2), (256, 64, 64, 8, 4, 4), (128, 256, 64, 8, 4, 2), (64, 256, 64, 4, 4, 1),
        ):  # fmt: skip
            if block <= rows:
                yield from both(default, block=block, columns=columns // sisters, depth=depth, num_warps=warps,
                                num_stages=stages, splits=splits)  # fmt: skip
        return
    for block, columns, depth, warps, stages in (
        (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3), (128, 256, 64, 8, 4),
        (256, 128, 64, 8, 3), (256, 128, 64, 8, 4), (64, 256, 64, 4, 4), (64, 256, 64, 4, 2), (128, 128, 128, 8, 2),
        (128, 128, 128, 8, 3), (128, 256, 128, 8, 2), (256, 128, 128, 8, 2),
    ):  # fmt: skip
        yield from both(default, block=block, columns=columns // sisters, depth=depth, num_warps=warps,
                        num_stages=stages, splits=1)  # fmt: skip


def both(default: Any, **sizes: Any) -> Iterator[Any]:
    """A schedule with either way of loading."""
    yield replace(default, **sizes, loads="pointers")
    yield replace(default, **sizes, loads="boxes")


def matmuls(writer: Writer, only: str, device: Any, weights_dtype: str = "bf16") -> None:
    from echoc.compiler.ir import make, symbol
    from echoc.compiler.passes.fuse import Group, Matmul
    from echoc.compiler.passes.pack import Packing
    from echoc.compiler.targets.gpu import matmul
    from echoc.compiler.targets.gpu.render import Renderer

    t = symbol("T")
    for model, (width, inner, heads, kv_heads, dim) in SHAPES.items():
        products = {
            "qkv": (width, [[heads * dim], [kv_heads * dim], [kv_heads * dim]]), "o": (heads * dim, [[width]]),
            "gate-up": (width, [[inner, inner]]), "down": (inner, [[width]]),
        }  # fmt: skip
        for label, (k, siblings) in products.items():
            for rows in ROWS:
                name = f"{model} {label} {rows}"
                if not re.match(only, name):
                    continue
                x = make("port", name="x", shape=(t, k), dtype="f32")
                groups = []
                for i, sisters in enumerate(siblings):
                    found = []
                    for j, n in enumerate(sisters):
                        w = make("weight", name=f"w{i}.{j}", shape=(n, k), dtype="f32")
                        node = make("contract", x, w, spec="Tk,nk->Tn")
                        found.append(Matmul(node, x, w, t, n, k, False))
                    nodes = [m.node for m in found]
                    if len(nodes) > 1:
                        nodes.append(make("mul", nodes[0], make("sigmoid", nodes[0])))
                        nodes.append(make("mul", nodes[2], nodes[1]))
                    elif len(siblings) == 1:
                        nodes.append(make("add", nodes[0], make("port", name="residual", shape=(t, n), dtype="f32")))
                    groups.append(Group("gemm", 0, nodes, t, [nodes[-1]], found))
                packing = Packing(weights_dtype, 32)
                stored = {n for g in groups for n in g.outputs}
                renderer = Renderer({"T": 8192}, packing, stored, frozenset(), device)
                renderer.narrow = {x} | ({groups[0].outputs[0]} if label == "gate-up" else set())
                entries = [packing.of(g) for g in groups]
                columns = sum(e.n for e in entries)
                default = matmul.gemm_schedule(rows, columns, entries[0], True)
                if rows > 64:
                    default = replace(default, loads="boxes")
                weight = sum(e.n * e.k * e.interleave for e in entries)
                seen = set()
                for schedule in (default, *tiles(rows, entries[0].interleave, default)):
                    if schedule in seen or k % (schedule.depth * schedule.splits):
                        continue
                    seen.add(schedule)
                    kernels = matmul.tiled(renderer, groups, entries, schedule)
                    writer.add(name, kernels, {"T": rows}, schedule, schedule is default, flops=2 * rows * weight,
                               bytes=2 * weight, k=k)  # fmt: skip


def attentions(writer: Writer, only: str, device: Any) -> None:
    from echoc.compiler.ir import make, symbol
    from echoc.compiler.passes.fuse import Group
    from echoc.compiler.passes.pack import Packing
    from echoc.compiler.targets.gpu import attention
    from echoc.compiler.targets.gpu.render import Renderer

    t, b, m = map(symbol, "TBM")
    for model, (_, _, heads, kv_heads, dim) in SHAPES.items():
        cases = [(sequences, rows, past, "bf16") for sequences, rows, past in
                 ((1, 1, 511), (16, 1, 255), (64, 1, 255), (256, 1, 255), (4, 2048, 0))]  # fmt: skip
        cases += [(*sizes, kv) for sizes in ((16, 1, 8191), (4, 2048, 0)) for kv in ("i8", "f8")]
        for sequences, rows, past, kv in (*cases, (16, 1, 8191, "bf16")):
            name = f"{model} attention {sequences} x {rows} after {past} {kv}"
            if not re.match(only, name):
                continue
            ports = [make("port", name=n, shape=(t,), dtype="i32") for n in ("sequences", "positions")]
            where = (*ports, make("port", name="block_table", shape=(b, m), dtype="i32"))
            q = make("port", name="q", shape=(t, heads, dim), dtype="f32")
            states = [make("state", name=n, shape=(kv_heads, dim), dtype=kv, kind="pages") for n in "kv"]
            node = make("attend", q, *states, *where, causal=True, scale=dim**-0.5, window=0, softcap=0.0, sinks=False,
                        body=False)  # fmt: skip
            group = Group("attend", 0, [node], t, [node])
            renderer = Renderer({"T": 8192, "B": 256, "M": 512}, Packing("bf16", 32), {node}, frozenset(),
                                device)  # fmt: skip
            renderer.narrow = {node}
            total, pages = sequences * rows, (past + rows) // 16
            symbols = {"T": total, "B": sequences, "M": pages}
            shape = attention.Shape(heads, kv_heads, dim, dim, kv)
            default = attention.schedule_for(shape, total)
            if default.form == "decode":
                options = [replace(default, splits=s, tile=n, num_warps=w) for s in (1, 2, 4, 8, 16, 32)
                           for n, w in ((32, 2), (64, 4), (128, 4)) if s * sequences <= 512]  # fmt: skip
                if past > 4096:
                    options = [replace(default, splits=s, tile=n, num_warps=w, num_stages=g) for s in (4, 8)
                               for n, w in ((64, 2), (64, 4), (128, 4)) for g in (3, 4, 6)]  # fmt: skip
            else:
                options = [replace(default, lines=n, tile=k, num_warps=w, num_stages=g) for n in (64, 128)
                           for k in (64, 128) for w in (4, 8) for g in (2, 3) if n * 8 >= 128 * (w // 4)]  # fmt: skip
            entry = kv_heads * (2 * dim if kv == "bf16" else dim + 4)
            keys = sequences * sum(past + i + 1 for i in range(rows))
            seen = set()
            for schedule in (default, *options):
                if schedule in seen:
                    continue
                seen.add(schedule)
                kernels = attention.scheduled(renderer, group, node, shape, schedule, False)
                writer.add(
                    name, kernels, symbols, schedule, schedule is default, flops=4 * keys * heads * dim,
                    bytes=2 * sequences * (past + rows) * entry, past=past, rows=rows, pages=pages,
                    state=sequences * pages * 16 * entry,
                )  # fmt: skip


def build(arguments: argparse.Namespace) -> None:
    from echoc.compiler.targets.gpu.levels import level_of

    writer = Writer(arguments.folder)
    device = level_of(f"cuda:{arguments.architecture}").device
    matmuls(writer, arguments.only, device)
    attentions(writer, arguments.only, device)
    print(f"{len(writer.cases)} cases, {len(writer.kernels)} kernels", flush=True)
    writer.finish(arguments.architecture)


class Driver(RingDriver):
    """Launches with the null pointers that Triton's kernels take at the end."""

    def launch(self, launch: dict[str, Any], buffers: list[Any], dependent: bool) -> None:
        kernel = self.kernels[launch["kernel"]]
        values: list[Any] = []
        boxes = iter(kernel.get("boxes", ()))
        for place, i in enumerate(launch["arguments"]):
            address = buffers[i].data_ptr()
            if matrix := launch["matrices"].get(str(place)):
                values += self.tensor_map(address, *matrix, *next(boxes))
            else:
                values.append(ctypes.c_uint64(address))
        values += [ctypes.c_int(v) for v in launch["symbols"]] + [ctypes.c_uint64(0)] * kernel["extra_pointers"]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        attribute = Attribute(6, b"", 1, b"")
        use = dependent and launch["dependent"]
        configuration = Configuration(
            (ctypes.c_uint * 3)(*(*launch["grid"], 1, 1)[:3]), (ctypes.c_uint * 3)(kernel["threads"], 1, 1),
            kernel["shared_bytes"], self.stream.cuda_stream, ctypes.addressof(attribute) if use else None, int(use),
        )  # fmt: skip
        self.check("cuLaunchKernelEx", ctypes.byref(configuration), self.functions[launch["kernel"]], pointers, None)

    def tensor_map(
        self, address: int, element: str, rows: int, columns: int, box_rows: int, box_columns: int, swizzle: int
    ) -> list[Any]:
        """A tensor map of a matrix, and the sizes and strides that kernels get behind it."""
        size = {"u8": 1, "i8": 1, "bf16": 2}[element]
        memory = (ctypes.c_uint8 * 192)()
        held = (ctypes.c_uint8 * 128).from_buffer(memory, -ctypes.addressof(memory) % 64)
        self.check(
            "cuTensorMapEncodeTiled", ctypes.byref(held), ctypes.c_int(9 if size == 2 else 0), ctypes.c_uint(2),
            ctypes.c_uint64(address), (ctypes.c_uint64 * 2)(columns, rows), (ctypes.c_uint64 * 1)(columns * size),
            (ctypes.c_uint * 2)(box_columns, box_rows), (ctypes.c_uint * 2)(1, 1), ctypes.c_int(0),
            ctypes.c_int((0, 32, 64, 128).index(swizzle)), ctypes.c_int(2), ctypes.c_int(0),
        )  # fmt: skip
        numbers = (ctypes.c_int(rows), ctypes.c_int(columns), ctypes.c_int64(columns), ctypes.c_int64(1))
        return [held, *numbers]


def error(driver: Driver, case: dict[str, Any]) -> float:
    """How far a product is from torch's in f32, relative to the largest value. Its buffers: x, weights, outputs."""
    torch = driver.torch
    memory = [tensor(b, case, torch) for b in case["buffers"]]
    torch.cuda.synchronize()
    for launch in case["launches"]:
        driver.launch(launch, memory, False)
    torch.cuda.synchronize()
    named = {b.get("name"): i for i, b in enumerate(case["buffers"])}
    x = memory[named["x"]].reshape(-1, case["k"]).float()
    last = case["launches"][-1]
    written = [memory[last["arguments"][i]] for i in last["written"]]
    worst = 0.0
    products = [
        matrix(m, b, torch) for m, b in zip(memory, case["buffers"], strict=True) if b["kind"] == "weight"
    ]  # fmt: skip
    results = [x @ w.T for found in products for w in found]
    if len(products) == 1 and len(results) == 2:
        results = [results[0] * torch.sigmoid(results[0]) * results[1]]
    if "residual" in named:
        results[0] += memory[named["residual"]].reshape(results[0].shape)
    for found, wanted in zip(written, results, strict=True):
        gap = (found.reshape(wanted.shape).float() - wanted).abs().max() / wanted.abs().max()
        worst = max(worst, float(gap))
    return worst


def matrix(memory: Any, buffer: dict[str, Any], torch: Any) -> list[Any]:
    """The matrices [N, K] of a packed weight in f32."""
    found = []
    form = buffer["slabs"]
    for slab in memory.view(torch.uint8).reshape(-1, form["nbytes"]):
        n, row = form["n"], form["row"]
        if form["format"] == "bf16":
            found.append(slab[: 2 * n * row].view(torch.bfloat16).reshape(n, row).float())
            continue
        stored, scales = slab[: n * row], slab[n * row :]
        if form["format"] == "f8":
            scale = scales[: 4 * n].view(torch.float32).reshape(n, 1)
            found.append(stored.view(torch.float8_e4m3fn).reshape(n, row).float() * scale)
        else:
            scale = scales[: 2 * n * form["groups"]].view(torch.float16).reshape(n, form["groups"], 1).float()
            found.append((stored.view(torch.int8).reshape(n, form["groups"], -1) * scale).reshape(n, row))
    return found


def quantised(buffer: dict[str, Any], torch: Any) -> Any:
    """A packed weight of random bytes (f8: none above 2) whose scales are near 0.01."""
    form = buffer["slabs"]
    memory = torch.randint(0, 256, (buffer["nbytes"],), dtype=torch.uint8, device="cuda")
    for slab in memory.reshape(-1, form["nbytes"]):
        slab[: form["n"] * form["row"]] &= 0xBF if form["format"] == "f8" else 0xFF
        kept = slab[form["n"] * form["row"] :]
        dtype = torch.float32 if form["format"] == "f8" else torch.float16
        kept.view(dtype).uniform_(0.005, 0.015)
    return memory


def tensor(buffer: dict[str, Any], case: dict[str, Any], torch: Any) -> Any:
    """Memory for a buffer, random where it holds values."""
    count, name = max(buffer["nbytes"], 16), buffer.get("name", "")
    if buffer["kind"] == "zero":
        return torch.zeros(count, dtype=torch.uint8, device="cuda")
    rows = case.get("rows", 1)
    if name in ("sequences", "positions"):
        t = np.arange(count // 4)
        values = t // rows if name == "sequences" else t % rows + case["past"]
        return torch.from_numpy(values.astype(np.int32)).cuda()
    if name == "block_table":
        return torch.randperm(count // 4, dtype=torch.int32, device="cuda")
    if buffer["element"] in ("bf16", "f16", "f32"):
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[buffer["element"]]
        return torch.empty(count // dtype.itemsize, dtype=dtype, device="cuda").normal_()
    if buffer.get("slabs", {}).get("format") in ("f8", "i8"):
        return quantised(buffer, torch)
    return torch.zeros(count, dtype=torch.uint8, device="cuda")


def measure(driver: Driver, case: dict[str, Any]) -> float:
    """Milliseconds of the case's launches, their weights and states elsewhere every time."""
    torch = driver.torch
    moving = sum(b["nbytes"] for b in case["buffers"] if b["kind"] in ("weight", "state"))
    copies = max(2, min(32, int(SPREAD / moving) + 1))
    shared = [None if b["kind"] in ("weight", "state") else tensor(b, case, torch) for b in case["buffers"]]
    launches, memory = [], []
    for _ in range(copies):
        own = [tensor(b, case, torch) if s is None else s for b, s in zip(case["buffers"], shared, strict=True)]
        launches += [x | {"arguments": [a + len(memory) for a in x["arguments"]]} for x in case["launches"]]
        memory += own
    torch.cuda.synchronize()
    return driver.time(launches, memory, reps=20) / copies


def run(arguments: argparse.Namespace) -> None:
    import torch

    plan = json.loads((arguments.folder / "plan.json").read_text())
    print(torch.cuda.get_device_name(), "cubins for", plan["architecture"])
    driver = Driver(arguments.folder, plan)
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for case in plan["cases"]:
        if case["name"].startswith(arguments.only):
            found.setdefault(case["name"], []).append((measure(driver, case), case))
            case["error"] = error(driver, case) if "k" in case else 0.0
    for name, times in found.items():
        print(name)
        for place, (time, case) in enumerate(sorted(times, key=lambda x: x[0])):
            if place < arguments.best or case["default"]:
                kernel = plan["kernels"][case["launches"][0]["kernel"]]
                print(
                    f"  {time * 1e3:8.1f} us {case['bytes'] / time / 1e9:6.2f} TB/s {case['flops'] / time / 1e9:6.1f} "
                    f"TFLOP/s {kernel['registers']:4d} registers {kernel['spills']:4d} spilled "
                    f"error {case['error']:.1e} {'DEFAULT ' if case['default'] else ''}{case['schedule']}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", default="sm_90a")
    parser.add_argument("--only", default="", help="the cases whose names begin with this text")
    parser.add_argument("--best", type=int, default=4, help="how many of the fastest to print")
    arguments = parser.parse_args()
    (build if arguments.what == "build" else run)(arguments)


if __name__ == "__main__":
    main()
