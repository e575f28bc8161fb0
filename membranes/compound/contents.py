"""What membranes hold: P systems, reservoirs, models, artifacts; and how each becomes an artifact of its own."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echoc.compiler.ir import Program
from echoc.compiler.ir.algebra import System, Target
from echoc.errors import EchoError
from echoc.membranes.source import SourceError

from .errors import NOWHERE, TopologyError
from .topology import Membrane, Port, PortType

if TYPE_CHECKING:
    from echoc.membranes.reservoirs import Reservoir
    from echoc.runtime.artifact import Artifact

MODEL_BUILD = ("weights_dtype", "group", "context_length", "kv_dtype")
MODEL_SAMPLING = (
    "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "ignore_eos",
    "include_prompt",
)  # fmt: skip
MAX_WEIGHTS_FILE, MAX_REPEATS = 1 << 30, 4096
_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
OWN_PORTS = ("seed", "step", "applied")  # of the program of a P system


@dataclass(frozen=True)
class Content:
    """A content that is ready to be compiled: its kind at run time, `key` (equal for equal contents), `build` (writes
    its artifact), what the runtime is told of it, and its program in the IR, where it has one."""

    kind: str
    key: object
    build: Callable[[Path, str], object]
    options: Mapping[str, Any]
    program: Program | None = None


def resolve(membrane: Membrane) -> Content:
    """The content of a membrane, its ports checked against what it really takes and gives. Raises TopologyError."""
    place = membrane.place
    most = {"model": 1, "reservoir": MAX_REPEATS, "artifact": MAX_REPEATS}.get(membrane.kind, membrane.steps)
    if membrane.steps > most:
        raise place.error(f"steps is {membrane.steps} for a {membrane.kind}", f"wanted at most {most}")
    try:
        if membrane.kind in ("system", "pli", "kpl"):
            return _system(membrane)
        if membrane.kind == "reservoir":
            return _reservoir(membrane)
        return _model(membrane) if membrane.kind == "model" else _artifact(membrane)
    except (TopologyError, SourceError):
        raise
    except EchoError as error:
        raise place.error(f"its {membrane.kind} cannot be used: {error}") from error


def file_of(membrane: Membrane, given: Any) -> Path:
    """A path of a content: relative to the topology's folder."""
    if not isinstance(given, str | Path) or "\0" in str(given):
        raise membrane.place.error(f"the {membrane.kind} is {given!r:.80}", "wanted a path")
    return (membrane.folder or Path()) / given


def check_ports(membrane: Membrane, wanted: Mapping[tuple[str, str], PortType]) -> None:
    """Raises TopologyError where declared ports are not those of the content."""
    for port in membrane.ports.values():
        kind = wanted.get((port.direction, port.name))
        there = ", ".join(f"{d}.{n} = {k}" for (d, n), k in wanted.items()) or "no ports"
        if kind is None:
            raise port.place.error(
                f"the {membrane.kind} in {membrane.name} has no {port.direction} port {port.name!r}", f"it has {there}"
            )
        if kind != port.type:
            raise port.place.error(
                f"port {port.name} is declared {port.type}; the {membrane.kind} in {membrane.name} has {kind}",
                f"declare it so: {there}",
            )
    for (direction, name), kind in wanted.items():
        if name not in membrane.ports:
            raise membrane.place.error(
                f"the {membrane.kind} in {membrane.name} has the {direction} port {name}, which is not declared",
                f'declare {direction}.{name} = "{kind}"',
            )


