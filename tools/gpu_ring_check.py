"""Decode launches of the CUDA target on a GPU: what they compute and how long a chain of them takes.

    python tools/gpu_ring_check.py build FOLDER [--models 1b 8b] [--variants] [--architecture sm_90a]
    python tools/gpu_ring_check.py run FOLDER

`build` needs this package and NVRTC, and no GPU. `run` needs a GPU, torch and numpy, and nothing of this package: it
loads the cubins, holds products to numbers computed in f64 and steps of a small model to what the reference device made
of them, and times the steps of models with random weights by replaying a CUDA graph. Every figure it prints was
measured in that run.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

MODELS: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
PRODUCTS = [
    (1, 4096, 2048), (2, 1000, 2048), (4, 768, 8192), (3, 331, 896), (1, 2048, 14336), (4, 512, 14336), (1, 16000, 2048)
]  # fmt: skip  # rows, N, K
READ = """
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4* from, unsigned* to, int count) {
  uint4 sum = {0, 0, 0, 0};
  const long long step = gridDim.x * 512LL;
  for (long long i = blockIdx.x * 512LL + threadIdx.x; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v[j].x), "=r"(v[j].y), "=r"(v[j].z), "=r"(v[j].w) : "l"(from + i + j * step));
#pragma unroll
    for (int j = 0; j < 8; ++j) sum.x ^= v[j].x, sum.y ^= v[j].y, sum.z ^= v[j].z, sum.w ^= v[j].w;
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345678u) *to = 1;
}
"""
CONTEXT = 512


# -- build


class Writer:
    """Collects cubins and the plan that `run` reads."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.folder, self.architecture = folder, architecture
        self.plan: dict[str, Any] = {
            "architecture": architecture,
            "kernels": {},
            "products": [],
            "steps": [],
            "chains": [],
        }
        (folder / "cubins").mkdir(parents=True, exist_ok=True)

    def add(self, name: str, source: str, threads: int, shared_bytes: int) -> str:
        from echoc.compiler.targets.cuda import nvrtc

        if name not in self.plan["kernels"]:
            built = nvrtc.build(source, name, self.architecture, self.folder / "cache")
            (self.folder / "cubins" / f"{name}.cubin").write_bytes(built.image)
            self.plan["kernels"][name] = {
                "threads": threads, "shared_bytes": shared_bytes, "registers": built.registers, "spills": built.spills
            }  # fmt: skip
        return name

    def launches(self, kernels: Any, symbols: dict[str, int], places: dict[object, int]) -> list[dict[str, Any]]:
        """Launches with their arguments as numbers of buffers; `places` grows by what is new."""
        from echoc.compiler.ir.types import dim_value

        out = []
        for kernel in kernels:
            name = self.add(kernel.name, kernel.source, kernel.num_warps * 32, int(kernel.schedule["shared_bytes"]))
            out.append(
                {
                    "kernel": name, "family": kernel.family,
                    "arguments": [places.setdefault(a.key, len(places)) for a in kernel.arguments],
                    "symbols": [symbols[s] for s in kernel.symbols],
                    "grid": [-(-dim_value(size, symbols) // tile) for size, tile in kernel.grid],
                    "dependent": kernel.dependent,
                }
            )  # fmt: skip
        return out


def chain_of(program: Any, rows: int, architecture: str, weights_dtype: str) -> tuple[Any, Any]:
    """The decode chain of a program and its rule."""
    from echoc.compiler.passes.fuse import Fuser, root
    from echoc.compiler.passes.pack import plan_packing
    from echoc.compiler.targets.cuda.fusion import Chain
    from echoc.compiler.targets.cuda.source import DEVICES
    from echoc.compiler.targets.interface import only_rule, own_outputs

    rule = own_outputs(only_rule(program.skin))
    fuser = Fuser(rule)
    groups = fuser.groups()
    packing = plan_packing(fuser, groups, weights_dtype, 32)
    boundary = frozenset(root(n) for _, n in rule.outputs)
    return Chain(groups, packing, boundary, list(program.symbols), rows, DEVICES[architecture]), rule


def describe(places: dict[object, int], rule: Any, symbols: dict[str, int]) -> list[dict[str, Any]]:
    """What every buffer is, in the order of its numbers."""
    from echoc.compiler.ir import Node
    from echoc.compiler.ir.types import dim_value
    from echoc.compiler.passes.pack import Packed
    from echoc.compiler.targets.gpu.printer import Workspace
    from echoc.compiler.targets.gpu.weights import layout, nbytes

    states = {n["name"]: n.type for n in rule.order if n.op == "state"}
    out: list[dict[str, Any]] = []
    for key in places:
        if isinstance(key, Packed):
            form = layout(key)
            out.append(
                {
                    "kind": "packed", "format": key.format, "slab": form.nbytes, "nbytes": nbytes(key),
                    "values": form.scales * form.element_bytes, "n": key.n, "k": key.k, "name": key.name,
                }
            )  # fmt: skip
        elif isinstance(key, str):
            type_ = states[key]
            out.append({"kind": "state", "page": 16 * type_.shape[0] * type_.shape[1] * 2, "name": key})
        elif isinstance(key, Workspace):
            out.append({"kind": "workspace", "nbytes": dim_value(key.size, symbols)})
        else:
            assert isinstance(key, Node)
            named = key.op in ("port", "weight")
            out.append(
                {
                    "kind": key.op if named else "buffer", "name": key["name"] if named else "",
                    "dtype": str(key.tensor.dtype), "shape": [dim_value(d, symbols) for d in key.shape],
                }
            )  # fmt: skip
    return out


def build_products(writer: Writer) -> None:
    from echoc.compiler.ir import make, symbol
    from echoc.compiler.ir.membrane import Membrane, Port, Program, Rule
    from echoc.compiler.ir.types import DType, TensorType

    t = symbol("T")
    for rows, n, k in PRODUCTS:
        for form in ("bf16", "fp8", "int8", "int4"):
            x = make("port", name="x", shape=(t, k), dtype="f32")
            y = make("contract", x, make("weight", name="w", shape=(n, k), dtype="f32"), spec="Tk,nk->Tn")
            ports = (
                Port("x", "in", TensorType((t, k), DType.F32)), Port("y", "out", TensorType((t, n), DType.F32))
            )  # fmt: skip
            skin = Membrane("model", (), ports, (Rule("step", (("y", y),), ()),))
            program = Program(skin, {"T": (1, 16)})
            chain, rule = chain_of(program, rows, writer.architecture, form)
            if not chain.kernels:
                print(f"no ring kernel for {rows} x {k} with {n} x {k} {form}")
                continue
            places: dict[object, int] = {}
            launches = writer.launches(chain.kernels, {"T": rows}, places)
            writer.plan["products"].append(
                {
                    "rows": rows, "n": n, "k": k, "format": form, "launches": launches,
                    "buffers": describe(places, rule, {"T": rows}), "schedule": dict(chain.kernels[0].schedule),
                }
            )  # fmt: skip


def llama(name: str, folder: Path) -> tuple[Any, Any]:
    """A model's program for steps, and where its weights come from."""
    from echoc.compiler.api import DType, _import, language_model_passes, run_passes

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16", **MODELS[name],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    imported = _import(folder / "config.json", 1, None, lambda *_: None)
    return run_passes(imported.program, language_model_passes(DType.BF16)), imported


def build_chain(writer: Writer, name: str, program: Any, weights_dtype: str, rows: int = 1, label: str = "") -> None:
    pages = CONTEXT // 16 + 1
    symbols = {"T": rows, "R": rows, "B": rows, "M": pages}
    chain, rule = chain_of(program, rows, writer.architecture, weights_dtype)
    places: dict[object, int] = {}
    launches = writer.launches(chain.kernels, symbols, places)
    writer.plan["chains"].append(
        {
            "name": name, "label": label, "format": weights_dtype, "rows": rows, "pages": pages, "position": CONTEXT,
            "launches": launches, "buffers": describe(places, rule, symbols),
            "left": [g.family for x in chain.launches if not x.kernels for g in x.groups],
        }
    )  # fmt: skip


def build_small(writer: Writer, rows: int) -> None:
    """A step of a small model with all its memory, and what the reference device makes of it."""
    from echoc.compiler.ir import Node
    from echoc.compiler.ir.interpret import run_rule
    from echoc.compiler.ir.membrane import Rule
    from echoc.compiler.ir.ops.pointwise import cast_array
    from echoc.compiler.ir.types import DType
    from echoc.compiler.passes.fuse import root
    from echoc.compiler.passes.pack import Packed
    from echoc.compiler.targets.gpu import weights
    from echoc.compiler.weights import Weights

    program, imported = llama("small", writer.folder / "models" / "small")
    chain, rule = chain_of(program, rows, writer.architecture, "bf16")
    generator = np.random.default_rng(rows)
    drawn: dict[str, Any] = {}

    def draw(name: str) -> Any:
        if name not in drawn:
            shape = imported.source(name).shape
            spread = generator.standard_normal(shape).astype(np.float32)
            drawn[name] = cast_array(0.1 * spread if len(shape) > 1 else 1 + 0.1 * spread, DType.BF16)
        return drawn[name]

    held = Weights(program.skin, draw, imported.buffers)
    pages = 12
    symbols = {"T": rows, "R": rows, "B": 2, "M": pages}
    positions = [130, 131, 7, 8][:rows]  # two rows of one sequence, two of another
    ports = {
        "tokens": generator.integers(0, 512, rows), "positions": positions, "sequences": [0, 0, 1, 1][:rows],
        "rows": np.arange(rows), "block_table": generator.permutation(2 * pages).reshape(2, pages),
    }  # fmt: skip
    inputs = {name: np.array(array, np.int32) for name, array in ports.items()}
    states = {}
    for state in program.skin.states:
        states[state.name] = cast_array(generator.standard_normal((2 * pages, 16, *state.type.shape)), DType.BF16)
    left = [n for x in chain.launches if not x.kernels for g in x.groups for n in g.outputs]
    wider = Rule("step", (*rule.outputs, *((f"left {i}", n) for i, n in enumerate(left))), rule.next_states)
    outputs, after = run_rule(program.skin, wider, inputs, held.value, states)
    made = {root(n): outputs[f"left {i}"] for i, n in enumerate(left)}
    places: dict[object, int] = {}
    launches = writer.launches(chain.kernels, symbols, places)

    def bits(array: Any) -> Any:
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)

    arrays, wanted = {}, {}
    for key, i in places.items():
        if isinstance(key, Packed):
            arrays[str(i)] = np.concatenate([x.reshape(-1).view(np.uint8) for x in weights.parts(key, held, 1)])
        elif isinstance(key, str):
            arrays[str(i)] = bits(states[key].transpose(0, 2, 1, 3))
            wanted[str(i)] = bits(after[key].transpose(0, 2, 1, 3))
        elif isinstance(key, Node) and key.op == "port":
            arrays[str(i)] = inputs[key["name"]]
        elif isinstance(key, Node) and key.op == "weight":
            arrays[str(i)] = held.plain(key)
        elif key in made:
            arrays[str(i)] = made[key].astype(np.float32)
        elif key is root(dict(rule.outputs)["logits"]):
            wanted[str(i)] = outputs["logits"]
    name = f"small{rows}"
    np.savez(writer.folder / "cubins" / f"{name}.npz", **arrays, **{f"wanted {i}": a for i, a in wanted.items()})
    writer.plan["steps"].append(
        {
            "name": name, "rows": rows, "launches": launches, "buffers": describe(places, rule, symbols),
            "wanted": sorted(wanted),
        }
    )  # fmt: skip


def build(arguments: argparse.Namespace) -> None:
    from echoc.compiler.targets.cuda import ring

    writer = Writer(arguments.folder, arguments.architecture)
    writer.add("read_all", READ, 512, 0)
    build_products(writer)
    for rows in (1, 2, 4):
        build_small(writer, rows)
    for name in arguments.models:
        program, _ = llama(name, arguments.folder / "models" / name)
        build_chain(writer, name, program, "bf16")
        if name == "1b":
            for form in ("fp8", "int8", "int4"):
                build_chain(writer, name, program, form)
            build_chain(writer, name, program, "bf16", 4)
        if arguments.variants:
            usual = dict(ring.STAGES), ring.FEEDERS
            warps_for = ring.warps_for
            for form in ("fp8", "int8", "int4") if name == "1b" else ():
                for kilobytes, count, warps in ((32, 2, 8), (32, 3, 16), (24, 3, 8), (16, 3, 8), (16, 4, 16)):
                    ring.STAGES = dict.fromkeys(usual[0], (kilobytes * 1024, count))
                    ring.warps_for = lambda packed, warps=warps: warps
                    label = f"stages of {kilobytes} KB, {count} in flight, {warps} warps"
                    build_chain(writer, name, program, form, label=label)
            ring.warps_for = warps_for
            for kilobytes, count, feeders in (
                (16, 2, 2),
                (12, 3, 2),
                (12, 4, 2),
                (8, 6, 2),
                (16, 3, 4),
                (16, 3, 2),
                (16, 6, 2),
                (24, 3, 2),
                (24, 2, 2),
                (32, 2, 2),
                (32, 3, 2),
            ):
                ring.STAGES, ring.FEEDERS = dict.fromkeys(usual[0], (kilobytes * 1024, count)), feeders
                label = f"stages of {kilobytes} KB, {count} in flight, {feeders} feeders"
                build_chain(writer, name, program, "bf16", label=label)
            ring.STAGES, ring.FEEDERS = usual
    (arguments.folder / "plan.json").write_text(json.dumps(writer.plan))
    size = sum(p.stat().st_size for p in (arguments.folder / "cubins").iterdir())
    print(f"{len(writer.plan['kernels'])} kernels, {size / 1e6:.1f} MB of cubins in {arguments.folder}")


# -- run


class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


class Configuration(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint),
    ]  # fmt: skip


