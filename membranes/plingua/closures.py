"""Expressions, names, labels and multisets of the syntax tree as Python closures over the local variables.

A variable is found by its name with the indices written out: `k{1,2}`. Local variables come before global ones.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from echoc.compiler.ir.algebra import Bag

from . import values
from .diagnostics import Fault, Limits, Mark, Source
from .syntax import (
    Assign,
    Call,
    Cast,
    Chain,
    Expression,
    Label,
    Name,
    Number,
    Object,
    Range,
    SystemConstant,
    Text,
    Unary,
)
from .thunks import (
    INSIDE,
    BagThunk,
    KeyThunk,
    Locals,
    Run,
    Thunk,
    apply_binary,
    bad_index,
    folded_chain,
    logic_of,
    pair_of,
    system_constant,
)
from .values import Undefined, Value


class Compiled(NamedTuple):
    """A closure, and its value where that is known already."""

    run: Thunk
    constant: Value | None = None


class Closures(ABC):
    """Turns the nodes of one source after another into closures that share the global variables."""

    def __init__(self, limits: Limits, parameters: Mapping[str, float], seed: int) -> None:
        self.limits = limits
        self.globals: dict[str, Value] = dict(parameters)
        self.fixed = frozenset(parameters)
        self.generator = random.Random(seed)
        self.left = limits.steps
        self.source = Source("", "")

    def mark(self, at: int) -> Mark:
        return Mark(self.source, at)

    def spend(self, steps: int, mark: Mark) -> None:
        """Counts work; raises Fault beyond the limit."""
        if steps > self.left:
            raise Fault(
                f"more than {self.limits.steps} iterations of ranges and loops (limit steps); wanted smaller ranges, "
                "or a loop that ends",
                mark,
            )
        self.left -= steps

    @abstractmethod
    def call(self, node: Call, needed: bool = True) -> Thunk:
        """A call; with `needed`, one that must have a value."""

    @abstractmethod
    def nest(self, ranges: Sequence[Range], body: Run) -> Run:
        """A statement under ranges."""

    def expression(self, node: Expression) -> Compiled:
        kind = type(node)
        if kind is Number or kind is Text:
            value: Value = node.value  # type: ignore[union-attr, assignment]
            return Compiled(lambda _: value, value)
        if isinstance(node, Name):
            return Compiled(self.variable(node))
        if isinstance(node, Chain):
            return self.chain(node)
        if isinstance(node, Unary):
            return self.unary(node)
        if isinstance(node, Cast):
            return self.cast(node)
        if isinstance(node, Call):
            return Compiled(self.call(node))
        if isinstance(node, SystemConstant):
            if node.name not in values.CONSTANTS:
                known = ", ".join(sorted(values.CONSTANTS))
                raise Fault(f"unknown constant system::{node.name}; known: {known}", self.mark(node.at))
            constant = values.CONSTANTS[node.name]
            return Compiled(lambda _: constant, constant)
        assert isinstance(node, Assign)
        return Compiled(self.assign(node))

    def key(self, node: Name) -> tuple[KeyThunk, str | None]:
        """The name with its indices, and the same as text where it is known already."""
        if not node.index:
            name = node.name
            return (lambda _: name), name
        parts = [self.expression(i) for i in node.index]
        marks = [self.mark(i.at) for i in node.index]
        form = node.name + "{" + ",".join(["%d"] * len(parts)) + "}"
        if all(isinstance(p.constant, int) for p in parts):
            text = form % tuple(p.constant for p in parts)
            return (lambda _: text), text
        runs = [p.run for p in parts]

        def key(local: Locals) -> str:
            indices = tuple([run(local) for run in runs])
            for i, index in enumerate(indices):
                if index.__class__ is not int:
                    raise bad_index(index, marks[i])
            return form % indices

        return key, None

    def variable(self, node: Name) -> Thunk:
        key, constant = self.key(node)
        shared, mark = self.globals, self.mark(node.at)
        if constant is not None:
            name = constant

            def load(local: Locals) -> Value:
                try:
                    return local[name]
                except KeyError:
                    pass
                try:
                    return shared[name]
                except KeyError:
                    return system_constant(name, mark)

            return load

        def load_indexed(local: Locals) -> Value:
            name = key(local)
            value = shared.get(name)
            if local and name in local:
                return local[name]
            return value if value is not None else system_constant(name, mark)

        return load_indexed

    def store(self, node: Name) -> Callable[[Locals, Value, bool], None]:
        """Assigns: a local variable if there is one, else a global one, else a new one where we are."""
        key, _ = self.key(node)
        shared, fixed = self.globals, self.fixed

        def store(local: Locals, value: Value, inside: bool) -> None:
            name = key(local)
            if inside and (name in local or name not in shared):
                local[name] = value
            elif name not in fixed:
                shared[name] = value

        return store

    def assign(self, node: Assign) -> Thunk:
        store, mark = self.store(node.target), self.mark(node.at)
        operator = node.operator
        one: Value = 1
        right = self.expression(node.value).run if node.value is not None else (lambda _: one)
        if operator == "=":

            def assign(local: Locals) -> Value:
                value = right(local)
                store(local, value, INSIDE in local)
                return value

            return assign
        load, sign = self.variable(node.target), operator[:-1]
        after = node.value is None and not node.prefix

        def update(local: Locals) -> Value:
            old, operand = load(local), right(local)
            new = apply_binary(sign, old, operand, mark)
            store(local, new, INSIDE in local)
            return old if after else new

        return update

    def chain(self, node: Chain) -> Compiled:
        first = self.expression(node.first)
        rest = [(op, self.mark(at), self.expression(e)) for op, at, e in node.rest]
        if rest[0][0] in ("&&", "||"):
            return Compiled(logic_of(rest[0][0] == "&&", [first.run, *(e.run for _, _, e in rest)], self.mark(node.at)))
        if first.constant is not None and all(e.constant is not None for _, _, e in rest):
            folded = folded_chain(
                first.constant, [(op, mark, e.constant) for op, mark, e in rest if e.constant is not None]
            )
            if folded is not None:
                return Compiled(lambda _: folded, folded)
        if len(rest) == 1:
            op, mark, e = rest[0]
            return Compiled(pair_of(op, first.run, e.run, mark))
        start, steps = first.run, [(op, mark, e.run) for op, mark, e in rest]

        def chain(local: Locals) -> Value:
            value = start(local)
            for op, mark, run in steps:
                value = apply_binary(op, value, run(local), mark)
            return value

        return Compiled(chain)

    def unary(self, node: Unary) -> Compiled:
        operand, mark = self.expression(node.operand), self.mark(node.at)
        operators, run = tuple(reversed(node.operators)), operand.run

        def unary(local: Locals) -> Value:
            value = run(local)
            try:
                for operator in operators:
                    value = values.unary(operator, value)
            except Undefined as problem:
                raise Fault(str(problem), mark) from None
            return value

        if operand.constant is None:
            return Compiled(unary)
        try:
            folded = unary({})
        except Fault:
            return Compiled(unary)
        return Compiled(lambda _: folded, folded)

    def cast(self, node: Cast) -> Compiled:
        operand, mark = self.expression(node.operand).run, self.mark(node.at)
        casts: dict[str, Callable[[Value], Value]] = {
            "int_t": values.to_whole,
            "long_t": values.to_whole,
            "double_t": values.to_double,
            "string_t": values.to_string,
        }
        if node.type not in casts:
            raise Fault(f"no cast to {node.type}; wanted {', '.join(casts)}", mark)
        convert = casts[node.type]

        def cast(local: Locals) -> Value:
            try:
                return convert(operand(local))
            except Undefined as problem:
                raise Fault(str(problem), mark) from None

        return Compiled(cast)

    def labels(self, nodes: tuple[Label, ...]) -> tuple[Callable[[Locals], tuple[str, ...]], tuple[str, ...] | None]:
        parts = [self.label(n) for n in nodes]
        if all(text is not None for _, text in parts):
            known = tuple(str(text) for _, text in parts)
            return (lambda _: known), known
        runs = [run for run, _ in parts]
        return (lambda local: tuple([run(local) for run in runs])), None

    def label(self, node: Label) -> tuple[KeyThunk, str | None]:
        if node.literal and isinstance(node.value, Name):
            return self.key(node.value)
        run, constant = self.expression(node.value)
        mark = self.mark(node.at)

        def label(local: Locals) -> str:
            value = run(local)
            if isinstance(value, float) or value == "":
                raise Fault(f"a label is a whole number or a string; found {value!r}", mark)
            return str(value)

        if constant is not None:
            text = label({})
            return (lambda _: text), text
        return label, None

    def bag(self, nodes: tuple[Object, ...]) -> tuple[BagThunk, Bag | None]:
        """A multiset without `@d`, and its value where that is known already."""
        if any(o.ranges for o in nodes):
            return self.ranged_bag(nodes), None
        parts = [
            (self.key(o.name), self.count(o.count) if o.count is not None else None)
            for o in nodes
            if o.name is not None
        ]
        if not parts:
            return (lambda _: ()), ()
        if len(parts) == 1 and parts[0][1] is None:
            key = parts[0][0][0]
            if parts[0][0][1] is not None:
                single = ((parts[0][0][1], 1),)
                return (lambda _: single), single
            return (lambda local: ((key(local), 1),)), None
        mark, pairs = self.mark(nodes[0].at), [(key[0], count) for key, count in parts]

        def bag(local: Locals) -> Bag:
            counts: dict[str, int] = {}
            for key, count in pairs:
                number = 1 if count is None else count(local)
                if number:
                    name = key(local)
                    counts[name] = counts.get(name, 0) + number
            if len(counts) < len(pairs) and any(c > values.HIGH for c in counts.values()):
                raise Fault("the multiplicity of an object does not fit in 64 bits", mark)
            return tuple(sorted(counts.items()))

        if all(key[1] is not None and count is None for key, count in parts):
            known = bag({})
            return (lambda _: known), known
        return bag, None

    def ranged_bag(self, nodes: tuple[Object, ...]) -> BagThunk:
        """A multiset of which a part is written with ranges."""
        plain = self.bag(tuple(o for o in nodes if not o.ranges))[0]
        mark, found = self.mark(nodes[0].at), [o for o in nodes if o.ranges]
        stack: list[dict[str, int]] = []  # one for every run that goes on: a count may call a module that comes here

        def add(bag: Bag) -> None:
            counts = stack[-1]
            for name, count in bag:
                counts[name] = counts.get(name, 0) + count
                if counts[name] > values.HIGH:
                    raise Fault("the multiplicity of an object does not fit in 64 bits", mark)

        def adder(objects: tuple[Object, ...]) -> Run:
            bag = self.bag(objects)[0]
            return lambda local: add(bag(local))

        runs = [self.nest(o.ranges, adder(o.objects)) for o in found]

        def ranged(local: Locals) -> Bag:
            stack.append({})
            try:
                add(plain(local))
                for run in runs:
                    run(local)
                return tuple(sorted(stack[-1].items()))
            finally:
                stack.pop()

        return ranged

    def count(self, node: Expression) -> Callable[[Locals], int]:
        run, mark = self.expression(node).run, self.mark(node.at)

        def count(local: Locals) -> int:
            value = run(local)
            if value.__class__ is not int:
                if isinstance(value, str):
                    raise Fault(f"a multiplicity is a number; found the string {value[:40]!r}", mark)
                if not (math.isfinite(value) and abs(value) < 2.0**63):
                    raise Fault(f"the multiplicity {value} does not fit in 64 bits", mark)
                value = int(value)
            if value < 0:
                raise Fault(f"the negative multiplicity {value}", mark)
            return value

        return count