def _system(membrane: Membrane) -> Content:
    from echoc.compiler.ir.systems import program_of
    from echoc.compiler.ir.text import show
    from echoc.compiler.systems import compile_system

    system = _read_system(membrane)
    alphabet, labels = set(system.objects), [cell.label for cell in system.cells]
    incoming: list[tuple[int, str]] = []
    told: dict[str, Any] = {"into": {}, "of": {}}
    for port in membrane.ports.values():
        if port.name in OWN_PORTS:
            raise port.place.error(f"a port named {port.name} of a P system, whose program has one", "rename it")
        if port.type.kind != "objects" and not port.counts:
            raise port.place.error(f"port {port.name} of the P system in {membrane.name} is {port.type}",
                                   "wanted objects, or a table of counts; adapters stand on wires")  # fmt: skip
        for obj in port.counts or port.type.objects:
            if obj not in alphabet:
                raise port.place.error(
                    f"port {port.name} declares {obj}, an object that the P system in {membrane.name} does not have",
                    f"it has {' '.join(sorted(alphabet)[:20])}",
                )
        if port.direction == "in":
            told["into"][port.name] = cell = _cell(port, system, labels, membrane)
            incoming += [(cell, obj) for obj in port.type.objects]
        elif port.counts:
            label = port.of or system.cells[_cell(port, system, labels, membrane)].label
            if label not in system.labels:
                raise port.place.error(
                    f"port {port.name} counts in {label!r}", f"the labels are {', '.join(system.labels)}"
                )
            told["of"][port.name] = {"label": label, "objects": list(port.counts)}
    _check_leaks(membrane, system)
    program = program_of(system)

    def build(path: Path, target: str) -> object:
        return compile_system(program, target=target, output=path, incoming=incoming)

    text = show(program_of(_anonymous(system)))
    return Content("system", ("system", text, tuple(incoming)), build, told, program)


def _anonymous(system: System) -> System:
    """The system without its name and places: what is left is compiled once, however often it occurs."""
    cells = tuple(replace(cell, where=NOWHERE) for cell in system.cells)
    rules = tuple(replace(rule, where=NOWHERE) for rule in system.rules)
    return replace(system, name="", cells=cells, rules=rules)


def _read_system(membrane: Membrane) -> System:
    from echoc.membranes.reading import read

    given = membrane.content
    if isinstance(given, System):
        return given
    if membrane.kind in ("pli", "kpl"):
        if not isinstance(given, str):
            raise membrane.place.error(f"{membrane.kind} is {given!r:.80}", "wanted the text of a P system")
        system = _inline(membrane, given)
    else:
        options = _reading_options(membrane, given) if isinstance(given, Mapping) else {}
        path = file_of(membrane, given.get("file") if isinstance(given, Mapping) else given)
        if path.exists() and not path.is_file():
            raise membrane.place.error(f"{path} is no file", "wanted a file of a membrane language")
        system = read(path, **options)
    if not isinstance(system, System):
        raise membrane.place.error("a numerical P system", "wanted one of objects")
    return system


