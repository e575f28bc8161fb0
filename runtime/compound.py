"""A compiled compound system: membranes that step together, and what crosses between them.

    program = CompoundProgram("topology.echo")
    run = program.create(seed=1)
    outputs = run.step({"signal": [0.3]})       # out ports that something reached in this step

A step is synchronous: every membrane reads what had arrived when the step began, steps its content, and writes its out
ports; nothing that is written in a step is read in it. Inputs arrive before the step they are given to. Only membranes
that got something, or that have something to do by themselves, are visited: the others cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from echoc.errors import ArtifactError, DeviceError, EchoError, RequestError
from echoc.runtime.artifact import Artifact
from echoc.runtime.compound_contents import Content, Place, content, load_member
from echoc.runtime.compound_wires import Adapter, Value, adapter, checked, plain, prepared
from echoc.runtime.devices.cpu import check_target
from echoc.runtime.devices.gpu import check_device
from echoc.runtime.manifest import GPUS

__all__ = ["CompoundProgram", "CompoundRun", "is_compound", "plain"]
Crossing = Callable[[int, str, str, Value], None]
_SHARE = 0.5  # of the available memory, for all contents together


class CompoundProgram:
    """An artifact of a topology on this machine; its runs are independent of each other.

    Args:
        artifact: opened, or its path.
        num_threads: for every content; default: one, and for language models the cores at hand.
        device_index: of the GPU, for contents compiled for one; default: what ECHOC_DEVICE_INDEX says, else the first.
    Raises: ArtifactError for an artifact that is none of a topology, DeviceError where a content does not load.
    """

    def __init__(
        self,
        artifact: Artifact | str | os.PathLike[str],
        *,
        num_threads: int | None = None,
        device_index: int | None = None,
    ) -> None:
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
        self.place = Place(num_threads, device_index)
        if not is_compound(self.artifact):
            raise ArtifactError(f"{self.artifact.path} holds no topology; echoc.load loads any program")
        if self.artifact.manifest.device in GPUS:
            check_device(self.artifact, device_index)
        else:
            check_target(self.artifact)
        raw = self.artifact.manifest.raw
        self.wiring: Mapping[str, Any] = raw["compound"]
        self.name = str(raw.get("source", {}).get("name", ""))
        try:
            _check_wiring(self.wiring)
            self.inputs = {str(port["name"]): prepared(port) for port in self.wiring["in"]}
            self.outputs = {str(port["name"]): port for port in self.wiring["out"]}
            self.paths = [str(entry["path"]) for entry in self.wiring["membranes"]]
            self.loaded = self._load()
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, EchoError):
                raise
            raise ArtifactError(
                f"{self.artifact.path}: its topology is not valid: {error!r}; compile it again"
            ) from None

    def _load(self) -> dict[str, Any]:
        kinds = {str(entry["member"]): str(entry["kind"]) for entry in self.wiring["membranes"]}
        count = sum(entry["kind"] != "tensors" for entry in self.wiring["membranes"])
        share = _SHARE / max(count, 1)
        return {name: load_member(kind, self.artifact.inside(name), self.place, share) for name, kind in kinds.items()}

    def create(self, *, seed: int = 0) -> CompoundRun:
        """A run at the start. The same seed and inputs give the same run. Raises RequestError for a seed out of range,
        ArtifactError and DeviceError for contents that cannot be run here."""
        try:
            return CompoundRun(self, seed)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ArtifactError(f"{self.artifact.path}: a membrane is not valid: {error!r}; compile it again") from None


class _Membrane:
    """One membrane with a content, in one run."""

    __slots__ = ("content", "number", "path", "queued", "routes", "taken", "waiting")

    def __init__(self, number: int, path: str, held: Content, num_out: int) -> None:
        self.number, self.path, self.content = number, path, held
        self.waiting: list[tuple[int, Value]] = []
        self.queued = False
        self.taken = 0
        self.routes: list[list[_Route]] = [[] for _ in range(num_out)]


class _Route:
    """A way for values to a membrane's in port, or (without a membrane) to an out port of the whole."""

    __slots__ = ("membrane", "port", "steps")

    def __init__(self, membrane: _Membrane | None, port: int, steps: Sequence[Adapter]) -> None:
        self.membrane, self.port, self.steps = membrane, port, steps


