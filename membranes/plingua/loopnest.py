"""A rule under ranges as one Python function: a loop nest in which everything is computed in the outermost loop that it
depends on, once.

The nest takes only what is plain: no calls, no guards or features, and ranges over whole numbers below 2^20, so that
their sums and products cannot overflow. What it cannot take raises Unsuited when it is made, or Aside when it runs;
then the closures of the statement do all of it again, and say what is wrong where something is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from echoc.compiler.ir.algebra import Bag, Mode

from . import values
from .evaluate import in_order
from .syntax import Chain, Expression, Label, Name, Number, Object, Range, Rule, SystemConstant, Text, Unary
from .thunks import Locals
from .values import Value

if TYPE_CHECKING:
    from .build import Planned, RuleBuilder, Template

RANGE_BITS = 20  # of a value of a range
WHOLE_BITS = 40  # of a variable in an index
SAFE_BITS = 62
LITERAL = 10**15
MOST_LOOPS = 15  # Python nests 20 blocks
_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9_.]*", re.ASCII)
_PLAIN_TEXT = re.compile(r"t[0-9]+|v[0-9]+|-?[0-9]+", re.ASCII)


NONE: frozenset[int] = frozenset()


class Unsuited(Exception):
    """A statement that is left to closures."""


class Aside(Exception):
    """A value that is left to closures."""


@dataclass(slots=True)
class Code:
    """An expression of the function: its text, the loops that it depends on, and how many bits its whole number takes
    (None: a value of any kind).
    """

    text: str
    loops: frozenset[int] = NONE
    bits: int | None = None

    @property
    def depth(self) -> int:
        """The loop in which it is known."""
        return max(self.loops, default=0)


@dataclass(slots=True)
class Loop:
    """`for variable in range(low, high)`, or over (value, p) pairs that were chosen."""

    variable: str
    low: Code
    high: Code
    chosen: bool = False


@dataclass(slots=True)
class Writer:
    """The function while it is written: the lines of every depth, and what is known already."""

    variables: dict[str, Code]
    scope: dict[str, Any]
    lines: list[list[str]] = field(default_factory=list)
    made: dict[str, Code] = field(default_factory=dict)
    count_made: int = 0

    def name(self, value: Any) -> str:
        """A name for a value that is known before."""
        name = f"c{len(self.scope)}"
        self.scope[name] = value
        return name

    def keep(self, text: str, parts: Iterable[Code], bits: int | None = None) -> Code:
        """The value of `text`, which depends on the parts, in a variable, or the variable that has it already."""
        loops = NONE.union(*[p.loops for p in parts])
        if _PLAIN_TEXT.fullmatch(text):
            return Code(text, loops, bits)
        found = self.made.get(text)
        if found is None:
            self.count_made += 1
            found = self.made[text] = Code(f"t{self.count_made}", loops, bits)
            self.lines[found.depth].append(f"{found.text} = {text}")
        return found

    def group(self, parts: Sequence[Code]) -> Code:
        """A tuple."""
        return self.keep(_tuple(parts).text, parts)

    def call(self, function: object, *arguments: Code) -> Code:
        """The value of a function that depends on nothing but its arguments."""
        text = ", ".join(a.text for a in arguments)
        known = next((k for k, v in self.scope.items() if v is function), None) or self.name(function)
        return self.keep(f"{known}({text})", arguments)

    # Expressions.

    def expression(self, node: Expression, whole: bool = False) -> Code:
        """`whole`: a value that is no whole number below 2^40 is set aside."""
        if isinstance(node, Number) and isinstance(node.value, int) and abs(node.value) < LITERAL:
            return Code(str(node.value), NONE, node.value.bit_length())
        if isinstance(node, Number | Text) and not whole:
            return Code(self.name(node.value))
        if isinstance(node, Name):
            return self.variable(node, whole)
        if isinstance(node, Chain):
            return self.chain(node, whole)
        if isinstance(node, Unary):
            value = self.expression(node.operand)
            for operator in reversed(node.operators):
                value = self.call(_operator(operator, True), value)
            return self.whole(value) if whole else value
        if isinstance(node, SystemConstant) and node.name in values.CONSTANTS and not whole:
            return Code(self.name(values.CONSTANTS[node.name]))
        raise Unsuited

    def variable(self, node: Name, whole: bool) -> Code:
        if not node.index:
            if node.name in self.variables:
                return self.variables[node.name]
            value = self.keep(f"find({node.name!r})", ())
        else:
            key = self.key(node)
            value = self.keep(f"shared[{key.text}]", [key])
        return self.whole(value) if whole else value

    def whole(self, value: Code) -> Code:
        """The same, known to be a whole number that is not large."""
        if value.bits is not None:
            return value
        if f"whole {value.text}" not in self.made:
            self.made[f"whole {value.text}"] = Code(value.text, value.loops, WHOLE_BITS)
            limit = 1 << WHOLE_BITS
            self.lines[value.depth].append(
                f"if {value.text}.__class__ is not int or not -{limit} < {value.text} < {limit}: raise Aside"
            )
        return self.made[f"whole {value.text}"]

    def chain(self, node: Chain, whole: bool) -> Code:
        if any(op in ("&&", "||") for op, _, _ in node.rest):
            raise Unsuited
        leaves = whole and all(op in "+-*" for op, _, _ in node.rest)
        value = self.expression(node.first, leaves)
        for op, _, operand in node.rest:
            right = self.expression(operand, leaves)
            bits = _bits(op, value, right)
            if bits is None:
                value = self.call(_operator(op, False), value, right)
            else:
                value = self.keep(f"{value.text} {op} {_signed(right.text)}", [value, right], bits)
        return self.whole(value) if whole else value

    def key(self, node: Name) -> Code:
        """The name with its indices."""
        if not _NAME.fullmatch(node.name):
            raise Unsuited
        if not node.index:
            return Code(repr(node.name))
        parts = [self.expression(i, True) for i in node.index]
        innermost = max(p.depth for p in parts)
        pieces: list[list[Code]] = [[]]  # what is known in an outer loop is written there
        for part in parts:
            if pieces[-1] and (part.depth == innermost or pieces[-1][-1].depth == innermost):
                pieces.append([])
            pieces[-1].append(part)
        texts = []
        for piece in pieces:
            text = ",".join(f"{{{p.text}}}" for p in piece)
            known = piece[0].depth < innermost and len(piece) > 1
            texts.append(f"{{{self.keep(f'f{chr(34)}{text}{chr(34)}', piece).text}}}" if known else text)
        return self.keep(f'f"{node.name}{{{{{",".join(texts)}}}}}"', parts)

    def bag(self, nodes: Sequence[Object]) -> Code:
        """A multiset."""
        named = [o for o in nodes if o.name is not None]
        if any(o.ranges for o in nodes):
            raise Unsuited
        parts = [(self.key(o.name), o.count) for o in named if o.name is not None]
        if not parts:
            return Code("()")
        if len(parts) == 1 and parts[0][1] is None:
            key = parts[0][0]
            return self.keep(f"(({key.text}, 1),)", [key])
        one = Number(0, 1)
        counts = [self.count(one if count is None else count) for _, count in parts]
        pairs = [Code(f"({k.text}, {c.text})", k.loops | c.loops) for (k, _), c in zip(parts, counts, strict=True)]
        return self.call(multiset, *pairs)

    def count(self, node: Expression) -> Code:
        value = self.expression(node)
        return value if value.text.isdigit() else self.call(multiplicity, value)

    def label(self, node: Label) -> Code:
        if node.literal and isinstance(node.value, Name):
            return self.key(node.value)
        value = self.expression(node.value)
        if value.bits is None:
            return self.call(label_text, value)
        return self.keep(f'f"{{{value.text}}}"', [value])

    # Loops.

    def loops(self, ranges: Sequence[Range]) -> list[Loop]:
        """The loops, outermost first, each with lines of its own."""
        if len(ranges) > MOST_LOOPS:
            raise Unsuited
        found: list[Loop] = []
        self.lines.append([])
        for node in ranges:
            variable = node.variable
            if variable is None or variable.index or variable.name in self.variables:
                raise Unsuited
            low, high = self.expression(node.low, True), self.expression(node.high, True)
            start = self.keep(f"{low.text} + {int(node.low_strict)}", [low])
            stop = self.keep(f"{high.text} + {int(not node.high_strict)}", [high])
            self.lines.append([])
            code = Code(f"v{len(found)}", frozenset([len(found) + 1]), RANGE_BITS)
            self.variables[variable.name] = code
            found.append(Loop(code.text, start, stop))
        return found

    def skip(self, text: str, depth: int) -> None:
        """Goes on with the next value of the loop where the condition holds."""
        self.lines[depth].append(f"if {text}: {'continue' if depth else 'raise Aside'}")


def multiset(*pairs: tuple[str, int]) -> Bag:
    """The bag of objects and their counts, of which some may be 0."""
    counts: dict[str, int] = {}
    for name, count in pairs:
        if count:
            counts[name] = counts.get(name, 0) + count
    if any(c > values.HIGH for c in counts.values()):
        raise Aside
    return tuple(sorted(counts.items()))


def multiplicity(value: Value) -> int:
    """A count, as the closures have it."""
    if value.__class__ is not int:
        if isinstance(value, str) or not abs(value) < 2.0**63:
            raise Aside
        value = int(value)
    if value < 0:
        raise Aside
    return value


def label_text(value: Value) -> str:
    if isinstance(value, float) or value == "":
        raise Aside
    return str(value)


def _bits(op: str, a: Code, b: Code) -> int | None:
    """How many bits the result of two whole numbers takes, where it can be computed as it stands."""
    if a.bits is None or b.bits is None or op not in ("+", "-", "*"):
        return None
    bits = a.bits + b.bits if op == "*" else max(a.bits, b.bits) + 1
    return bits if bits <= SAFE_BITS else None


def _signed(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


_OPERATORS: dict[tuple[str, bool], Callable[..., Value]] = {}


def _operator(sign: str, one: bool) -> Callable[..., Value]:
    return _OPERATORS.setdefault((sign, one), partial(values.unary if one else values.binary, sign))


def kind_of(found: Bag) -> int:
    """Whether a bag has nothing, one object, or more."""
    return 0 if not found else 1 if len(found) == 1 and found[0][1] == 1 else 2


def many(ranges: Sequence[Range], enough: int, unknown: int) -> bool:
    """Whether the ranges have enough values together; `unknown` is the guess for one whose bounds are not numbers."""
    product = 1.0
    for node in ranges:
        if node.variable is not None:
            low, high = (end.value if isinstance(end, Number) else None for end in (node.low, node.high))
            product *= unknown if low is None or high is None else max(0.0, min(float(high) - low + 1, 1e18))
    return product >= enough


Nest = Callable[["RuleBuilder", Locals, list[tuple[int, float | None, int | None]]], int]
"""Adds the rules to those of the builder, and those that were there already to the list, as (number, probability,
priority); gives the steps that are left. Raises Aside, or what the closures raise."""


def loop_nest(
    builder: RuleBuilder, ranges: Sequence[Range], node: Rule, template: Template, cache: dict[object, Planned]
) -> Nest:
    """The function of a rule statement. Raises Unsuited."""
    if (builder.matcher is not None and builder.matcher.exact) or node.guard is not None or node.features:
        raise Unsuited
    mark = builder.mark(node.at)
    writer = Writer({}, {"Aside": Aside, "cache": cache, "kind_of": kind_of, "template": template, "mark": mark})
    writer.scope["where"] = builder.source.where(node.at)
    loops = writer.loops([r for r in reversed(in_order(ranges)) if r.variable is not None])
    for unequal in (r for r in ranges if r.variable is None):
        differ = writer.call(_operator("<>", False), writer.expression(unequal.low), writer.expression(unequal.high))
        writer.skip(f"not {differ.text}", differ.depth)
    stochastic = builder.mode is Mode.GILLESPIE
    p = _number(builder, node, writer, loops, stochastic)
    level = "None"
    if node.priority is not None:
        check = builder.checked_priority(builder.mark(node.priority.at))
        level = writer.call(check, writer.expression(node.priority)).text
    bags = [writer.bag(nodes) for nodes in template.bag_nodes]
    labels = [_tuple([writer.label(part) for part in nodes]) for nodes in template.label_nodes]
    names = _tuple(labels).text
    fixed = all(constant is not None for constant in template.constant_labels)
    key = Code("()") if fixed else writer.group(labels)
    if template.open_bags:
        key = writer.group([key, _tuple([writer.call(kind_of, bags[i]) for i in template.open_bags])])
    writer.lines[key.depth].append(f"planned = cache.get({key.text})")
    identity = _tuple([Code("number"), *bags]).text
    if p != "None" and builder.mode is not Mode.DCBA:
        identity = f"(*{identity}, ({p}, None, ()))"
    writer.lines[-1] += [
        "if planned is None:",
        f"    planned = cache[{key.text}] = builder.plan(template, {_tuple(bags).text}, {names}, mark, None, local)",
        "    samples.append(n)",
        "_, number, make, group = planned",
        f"identity = {identity}",
        "first = seen.setdefault(identity, n)",
        "if first != n:",
        f"    again.append((first, {p}, {level}))",
        "else:",
        "    if n >= limit: raise Aside",
        f"    rules.append(make(identity, {level}, {f'None, {p}' if stochastic else f'{p}, None'}, None, where))",
        "    groups.append(group)",
        "    n += 1",
    ]
    return _function(writer, loops)


def _tuple(parts: Sequence[Code]) -> Code:
    text = "".join(f"{p.text}, " for p in parts)
    return Code(f"({text})", NONE.union(*[p.loops for p in parts]))


def _number(builder: RuleBuilder, node: Rule, writer: Writer, loops: Sequence[Loop], stochastic: bool) -> str:
    """The probability or rate. What cannot happen is skipped."""
    if node.probability is None:
        return "None"
    check = builder.checked_number(builder.mark(node.probability.at))
    before, known = len(writer.lines[-1]), set(writer.made)
    value = writer.expression(node.probability)
    if stochastic:
        return writer.call(check, value).text
    depth, lines = value.depth, writer.lines[value.depth]
    lines += [f"p = {value.text}", f"if p == 0: {'continue' if depth else 'raise Aside'}"]
    lines += ["if not (p.__class__ is float and 1e-9 < p < 1 - 1e-9):", f"    p = {writer.name(check)}(p)"]
    lines += [f"    if p == 0: {'continue' if depth else 'raise Aside'}"]
    if depth == len(loops) > 1:
        _choose(writer, loops[-1], value.loops - {depth}, before, known)
    return "p"


def _choose(writer: Writer, loop: Loop, needs: frozenset[int], before: int, known: set[str]) -> None:
    """Moves the choice of the values of the innermost loop whose probability is not 0 out of the loops around it that
    make no difference to it. `before`, `known`: what was there before the probability was written.
    """
    inside = [code for text, code in writer.made.items() if text not in known and code.depth == len(writer.lines) - 1]
    needs = needs.union(loop.low.loops, loop.high.loops, *[c.loops for c in inside]) - {len(writer.lines) - 1}
    outer = max(needs, default=0)
    if before or outer >= len(writer.lines) - 2:
        return
    loop.chosen = True
    body, writer.lines[-1] = writer.lines[-1], []
    writer.made = {text: code for text, code in writer.made.items() if code not in inside}
    low, high = loop.low.text, loop.high.text
    writer.lines[outer] += ["chosen = []", f"work -= {high} - {low} if {low} < {high} else 0"]
    writer.lines[outer] += [
        f"if work < 0 or {_far(loop)}: raise Aside",
        f"for {loop.variable} in range({low}, {high}):",
    ]
    writer.lines[outer] += [f"    {line}" for line in [*body, f"chosen.append(({loop.variable}, p))"]]


def _far(loop: Loop) -> str:
    return f"{loop.low.text} < -{1 << RANGE_BITS} or {loop.high.text} > {1 << RANGE_BITS}"


def _function(writer: Writer, loops: Sequence[Loop]) -> Nest:
    lines = ["def nest(builder, local, again):"]
    lines += ["    rules, groups, seen, samples = builder.rules, builder.groups, builder.seen, builder.samples"]
    lines += ["    shared, left, limit, n = builder.globals, builder.left, builder.limits.rules, len(builder.rules)"]
    lines += ["    work = left"]
    lines += ["    find = lambda name: local[name] if name in local else shared[name]"]
    for depth, body in enumerate(writer.lines):
        indent = "    " * (depth + 1)
        lines += [indent + line for line in body]
        if depth < len(loops):
            loop = loops[depth]
            low, high = loop.low.text, loop.high.text
            lines += [f"{indent}if {low} < {high}:", f"{indent}    left -= {high} - {low}"]
            lines += [f"{indent}    if left < 0 or {_far(loop)}: raise Aside"]
            if loop.chosen:
                lines += [f"{indent}for {loop.variable}, p in chosen:"]
            else:
                lines += [f"{indent}for {loop.variable} in range({low}, {high}):"]
    lines.append("    return left")
    exec(compile("\n".join(lines), "<loop nest>", "exec"), writer.scope)
    made: Nest = writer.scope["nest"]
    return made