def _reading_options(membrane: Membrane, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of `{ file = ..., parameters = { n = 3 }, seed = 1, include_paths = ["..."] }`, all but the file."""
    known = ("file", "parameters", "seed", "include_paths")
    options = {str(key): value for key, value in given.items() if key != "file"}
    unknown = [key for key in options if key not in known]
    if unknown:
        raise membrane.place.error(f"system has the key {unknown[0]!r}", f"it has {', '.join(known)}")
    parameters, seed = options.get("parameters", {}), options.get("seed", 0)
    if not isinstance(parameters, Mapping) or any(
        isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) <= 1e300 for v in parameters.values()
    ):
        raise membrane.place.error(f"parameters is {parameters!r:.80}", "wanted a table of finite numbers")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 62:
        raise membrane.place.error(f"seed is {seed!r:.80}", "wanted a whole number from 0")
    if "include_paths" in options:
        paths = options["include_paths"]
        if not isinstance(paths, list | tuple):
            raise membrane.place.error(f"include_paths is {paths!r:.80}", "wanted a list of folders")
        options["include_paths"] = [file_of(membrane, path) for path in paths]
    return options


def _inline(membrane: Membrane, text: str) -> Any:
    """A system whose text stands in the topology: its lines keep their numbers."""
    from echoc.membranes.reading import READERS

    source, where = membrane.place.source, membrane.place.where
    name, lines = f"{membrane.name}.{membrane.kind}", 0
    if source is not None and where.line:
        at = source.text.find(text, source.starts[where.line - 1])
        name, lines = source.file, (where if at < 0 else source.where(at)).line - 1
    return import_module(READERS[f".{membrane.kind}"][0]).read(name, text="\n" * lines + text)


def _cell(port: Port, system: System, labels: list[str], membrane: Membrane) -> int:
    """The membrane of the start configuration that a port leads to: the only one of a label, or the skin."""
    label = port.into if port.direction == "in" else port.of
    if label is None:
        roots = [i for i, cell in enumerate(system.cells) if cell.parent is None]
        if len(roots) == 1:
            return roots[0]
        raise port.place.error(
            f"port {port.name} does not say which of the {len(roots)} outer membranes of {membrane.name} it leads to",
            f'say into = "label"; the labels are {", ".join(dict.fromkeys(labels))}',
        )
    found = [i for i, known in enumerate(labels) if known == label]
    if not found or (len(found) > 1 and port.direction == "in"):
        what = f"{len(found)} membranes {label!r}" if found else f"no membrane {label!r}"
        raise port.place.error(f"port {port.name} leads to {label!r}; the P system in {membrane.name} has {what}",
                               f"the labels are {', '.join(dict.fromkeys(labels))}")  # fmt: skip
    return found[0]


def _check_leaks(membrane: Membrane, system: System) -> None:
    """Raises TopologyError for a rule that sends out of the skin what no out port declares."""
    declared = {obj for port in membrane.of("out") if not port.counts for obj in port.type.objects}
    holders = {cell.label for cell in system.cells if cell.parent is None}
    tree = sum(cell.parent is None for cell in system.cells) == 1 and not system.links
    if not tree:
        holders = set(system.labels)
    outside = {obj for obj, _ in system.environment}
    for rule in system.rules:
        leaving = [
            obj for send in rule.send if send.target is Target.OUT and rule.label in holders for obj, _ in send.objects
        ]
        if rule.label is None and rule.inner and rule.inner[0].label in holders:
            leaving += [obj for obj, _ in rule.produce]
        for obj in leaving:
            if obj not in declared:
                at = f" ({rule.where})" if str(rule.where) else ""
                raise membrane.place.error(
                    f"a rule of {membrane.name}{at} sends {obj} out of the skin, and no out port declares it",
                    f'declare it: out.NAME = "objects {obj}"; or wire that port to "nothing"',
                )
    taken = sorted(outside & declared)
    if taken:
        raise membrane.place.error(
            f"the environment of {membrane.name} holds {taken[0]} at the start, which an out port carries away",
            "rename one of them",
        )


def _reservoir(membrane: Membrane) -> Content:
    from .trees import load_reservoir

    given = membrane.content
    if isinstance(given, Mapping):
        given = load_reservoir(given, membrane)
    model: Reservoir = given
    if not hasattr(model, "layers") or not hasattr(model, "compile"):
        raise membrane.place.error(f"the reservoir is {given!r:.80}", "wanted a Reservoir or its parameters")
    outputs = ("y", len(model.readout)) if model.readout is not None else ("x", model.units)
    wanted = {("in", "u"): PortType("tensor", "f64", model.inputs)} if model.inputs else {}
    wanted["out", outputs[0]] = PortType("tensor", "f64", int(outputs[1]))
    check_ports(membrane, wanted)
    program, _ = model.program("f64")
    key = (
        "reservoir",
        id(model) if not isinstance(membrane.content, Mapping) else repr(membrane.content),
        str(membrane.folder),
    )

    def build(path: Path, target: str) -> object:
        return model.compile(path, target=target)

    return Content("tensors", key, build, {}, program)


def _model(membrane: Membrane) -> Content:
    given = membrane.content if isinstance(membrane.content, Mapping) else {"path": membrane.content}
    known = ("path", *MODEL_BUILD, *MODEL_SAMPLING)
    unknown = [key for key in given if key not in known]
    if unknown:
        raise membrane.place.error(f"model has the key {unknown[0]!r}", f"it has {', '.join(known)}")
    path = file_of(membrane, given.get("path"))
    if not path.exists():
        raise membrane.place.error(
            f"there is no model at {path}", "wanted a folder with config.json, or a compiled .echo"
        )
    build_options = {key: given[key] for key in MODEL_BUILD if key in given}
    check_ports(membrane, {("in", "prompt"): PortType("text"), ("out", "text"): PortType("text")})
    sampling = {key: given[key] for key in MODEL_SAMPLING if key in given}
    _check_sampling(membrane, sampling)
    if path.is_file() and path.suffix == ".echo":
        if build_options:
            raise membrane.place.error(
                f"{next(iter(build_options))} for a compiled model", "compile it again with the option"
            )
        artifact = _opened(membrane, path)
        if not artifact.manifest.model or "system" in artifact.manifest.raw:
            raise membrane.place.error(f"{path} holds no language model", "a model has a tokenizer and prompts")
        return Content("model", ("file", str(path.resolve())), _copying(path), sampling)

    def build(output: Path, target: str) -> object:
        from echoc.compiler.api import compile as compile_model

        return compile_model(str(path), target=target, output=str(output), **build_options)

    return Content("model", ("model", str(path.resolve()), repr(build_options)), build, sampling)


def _check_sampling(membrane: Membrane, sampling: Mapping[str, Any]) -> None:
    """Rough types, so that mistakes show before a model has been compiled; the runtime knows the ranges."""
    special: dict[str, Any] = {"stop": (str, list), "ignore_eos": bool, "include_prompt": bool}
    for key, value in sampling.items():
        kinds = special.get(key, (int, float))
        wrong_bool = isinstance(value, bool) and kinds is not bool
        if (
            not isinstance(value, kinds)
            or wrong_bool
            or (isinstance(value, int | float) and not -2 <= value <= 1 << 31)
        ):
            raise membrane.place.error(f"{key} is {value!r:.80}", "wanted what SamplingParams takes")


def _artifact(membrane: Membrane) -> Content:
    path = file_of(membrane, membrane.content)
    artifact = _opened(membrane, path)
    manifest = artifact.manifest
    if "compound" in manifest.raw or "system" in manifest.raw or any(s.kind == "pages" for s in manifest.states):
        raise membrane.place.error(
            f"{path} holds no program of tensors", "use system, model, or the topology's own file for others"
        )
    wanted: dict[tuple[str, str], PortType] = {}
    for port in manifest.ports:
        sizes = [size for size in port.shape if isinstance(size, int)]
        if (
            port.dtype not in ("f64", "f32", "i64")
            or len(sizes) != 1
            or port.shape[-1] != sizes[0]
            or len(port.shape) > 2
        ):
            raise membrane.place.error(
                f"port {port.name} of {path} is {port.dtype}{list(port.shape)}", "wanted vectors, one for a step"
            )
        if sizes[0]:
            wanted[port.direction, port.name] = PortType("tensor", port.dtype, sizes[0])
    check_ports(membrane, wanted)
    return Content("tensors", ("file", str(path.resolve())), _copying(path), {})


def _opened(membrane: Membrane, path: Path) -> Artifact:
    from echoc.runtime.artifact import Artifact

    if not path.is_file():
        raise membrane.place.error(f"there is no file {path}", "wanted a compiled .echo")
    return Artifact(path)


def _copying(path: Path) -> Callable[[Path, str], object]:
    def build(output: Path, target: str) -> object:
        return output.write_bytes(path.read_bytes())

    return build


def load_readout(membrane: Membrane, given: Any, features: int) -> np.ndarray[Any, Any]:
    """Weights [outputs, features] from a .npz file (array `readout`), read without pickle."""
    path = file_of(membrane, given)
    try:
        if not path.is_file() or path.stat().st_size > MAX_WEIGHTS_FILE:
            raise ValueError("no file of at most a gigabyte")
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_WEIGHTS_FILE:
                raise ValueError("it holds more than a gigabyte")
        with np.load(path, allow_pickle=False) as file:
            weights = np.asarray(file["readout"], np.float64)
    except _UNREADABLE as error:
        raise membrane.place.error(
            f"cannot read the readout {path}: {error}", "wanted a .npz with an array named readout"
        ) from None
    if weights.ndim != 2 or weights.shape[1] != features or not len(weights) or not np.isfinite(weights).all():
        raise membrane.place.error(
            f"the readout of {path} is {list(weights.shape)}", f"wanted finite numbers [outputs, {features}]"
        )
    return weights
