"""Numerical P systems in the format of PeP (Florea and Buiu, "Membrane Computing for Distributed Control of Robotic
Swarms", 2017).

    num_ps = {
        H = {m1, m2};                        # membranes
        structure = [m1 [m2 ]m2 ]m1;
        m1 = {
            var = {x, y};                    # variables, their names unique in the system
            E = {e};                         # enzymes: variables that gate programs
            pr = {2*x + y^2 [e -> ] 1|x + 3|z};
            var0 = (3, 1.5);                 # initial values in the order of var; 0 where the list ends before
            E0 = (4);
        };
        m2 = { var = {z}; pr = {z -> 1|y}; };
    }

A program is `formula -> shares` or `formula [enzyme -> ] shares`. Formulas have + - * / ^ (from the left), `~` or `-`
for the negative, comparisons (1 or 0), and the functions of `formula.py`; names may stand for variables of any
membrane. As in PeP, an enzyme lets its program run while it is more than the least value that the formula reads, and
always where that reads none. The parts of a block come in any order, the `;` after a block may be left out, and so may
`structure` for one membrane. Where a membrane has several programs without an enzyme, one of them runs in each step,
drawn at random.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from echoc.membranes.numerical import NumericalSystem, Production, Variable

from .formula import FormulaReader
from .source import SourceText
from .tokens import MAX_DEPTH, Token, Tokens

PATTERN = re.compile(
    r"(?P<skip>\s+|#[^\n]*)"
    r"|(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<mark>->|==|!=|<=|>=|[<>={}()\[\];,|+\-*/^~])"
)


def read(path: str | os.PathLike[str], *, text: str | None = None) -> NumericalSystem:
    """The numerical P system of a PeP file, or of `text` under the name `path`.

    Raises SourceError (a CompileError) with file, line, column and what was expected there.
    """
    return _Reader(SourceText.read(path, text)).system()


@dataclass
class _Membrane:
    """What the block of one membrane says; programs are read once every variable is known."""

    variables: list[Token] = field(default_factory=list)
    enzymes: list[Token] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    enzyme_values: list[float] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)


class _Reader:
    def __init__(self, source: SourceText) -> None:
        self.tokens = Tokens(source, PATTERN, "")
        self.labels: list[Token] = []
        self.structure: list[tuple[str, str | None]] = []
        self.blocks: dict[str, _Membrane] = {}
        self.variables: dict[str, Variable] = {}

    def system(self) -> NumericalSystem:
        tokens = self.tokens
        title = self.label("the name of the system, as in 'num_ps = {'")
        tokens.expect("=")
        tokens.expect("{")
        while not tokens.accept("}"):
            self.section()
        tokens.accept(";")
        if tokens.next.kind != "end":
            raise tokens.error(f"found {tokens.next}", "the end of the file")
        self.check_membranes(title)
        for label, _ in self.structure:
            self.declare(label, self.blocks.get(label, _Membrane()))
        programs = [p for label, _ in self.structure if label in self.blocks for p in self.programs(label)]
        choosing = [p.membrane for p in programs if p.enzyme is None]
        return NumericalSystem(
            tuple(self.structure),
            tuple(self.variables.values()),
            tuple(programs),
            one_program=len(choosing) != len(set(choosing)),
            name=title.text,
            signed=True,
        )

    def section(self) -> None:
        tokens = self.tokens
        head = self.label("'H', 'structure', a membrane, or '}'")
        tokens.expect("=")
        if head.text == "H":
            self.labels = self.names(self.label)
        elif head.text == "structure":
            self.nesting()
        elif head.text in self.blocks:
            raise tokens.error(f"the membrane {head.text} is already described", "one block for each membrane", head)
        else:
            if self.labels and head.text not in {token.text for token in self.labels}:
                raise tokens.error(f"{head.text} is not in H", "one of the membranes in H", head)
            self.blocks[head.text] = self.block()
            tokens.accept(";")

    def label(self, expected: str = "the name of a membrane") -> Token:
        if self.tokens.next.kind not in ("name", "number"):
            raise self.tokens.error(f"found {self.tokens.next}", expected)
        return self.tokens.take()

    def name(self) -> Token:
        return self.tokens.expect_kind("name", "the name of a variable")

    def names(self, one: Callable[[], Token]) -> list[Token]:
        """`{a, b};`"""
        self.tokens.expect("{")
        found: list[Token] = []
        while not self.tokens.accept("}"):
            if found:
                self.tokens.expect(",", "or '}'")
            found.append(one())
        self.tokens.expect(";")
        return found

    def values(self) -> list[float]:
        """`(1, -2.5);`"""
        self.tokens.expect("(")
        found: list[float] = []
        while not self.tokens.accept(")"):
            if found:
                self.tokens.expect(",", "or ')'")
            negative = self.tokens.next.text in ("-", "~")
            if negative:
                self.tokens.take()
            value = float(self.number().text)
            found.append(-value if negative else value)
        self.tokens.expect(";")
        return found

    def number(self) -> Token:
        token = self.tokens.expect_kind("number", "a number")
        if not math.isfinite(float(token.text)):
            raise self.tokens.error("this number is too large", "a float64 number", token)
        return token

    def nesting(self) -> None:
        """`[m1 [m2 ]m2 ]m1;`"""
        tokens = self.tokens
        if self.structure:
            raise tokens.error("a second structure", "one structure")
        open_: list[str] = []
        seen: set[str] = set()
        while not tokens.accept(";"):
            if tokens.accept("["):
                token = self.label()
                if token.text in seen:
                    raise tokens.error(f"the membrane {token.text} stands here twice", "another name", token)
                if not open_ and self.structure:
                    raise tokens.error("a second skin", "';': every membrane inside the first", token)
                if len(open_) >= MAX_DEPTH:
                    raise tokens.error(f"membranes nested more than {MAX_DEPTH} deep", "a flatter structure", token)
                seen.add(token.text)
                self.structure.append((token.text, open_[-1] if open_ else None))
                open_.append(token.text)
            elif open_:
                tokens.expect("]", f"at the end of {open_[-1]}, or '['")
                token = self.label()
                if token.text != open_.pop():
                    raise tokens.error(f"found {token}", "the membrane that was opened last", token)
            else:
                raise tokens.error(f"found {tokens.next}", "';'" if self.structure else "'['")
        if open_ or not self.structure:
            raise tokens.error("the structure ends here", f"']{open_[-1]}'" if open_ else "a membrane", tokens.look(-1))

    def block(self) -> _Membrane:
        tokens = self.tokens
        found = _Membrane()
        tokens.expect("{", "and the parts of the membrane")
        while not tokens.accept("}"):
            head = tokens.expect_kind("name", "'var', 'E', 'pr', 'var0', 'E0' or '}'")
            tokens.expect("=")
            if head.text == "var":
                found.variables += self.names(self.name)
            elif head.text == "E":
                found.enzymes += self.names(self.name)
            elif head.text == "var0":
                found.values += self.values()
            elif head.text == "E0":
                found.enzyme_values += self.values()
            elif head.text == "pr":
                found.programs.append(tokens.at)
                self.skip_program()
            else:
                raise tokens.error(f"found {head}", "'var', 'E', 'pr', 'var0', 'E0' or '}'", head)
        for names, values, what in (
            (found.variables, found.values, "var0"),
            (found.enzymes, found.enzyme_values, "E0"),
        ):
            if len(values) > len(names):
                raise tokens.error(f"{what} has {len(values)} values", f"at most {len(names)}", tokens.look(-1))
        return found

    def skip_program(self) -> None:
        """Passes over `{ ... };`."""
        self.tokens.expect("{", "and a program")
        while self.tokens.next.text not in ("}", "{", ";") and self.tokens.next.kind != "end":
            self.tokens.take()
        self.tokens.expect("}", "at the end of this program")
        self.tokens.expect(";")

    def check_membranes(self, title: Token) -> None:
        labels = [token.text for token in self.labels] or list(self.blocks)
        if not self.structure:
            if len(labels) != 1:
                raise self.tokens.error("this system has no structure", "'structure = [m1 [m2 ]m2 ]m1;'", title)
            self.structure = [(labels[0], None)]
        placed = {label for label, _ in self.structure}
        for label in [*labels, *self.blocks]:
            if label not in placed:
                raise self.tokens.error(f"the membrane {label} is not in the structure", f"'[{label} ]{label}'", title)

    def declare(self, label: str, block: _Membrane) -> None:
        for names, values in ((block.variables, block.values), (block.enzymes, block.enzyme_values)):
            for i, token in enumerate(names):
                if token.text in self.variables:
                    other = self.variables[token.text].membrane
                    raise self.tokens.error(f"{token.text} is already a variable of {other}", "another name", token)
                self.variables[token.text] = Variable(token.text, label, values[i] if i < len(values) else 0.0)

    # programs

    def programs(self, label: str) -> list[Production]:
        found = []
        for at in self.blocks[label].programs:
            self.tokens.at = at
            found.append(self.program(label))
        return found

    def program(self, label: str) -> Production:
        tokens = self.tokens
        tokens.expect("{")
        start = tokens.next
        function = FormulaReader(tokens, self.variables.__contains__).formula()
        enzyme = None
        if tokens.accept("["):
            enzyme = self.variable().text
            tokens.expect("->")
            tokens.expect("]")
        else:
            tokens.expect("->", "and the shares, or '[enzyme -> ]'")
        first = tokens.next
        shares = [self.share()]
        while tokens.accept("+"):
            shares.append(self.share())
        tokens.expect("}", "at the end of this program, or '+'")
        total = math.fsum(share for share, _ in shares)
        if not total or not math.isfinite(total):
            raise tokens.error(f"the shares add up to {total}", "a positive sum", first)
        return Production(label, function, tuple(shares), enzyme, tokens.where(start))

    def share(self) -> tuple[float, str]:
        """`2|x`"""
        amount = float(self.number().text)
        self.tokens.expect("|", "and the variable that gets this share")
        return amount, self.variable().text

    def variable(self) -> Token:
        token = self.name()
        if token.text not in self.variables:
            raise self.tokens.error(f"{token.text} is not a variable", "a variable or enzyme of the system", token)
        return token
