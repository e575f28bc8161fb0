"""Generated kernels run one after another in Triton's interpreter, their memory made as they ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paged
import torch
from interpreter import TORCH, function, passed

from echoc.compiler.api import lookup
from echoc.compiler.ir import Node, Program
from echoc.compiler.ir.types import dim_value
from echoc.compiler.passes.fuse import Fuser, root
from echoc.compiler.passes.pack import Packed, plan_packing
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.inline import inline
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.lower import launch_list, launch_runs
from echoc.compiler.targets.gpu.printer import Workspace
from echoc.compiler.targets.gpu.render import Device, Renderer
from echoc.compiler.weights import Weights

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Launches:
    """The kernels of a program's one rule: `kernels` in order, `memory` by what their arguments point to."""

    def __init__(self, program: Program, form: int | None, weights_dtype: str = "f32", group: int = 32,
                 deterministic: bool = False, device: Device | None = None) -> None:  # fmt: skip
        self.program = program
        self.types = {s.name: s.type for s in program.skin.states}
        rule = program.skin.rules[0]
        fuser = Fuser(rule)
        groups = inline(fuser.groups(), frozenset(root(n) for _, n in rule.outputs))
        self.outputs = dict(rule.outputs)
        self.packing = plan_packing(fuser, groups, weights_dtype, group)
        bounds = {name: high for name, (_, high) in program.symbols.items()}
        self.renderer = Renderer(
            bounds, self.packing, {n for g in groups for n in g.outputs}, frozenset(), device or Device("cuda")
        )
        self.renderer.announce(groups)
        runs = launch_runs(groups, self.packing)
        self.kernels: list[Kernel] = [k for k, _ in launch_list(self.renderer, runs, deterministic, form)]

    def run(self, inputs: Arrays, values: Arrays, symbols: Mapping[str, int], states: Arrays | None = None) -> Arrays:
        """The out ports, with `inputs` as the in ports and `states` [pages, 16, heads, dim]."""
        self.memory: dict[object, torch.Tensor] = {}
        held = Weights(self.program.skin, lookup(dict(values)), {})

        def make(key: object, element: str) -> torch.Tensor:
            if isinstance(key, str):
                return paged.pack(dict(states or {})[key], self.types[key])
            if isinstance(key, Packed):
                data = np.concatenate([p.reshape(-1).view(np.uint8) for p in weights.parts(key, held, 1)])
                assert data.nbytes == weights.nbytes(key)
                return torch.from_numpy(data).view(TORCH[element])
            if isinstance(key, Workspace):
                return torch.full((dim_value(key.size, symbols),), 0xFF, dtype=torch.uint8).view(TORCH[element])
            assert isinstance(key, Node)
            if key.op in ("port", "weight"):
                array = (inputs if key.op == "port" else values)[key["name"]]
                return torch.tensor(np.ascontiguousarray(array)).to(TORCH[element])
            return torch.full((dim_value(key.tensor.size, symbols),), 77).to(TORCH[element])

        for kernel in self.kernels:
            for argument in kernel.arguments:
                if argument.key not in self.memory:
                    self.memory[argument.key] = make(argument.key, argument.element)
            pointers = [self.memory[a.key] for a in kernel.arguments]
            grid = tuple(-(-dim_value(size, symbols) // tile) for size, tile in kernel.grid)
            function(kernel)[grid](*passed(kernel, pointers, symbols))
        return {
            name: self.memory[node].to(torch.float32).numpy().reshape([dim_value(d, symbols) for d in node.shape])
            for name, node in self.outputs.items()
        }

    def state(self, name: str) -> np.ndarray[Any, Any]:
        """A state's pages [pages, 16, heads, dim] after the run."""
        return paged.unpack(self.memory[name], self.types[name])


def close(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], tolerance: float) -> None:
    """Both finite and near each other, relative to the largest wanted value."""
    assert found.shape == wanted.shape and np.isfinite(found).all()
    error = np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)
    assert error <= tolerance, f"relative error {error:.3g}; wanted {tolerance:.3g}"


def dequantised(launches: Launches, values: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """The weights as their packed form on the GPU holds them."""
    out = dict(values)
    held = Weights(launches.program.skin, lookup(dict(values)), {})
    for entry in launches.packing.entries:
        form = weights.layout(entry)
        data = np.concatenate([p.reshape(-1).view(np.uint8) for p in weights.parts(entry, held, 1)])
        slabs = [weights.unpack(form, d) for d in data.reshape(-1, form.nbytes)]
        for i, source in enumerate(entry.sources):
            mine = slabs[i * entry.experts : (i + 1) * entry.experts]
            array = np.stack([m.T if entry.transposed else m for m in mine])
            out[source["name"]] = array.reshape(values[source["name"]].shape)
    return out
