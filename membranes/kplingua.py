"""kP-Lingua: the language of kernel P systems (Gheorghe, Ipate, Dragomir et al., "Kernel P systems - Version 1", 2013).

    type Worker {
        choice { =a: a -> b (Store). >=2a & !stop: 2a -> [a][b](Worker). }
        max { b -> {}. }
        a, b -> c, d (Store), {2e} (Store).
    }
    type Store { c -> #. d -> -(Worker). e -> \\-(Worker). }
    w {3a} (Worker) - {} (Store).
    store {c} (Store), spare {} (Store).
    *(Worker) - store.

A type holds blocks that run in order: `choice` (one rule, once), `max` (as often as possible), `arbitrary` (any
number), and rules outside a block, which run as a sequence up to the first that is not applicable. A guard compares
every object of a multiset with its multiplicity: `>=` `<=` `>` `<` `=` and `!` (differs); no operator means `=`. `&`
binds more tightly than `|`. A rule sends what it has for a type to one linked instance of that type. A wildcard `*(T)`
stands for the instances of T that the text declares before it; links join neighbours of a chain, both ways, once. A
type without rules need not be defined.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from echoc.compiler.ir.algebra import Bag, Bound, Cell, Group, Guard, Mode, Rule, Send, System, Target, Where, bag

from .source import SourceText
from .tokens import MAX_COUNT, Token, Tokens
from .validate import validate

PATTERN = re.compile(
    r"(?P<skip>\s+|//[^\n]*|/\*.*?\*/)"
    r"|(?P<bad>/\*)"
    r"|(?P<arrow>->)"
    r"|(?P<compare>>=|<=|[><=!])"
    r"|(?P<number>[0-9]+)"
    r"|(?P<name>[^\W\d][\w$]*|\$[\w$]*)"
    r"|(?P<mark>\\-|[{}()\[\],.:|&#*\-])",
    re.DOTALL,
)
COMPARISONS = {">=": "ge", "<=": "le", ">": "gt", "<": "lt", "=": "eq", "!": "ne"}
BLOCKS = {"choice": Bound.CHOICE, "max": Bound.MAXIMAL, "arbitrary": Bound.ARBITRARY}
MAX_LINKS = 4_000_000
MAX_PARENTHESES = 100  # inside each other


def read(path: str | os.PathLike[str], *, text: str | None = None) -> System:
    """The kernel P system of a kP-Lingua file, or of `text` under the name `path`.

    Instances are cells (without a parent), types are labels, blocks are groups; the mode is ORDERED.
    Raises SourceError (a CompileError) with file, line, column and what was expected there, and InvalidSystem for a
    system that makes no sense.
    """
    source = SourceText.read(path, text)
    return validate(_Reader(source).system(), source)


@dataclass
class _Reader:
    """Reads statements one after another and gathers rules, cells and links."""

    source: SourceText
    rules: list[Rule] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    types: dict[str, Token] = field(default_factory=dict)
    used: dict[str, Token] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    named: dict[str, int] = field(default_factory=dict)
    links: dict[tuple[int, int], None] = field(default_factory=dict)
    wildcard: bool = False
    tokens: Tokens = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = Tokens(self.source, PATTERN, "'*/' at the end of this comment")

    def system(self) -> System:
        tokens = self.tokens
        while tokens.next.kind != "end":
            if tokens.next.text == "type" and tokens.look(1).kind == "name":
                self.type_definition()
            else:
                self.instances()
        self.check_types()
        return System(
            "kernel", tuple(self.cells), tuple(self.rules), tuple(self.groups), Mode.ORDERED, links=tuple(self.links)
        )

    def check_types(self) -> None:
        """Refuses a type that is neither defined nor that of an instance (one without rules need not be defined)."""
        known = dict.fromkeys([*self.types, *(cell.label for cell in self.cells)])
        for name, token in self.used.items():
            if name not in known:
                expected = f"one of {', '.join(list(known)[:20])}" if known else "a type that this file defines"
                raise self.tokens.error(f"the type {name} is not defined", expected, token)

    # types and rules

    def type_definition(self) -> None:
        tokens = self.tokens
        tokens.expect("type")
        name = tokens.expect_kind("name", "the name of the type")
        if name.text in self.types:
            line = tokens.where(self.types[name.text]).line
            raise tokens.error(f"the type {name.text} is already defined in line {line}", "another name", name)
        self.types[name.text] = name
        tokens.expect("{", "and the rules of the type")
        sequence: list[int] = []
        while not tokens.accept("}"):
            bound = BLOCKS.get(tokens.next.text)
            if bound is not None and tokens.look(1).text == "{":
                self.close(sequence)
                sequence = []
                self.block(bound, name.text)
            else:
                sequence.append(self.rule(name.text))
        self.close(sequence)

    def close(self, sequence: list[int]) -> None:
        if sequence:
            self.groups.append(Group(tuple(sequence), Bound.SEQUENCE))

    def block(self, bound: Bound, label: str) -> None:
        self.tokens.take()
        self.tokens.expect("{")
        rules = []
        while not self.tokens.accept("}"):
            rules.append(self.rule(label))
        if rules:
            self.groups.append(Group(tuple(rules), bound))

    def rule(self, label: str) -> int:
        """Reads `[guard :] multiset -> right side .`; returns the rule's index."""
        tokens = self.tokens
        start = tokens.next
        guard, consume = None, None
        if start.kind != "compare" and start.text != "(":
            begin = tokens.at
            consume = self.multiset()
            if tokens.next.text in (":", "|", "&"):
                tokens.at, consume = begin, None
        if consume is None:
            guard = self.guard(0)
            tokens.expect(":", "between the guard and the rule")
            consume = self.multiset()
        if not consume:
            raise tokens.error("this rule consumes nothing", "at least one object on the left", start)
        tokens.expect_kind("arrow", "'->' and the right side of the rule")
        rule = self.right_side(Rule(label, consume, guard=guard, where=tokens.where(start)))
        tokens.expect(".", "at the end of the rule")
        self.rules.append(rule)
        return len(self.rules) - 1

    def right_side(self, rule: Rule) -> Rule:
        tokens = self.tokens
        if tokens.next.text == "{" and tokens.look(1).text == "}":
            tokens.take()
            tokens.take()
            return rule
        if tokens.accept("#"):
            return replace(rule, dissolve=True)
        if tokens.accept("-"):
            return replace(rule, link=self.type_reference())
        if tokens.accept("\\-"):
            return replace(rule, unlink=self.type_reference())
        if tokens.next.text == "[":
            return replace(rule, divide=self.parts(rule.label or ""))
        return self.products(rule)

    def parts(self, label: str) -> tuple[tuple[str, Bag], ...]:
        """The parts of a division; one without a type has that of the dividing cell."""
        parts = []
        while self.tokens.accept("["):
            content = () if self.tokens.next.text == "]" else self.multiset()
            self.tokens.expect("]", "at the end of this part")
            parts.append((self.type_reference() if self.tokens.next.text == "(" else label, content))
        return tuple(parts)

    def products(self, rule: Rule) -> Rule:
        """Objects that stay, and objects that are sent; those for one type are sent together."""
        here: list[tuple[str, int]] = []
        sent: dict[str, list[tuple[str, int]]] = {}
        while True:
            start = self.tokens.next
            objects: list[tuple[str, int]]
            if self.tokens.accept("{"):
                objects = list(self.multiset())
                self.tokens.expect("}")
                sent.setdefault(self.type_reference(), []).extend(objects)
            else:
                objects = [self.atom("an object, '{', '[', '#', '-' or '\\-'")]
                if self.tokens.next.text == "(":
                    sent.setdefault(self.type_reference(), []).extend(objects)
                else:
                    here.extend(objects)
            if not self.tokens.accept(","):
                break
        bags = {label: self.bag(objects, start) for label, objects in sent.items()}
        sends = tuple(Send(Target.LINKED, objects, label) for label, objects in bags.items())
        return replace(rule, produce=self.bag(here, start), send=sends)

    # guards

    def guard(self, depth: int) -> Guard:
        """`a & b | c & (d | e)`"""
        if depth > MAX_PARENTHESES:
            raise self.tokens.error(f"parentheses nested more than {MAX_PARENTHESES} deep", "a flatter guard")
        either = []
        while True:
            both = [self.operand(depth)]
            while self.tokens.accept("&"):
                both.append(self.operand(depth))
            either.append(both[0] if len(both) == 1 else Guard("all", parts=tuple(both)))
            if not self.tokens.accept("|"):
                return either[0] if len(either) == 1 else Guard("any", parts=tuple(either))

    def operand(self, depth: int) -> Guard:
        tokens = self.tokens
        if tokens.accept("("):
            guard = self.guard(depth + 1)
            tokens.expect(")", "at the end of this guard")
            return guard
        op = COMPARISONS[tokens.take().text] if tokens.next.kind == "compare" else "eq"
        counts = self.counts("a comparison such as '>= 2a', or '('")
        parts = tuple(Guard(op, o, n) for o, n in counts.items())
        return parts[0] if len(parts) == 1 else Guard("all", parts=parts)

    # multisets

    def atom(self, expected: str) -> tuple[str, int]:
        """`3a` or `a`"""
        tokens = self.tokens
        count = tokens.count(tokens.take()) if tokens.next.kind == "number" else 1
        return tokens.expect_kind("name", expected).text, count

    def counts(self, expected: str = "an object such as 'a' or '2a'") -> dict[str, int]:
        """`3a, b`: multiplicities by object, those of 0 too."""
        start = self.tokens.next
        counts: dict[str, int] = {}
        while True:
            name, count = self.atom(expected)
            counts[name] = counts.get(name, 0) + count
            if not self.tokens.accept(","):
                self.bag(list(counts.items()), start)
                return counts

    def multiset(self) -> Bag:
        return bag(self.counts())

    def bag(self, objects: list[tuple[str, int]], start: Token) -> Bag:
        result = bag(objects)
        if any(count > MAX_COUNT for _, count in result):
            raise self.tokens.error("a multiplicity in this multiset is too large", f"at most {MAX_COUNT}", start)
        return result

    def type_reference(self) -> str:
        self.tokens.expect("(", "and a type")
        name = self.tokens.expect_kind("name", "the name of a type")
        self.tokens.expect(")")
        self.used.setdefault(name.text, name)
        return name.text

    # instances and links

    def instances(self) -> None:
        """`x {a} (T), {} (T).` or a chain of links `x - y {a} (T) - *(T).`"""
        before = self.instance()
        if self.tokens.next.text == "-":
            while self.tokens.accept("-"):
                dash = self.tokens.look(-1)
                after = self.instance()
                self.join(before, after, dash)
                before = after
        else:
            self.only_new(before)
            while self.tokens.accept(","):
                self.only_new(self.instance())
        self.tokens.expect(".", "at the end of this statement")

    def only_new(self, cells: list[int]) -> None:
        """Refuses a bare name or a wildcard where it is not linked to anything."""
        if cells != [len(self.cells) - 1] or self.tokens.look(-1).text != ")" or self.wildcard:
            raise self.tokens.error(f"found {self.tokens.next}", "'-' and what to link it to")

    def instance(self) -> list[int]:
        """The cells that an operand of a link stands for; a new one where it declares one."""
        tokens = self.tokens
        start = tokens.next
        self.wildcard = tokens.accept("*")
        if self.wildcard:
            label = self.type_reference()
            cells = [i for i, cell in enumerate(self.cells) if cell.label == label]
            if not cells:
                raise tokens.error(f"no instance of {label} is declared before", "instances before this link", start)
            return cells
        name = tokens.take() if tokens.next.kind == "name" else None
        if name is not None and tokens.next.text != "{":
            if name.text not in self.named:
                raise tokens.error(f"{name.text} is not an instance", "'type', or an instance declared before", name)
            return [self.named[name.text]]
        tokens.expect("{", "and the objects of an instance")
        content = () if tokens.next.text == "}" else self.multiset()
        tokens.expect("}", "at the end of these objects")
        label = self.type_reference()
        return [self.declare(name, label, content, tokens.where(start))]

    def declare(self, name: Token | None, label: str, content: Bag, where: Where) -> int:
        if name is not None:
            if name.text in self.named:
                raise self.tokens.error(f"the instance {name.text} is already declared", "another name", name)
            self.named[name.text] = len(self.cells)
        self.cells.append(Cell(label, None, content, name=name.text if name else "", where=where))
        return len(self.cells) - 1

    def join(self, before: list[int], after: list[int], dash: Token) -> None:
        """Links every cell of one operand with every cell of the next, both ways."""
        if len(self.links) + 2 * len(before) * len(after) > MAX_LINKS:
            raise self.tokens.error("too many links", f"at most {MAX_LINKS}", dash)
        for a in before:
            for b in after:
                if a != b:
                    self.links[a, b] = None
                    self.links[b, a] = None
