"""The syntax tree of P-Lingua. Every node has `at`, the character offset of its beginning in its source."""

from __future__ import annotations

from dataclasses import dataclass, field

from .diagnostics import Source


@dataclass(slots=True)
class Number:
    at: int
    value: int | float


@dataclass(slots=True)
class Text:
    at: int
    value: str


@dataclass(slots=True)
class Name:
    """A variable or an object: `x` or `x{i,j+1}`."""

    at: int
    name: str
    index: tuple[Expression, ...] = ()


@dataclass(slots=True)
class Chain:
    """Operators of one precedence, left to right: `first op operand op operand`."""

    at: int
    first: Expression
    rest: tuple[tuple[str, int, Expression], ...]


@dataclass(slots=True)
class Unary:
    """Prefix operators, the innermost last."""

    at: int
    operators: tuple[str, ...]
    operand: Expression


@dataclass(slots=True)
class Cast:
    at: int
    type: str
    operand: Expression


@dataclass(slots=True)
class Call:
    """A module or built-in function. `system`: written with `system::`, or `@` in version 4."""

    at: int
    name: str
    arguments: tuple[Expression, ...]
    system: bool = False


@dataclass(slots=True)
class SystemConstant:
    at: int
    name: str


@dataclass(slots=True)
class Assign:
    """`operator` is `=`, `+=`, ...; `value` None: `++x`, `--x` (prefix) or `x++`, `x--`."""

    at: int
    target: Name
    operator: str
    value: Expression | None = None
    prefix: bool = False


Expression = Number | Text | Name | Chain | Unary | Cast | Call | SystemConstant | Assign


@dataclass(slots=True)
class Object:
    """`name`, `name*count`; name None: `#` (nothing), `@d` with `dissolve`, or `objects` for all values of `ranges`."""

    at: int
    name: Name | None
    count: Expression | None = None
    dissolve: bool = False
    objects: tuple[Object, ...] = ()
    ranges: tuple[Range, ...] = ()


@dataclass(slots=True)
class Label:
    """An identifier, `id{i}` (a Name with indices), a number or `{expression}`."""

    at: int
    value: Expression
    literal: bool = False  # an identifier or number as it stands


@dataclass(slots=True)
class Charge:
    """`value` -1, 0 or 1; None: `?`, and with a number `?n`, in patterns."""

    value: int | None = 0
    variable: int = -1


@dataclass(slots=True)
class Membrane:
    """A membrane of a rule: labels None where they are left out."""

    at: int
    charge: Charge
    labels: tuple[Label, ...] | None
    objects: tuple[Object, ...] = ()
    inner: tuple[Membrane, ...] = ()


@dataclass(slots=True)
class Condition:
    """A guard of version 4: `op` `all` or `any` of parts, or a comparison of the count of one object."""

    at: int
    op: str
    parts: tuple[Condition, ...] = ()
    object: Object | None = None


@dataclass(slots=True)
class Rule:
    """`outside left arrow outside_after right`; `evolution`: the arrow stands inside the one membrane."""

    at: int
    left: Membrane
    outside: tuple[Object, ...]
    double: bool
    right: tuple[Membrane, ...]
    outside_after: tuple[Object, ...]
    evolution: bool = False
    priority: Expression | None = None
    any_priority: bool = False
    probability: Expression | None = None
    any_probability: bool = False
    regular: Text | None = None
    guard: Condition | None = None
    features: tuple[Feature, ...] = ()


@dataclass(slots=True)
class Feature:
    """`name`, `name = value` or, in patterns, `name(type)`."""

    at: int
    name: Name
    value: Expression | Label | None = None
    type: str = ""


@dataclass(slots=True)
class Structure:
    """A membrane of `@mu` with its children."""

    at: int
    charge: int
    labels: tuple[Label, ...]
    children: list[Structure] = field(default_factory=list)


@dataclass(slots=True)
class Range:
    """`low <(=) variable <(=) high`; variable None: the condition `low <> high`."""

    at: int
    low: Expression
    low_strict: bool
    variable: Name | None
    high_strict: bool
    high: Expression


@dataclass(slots=True)
class Ranged:
    at: int
    body: Statement
    ranges: tuple[Range, ...]


@dataclass(slots=True)
class Evaluate:
    """An assignment or a call."""

    at: int
    expression: Expression


@dataclass(slots=True)
class Constants:
    """A run of assignments of numbers: names with their indices written out, and values."""

    at: int
    values: list[tuple[str, int | float]]


@dataclass(slots=True)
class Block:
    at: int
    body: tuple[Statement, ...]


@dataclass(slots=True)
class If:
    at: int
    condition: Expression
    then: Statement
    otherwise: Statement | None = None


@dataclass(slots=True)
class Loop:
    """`while`, `do ... while` (test_last) and `for` (first, step)."""

    at: int
    condition: Expression
    body: Statement
    test_last: bool = False
    first: Expression | None = None
    step: Expression | None = None


@dataclass(slots=True)
class Return:
    at: int
    value: Expression


@dataclass(slots=True)
class Mu:
    """`@mu = ...`, `@mu += ...` (extend, target None) and `@mu(labels) += ...`."""

    at: int
    roots: tuple[Structure, ...]
    extend: bool = False
    target: tuple[Label, ...] | None = None


@dataclass(slots=True)
class Ms:
    """`alphabet` 1 or 2: `@ms1`, `@ms2` of version 4, the alphabets of separation; no labels then."""

    at: int
    labels: tuple[Label, ...]
    extend: bool
    objects: tuple[Object, ...]
    alphabet: int = 0


@dataclass(slots=True)
class Arcs:
    """`@marcs = (a,b), ...` of spiking systems."""

    at: int
    extend: bool
    pairs: tuple[tuple[Label, Label], ...]


@dataclass(slots=True)
class Features:
    at: int
    features: tuple[Feature, ...]


Statement = Ranged | Evaluate | Constants | Block | If | Loop | Return | Mu | Ms | Arcs | Features | Rule


@dataclass(slots=True)
class Module:
    at: int
    name: str
    parameters: tuple[str, ...]
    body: Block


@dataclass(slots=True)
class Pattern:
    at: int
    name: str
    rules: tuple[Rule, ...]


@dataclass(slots=True)
class Bounded:
    """A part of a model: `name`, or `@bound{parts}` with bound None for `@{parts}`."""

    at: int
    name: str = ""
    bound: int | None = None
    parts: tuple[Bounded, ...] = ()


@dataclass(slots=True)
class ModelDefinition:
    at: int
    name: str
    parts: tuple[Bounded, ...]


@dataclass(slots=True)
class UseModel:
    at: int
    name: str


@dataclass(slots=True)
class Include:
    at: int
    file: str
    search: bool  # written with < >


Definition = Include | UseModel | ModelDefinition | Pattern | Module | Statement


@dataclass(slots=True)
class Program:
    """One file. `charged`: a charge is written somewhere outside the patterns."""

    source: Source
    definitions: tuple[Definition, ...]
    charged: bool = False
