"""Decode chains as the fusion makes them, run launch by launch: CUDA kernels on the host machine, the rest in Triton's
interpreter."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paged
import torch
from cuda_host import HostMachine
from launches import TORCH, Launches, function

from echoc.compiler.api import lookup
from echoc.compiler.ir import Node, Program
from echoc.compiler.ir.types import dim_value
from echoc.compiler.passes.fuse import Fuser, root
from echoc.compiler.passes.pack import Packed, plan_packing
from echoc.compiler.targets.cuda.fusion import Chain
from echoc.compiler.targets.cuda.source import DEVICES
from echoc.compiler.targets.gpu import weights
from echoc.compiler.targets.gpu.kernel import Kernel
from echoc.compiler.targets.gpu.printer import Workspace
from echoc.compiler.targets.gpu.render import Device, Renderer
from echoc.compiler.targets.interface import only_rule, own_outputs
from echoc.compiler.weights import Weights

Arrays = Mapping[str, np.ndarray[Any, Any]]


class ChainLaunches(Launches):
    """The launches of a program for at most `rows` rows on an architecture."""

    def __init__(self, program: Program, rows: int, architecture: str = "sm_90a", weights_dtype: str = "bf16",
                 group: int = 32) -> None:  # fmt: skip
        self.program = program
        self.types = {s.name: s.type for s in program.skin.states}
        rule = own_outputs(only_rule(program.skin))
        fuser = Fuser(rule)
        groups = fuser.groups()
        self.outputs = {name: root(node) for name, node in rule.outputs}
        self.shapes = {name: node.shape for name, node in rule.outputs}
        self.packing = plan_packing(fuser, groups, weights_dtype, group)
        boundary = frozenset(self.outputs.values())
        self.chain = Chain(groups, self.packing, boundary, list(program.symbols), rows, DEVICES[architecture])
        bounds = {name: high for name, (_, high) in program.symbols.items()}
        stored = {n for g in groups for n in g.outputs}
        self.renderer = Renderer(bounds, self.packing, stored, boundary, Device("cuda"))
        self.renderer.narrow = set(self.chain.narrow)
        self.kernels: list[Kernel] = []
        for launch in self.chain.launches:
            self.kernels += launch.kernels or self.renderer.kernels(launch.groups, False, rows)
        self.machine = HostMachine(Path(tempfile.mkdtemp()), 90 if architecture == "sm_90a" else 80)

    def run(self, inputs: Arrays, values: Arrays, symbols: Mapping[str, int], states: Arrays | None = None) -> Arrays:
        self.memory = {}
        self.machine.compile(self.kernels)
        held = Weights(self.program.skin, lookup(dict(values)), {})
        for kernel in self.kernels:
            for argument in kernel.arguments:
                if argument.key not in self.memory:
                    self.memory[argument.key] = self.make(
                        argument.key, argument.element, inputs, values, symbols, held, states
                    )
            tensors = [self.memory[a.key] for a in kernel.arguments]
            if kernel.language == "triton":
                grid = tuple(-(-dim_value(size, symbols) // tile) for size, tile in kernel.grid)
                function(kernel)[grid](*tensors, *(symbols[s] for s in kernel.symbols))
                continue
            arrays = [t.view(torch.int16).numpy() if t.element_size() == 2 else t.numpy() for t in tensors]
            self.machine.run(kernel, arrays, symbols)
        return {
            name: self.memory[node]
            .to(torch.float32)
            .numpy()
            .reshape([dim_value(d, symbols) for d in self.shapes[name]])
            for name, node in self.outputs.items()
        }

    def make(self, key: object, element: str, inputs: Arrays, values: Arrays, symbols: Mapping[str, int],
             held: Weights, states: Arrays | None) -> torch.Tensor:  # fmt: skip
        if isinstance(key, str):
            return paged.pack(dict(states or {})[key], self.types[key])
        if isinstance(key, Packed):
            data = np.concatenate([p.reshape(-1).view(np.uint8) for p in weights.parts(key, held, 1)])
            return torch.from_numpy(data).view(TORCH[element])
        if isinstance(key, Workspace):
            return torch.full((dim_value(key.size, symbols),), 0xFF, dtype=torch.uint8).view(TORCH[element])
        assert isinstance(key, Node)
        if key.op in ("port", "weight"):
            array = (inputs if key.op == "port" else values)[key["name"]]
            return torch.tensor(np.ascontiguousarray(array)).to(TORCH[element])
        return torch.full((max(dim_value(key.tensor.size, symbols), 1),), 77).to(TORCH[element])
