"""From files to a system: includes, the model, and the run of `main`."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from echoc.compiler.ir.algebra import System
from echoc.compiler.ir.algebra import Where as Place
from echoc.membranes.validate import problems

from .assemble import Assembler
from .diagnostics import Diagnostic, Fault, Limits, Mark, PLinguaError, Source, diagnose
from .evaluate import TooManyFaults
from .parser import parse_source
from .patterns import Matcher, PatternGroup, PatternRule
from .show import pattern_shape, show_shape
from .syntax import (
    Bounded,
    Constants,
    Definition,
    Evaluate,
    Features,
    Include,
    ModelDefinition,
    Module,
    Pattern,
    Program,
    Ranged,
    UseModel,
)

MODELS = Path(__file__).parent / "models"
# Names of models, also those of version 4, and the file that defines each.
BUILT_IN: dict[str, str] = {
    "transition": "transition_model.pli",
    "membrane_division": "membrane_division_model.pli",
    "tissue_division": "tissue_division_model.pli",
    "tissue_separation": "tissue_separation_model.pli",
    "probabilistic": "pdp_model.pli",
    "symport_antiport": "symport_antiport_model.pli",
    "ev_symport_antiport": "ev_symport_antiport_model.pli",
    "evolution_communication": "evolution_communication_model.pli",
    "stochastic": "stochastic_model.pli",
    "spiking_psystems": "spiking_model.pli",
}
ALIASES: dict[str, str] = {
    "transition_psystem": "transition",
    "transition_psystems": "transition",
    "active_membranes": "membrane_division",
    "tissue_psystems": "tissue_division",
    "tissue_like_psystems": "tissue_division",
    "TSCS": "tissue_separation",
    "pdp": "probabilistic",
    "spiking": "spiking_psystems",
}
ELSEWHERE: dict[str, str] = {
    "simple_kernel_psystems": "the system in kP-Lingua",
    "membrane_creation": "a model without creation: rules can divide, dissolve and relabel membranes that are there",
}
FRAMES = 12  # of Python for one call of a module, at most, besides those of nested expressions


@dataclass(slots=True)
class Loader:
    """Reads a file and what it includes, every file once."""

    include_paths: Sequence[Path]
    limits: Limits
    programs: list[Program] = field(default_factory=list)
    done: set[Path] = field(default_factory=set)
    characters: int = 0
    charged: bool = False
    version4: bool = False

    def load(self, path: Path, text: str | None) -> list[tuple[Source, Definition]]:
        """The definitions of a file, those of included files in the place of the include."""
        found: list[tuple[Source, Definition]] = []
        first = self.parse(path, text, None)
        stack = [(path, first.source, iter(first.definitions))]
        self.done.add(_place(path))
        while stack:
            here, source, definitions = stack[-1]
            definition = next(definitions, None)
            if definition is None:
                stack.pop()
                continue
            if not isinstance(definition, Include):
                found.append((source, definition))
                continue
            mark = Mark(source, definition.at)
            target = self.find(definition, here, mark)
            place = _place(target)
            if any(_place(p) == place for p, _, _ in stack):
                chain = " -> ".join([*(p.name for p, _, _ in stack), target.name])
                raise Fault(f"the file includes itself: {chain}", mark)
            if place not in self.done:
                self.done.add(place)
                program = self.parse(target, None, mark)
                stack.append((target, program.source, iter(program.definitions)))
        return found

    def find(self, node: Include, here: Path, mark: Mark) -> Path:
        """The included file: by the search paths (for < >), then beside the including file, then built in."""
        if not node.file or "\0" in node.file:
            raise Fault("the name of the included file is empty or not a file name", mark)
        folders = [*(self.include_paths if node.search else ()), here.parent]
        if not node.search:
            folders.extend(self.include_paths)
        tried = []
        try:
            for folder in folders:
                candidate = Path(folder) / node.file
                if candidate.is_file():
                    return candidate
                tried.append(str(candidate))
        except OSError as problem:
            raise Fault(f"the included file {node.file[:200]!r}: {problem.strerror}", mark) from None
        stem = Path(node.file).stem
        for file in BUILT_IN.values():
            if stem in (Path(file).stem, Path(file).stem.removesuffix("_model")):
                return MODELS / file
        known = ", ".join(sorted(BUILT_IN.values()))
        raise Fault(f"no file {node.file}; looked for {', '.join(tried)}; built in: {known}", mark)

    def parse(self, path: Path, text: str | None, mark: Mark | None) -> Program:
        if len(self.programs) >= self.limits.files:
            raise _fault(f"more than {self.limits.files} files (limit files)", mark, path)
        if text is None:
            text = self.text(path, mark)
        self.characters += len(text)
        if self.characters > self.limits.characters:
            raise _fault(f"more than {self.limits.characters} characters (limit characters)", mark, path)
        name = f"<built in>/{path.name}" if path.parent == MODELS else str(path)
        program = parse_source(Source(name, text), self.limits, self.version4)
        self.programs.append(program)
        self.charged = self.charged or program.charged
        return program

    def text(self, path: Path, mark: Mark | None) -> str:
        try:
            if not path.is_file():
                raise _fault(f"no file {path}", mark, path)
            if path.stat().st_size > 4 * self.limits.characters:
                raise _fault(f"{path} is larger than the limit of {self.limits.characters} characters", mark, path)
            data = path.read_bytes()
        except (OSError, ValueError) as problem:
            raise _fault(f"{path} cannot be read: {problem}", mark, path) from None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("latin-1")


def _place(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


def _fault(message: str, mark: Mark | None, path: Path) -> Fault:
    return Fault(message, mark if mark is not None else Mark(Source(str(path), ""), 0))


@dataclass(slots=True)
class Model:
    """What the definitions say about models."""

    patterns: dict[str, tuple[Source, list[PatternRule]]] = field(default_factory=dict)
    models: dict[str, tuple[Source, ModelDefinition]] = field(default_factory=dict)
    used: tuple[str, Mark] | None = None
    has_probability: set[str] = field(default_factory=set)

    def collect(self, source: Source, node: Definition) -> bool:
        """Takes a pattern, model definition or @model<...>; False for anything else."""
        mark = Mark(source, node.at)
        if isinstance(node, Pattern):
            if node.name in self.patterns:
                raise Fault(f"a second pattern of the name {node.name}", mark)
            shapes = [(pattern_shape(r), r) for r in node.rules]
            rules = [PatternRule(s, show_shape(s), r.any_probability) for s, r in shapes]
            self.patterns[node.name] = (source, rules)
        elif isinstance(node, ModelDefinition):
            if node.name in self.models:
                raise Fault(f"a second definition of the model {node.name}", mark)
            self.models[node.name] = (source, node)
        elif isinstance(node, UseModel):
            if self.used is not None and self.used[0] != node.name:
                raise Fault(f"a second model {node.name}; the first is {self.used[0]}", mark)
            self.used = (node.name, mark)
        else:
            return False
        return True

    def groups(self, name: str) -> list[PatternGroup]:
        """The patterns of a model, in order, with their bounds; group numbers count the bounded groups."""
        source, definition = self.models[name]
        found: list[PatternGroup] = []
        seen: set[str] = set()
        bounded = 0

        def walk(parts: Sequence[Bounded], bound: int | None, group: int) -> None:
            nonlocal bounded
            for part in parts:
                mark = Mark(source, part.at)
                if part.parts:
                    if bound is not None and part.bound is not None:
                        raise Fault("a bounded group inside of a bounded group cannot be run; wanted them apart", mark)
                    if bound is None and part.bound is not None:
                        walk(part.parts, part.bound, bounded)
                        bounded += 1
                    else:
                        walk(part.parts, bound, group)
                    continue
                if part.name in seen:
                    raise Fault(f"the pattern {part.name} stands twice in the model {name}", mark)
                if part.name not in self.patterns:
                    known = ", ".join(self.patterns) or "none"
                    raise Fault(f"the model {name} names the pattern {part.name}; patterns: {known}", mark)
                seen.add(part.name)
                found.append(PatternGroup(part.name, bound, group, tuple(self.patterns[part.name][1])))

        walk(definition.parts, None, -1)
        return found


def read(
    path: Path | str,
    *,
    text: str | None = None,
    include_paths: Sequence[Path] = (),
    parameters: Mapping[str, float] | None = None,
    seed: int = 0,
    allow_substochastic: bool = False,
    limits: Limits | None = None,
) -> System:
    """The P system of a P-Lingua file (version 5, or 4 with built-in models).

    path: the file; with `text`, its name in messages and the folder of its includes.
    include_paths: where `@include <file>` looks first.
    parameters: global constants by name (`"k{1,2}"`), which win over assignments in the file, and the parameters of
        `main`, if it has any.
    seed: of the function `random`.
    allow_substochastic: of population dynamics, accept blocks of rules whose probabilities add up to less than 1: what
        they fall short of is the probability that nothing happens, by a rule that gives back what it takes.
    limits: bounds on the work, see `Limits`.

    Raises PLinguaError, a CompileError, with every mistake that was found: file, line, column, the line and a caret.
    """
    limits = limits or Limits()
    path = Path(path)
    loader = Loader(tuple(Path(p) for p in include_paths), limits)
    assembler = Assembler(limits, parameters or {}, seed, allow_substochastic)
    depth, collects = sys.getrecursionlimit(), gc.isenabled()
    gc.disable()  # hundreds of thousands of small tuples that stay: collecting would only walk them again and again
    sys.setrecursionlimit(max(depth, depth + limits.calls * FRAMES + 4_000))
    try:
        definitions = loader.load(path, text)
        if _is_version4(definitions):
            loader = Loader(loader.include_paths, limits, version4=True)
            definitions = loader.load(path, text)
        _known(parameters or {}, loader.programs)
        return _run(assembler, loader, definitions, path)
    except Fault as fault:
        raise PLinguaError([diagnose(f) for f in (*assembler.faults, fault)]) from None
    except TooManyFaults:
        raise PLinguaError([diagnose(f) for f in assembler.faults]) from None
    except RecursionError:
        raise PLinguaError(
            [Diagnostic(f"{path}: modules or expressions are nested too deep", _nowhere(path))]
        ) from None
    finally:
        sys.setrecursionlimit(depth)
        if collects:
            gc.enable()


def _is_version4(definitions: list[tuple[Source, Definition]]) -> bool:
    """Version 4 has its models built in: a file that uses one which no file defines is of that version."""
    defined = {node.name for _, node in definitions if isinstance(node, ModelDefinition)}
    return any(isinstance(node, UseModel) and node.name not in defined for _, node in definitions)


def _nowhere(path: Path) -> Place:
    return Place(str(path))


def _known(parameters: Mapping[str, float], programs: Sequence[Program]) -> None:
    """A parameter that no file mentions is a misspelt one."""
    for name in parameters:
        base = name.split("{")[0]
        pattern = re.compile(rf"(?<![A-Za-z0-9_.]){re.escape(base)}(?![A-Za-z0-9_.])")
        if not any(pattern.search(p.source.text) for p in programs):
            raise _fault(f"the parameter {name}: no file mentions it", None, Path(programs[0].source.file))


def _run(assembler: Assembler, loader: Loader, definitions: list[tuple[Source, Definition]], path: Path) -> System:
    model = Model()
    statements = _define(assembler, model, definitions)
    matcher, name = _model(assembler, model, loader, statements)
    for source, statement in statements:
        assembler.source = source
        if isinstance(statement, Features):
            assembler.execute(statement)
    groups = matcher.groups if matcher is not None else ()
    assembler.source = definitions[0][0] if definitions else Source(str(path), "")
    population = any(r.probability for g in groups for r in g.rules)
    exchange = any(r.shape.double for g in groups for r in g.rules)
    assembler.select(name, matcher, population and not assembler.system_features.get("mode"), exchange, loader.charged)
    if matcher is not None:
        matcher.short_labels = assembler.mode.value == "dcba"
    for source, statement in statements:
        assembler.source = source
        if not isinstance(statement, Features):
            assembler.execute(statement)
    assembler.source = definitions[0][0] if definitions else Source(str(path), "")
    _main(assembler)
    if assembler.faults:
        raise TooManyFaults
    system = assembler.finish(path.stem)
    found = problems(system, assembler.samples, assembler.blocks)
    if found:
        found = list(dict.fromkeys(found))  # a statement makes many rules
        sources = {p.source.file: p.source for p in loader.programs}
        raise PLinguaError([_diagnostic(p.message, p.where, sources) for p in found[: loader.limits.errors]])
    return system


def _diagnostic(message: str, where: Place, sources: Mapping[str, Source]) -> Diagnostic:
    source = sources.get(where.file)
    return Diagnostic(message, where, source.excerpt(where) if source is not None and where.line else "")


Statements = list[tuple[Source, Evaluate | Constants | Ranged | Features]]


def _define(assembler: Assembler, model: Model, definitions: list[tuple[Source, Definition]]) -> Statements:
    """Takes in modules, patterns and models; the rest is left to run."""
    statements: Statements = []
    for source, node in definitions:
        assembler.source = source
        if isinstance(node, Module):
            assembler.define(node)
        elif not model.collect(source, node):
            assert isinstance(node, Evaluate | Constants | Ranged | Features), node
            statements.append((source, node))
    return statements


def _model(assembler: Assembler, model: Model, loader: Loader, statements: Statements) -> tuple[Matcher | None, str]:
    """The patterns of the model that is used: its definition, or that of a built-in model."""
    if model.used is None:
        return None, ""
    name, mark = model.used
    if name not in model.models:
        known = ALIASES.get(name, name)
        if known in ELSEWHERE:
            raise Fault(f"the model {name} is not read as P-Lingua; wanted {ELSEWHERE[known]}", mark)
        if known not in BUILT_IN:
            names = ", ".join(sorted({*model.models, *BUILT_IN, *ALIASES}))
            raise Fault(f"unknown model {name}; known: {names}; or define it: @model({name}) = patterns;", mark)
        definitions = loader.load(MODELS / BUILT_IN[known], None)
        fresh = Model()
        statements.extend(_define(assembler, fresh, definitions))
        return Matcher(fresh.groups(known), False), name
    return Matcher(model.groups(name), False), name


def _main(assembler: Assembler) -> None:
    entries = [e for (name, _), e in assembler.modules.items() if name == "main"]
    if len(entries) != 1:
        known = ", ".join(sorted({name for name, _ in assembler.modules})) or "none"
        raise Fault(f"wanted one module main; found {len(entries)}; modules: {known}", assembler.mark(0))
    entry = entries[0]
    mark = Mark(entry.source, entry.node.at)
    missing = [p for p in entry.node.parameters if p not in assembler.fixed]
    if missing:
        raise Fault(f"main takes {', '.join(entry.node.parameters)}; no value was given for {', '.join(missing)}", mark)
    assembler.invoke(entry, [assembler.globals[p] for p in entry.node.parameters], mark)


def parse(text: str, file: str = "", limits: Limits | None = None) -> Program:
    """The syntax tree of one file, without its includes. Raises PLinguaError with every mistake found."""
    return parse_source(Source(file, text), limits or Limits())