class Driver:
    """The functions of libcuda that are needed, on the context that torch made."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        self.cuda = ctypes.CDLL("libcuda.so.1")
        torch.zeros(1, device="cuda")
        self.stream = torch.cuda.Stream()
        self.functions: dict[str, ctypes.c_void_p] = {}
        self.kernels = plan["kernels"]
        for name, kernel in self.kernels.items():
            image = (folder / "cubins" / f"{name}.cubin").read_bytes()
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self.check("cuModuleLoadData", ctypes.byref(module), image)
            self.check("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            if kernel["shared_bytes"] > 48 * 1024:
                self.check("cuFuncSetAttribute", function, ctypes.c_int(8), ctypes.c_int(kernel["shared_bytes"]))
            self.functions[name] = function

    def check(self, name: str, *arguments: Any) -> None:
        status = getattr(self.cuda, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(status, ctypes.byref(text))
            sys.exit(f"{name}: {text.value.decode() if text.value else status}")

    def launch(self, launch: dict[str, Any], buffers: list[Any], dependent: bool) -> None:
        kernel = self.kernels[launch["kernel"]]
        values: list[Any] = [ctypes.c_uint64(buffers[i].data_ptr()) for i in launch["arguments"]]
        values += [ctypes.c_int(v) for v in launch["symbols"]]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        attribute = Attribute(6, b"", 1, b"")
        use = dependent and launch["dependent"]
        grid = (*launch["grid"], 1, 1)[:3]
        configuration = Configuration(
            (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(kernel["threads"], 1, 1), kernel["shared_bytes"],
            self.stream.cuda_stream, ctypes.addressof(attribute) if use else None, int(use),
        )  # fmt: skip
        self.check("cuLaunchKernelEx", ctypes.byref(configuration), self.functions[launch["kernel"]], pointers, None)

    def graph(self, launches: list[dict[str, Any]], buffers: list[Any], dependent: bool) -> ctypes.c_void_p:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        stream = ctypes.c_void_p(self.stream.cuda_stream)
        self.check("cuStreamBeginCapture_v2", stream, ctypes.c_int(1))
        for launch in launches:
            self.launch(launch, buffers, dependent)
        self.check("cuStreamEndCapture", stream, ctypes.byref(graph))
        self.check("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self.check("cuGraphDestroy", graph)
        return executable

    def time(
        self, launches: list[dict[str, Any]], buffers: list[Any], dependent: bool = True, reps: int = 100
    ) -> float:
        """Milliseconds of one pass, the median of `reps` replays."""
        executable, stream = self.graph(launches, buffers, dependent), ctypes.c_void_p(self.stream.cuda_stream)
        for _ in range(5):
            self.check("cuGraphLaunch", executable, stream)
        events = [self.torch.cuda.Event(enable_timing=True) for _ in range(reps + 1)]
        events[0].record(self.stream)
        for event in events[1:]:
            self.check("cuGraphLaunch", executable, stream)
            event.record(self.stream)
        self.stream.synchronize()
        times = sorted(a.elapsed_time(b) for a, b in itertools.pairwise(events))
        self.check("cuGraphExecDestroy", executable)
        return float(times[reps // 2])

    def tensor(self, buffer: dict[str, Any], chain: dict[str, Any], given: dict[str, Any]) -> Any:
        """Memory for a buffer: what `given` says, else random."""
        torch = self.torch
        kind, name = buffer["kind"], buffer.get("name", "")
        dtypes = {"f32": torch.float32, "i32": torch.int32, "i64": torch.int64, "bf16": torch.bfloat16}
        if name in given:
            return torch.from_numpy(given[name]).cuda()
        if kind == "packed":
            out = torch.empty(buffer["nbytes"], dtype=torch.uint8, device="cuda")
            for slab in out.view(-1, buffer["slab"]):
                values = slab[: buffer["values"]]
                if buffer["format"] == "bf16":
                    values.view(torch.bfloat16).normal_(0, 0.02)
                elif buffer["format"] == "f8":
                    values.random_(0, 256)
                    values.masked_fill_(values.bitwise_and(127) == 127, 0)
                    slab[buffer["values"] :].view(torch.float32).uniform_(1e-5, 4e-5)
                else:
                    values.random_(0, 256)
                    slab[buffer["values"] :].view(torch.float16).uniform_(1e-4, 4e-4)
            return out
        if kind == "state":
            return torch.randn(chain["pages"] * chain["rows"] * buffer["page"] // 2, device="cuda").to(torch.bfloat16)
        if kind == "workspace":
            return torch.zeros(buffer["nbytes"], dtype=torch.uint8, device="cuda")
        shape, rows = buffer["shape"], chain.get("rows", 1)
        if name == "positions":
            return torch.full((rows,), chain["position"], dtype=torch.int32, device="cuda")
        if name in ("sequences", "rows"):
            return torch.arange(rows, dtype=torch.int32, device="cuda")
        if name == "block_table":
            return torch.randperm(rows * shape[-1], dtype=torch.int32, device="cuda")
        if buffer["dtype"] == "i32":
            return torch.zeros(shape, dtype=torch.int32, device="cuda")
        return torch.randn(shape, dtype=torch.float32, device="cuda").to(dtypes[buffer["dtype"]])


def run(arguments: argparse.Namespace) -> None:
    import torch

    folder: Path = arguments.folder
    plan = json.loads((folder / "plan.json").read_text())
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.version.cuda, "cubins for", plan["architecture"])
    spilled = {n: k["spills"] for n, k in plan["kernels"].items() if k["spills"]}
    print("kernels that spill:", spilled or "none")
    driver = Driver(folder, plan)
    worst = 0.0
    for product in plan["products"]:
        error = check_product(driver, product)
        exact = product["schedule"]["split"] or product["format"].startswith("int")
        limit = 5e-5 if exact else 8e-3
        worst = max(worst, error / limit)
        verdict = "ok" if error <= limit else "WRONG"
        print(f"{product['rows']} x {product['k']} by {product['n']} {product['format']}: {error:.2e} {verdict}")
    for step in plan["steps"]:
        worst = max(worst, check_step(driver, folder, step))
    rate = read_rate(driver)
    print(f"read {rate / 1e12:.3f} TB/s")
    for chain in plan["chains"]:
        time_chain(driver, chain, rate)
        torch.cuda.empty_cache()
    if worst > 1:
        sys.exit("some results are wrong")


def check_product(driver: Driver, product: dict[str, Any]) -> float:
    """The largest error of a product, relative to the largest value."""
    generator = np.random.default_rng(product["n"])
    rows, n, k = product["rows"], product["n"], product["k"]
    x = generator.standard_normal((rows, k)).astype(np.float32)
    buffers = [driver.tensor(b, product, {"x": x}) for b in product["buffers"]]
    driver.stream.wait_stream(driver.torch.cuda.current_stream())
    for launch in product["launches"]:
        driver.launch(launch, buffers, True)
    driver.stream.synchronize()
    at = next(i for i, b in enumerate(product["buffers"]) if b["kind"] == "packed")
    out = next(i for i, b in enumerate(product["buffers"]) if b["kind"] == "buffer")
    weight = unpack(buffers[at].cpu().numpy(), product["buffers"][at])
    wanted = x.astype(np.float64) @ weight.T
    found = buffers[out].cpu().numpy().reshape(rows, n)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def check_step(driver: Driver, folder: Path, step: dict[str, Any]) -> float:
    """How far a step's logits and states are from the reference's, in units of what is allowed."""
    torch = driver.torch
    arrays = np.load(folder / "cubins" / f"{step['name']}.npz")
    buffers = []
    for i, buffer in enumerate(step["buffers"]):
        if str(i) in arrays:
            buffers.append(torch.from_numpy(arrays[str(i)].copy()).cuda())
        else:
            size = buffer.get("nbytes") or 4 * int(np.prod(buffer["shape"]))
            buffers.append(torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda"))  # NaN
    driver.stream.wait_stream(torch.cuda.current_stream())
    for _ in range(3):  # a step may be done again
        for launch in step["launches"]:
            driver.launch(launch, buffers, True)
    driver.stream.synchronize()
    worst = 0.0
    for i in step["wanted"]:
        wanted, found = arrays[f"wanted {i}"], buffers[int(i)].cpu().numpy()
        if wanted.dtype == np.uint16:
            wanted, found = ((x.astype(np.uint32) << 16).view(np.float32) for x in (wanted, found))
        else:
            found = found.view(np.float32)
        found = found.reshape(wanted.shape)
        finite = bool(np.isfinite(found).all())
        error = float(np.abs(found - wanted).max() / np.abs(wanted).max()) if finite else float("inf")
        verdict = "ok" if error <= 2e-2 else "WRONG"
        name = step["buffers"][int(i)].get("name") or "logits"
        print(f"{step['name']} {name}: {error:.2e} {verdict}")
        worst = max(worst, error / 2e-2)
    return worst


def unpack(data: np.ndarray[Any, Any], buffer: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The weight [n, k] of a slab's bytes as f64."""
    n, k, stored = buffer["n"], buffer["k"], data[: buffer["values"]]
    if buffer["format"] == "bf16":
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(n, k).astype(np.float64)
    if buffer["format"] == "f8":
        code = stored.astype(np.uint16)
        values = ((code & 0x80) << 8 | (code & 0x7F) << 7).view(np.float16).astype(np.float64) * 256
        return values.reshape(n, k) * data[buffer["values"] :][: n * 4].view(np.float32)[:, None]
    scales = data[buffer["values"] :][: n * (k // 32) * 2].view(np.float16).reshape(n, -1, 1).astype(np.float64)
    if buffer["format"] == "i8":
        values = stored.view(np.int8).astype(np.float64)
    else:
        halves = stored.reshape(-1, 1, 16)
        values = np.concatenate([halves & 15, halves >> 4], 1).astype(np.float64) - 8
    return (values.reshape(n, -1, 32) * scales).reshape(n, k)


def read_rate(driver: Driver) -> float:
    """Bytes per second of a kernel that only reads 2 GB."""
    torch = driver.torch
    data = torch.zeros(1 << 31, dtype=torch.uint8, device="cuda")
    buffers = [data, torch.zeros(4, dtype=torch.int32, device="cuda")]
    best = 0.0
    for blocks in (264, 528, 1056):
        count = len(data) // 16 // (blocks * 512 * 8) * (blocks * 512 * 8)
        launch = {
            "kernel": "read_all", "arguments": [0, 1], "symbols": [count], "grid": [blocks], "dependent": False
        }  # fmt: skip
        best = max(best, count * 16 / driver.time([launch], buffers, reps=20) * 1e3)
    return best


def time_chain(driver: Driver, chain: dict[str, Any], rate: float) -> None:
    torch = driver.torch
    buffers = [driver.tensor(b, chain, {}) for b in chain["buffers"]]
    driver.stream.wait_stream(torch.cuda.current_stream())
    nbytes = sum(b["nbytes"] for b in chain["buffers"] if b["kind"] == "packed")
    kv = sum(chain["pages"] * chain["rows"] * b["page"] for b in chain["buffers"] if b["kind"] == "state")
    plain = driver.time(chain["launches"], buffers, False)
    dependent = driver.time(chain["launches"], buffers, True)
    floor = (nbytes + kv) / rate * 1e3
    finite = all(bool(torch.isfinite(b).all()) for b in buffers if b.dtype == torch.float32)
    print(
        f"{chain['name']} {chain['format']} {chain['rows']} row(s) {chain['label']}: {len(chain['launches'])} launches "
        f"(left out: {', '.join(chain['left']) or 'none'}), {(nbytes + kv) / 1e9:.3f} GB, floor {floor:.4f} ms; plain "
        f"{plain:.4f} ms ({floor / plain:.0%}), dependent {dependent:.4f} ms ({floor / dependent:.0%})"
        f"{'' if finite else '; NOT FINITE'}",
        flush=True,
    )
    if chain["label"]:
        return
    kinds: dict[str, list[dict[str, Any]]] = {}
    for launch in chain["launches"]:
        kinds.setdefault(launch["kernel"], []).append(launch)
    for name, launches in kinds.items():
        weights = {i for x in launches for i in x["arguments"] if chain["buffers"][i]["kind"] == "packed"}
        read = sum(chain["buffers"][i]["nbytes"] for i in weights)
        took = driver.time(launches, buffers, True) / len(launches) * 1e3
        least = read / len(launches) / rate * 1e6
        print(f"  {name} x {len(launches)}: {took:.2f} us each among themselves, floor {least:.2f} us", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", default="sm_90a")
    parser.add_argument("--models", nargs="*", default=["1b", "8b"], choices=sorted(MODELS))
    parser.add_argument("--variants", action="store_true", help="also other stage sizes and depths")
    arguments = parser.parse_args()
    build(arguments) if arguments.what == "build" else run(arguments)


if __name__ == "__main__":
    main()
