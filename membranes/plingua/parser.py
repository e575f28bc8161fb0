"""Parsing of whole files: definitions and sentences. Several mistakes are reported at once."""

from __future__ import annotations

from collections.abc import Callable

from .diagnostics import Fault, Limits, PLinguaError, Source, diagnose
from .expressions import ASSIGNMENTS
from .lexer import tokenize
from .membrane_parser import MembraneParser
from .syntax import (
    Arcs,
    Assign,
    Block,
    Bounded,
    Call,
    Constants,
    Definition,
    Evaluate,
    Expression,
    Features,
    If,
    Include,
    Label,
    Loop,
    ModelDefinition,
    Module,
    Ms,
    Mu,
    Name,
    Pattern,
    Program,
    Ranged,
    Return,
    Rule,
    Statement,
    UseModel,
)

MAX_BLOCKS = 60  # blocks inside blocks
MAX_ELSE_IFS = 500  # of one if


class Parser(MembraneParser):
    """Recursive descent; faults are collected and reading goes on after the next `;` or `}`."""

    blocks = 0

    def __init__(self, source: Source, limits: Limits, version4: bool = False) -> None:
        super().__init__(tokenize(source), limits, version4)
        self.faults: list[Fault] = []
        self.sentences: dict[str, Callable[[], Statement | None]] = {
            ";": self.stray,
            "{": self.block,
            "if": self.if_else,
            "while": self.while_loop,
            "do": self.do_loop,
            "for": self.for_loop,
            "return": self.returned,
            "constants": self.constants,
        }

    def program(self) -> Program:
        found: list[Definition] = []
        while self.kind != "end":
            before = self.at
            try:
                definition = self.definition()
                if definition is not None:
                    found.append(definition)
            except Fault as fault:
                self.note(fault)
                self.skip(before, 0)
        if self.faults:
            raise PLinguaError([diagnose(f) for f in self.faults])
        return Program(self.tokens.source, tuple(found), self.charged)

    def note(self, fault: Fault) -> None:
        self.faults.append(fault)
        if len(self.faults) >= self.limits.errors:
            raise PLinguaError([diagnose(f) for f in self.faults])

    def skip(self, before: int, inside: int) -> None:
        """Goes on after the `;` that ends what began at `before`, or at the `}` that closes the block around it."""
        self.depth, self.in_pattern = 0, False
        open_braces = 0
        self.at, stop = before, self.at
        while self.kind != "end":
            kind = self.kind
            if kind == "}" and open_braces == 0 and inside:
                return
            self.at += 1
            if kind == "{":
                open_braces += 1
            elif kind == "}":
                open_braces -= 1
                if open_braces <= 0 and self.at > stop:
                    return
            elif kind == ";" and open_braces <= 0 and self.at > stop:
                return

    def definition(self) -> Definition | None:
        kind, offset = self.kind, self.offset
        if kind == "@include":
            return self.include()
        if kind == "@model":
            return self.model()
        if self.kinds[self.at : self.at + 3] == ["@", "id", "<"]:
            return self.variant()
        if kind == "!":
            return self.pattern()
        if kind == "def":
            return self.module()
        if kind in ("id", "let", "@", ";", "constants"):
            if kind == "id" and self.kinds[self.at + 1] == "(":
                raise self.fault("a call outside of a module; wanted it inside of 'def main() { ... }'", offset)
            found = self.sentence()
            bare = found.body if isinstance(found, Ranged) else found
            if not isinstance(bare, Evaluate | Constants | Features | None):
                raise self.fault("a rule outside of a module; wanted it inside of 'def main() { ... }'", offset)
            return found
        raise self.unexpected("a definition: def, @model, @include, a pattern !name{...}, or an assignment")

    def include(self) -> Include:
        offset = self.offset
        self.at += 1
        if self.kind == "str":
            self.at += 1
            found = Include(offset, str(self.values[self.at - 1]), False)
        else:
            self.expect("<", 'the file to include: "file" or <file>')
            found = Include(offset, self.identifier("the file to include"), True)
            self.expect(">")
        return found

    def model(self) -> UseModel | ModelDefinition:
        offset = self.offset
        self.at += 1
        if self.accept("<"):
            name = self.identifier("the name of a model")
            self.expect(">")
            return UseModel(offset, name)
        self.expect("(", "'<' or '(' and the name of a model")
        name = self.identifier("the name of a model")
        self.expect(")")
        self.expect("=")
        parts = self.model_parts()
        self.expect(";")
        return ModelDefinition(offset, name, parts)

    def variant(self) -> UseModel:
        """`@variant<name>`, as version 2 wrote `@model<name>`."""
        offset = self.offset
        self.at += 1
        if self.identifier("'variant'") != "variant":
            raise self.fault("wanted @model<name> or @variant<name>", offset)
        self.expect("<")
        name = self.identifier("the name of a model")
        self.expect(">")
        return UseModel(offset, name)

    def model_parts(self) -> tuple[Bounded, ...]:
        found = [self.model_part()]
        while self.accept(","):
            found.append(self.model_part())
        return tuple(found)

    def model_part(self) -> Bounded:
        offset = self.offset
        if not self.accept("@"):
            return Bounded(offset, self.identifier("the name of a pattern, or @{...}"))
        bound = None
        if self.kind == "int":
            bound = self.number("the bound of a group", (1 << 31) - 1)
            if bound == 0:
                raise self.fault("a group with the bound 0: none of its rules could ever be applied", offset)
        self.expect("{")
        self.enter("groups of a model", self.limits.parentheses)
        parts = self.model_parts()
        self.depth -= 1
        self.expect("}")
        return Bounded(offset, "", bound, parts)

    def pattern(self) -> Pattern:
        offset = self.offset
        self.at += 1
        name = self.identifier("the name of a pattern")
        self.expect("{")
        rules: list[Rule] = []
        self.in_pattern = True
        while not self.accept("}"):
            if self.accept(";"):
                continue
            rules.append(self.rule())
            self.expect(";")
        self.in_pattern = False
        if not rules:
            raise self.fault("a pattern without rules", offset)
        return Pattern(offset, name, tuple(rules))

    def module(self) -> Module:
        offset = self.offset
        self.at += 1
        name = self.identifier("the name of a module")
        self.expect("(")
        parameters: list[str] = []
        if not self.accept(")"):
            parameters.append(self.identifier("the name of a parameter"))
            while self.accept(","):
                parameters.append(self.identifier("the name of a parameter"))
            self.expect(")", "',' or ')'")
        if len(set(parameters)) < len(parameters):
            raise self.fault(f"the module {name} has two parameters of one name", offset)
        return Module(offset, name, tuple(parameters), self.block())

    # Sentences.

    def block(self) -> Block:
        offset = self.offset
        self.expect("{")
        self.blocks += 1
        if self.blocks > MAX_BLOCKS:
            raise self.fault(f"blocks more than {MAX_BLOCKS} deep")
        body: list[Statement] = []
        while self.kind != "}":
            if self.kind == "end":
                raise self.unexpected("'}' to close the block")
            before, level = self.at, self.blocks
            try:
                statement = self.sentence()
                if statement is not None:
                    body.append(statement)
            except Fault as fault:
                self.note(fault)
                self.skip(before, 1)
                self.blocks = level
        self.at += 1
        self.blocks -= 1
        return Block(offset, tuple(body))

    def sentence(self) -> Statement | None:
        """One sentence with its ranges and `;`; None for a stray `;`."""
        kind, offset = self.kind, self.offset
        reader = self.sentences.get(kind)
        if reader is not None:
            statement = reader()
            if kind != "{":
                return statement
            assert statement is not None
            if self.kind != ":":
                return statement
        elif kind == "else":
            raise self.fault("'else' without 'if' before it")
        else:
            statement = self.instruction()
            if statement is None:
                return None
        if self.accept(":"):
            ranges = [self.range()]
            while self.accept(","):
                ranges.append(self.range())
            statement = Ranged(offset, statement, tuple(ranges))
        self.expect(";", "';', or ':' and ranges")
        return statement

    def stray(self) -> None:
        self.at += 1

    def constants(self) -> Constants:
        values = self.values[self.at]
        assert isinstance(values, list)
        self.at += 1
        return Constants(self.offsets[self.at - 1], values)

    def nested(self) -> Statement:
        """The sentence that belongs to an if or a loop."""
        self.blocks += 1
        if self.blocks > MAX_BLOCKS:
            raise self.fault(f"sentences more than {MAX_BLOCKS} deep in each other")
        statement = self.sentence()
        self.blocks -= 1
        return statement if statement is not None else Block(self.offset, ())

    def condition(self) -> Expression:
        self.expect("(")
        condition = self.expression()
        self.expect(")")
        return condition

    def if_else(self) -> If:
        offset = self.offset
        self.at += 1
        found = last = If(offset, self.condition(), self.nested())
        for _ in range(MAX_ELSE_IFS):
            if not self.accept("else"):
                return found
            if self.kind != "if":
                last.otherwise = self.nested()
                return found
            offset = self.offset
            self.at += 1
            last.otherwise = last = If(offset, self.condition(), self.nested())
        raise self.fault(f"more than {MAX_ELSE_IFS} times 'else if'")

    def while_loop(self) -> Loop:
        offset = self.offset
        self.at += 1
        return Loop(offset, self.condition(), self.nested())

    def do_loop(self) -> Loop:
        offset = self.offset
        self.at += 1
        body = self.nested()
        self.expect("while")
        condition = self.condition()
        self.expect(";")
        return Loop(offset, condition, body, test_last=True)

    def for_loop(self) -> Loop:
        offset = self.offset
        self.at += 1
        self.expect("(")
        first = self.changed("an assignment")
        self.expect(";")
        condition = self.expression()
        self.expect(";")
        step = self.changed("a change of the variable")
        self.expect(")")
        return Loop(offset, condition, self.nested(), first=first, step=step)

    def changed(self, wanted: str) -> Assign:
        value = self.expression()
        if not isinstance(value, Assign):
            raise self.fault(f"found another expression; wanted {wanted}", value.at)
        return value

    def returned(self) -> Return:
        offset = self.offset
        self.at += 1
        value = self.expression()
        self.expect(";")
        return Return(offset, value)

    def instruction(self) -> Statement | None:
        kind, offset = self.kind, self.offset
        if kind == "let":
            self.at += 1
            if self.kind == "constants":
                raise self.unexpected("an assignment")
            return Evaluate(offset, self.changed("an assignment"))
        if kind in ("call", "system"):
            self.at += kind == "call"
            if self.kind == "id" and self.kinds[self.at + 1] != "(":
                return Evaluate(offset, Call(self.offset, self.identifier(), ()))
            return Evaluate(offset, self.primary())
        if kind in ("@mu", "@ms", "@ms1", "@ms2", "@marcs"):
            self.at += 1
            if kind == "@mu":
                return self.mu(offset)
            return self.arcs(offset) if kind == "@marcs" else self.ms(offset, int(kind[3:] or 0))
        if kind == "@" and self.values[self.at + 1] == "guard" and self.kinds[self.at + 2] in ("{", "("):
            return self.guarded_rule()
        if kind == "@":
            self.at += 1
            return Features(offset, self.features())
        if kind in ("++", "--"):
            return Evaluate(offset, self.changed("a change of a variable"))
        if kind == "id":
            if self.kinds[self.at + 1] == "(":
                return Evaluate(offset, self.call(False))
            name = self.name()
            return self.assign_or_rule(name)
        if self.starts_object() or self.starts_membrane() or kind == "(":
            return self.rule()
        raise self.unexpected("a sentence: a rule, an assignment, a call, @mu, @ms, if, while, for or return")

    def assign_or_rule(self, name: Name) -> Statement:
        if self.kind in ASSIGNMENTS:
            operator = self.kind
            self.at += 1
            return Evaluate(name.at, Assign(name.at, name, operator, self.expression()))
        if self.kind in ("++", "--") and self.kinds[self.at + 1] in (";", ":"):
            self.at += 1
            return Evaluate(name.at, Assign(name.at, name, self.kinds[self.at - 1]))
        return self.rule(name)

    def increment(self) -> bool:
        if self.accept("+="):
            return True
        self.expect("=", "'=' or '+='")
        return False

    def mu(self, offset: int) -> Mu:
        target: tuple[Label, ...] | None = None
        if self.accept("("):
            target = self.labels()
            self.expect(")")
            self.expect("+=", "'+=': a part of the membrane structure is extended")
            return Mu(offset, (self.structure(),), True, target)
        extend = self.increment()
        roots = []
        while True:
            if self.kind in ("id", "int", "{"):
                roots.append(self.neuron())
            else:
                roots.append(self.structure())
            if not self.accept(",") and self.kind not in ("[", "+", "-"):
                return Mu(offset, tuple(roots), extend)

    def ms(self, offset: int, alphabet: int) -> Ms:
        labels: tuple[Label, ...] = ()
        if not alphabet:
            self.expect("(")
            labels = self.labels()
            self.expect(")")
        extend = self.increment()
        objects = self.objects(dissolution=False) if self.starts_object() else ()
        return Ms(offset, labels, extend, objects, alphabet)

    def arcs(self, offset: int) -> Arcs:
        extend = self.increment()
        pairs = []
        while True:
            self.expect("(", "a synapse: (from,to)")
            source = self.label()
            self.expect(",")
            pairs.append((source, self.label()))
            self.expect(")")
            if not self.accept(","):
                return Arcs(offset, extend, tuple(pairs))


def parse_source(source: Source, limits: Limits, version4: bool = False) -> Program:
    """The syntax tree of one file; raises PLinguaError with every mistake found."""
    try:
        return Parser(source, limits, version4).program()
    except Fault as fault:
        raise PLinguaError([diagnose(fault)]) from None
