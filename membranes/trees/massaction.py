"""The deterministic mass-action equations of a chemical P system, and their B-series, in exact rationals.

A rule n1 X1 + ... -> products with the stochastic constant c has the propensity c prod C(x_i, n_i); its limit for large
numbers, with which the counts follow a differential equation, is c prod x_i^n_i / n_i! (Gillespie 1977; Kurtz 1972).
Each rule adds that rate times the change that it makes. A rate law is taken as it stands when it is a polynomial.
Rates are floats in a `System`; each is taken for the rational number that it is exactly (0.1 is not 1/10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from echoc.compiler.ir.algebra import Mode, Rule, System
from echoc.compiler.ir.expression import Expression

from .bseries import BSeries
from .invariants import symmetry
from .levels import EMPTY, Tree, TreeError, branches
from .numbers import ZERO, Surd

TERMS_LIMIT = 10_000
DEGREE_LIMIT = 64
CHILDREN_LIMIT = 12

Monomial = tuple[tuple[int, int], ...]
"""(variable, power) pairs, sorted, powers at least 1."""
Polynomial = dict[Monomial, Fraction]
Vector = tuple[Fraction, ...]

CONSTANT: Monomial = ()


@dataclass(frozen=True, slots=True)
class Field:
    """A polynomial vector field: `species` names the variables, `components[i]` is dx_i/dt."""

    species: tuple[str, ...]
    components: tuple[Polynomial, ...]

    def __call__(self, y: Sequence[Fraction | int]) -> Vector:
        """f(y)."""
        return self.derivative(y, ())

    def derivative(self, y: Sequence[Fraction | int], directions: Sequence[Vector]) -> Vector:
        """f^(k)(y)(v1, ..., vk), the k-th derivative at y, k directions put in; shapes (n,) throughout.

        Raises TreeError for vectors of another length and for more than CHILDREN_LIMIT directions.
        """
        for vector in (y, *directions):
            if len(vector) != len(self.species):
                raise TreeError(f"a vector of {len(vector)} numbers; the field has {len(self.species)} species")
        if len(directions) > CHILDREN_LIMIT:
            raise TreeError(f"{len(directions)} directions are too many; at most {CHILDREN_LIMIT}")
        point = tuple(map(Fraction, y))
        return tuple(_derivative(component, point, directions) for component in self.components)

    def start(self, system: System, label: str) -> Vector:
        """The counts of the first cell with that label, in the order of `species`."""
        cell = next(cell for cell in system.cells if cell.label == label)
        held = dict(cell.objects)
        return tuple(Fraction(held.get(name, 0)) for name in self.species)

    def __str__(self) -> str:
        return "\n".join(
            f"d{name}/dt = {_spelled(component, self.species)}"
            for name, component in zip(self.species, self.components, strict=True)
        )


def mass_action(system: System, label: str | None = None) -> Field:
    """The deterministic field of the rules of one membrane; `label` says which where several have rules.

    Every rule of the system must be reactants -> products with a rate, all in one membrane. Raises TreeError, with the
    place in the source, for a rule that is anything else: what it does is no mass-action equation.
    """
    if system.mode is not Mode.GILLESPIE:
        raise TreeError(f"a system in mode {system.mode.value} has no rates; wanted mode {Mode.GILLESPIE.value}")
    homes = sorted({rule.label for rule in system.rules if rule.label is not None})
    if label is None:
        if len(homes) != 1:
            found = "no membrane has rules" if not homes else f"membranes {', '.join(homes)} have rules"
            raise TreeError(f"{found}; wanted the rules of one: say its label")
        label = homes[0]
    holders = sum(cell.label == label for cell in system.cells)
    if holders != 1:
        raise TreeError(f"{holders} membranes have the label {label}; wanted one")
    # Rules of other membranes are checked too: what they send or dissolve would come into this one.
    for rule in system.rules:
        _check_reaction(rule)
    rules = [rule for rule in system.rules if rule.label == label]
    species = tuple(system.objects)
    index = {name: i for i, name in enumerate(species)}
    components: list[Polynomial] = [{} for _ in species]
    for rule in rules:
        rate = _rate(rule, index)
        change = Counter(dict(rule.produce))
        change.subtract(dict(rule.consume))
        for name, difference in change.items():
            _add_scaled(components[index[name]], rate, Fraction(difference))
    return Field(species, tuple(components))


def elementary_differential(field: Field, tree: Tree, y: Sequence[Fraction | int]) -> Vector:
    """F(t)(y): F(one node) = f, F([t1 ... tk]) = f^(k)(F(t1), ..., F(tk)), at y; F(empty)(y) = y. Shape (n,).

    Raises TreeError for a vector of the wrong length.
    """
    if not tree:
        return tuple(map(Fraction, y))
    waiting: list[list[Vector]] = [[] for _ in range(max(tree) + 2)]
    for level in reversed(tree):
        value = field.derivative(y, waiting[level + 1])
        waiting[level + 1] = []
        waiting[level].append(value)
    return waiting[1][0]


def step(field: Field, a: BSeries, y: Sequence[Fraction | int], h: Fraction | int) -> Vector:
    """B(a, h f, y), truncated as `a` is. Raises TreeError for coefficients that are not rational."""
    total = [ZERO for _ in field.species]
    known: dict[Tree, Vector] = {}
    for tree in sorted(a.coefficients, key=len):
        value = a[tree]
        if tree:
            known[tree] = field.derivative(y, [known[branch] for branch in branches(tree)])
        if isinstance(value, Surd):
            raise TreeError(f"the coefficient {value} is not rational; wanted a series over the rationals")
        if value:
            weight = value * Fraction(h) ** len(tree) / symmetry(tree)
            vector = tuple(map(Fraction, y)) if tree == EMPTY else known[tree]
            total = [sum_ + weight * x for sum_, x in zip(total, vector, strict=True)]
    return tuple(total)


def _check_reaction(rule: Rule) -> None:
    extra = [
        name
        for name in ("inner", "send", "guard", "promoters", "inhibitors", "divide", "link", "unlink", "delay")
        if getattr(rule, name)
    ]
    extra += [name for name in ("charge", "new_charge", "priority") if getattr(rule, name) is not None]
    if rule.dissolve:
        extra.append("dissolve")
    if rule.label is None:
        extra.append("no membrane of its own")
    place = f"{rule.where}: " if str(rule.where) else ""
    if extra:
        raise TreeError(f"{place}a rule with {', '.join(extra)} is no reaction; wanted reactants -> products")
    if rule.rate is None:
        raise TreeError(f"{place}a rule has no rate; wanted a constant or a rate law")


def _rate(rule: Rule, index: Mapping[str, int]) -> Polynomial:
    place = f"{rule.where}: " if str(rule.where) else ""
    if isinstance(rule.rate, Expression):
        try:
            return _polynomial(rule.rate, index)
        except TreeError as error:
            raise TreeError(f"{place}{error}") from error
    degree = sum(count for _, count in rule.consume)
    if degree > DEGREE_LIMIT:
        raise TreeError(f"{place}a reaction of {degree} molecules; at most {DEGREE_LIMIT}")
    if rule.rate is None or not math.isfinite(rule.rate):
        raise TreeError(f"{place}the rate constant is {rule.rate}; wanted a finite number")
    ways = math.prod(math.factorial(count) for _, count in rule.consume)
    powers = tuple(sorted((index[name], count) for name, count in rule.consume))
    return {powers: Fraction(rule.rate) / ways}


def _polynomial(expression: Expression, index: Mapping[str, int]) -> Polynomial:
    """A rate law as a polynomial, children before parents, without recursion."""
    done: list[Polynomial] = []
    stack: list[tuple[Expression, bool]] = [(expression, False)]
    visited = 0
    while stack:
        node, ready = stack.pop()
        if not ready:
            visited += 1
            if visited > TERMS_LIMIT:
                raise TreeError(f"a rate law of more than {TERMS_LIMIT} terms")
            stack.append((node, True))
            stack.extend((argument, False) for argument in reversed(node.arguments))
            continue
        arguments = done[len(done) - len(node.arguments) :]
        del done[len(done) - len(node.arguments) :]
        done.append(_apply(node, arguments, index))
    return done[0]


def _apply(node: Expression, arguments: list[Polynomial], index: Mapping[str, int]) -> Polynomial:
    if node.op == "number":
        if not math.isfinite(node.value):
            raise TreeError(f"the number {node.value} in a rate law; wanted a finite one")
        return {CONSTANT: Fraction(node.value)} if node.value else {}
    if node.op == "name":
        if node.symbol not in index:
            raise TreeError(f"{node.symbol!r} in a rate law is no object of the system")
        return {((index[node.symbol], 1),): Fraction(1)}
    if node.op in ("add", "sub", "neg"):
        total = {} if node.op == "neg" else dict(arguments[0])
        _add_scaled(total, arguments[-1], Fraction(1 if node.op == "add" else -1))
        return total
    if node.op == "mul":
        return _times(*arguments)
    constant = arguments[-1].get(CONSTANT, ZERO) if set(arguments[-1]) <= {CONSTANT} else None
    if node.op == "div" and constant:
        return {monomial: value / constant for monomial, value in arguments[0].items()}
    if node.op == "pow" and constant is not None and constant.denominator == 1 and 0 <= constant <= DEGREE_LIMIT:
        power: Polynomial = {CONSTANT: Fraction(1)}
        for _ in range(int(constant)):
            power = _times(power, arguments[0])
        return power
    raise TreeError(f"{node.op} in a rate law is no polynomial; wanted + - *, whole powers, division by constants")


def _add_scaled(into: Polynomial, other: Polynomial, factor: Fraction) -> None:
    for monomial, value in other.items():
        total = into.get(monomial, ZERO) + factor * value
        if total:
            into[monomial] = total
        else:
            into.pop(monomial, None)


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    if len(one) * len(other) > TERMS_LIMIT:
        raise TreeError(f"a rate law multiplies out to more than {TERMS_LIMIT} terms")
    product: Polynomial = {}
    for p, a in one.items():
        for q, b in other.items():
            powers = Counter(dict(p))
            powers.update(dict(q))
            if powers.total() > DEGREE_LIMIT:
                raise TreeError(f"a rate law of degree {powers.total()}; at most {DEGREE_LIMIT}")
            _add_scaled(product, {tuple(sorted(powers.items())): a}, b)
    return product


def _derivative(polynomial: Polynomial, y: Vector, directions: Sequence[Vector]) -> Fraction:
    """The coefficient of e1 e2 ... ek in the polynomial at y + e1 v1 + ... + ek vk, with e_j^2 = 0.

    `partial[mask]` is that of the e_j in `mask` in the product of the factors so far.
    """
    full = (1 << len(directions)) - 1
    total = ZERO
    for monomial, coefficient in polynomial.items():
        factors = [variable for variable, power in monomial for _ in range(power)]
        if len(factors) < len(directions):
            continue
        partial = {0: coefficient}
        for variable in factors:
            following: dict[int, Fraction] = {}
            for mask, value in partial.items():
                for bit, factor in _choices(variable, mask, y, directions):
                    if factor:
                        following[mask | bit] = following.get(mask | bit, ZERO) + value * factor
            partial = following
        total += partial.get(full, ZERO)
    return total


def _choices(variable: int, mask: int, y: Vector, directions: Sequence[Vector]) -> Iterable[tuple[int, Fraction]]:
    """What one factor can give: its value, or its part in a direction that is not used yet."""
    yield 0, y[variable]
    for j, direction in enumerate(directions):
        if not mask >> j & 1:
            yield 1 << j, direction[variable]


def _spelled(polynomial: Polynomial, species: Sequence[str]) -> str:
    terms: list[str] = []
    for monomial, value in sorted(polynomial.items()):
        names = [species[i] if power == 1 else f"{species[i]}^{power}" for i, power in monomial]
        scale = [] if abs(value) == 1 and names else [str(abs(value))]
        terms += ["-" if value < 0 else "+", "*".join([*scale, *names])]
    if not terms:
        return "0"
    return ("-" if terms[0] == "-" else "") + " ".join(terms[1:])