class CompoundRun:
    """One run. `steps` counts the steps taken; `on_crossing(step, membrane, port, value)`, where it is set, is told
    of every value that a membrane (or, as membrane "", the caller) writes to a port.

    A membrane that fails (memory, an overflow, a prompt too long) ends the run: `reset` begins it again.
    """

    def __init__(self, program: CompoundProgram, seed: int) -> None:
        self.program = program
        self.on_crossing: Crossing | None = None
        entries = program.wiring["membranes"]
        self._membranes = [
            _Membrane(
                i, str(e["path"]), content(e, program.loaded[e["member"]], program.place), len(e["out"])
            )
            for i, e in enumerate(entries)
        ]  # fmt: skip
        self._out_names = [str(port["name"]) for port in program.wiring["out"]]
        self._out_kinds = [str(port["kind"]) for port in program.wiring["out"]]
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Back to the start, with the same seed or another. Raises RequestError."""
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64):
            raise RequestError(f"the seed is {seed!r}; wanted 0 to 2^64 - 1")
        self.seed: int = self.seed if seed is None else seed
        self.steps = 0
        self._failure: str | None = None
        self._outputs: dict[str, Value] = {}
        self._ready: list[int] = []
        self._inputs: dict[str, list[_Route]] = {name: [] for name in self.program.inputs}
        names = list(self.program.inputs)
        for membrane in self._membranes:
            membrane.waiting, membrane.taken = [], 0
            membrane.routes = [[] for _ in membrane.routes]
            membrane.content.start(self.seed, membrane.number)
            membrane.queued = membrane.content.awake
            if membrane.queued:
                self._ready.append(membrane.number)
        for route in self.program.wiring["routes"]:
            (source, out), (target, port) = route["from"], route["to"]
            made = _Route(
                self._membranes[target] if target >= 0 else None, port, [adapter(step) for step in route["steps"]]
            )
            (self._membranes[source].routes[out] if source >= 0 else self._inputs[names[out]]).append(made)

    @property
    def idle(self) -> bool:
        """Whether no membrane has anything to do: steps without inputs change nothing any more."""
        return not self._ready

    def step(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Value]:
        """One step of all membranes.

        Args:
            inputs: values for in ports of the whole, by name: numbers for a tensor, a mapping to counts (or a list)
                for objects, a text. A port that is left out gets nothing in this step.
        Returns: what reached the out ports: an array, a mapping from objects to counts, or a text (several in one
            step: a line each). A port that nothing reached is left out.
        Raises: RequestError for inputs that are not declared or do not fit, before anything has changed; DeviceError
            for a membrane that failed.
        """
        if self._failure is not None:
            raise DeviceError(f"the run has ended: {self._failure}; reset it")
        outputs = self._outputs = {}
        if inputs:
            self._receive(inputs)
        self.steps += 1
        ready = self._ready
        if not ready:
            return outputs
        if len(ready) > 1:
            ready.sort()
        self._ready = []
        if len(ready) == 1:
            membrane = self._membranes[ready[0]]
            arrived, membrane.waiting, membrane.queued = membrane.waiting, [], False
            self._visit(membrane, arrived)
            return outputs
        visits = []
        for number in ready:
            membrane = self._membranes[number]
            visits.append((membrane, membrane.waiting))
            membrane.waiting, membrane.queued = [], False
        for membrane, arrived in visits:
            self._visit(membrane, arrived)
        return outputs

    def run(self, inputs: Mapping[str, Sequence[Any]], steps: int | None = None) -> list[tuple[int, dict[str, Value]]]:
        """Steps along series of inputs, one value a step for each port; (step, outputs) of those that gave any.

        Args:
            steps: default: as many as the longest series has. Ports whose series has ended get nothing.
        """
        longest = max((len(series) for series in inputs.values()), default=0)
        wanted = longest if steps is None else steps
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
            raise RequestError(f"the number of steps is {wanted!r}, wanted 0 or more")
        found = []
        for t in range(wanted):
            if t >= longest and self.idle:
                self.steps += wanted - t
                break
            outputs = self.step({name: series[t] for name, series in inputs.items() if t < len(series)})
            if outputs:
                found.append((self.steps, outputs))
        return found

    def activity(self) -> dict[str, int]:
        """How many steps each membrane has taken part in, by its path."""
        return {membrane.path: membrane.taken for membrane in self._membranes}

    def content(self, path: str) -> Content:
        """What the membrane at a path holds, to look at; changing it from outside is not what ports are for."""
        for membrane in self._membranes:
            if membrane.path == path:
                return membrane.content
        raise RequestError(f"there is no membrane {path!r}; known: {', '.join(self.program.paths[:20])}")

    def _receive(self, inputs: Mapping[str, Any]) -> None:
        values = []
        for name, given in inputs.items():
            port = self.program.inputs.get(name)
            if port is None:
                known = ", ".join(self.program.inputs) or "none"
                raise RequestError(f"the topology declares no in port {name!r}; it has {known}")
            value = checked(port, given)
            if port["kind"] != "objects" or value:
                values.append((name, value))
        for name, value in values:
            if self.on_crossing is not None:
                self.on_crossing(self.steps + 1, "", name, value)
            try:
                self._send(self._inputs[name], value)
            except EchoError as error:
                raise self._failed(f"input {name}", error) from error

    def _visit(self, membrane: _Membrane, arrived: list[tuple[int, Value]]) -> None:
        membrane.taken += 1
        held = membrane.content
        try:
            for port, value in held.step(arrived):
                if self.on_crossing is not None:
                    name = self.program.wiring["membranes"][membrane.number]["out"][port]["name"]
                    self.on_crossing(self.steps, membrane.path, str(name), value)
                self._send(membrane.routes[port], value)
        except (EchoError, MemoryError) as error:
            raise self._failed(f"membrane {membrane.path}", error) from error
        if held.awake and not membrane.queued:
            membrane.queued = True
            self._ready.append(membrane.number)

    def _send(self, routes: Sequence[_Route], value: Value) -> None:
        for route in routes:
            carried = value
            for step in route.steps:
                carried = step(carried)
                if carried is None:
                    break
            else:
                membrane = route.membrane
                if membrane is None:
                    self._put_out(route.port, carried)
                    continue
                membrane.waiting.append((route.port, carried))
                if not membrane.queued:
                    membrane.queued = True
                    self._ready.append(membrane.number)

    def _put_out(self, port: int, value: Value) -> None:
        name, kind = self._out_names[port], self._out_kinds[port]
        before = self._outputs.get(name)
        if before is None or kind == "tensor":
            self._outputs[name] = value if kind == "text" else value.copy()  # it may be on its way elsewhere too
        elif kind == "text":
            self._outputs[name] = f"{before}\n{value}"
        else:
            self._outputs[name] = {o: before.get(o, 0) + value.get(o, 0) for o in dict.fromkeys((*before, *value))}

    def _failed(self, where: str, error: BaseException) -> DeviceError:
        self._failure = f"step {self.steps}, {where}: {error}"
        return DeviceError(self._failure)


def is_compound(artifact: Artifact) -> bool:
    """Whether an artifact holds a topology."""
    return isinstance(artifact.manifest.raw.get("compound"), dict)


def _check_wiring(wiring: Mapping[str, Any]) -> None:
    """Raises ValueError for routes that lead nowhere."""
    membranes = wiring["membranes"]
    for route in wiring["routes"]:
        for (number, port), inner, outer in ((route["from"], "out", "in"), (route["to"], "in", "out")):
            ports = membranes[number][inner] if number >= 0 else wiring[outer]
            if number < -1 or not 0 <= port < len(ports):
                raise ValueError(f"a route leads to port {port} of membrane {number}")
