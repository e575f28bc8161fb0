"""Running a program: definitions in order, then `main`; modules, ranges and loops expand into membranes and rules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import values
from .closures import Closures
from .diagnostics import Fault, Limits, Mark, Source
from .syntax import (
    Arcs,
    Block,
    Call,
    Constants,
    Evaluate,
    Features,
    If,
    Loop,
    Module,
    Ms,
    Mu,
    Name,
    Range,
    Ranged,
    Return,
    Rule,
    Statement,
)
from .thunks import INSIDE, Locals, Run, Thunk
from .values import Undefined, Value


@dataclass(slots=True)
class ModuleEntry:
    """A module and its source; its closures are made at the first call."""

    node: Module
    source: Source
    run: Run | None = None


class TooManyFaults(Exception):
    """As many faults as are reported at once."""


class Sink(Closures):
    """What structure statements are compiled to; `assemble.py` fills it in."""

    @abstractmethod
    def rule(self, node: Rule) -> Run:
        """A rule."""

    @abstractmethod
    def ms(self, node: Ms) -> Run:
        """`@ms`: objects of the start."""

    @abstractmethod
    def mu(self, node: Mu) -> Run:
        """`@mu`: membranes of the start."""

    @abstractmethod
    def arcs(self, node: Arcs) -> Run:
        """`@marcs`: synapses."""

    @abstractmethod
    def features(self, node: Features) -> Run:
        """`@name = value`."""


class Evaluator(Sink):
    """Compiles statements to closures and runs them."""

    def __init__(self, limits: Limits, parameters: Mapping[str, float], seed: int) -> None:
        super().__init__(limits, parameters, seed)
        self.modules: dict[tuple[str, int], ModuleEntry] = {}
        self.faults: list[Fault] = []
        self.places: set[tuple[str, int]] = set()
        self.calls = 0

    def define(self, node: Module) -> None:
        key = (node.name, len(node.parameters))
        if key in self.modules:
            first = self.modules[key]
            where = first.source.where(first.node.at)
            raise Fault(
                f"a second module {node.name} of {len(node.parameters)} parameters; the first is at {where}",
                self.mark(node.at),
            )
        self.modules[key] = ModuleEntry(node, self.source)

    def note(self, fault: Fault) -> None:
        """Collects a fault after which the run can go on, once for every place."""
        place = (fault.mark.source.file, fault.mark.offset)
        if place in self.places:
            return
        self.places.add(place)
        self.faults.append(fault)
        if len(self.faults) >= self.limits.errors:
            raise TooManyFaults

    def execute(self, node: Statement) -> None:
        """Runs a statement outside of every module."""
        self.statement(node)({})

    def statement(self, node: Statement) -> Run:
        inside = node
        while isinstance(inside, Ranged):
            inside = inside.body
        if not isinstance(inside, Rule | Ms | Arcs):
            return self._compiled(node)
        try:
            made = self._compiled(node)
        except Fault as fault:
            self.note(fault)
            return lambda _: None

        def run(local: Locals) -> tuple[Value] | None:
            try:
                return made(local)
            except Fault as fault:
                self.note(fault)
                return None

        return run

    def _compiled(self, node: Statement) -> Run:
        if isinstance(node, Ranged):
            return self.ranged(node)
        if isinstance(node, Rule):
            return self.rule(node)
        if isinstance(node, Block):
            return self.block(node)
        if isinstance(node, Evaluate):
            return self.evaluate(node)
        if isinstance(node, Constants):
            return self.constants(node)
        if isinstance(node, If):
            return self.choice(node)
        if isinstance(node, Loop):
            return self.loop(node)
        if isinstance(node, Return):
            value = self.expression(node.value).run
            return lambda local: (value(local),)
        if isinstance(node, Ms):
            return self.ms(node)
        if isinstance(node, Mu):
            return self.mu(node)
        if isinstance(node, Arcs):
            return self.arcs(node)
        return self.features(node)

    def evaluate(self, node: Evaluate) -> Run:
        expression = node.expression
        run = self.call(expression, False) if isinstance(expression, Call) else self.expression(expression).run

        def evaluate(local: Locals) -> None:
            run(local)

        return evaluate

    def block(self, node: Block) -> Run:
        body = [self.statement(s) for s in node.body]

        def block(local: Locals) -> tuple[Value] | None:
            for run in body:
                result = run(local)
                if result is not None:
                    return result
            return None

        return block

    def constants(self, node: Constants) -> Run:
        shared, fixed, pairs = self.globals, self.fixed, node.values

        def constants(local: Locals) -> None:
            if INSIDE in local:
                for name, value in pairs:
                    (shared if name in shared and name not in local else local)[name] = value
            else:
                shared.update(pairs)
                if fixed:
                    shared.update(saved)

        saved = {name: shared[name] for name in fixed}
        return constants

    def condition(self, run: Thunk, local: Locals, mark: Mark) -> bool:
        try:
            return values.true(run(local))
        except Undefined as problem:
            raise Fault(str(problem), mark) from None

    def choice(self, node: If) -> Run:
        condition, mark = self.expression(node.condition).run, self.mark(node.condition.at)
        then = self.statement(node.then)
        otherwise = self.statement(node.otherwise) if node.otherwise is not None else lambda _: None
        return lambda local: (then if self.condition(condition, local, mark) else otherwise)(local)

    def loop(self, node: Loop) -> Run:
        condition, mark = self.expression(node.condition).run, self.mark(node.at)
        body = self.statement(node.body)
        first = self.expression(node.first).run if node.first is not None else None
        step = self.expression(node.step).run if node.step is not None else None

        def loop(local: Locals) -> tuple[Value] | None:
            if first is not None:
                first(local)
            test = not node.test_last
            while not test or self.condition(condition, local, mark):
                test = True
                self.spend(1, mark)
                result = body(local)
                if result is not None:
                    return result
                if step is not None:
                    step(local)
            return None

        return loop

    # Ranges.

    def ranged(self, node: Ranged) -> Run:
        return self.nest(node.ranges, self._compiled(node.body))

    def nest(self, ranges: Sequence[Range], body: Run) -> Run:
        """`body` for all values of the ranges."""
        unequal = [r for r in ranges if r.variable is None]
        if unequal:
            body = self.filtered(unequal, body)
        for part in in_order([r for r in ranges if r.variable is not None]):
            body = self.range(part, body)
        return body

    def filtered(self, ranges: Sequence[Range], body: Run) -> Run:
        tests = [(self.expression(r.low).run, self.expression(r.high).run, self.mark(r.at)) for r in ranges]

        def filtered(local: Locals) -> tuple[Value] | None:
            for low, high, mark in tests:
                try:
                    if not values.binary("<>", low(local), high(local)):
                        return None
                except Undefined as problem:
                    raise Fault(str(problem), mark) from None
            return body(local)

        return filtered

    def bound(self, node: Range, run: Thunk, at: int) -> Callable[[Locals], int]:
        mark = self.mark(at)

        def bound(local: Locals) -> int:
            value = run(local)
            if value.__class__ is int:
                return value
            if isinstance(value, str):
                raise Fault(f"the bound of a range is a number; found the string {value[:40]!r}", mark)
            try:
                return values.to_whole(value)
            except Undefined as problem:
                raise Fault(str(problem), mark) from None

        return bound

    def range(self, node: Range, body: Run) -> Run:
        """One variable through its values; it is local to the statement."""
        low = self.bound(node, self.expression(node.low).run, node.low.at)
        high = self.bound(node, self.expression(node.high).run, node.high.at)
        assert node.variable is not None
        key, _ = self.key(node.variable)
        more, less, mark = int(node.low_strict), int(not node.high_strict), self.mark(node.at)

        def run(local: Locals) -> tuple[Value] | None:
            start, stop = low(local) + more, high(local) + less
            if start >= stop:
                return None
            self.spend(stop - start, mark)
            name = key(local)
            before = local.get(name)
            try:
                for value in range(start, stop):
                    local[name] = value
                    result = body(local)
                    if result is not None:
                        return result
            finally:
                if before is None:
                    del local[name]
                else:
                    local[name] = before
            return None

        return run

    # Calls.

    def call(self, node: Call, needed: bool = True) -> Thunk:
        """A call; with `needed`, one that must have a value."""
        arguments = [self.expression(a).run for a in node.arguments]
        mark, key = self.mark(node.at), (node.name, len(arguments))

        def call(local: Locals) -> Value:
            entry = None if node.system else self.modules.get(key)
            found = [run(local) for run in arguments]
            if entry is not None:
                result = self.invoke(entry, found, mark)
                if result is None and needed:
                    raise Fault(f"the module {node.name} returns nothing; wanted a value", mark)
                return 0 if result is None else result[0]
            if not values.is_function(node.name):
                raise Fault(self._no_module(node), mark)
            try:
                return values.function(node.name, found, self.generator)
            except Undefined as problem:
                raise Fault(str(problem), mark) from None

        return call

    def _no_module(self, node: Call) -> str:
        counts = sorted(n for name, n in self.modules if name == node.name)
        if counts:
            wanted = " or ".join(map(str, counts))
            return f"the module {node.name} takes {wanted} arguments; found {len(node.arguments)}"
        known = ", ".join(sorted({name for name, _ in self.modules})) or "none"
        return f"there is no module or function {node.name}; modules: {known}"

    def invoke(self, entry: ModuleEntry, arguments: Sequence[Value], mark: Mark) -> tuple[Value] | None:
        """Runs a module; what it returns, if it returns something."""
        self.spend(1, mark)
        if self.calls >= self.limits.calls:
            raise Fault(f"modules call each other more than {self.limits.calls} deep (limit calls)", mark)
        if entry.run is None:
            outer, self.source = self.source, entry.source
            try:
                entry.run = self.statement(entry.node.body)
            finally:
                self.source = outer
        local: Locals = {INSIDE: 1, **dict(zip(entry.node.parameters, arguments, strict=True))}
        self.calls += 1
        try:
            return entry.run(local)
        finally:
            self.calls -= 1


def _names(node: object) -> set[str]:
    """The variables that an expression reads, by their names without indices."""
    found: set[str] = set()
    queue = [node]
    while queue:
        item = queue.pop()
        if isinstance(item, Name):
            found.add(item.name)
        if isinstance(item, tuple):
            queue.extend(item)
        elif hasattr(item, "__dataclass_fields__"):
            queue.extend(getattr(item, f) for f in item.__dataclass_fields__)
    return found


def in_order(ranges: Sequence[Range]) -> list[Range]:
    """Innermost first. The last range that is written is the outermost, unless it needs the variable of another."""
    outer_first: list[Range] = []
    left = list(reversed(ranges))
    while left:
        bound = [{r.variable.name for r in left if r is not me and r.variable is not None} for me in left]
        ready = [i for i, r in enumerate(left) if not (_names(r.low) | _names(r.high)) & bound[i]]
        outer_first.append(left.pop(ready[0] if ready else 0))
    outer_first.reverse()
    return outer_first
