"""What membranes of a compound system do in a step: read what has arrived, step the content, write the out ports."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from echoc.errors import ArtifactError
from echoc.runtime.compound_wires import DTYPES, Value
from echoc.runtime.devices.gpu import check_device, free_memory
from echoc.runtime.manifest import GPUS
from echoc.runtime.memory import available_memory
from echoc.runtime.program import Program
from echoc.runtime.systems import SystemProgram, SystemRun

if TYPE_CHECKING:
    from echoc.runtime.artifact import Artifact
    from echoc.runtime.llm import LLM

Arrivals = list[tuple[int, Value]]


@dataclass(frozen=True)
class Place:
    """Where contents run: threads of the host for each (None: as many as suits it), and which GPU."""

    num_threads: int | None = None
    device_index: int | None = None


class Content(Protocol):
    """What a membrane holds in one run. `awake`: it has something to do without anything new."""

    awake: bool = False

    def start(self, seed: int, number: int) -> None:
        """Back to the start. `number` is the membrane's own, which sets its draws apart from the others'."""

    @abstractmethod
    def step(self, arrived: Arrivals) -> Arrivals:
        """(in port, value) pairs that arrived before this step; returns (out port, value) pairs."""


class SystemContent(Content):
    """A P system: objects come into its membranes, what leaves the skin by a declared port is carried away."""

    def __init__(self, entry: Mapping[str, Any], program: SystemProgram) -> None:
        self.program, self.steps = program, int(entry["steps"])
        told = entry["options"]
        self.into = [int(told["into"][port["name"]]) for port in entry["in"]]
        self.leaving: list[tuple[int, list[str]]] = []
        self.shown: list[tuple[int, str, list[str]]] = []
        for i, port in enumerate(entry["out"]):
            if port["kind"] == "objects":
                self.leaving.append((i, [str(o) for o in port["objects"]]))
            else:
                of = told["of"][port["name"]]
                self.shown.append((i, str(of["label"]), [str(o) for o in of["objects"]]))
        self.live: SystemRun = program.create()
        self.last: dict[int, list[int]] = {}

    def start(self, seed: int, number: int) -> None:
        begin = getattr(self.live, "start", None)
        if begin is not None:
            begin(seed, number)
        else:
            self.live = self.program.create(seed=seed, run=number)
        self.awake, self.last = True, {}

    def step(self, arrived: Arrivals) -> Arrivals:
        for port, objects in arrived:
            self.live.put(self.into[port], objects)
        self.awake = not self.live.advance(self.steps).halted
        out: Arrivals = []
        for port, objects in self.leaving:
            taken = self.live.take(objects)
            if taken:
                out.append((port, taken))
        if self.shown:
            self._show(out)
        return out

    def _show(self, out: Arrivals) -> None:
        """Counts that have changed."""
        totals = self.live.totals()
        for port, label, objects in self.shown:
            held = totals[label]["objects"] if label in totals else {}
            counts = [int(held.get(obj, 0)) for obj in objects]
            if self.last.get(port) != counts:
                self.last[port] = counts
                out.append((port, np.array(counts, np.int64)))


class TensorContent(Content):
    """A program from vectors to vectors, such as a reservoir: it steps when one of its inputs is new."""

    def __init__(self, entry: Mapping[str, Any], artifact: Artifact, place: Place) -> None:
        self.artifact, self.steps, self.place = artifact, int(entry["steps"]), place
        self.ports = {p.name: p for p in artifact.manifest.ports}
        self.inputs = [str(port["name"]) for port in entry["in"]]
        self.outputs = [str(port["name"]) for port in entry["out"]]
        self.program: Program | None = None
        self.used = False

    def start(self, seed: int, number: int) -> None:
        if self.program is None or self.used:  # its state is the program's own
            index = self.place.device_index if self.artifact.manifest.device in GPUS else None
            self.program = Program(self.artifact, num_threads=self.place.num_threads or 1, device_index=index)
        self.used = False
        self.awake = not self.inputs
        self.held: dict[str, Value] = {
            p.name: np.zeros([n for n in p.shape if isinstance(n, int)], DTYPES[p.dtype])
            for p in self.ports.values() if p.direction == "in"
        }  # fmt: skip

    def step(self, arrived: Arrivals) -> Arrivals:
        assert self.program is not None
        self.used = True
        for port, value in arrived:
            self.held[self.inputs[port]] = value
        timed = any(not isinstance(p.shape[0], int) for p in self.ports.values())
        times = 1 if timed else self.steps
        given = {
            name: value if not timed or isinstance(self.ports[name].shape[0], int)
            else np.repeat(value[None], self.steps, axis=0)
            for name, value in self.held.items()
        }  # fmt: skip
        for _ in range(times):
            found = self.program.step(given)
        return [
            (i, found[name] if isinstance(self.ports[name].shape[0], int) else found[name][-1])
            for i, name in enumerate(self.outputs)
        ]


class ModelContent(Content):
    """A language model: every text that arrives is a prompt, the text that follows it goes out."""

    def __init__(self, entry: Mapping[str, Any], llm: LLM) -> None:
        options = dict(entry["options"])
        self.with_prompt = bool(options.pop("include_prompt", False))
        self.llm, self.options = llm, options
        self.params(0)

    def params(self, seed: int) -> Any:
        return self.llm.default_sampling_params(**self.options, seed=seed)

    def start(self, seed: int, number: int) -> None:
        self.seeds = np.random.default_rng([seed, number])

    def step(self, arrived: Arrivals) -> Arrivals:
        prompts = [value for _, value in arrived]
        params = [self.params(int(self.seeds.integers(1 << 63))) for _ in prompts]
        outputs = self.llm.generate(prompts, params)
        for output in outputs:
            if output.error is not None:
                raise output.error
        texts = [output.outputs[0].text for output in outputs]
        return [(0, (p if self.with_prompt else "") + t) for p, t in zip(prompts, texts, strict=True)]


def content(entry: Mapping[str, Any], loaded: Any, place: Place) -> Content:
    """What an entry of the manifest is at run time, over what `load_member` made of its artifact."""
    if entry["kind"] == "system":
        return SystemContent(entry, loaded)
    return ModelContent(entry, loaded) if entry["kind"] == "model" else TensorContent(entry, loaded, place)


def load_member(kind: str, artifact: Artifact, place: Place, share: float) -> Any:
    """A member's artifact on its device, for all membranes that hold it: `share` is their part of the memory."""
    on_gpu = artifact.manifest.device in GPUS
    if on_gpu:
        check_device(artifact, place.device_index)
    if kind == "tensors":
        return artifact
    free = free_memory(artifact.manifest.device, place.device_index) if on_gpu else available_memory()
    memory, index = int(free * share), place.device_index if on_gpu else None
    if kind == "system":
        return SystemProgram(
            artifact, num_threads=place.num_threads or 1, max_bytes=max(memory, 1 << 24), device_index=index
        )
    if kind == "model":
        from echoc.runtime.llm import LLM

        return LLM(artifact, num_threads=place.num_threads, kv_cache_bytes=max(memory, 1 << 26), device_index=index)
    raise ArtifactError(
        f"{artifact.path} is a membrane of kind {kind!r}, which this echoc does not know; upgrade echoc"
    )
