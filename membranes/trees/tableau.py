"""Runge-Kutta tableaus in exact numbers, their elementary weights, and the order they have.

phi(t) = sum over i of b_i Phi_i(t), Phi_i([t1 ... tk]) = prod over j of (sum over l of a_il Phi_l(tj)); a method has
order p if and only if phi(t) = 1/gamma(t) for all trees of at most p nodes (Butcher 1963; Hairer, Lubich and Wanner,
Geometric Numerical Integration, III.1.1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from operator import mul
from pathlib import Path

from .counting import Progress, counts
from .forms import to_brackets
from .invariants import density
from .levels import Tree, TreeError, branches, trees
from .numbers import ONE, ZERO, Scalar, as_scalar, spell

STAGES_LIMIT = 64
ORDER_LIMIT = 14
FILE_LIMIT = 1 << 20
# Coefficients without a common denominator multiply theirs with every node of a tree.
BITS_LIMIT = 50_000

_KEYS = ("A", "b", "c", "b_hat", "name")


@dataclass(frozen=True, slots=True)
class Tableau:
    """A Butcher tableau of s stages: A (s x s), weights b (s), nodes c (s), and perhaps the weights of an embedded
    method. `tableau` makes and checks it."""

    a: tuple[tuple[Scalar, ...], ...]
    b: tuple[Scalar, ...]
    c: tuple[Scalar, ...]
    b_hat: tuple[Scalar, ...] | None = None
    name: str = ""

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def explicit(self) -> bool:
        """Whether no stage needs itself or a later one."""
        return all(not x for i, row in enumerate(self.a) for x in row[i:])

    def embedded(self) -> Tableau:
        """The method with the weights b_hat. Raises TreeError where there are none."""
        if self.b_hat is None:
            raise TreeError("this tableau has no embedded weights b_hat")
        return Tableau(self.a, self.b_hat, self.c, None, self.name)


@dataclass(frozen=True, slots=True)
class Failure:
    """An order condition that does not hold: the elementary weight is `found`, where 1/gamma(t) is `wanted`."""

    tree: Tree
    found: Scalar
    wanted: Fraction

    def __str__(self) -> str:
        return f"{to_brackets(self.tree)}: phi = {spell(self.found)}, wanted 1/gamma = {self.wanted}"


@dataclass(frozen=True, slots=True)
class OrderReport:
    """`order`: all conditions up to it hold. `failures`: those of the next order that fail, all of them; none when
    the search ended at `searched` without a failure (the order may then be higher)."""

    order: int
    failures: tuple[Failure, ...]
    searched: int

    @property
    def exact(self) -> bool:
        """Whether `order` is the order, rather than a lower bound of it."""
        return bool(self.failures)


def tableau(
    a: object,
    b: object,
    c: object = None,
    *,
    b_hat: object = None,
    name: str = "",
    tolerance: float | None = None,
) -> Tableau:
    """A tableau of lists of exact numbers: int, Fraction, or text ("1/2", "(3 - sqrt(3))/6").

    A may be lower triangular with short rows. c is computed where it is None, else checked against the row sums.
    Floats are refused, unless a `tolerance` is given: then each is converted to the rational that it is exactly, and
    the row sums may differ from c by that much. Pass the same tolerance to `exact_order`. Raises TreeError.
    """
    weights = _numbers(b, "b", tolerance)
    s = len(weights)
    if not 1 <= s <= STAGES_LIMIT:
        raise TreeError(f"b has {s} weights; wanted 1 to {STAGES_LIMIT}")
    if not isinstance(a, list | tuple):
        raise TreeError(f"A is {type(a).__name__}; wanted a list of rows")
    if len(a) != s:
        raise TreeError(f"A has {len(a)} rows and b has {s} weights; wanted as many rows as weights")
    rows = [_padded(_numbers(row, f"A[{i + 1}]", tolerance), i, s) for i, row in enumerate(a)]
    sums = tuple(sum(row, start=ZERO) for row in rows)
    nodes = sums if c is None else _numbers(c, "c", tolerance)
    if len(nodes) != s:
        raise TreeError(f"c has {len(nodes)} nodes and b has {s} weights; wanted as many nodes as weights")
    for i, (node, total) in enumerate(zip(nodes, sums, strict=True)):
        if not _close(node, total, tolerance):
            raise TreeError(
                f"c[{i + 1}] is {spell(node)}, but row {i + 1} of A sums to {spell(total)}; wanted them equal"
            )
    second = None if b_hat is None else _numbers(b_hat, "b_hat", tolerance)
    if second is not None and len(second) != s:
        raise TreeError(f"b_hat has {len(second)} weights and b has {s}; wanted as many")
    return Tableau(tuple(rows), weights, nodes, second, name)


def read_tableau(path: str | Path, *, tolerance: float | None = None) -> Tableau:
    """The tableau of a JSON file: an object with A, b, and perhaps c, b_hat and name; numbers as texts or integers,
    or as floats where a `tolerance` is given (see `tableau`).

    Raises TreeError, which names the file, for anything else.
    """
    with open(path, "rb") as file:
        raw = file.read(FILE_LIMIT + 1)
    if len(raw) > FILE_LIMIT:
        raise TreeError(f"{path}: more than {FILE_LIMIT} bytes; a tableau is smaller")
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TreeError(f"{path}: not JSON ({error})") from error
    try:
        return tableau_of_mapping(document, tolerance=tolerance)
    except TreeError as error:
        raise TreeError(f"{path}: {error}") from error


def tableau_of_mapping(document: object, *, tolerance: float | None = None) -> Tableau:
    """A tableau of what a JSON file holds. Raises TreeError."""
    if not isinstance(document, Mapping):
        raise TreeError(f'found {type(document).__name__}; wanted an object with "A" and "b"')
    unknown = [str(key) for key in document if key not in _KEYS]
    if unknown:
        raise TreeError(f"unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    for key in ("A", "b"):
        if key not in document:
            raise TreeError(f'"{key}" is missing; a tableau has "A", "b" and perhaps "c" and "b_hat"')
    name = document.get("name", "")
    if not isinstance(name, str):
        raise TreeError('"name" must be a text')
    a, b, c, b_hat = (document.get(key) for key in ("A", "b", "c", "b_hat"))
    return tableau(a, b, c, b_hat=b_hat, name=name, tolerance=tolerance)


def elementary_weights(method: Tableau, order: int, progress: Progress | None = None) -> Iterator[tuple[Tree, Scalar]]:
    """(t, phi(t)) for all trees of 1 .. `order` nodes, in order. Raises TreeError for an order above ORDER_LIMIT."""
    _check_order(order)
    # Phi(t) is needed as a branch of larger trees, through its product with A; it is stored that way.
    through: dict[Tree, list[Scalar]] = {}
    sizes = counts(order)
    for n in range(1, order + 1):
        for done, tree in enumerate(trees(n)):
            stages = _stage_weights(method, [through[branch] for branch in branches(tree)])
            if n < order:
                through[tree] = [_dot(row, stages) for row in method.a]
            if progress is not None and done % 64 == 0:
                progress(f"order {n}", done, sizes[n])
            yield tree, _dot(method.b, stages)


def elementary_weight(method: Tableau, tree: Tree) -> Scalar:
    """phi(t) of one canonical tree of any size; phi of the empty tree is 1."""
    if not tree:
        return ONE
    return _dot(method.b, stage_weights(method, tree))


def stage_weights(method: Tableau, tree: Tree) -> list[Scalar]:
    """Phi_1(t) .. Phi_s(t). No recursion: deep trees are welcome."""
    waiting: list[list[list[Scalar]]] = [[] for _ in range(max(tree) + 2)]
    for level in reversed(tree):
        stages = _stage_weights(method, waiting[level + 1])
        waiting[level + 1] = []
        waiting[level].append([_dot(row, stages) for row in method.a] if level > 1 else stages)
    return waiting[1][0]


def exact_order(
    method: Tableau, *, limit: int = 10, tolerance: float | None = None, progress: Progress | None = None
) -> OrderReport:
    """The order of a method by its order conditions, and all conditions of the next order that fail.

    A method of s stages has order at most 2 s, so the answer is exact when `limit` > 2 s. Conditions are decided
    exactly; with a `tolerance`, phi(t) may differ from 1/gamma(t) by that much. Raises TreeError for a limit outside
    1 .. ORDER_LIMIT.
    """
    _check_order(limit)
    if limit < 1:
        raise TreeError(f"an order limit of {limit} checks nothing; wanted at least 1")
    failures: list[Failure] = []
    order = 0
    for tree, found in elementary_weights(method, limit, progress):
        if len(tree) > order + 1:
            if failures:
                break
            order += 1
        wanted = Fraction(1, density(tree))
        if not _close(found, wanted, tolerance):
            failures.append(Failure(tree, found, wanted))
    return OrderReport(order if failures else limit, tuple(failures), limit)


def is_symplectic(method: Tableau, *, tolerance: float | None = None) -> bool:
    """b_i a_ij + b_j a_ji = b_i b_j for all i, j: quadratic invariants are kept, and the method is symplectic.

    Cooper 1987, Sanz-Serna 1988, Lasagni 1988; necessary too for methods without redundant stages.
    """
    a, b = method.a, method.b
    pairs = ((i, j) for i in range(method.stages) for j in range(i, method.stages))
    return all(_close(b[i] * a[i][j] + b[j] * a[j][i], b[i] * b[j], tolerance) for i, j in pairs)


def _check_order(order: int) -> None:
    if order > ORDER_LIMIT:
        raise TreeError(f"order {order} has too many conditions; at most {ORDER_LIMIT}")


def _stage_weights(method: Tableau, factors: Sequence[Sequence[Scalar]]) -> list[Scalar]:
    return [reduce(mul, (factor[i] for factor in factors), ONE) for i in range(method.stages)]


def _dot(row: Sequence[Scalar], values: Sequence[Scalar]) -> Scalar:
    total = sum((x * y for x, y in zip(row, values, strict=True) if x and y), start=ZERO)
    bits = (total if isinstance(total, Fraction) else total.b).denominator.bit_length()
    if bits > BITS_LIMIT:
        raise TreeError(f"a weight has a denominator of {bits} bits; at most {BITS_LIMIT}: simplify the coefficients")
    return total


def _close(found: Scalar, wanted: Scalar, tolerance: float | None) -> bool:
    if tolerance is None:
        return found == wanted
    if not 0 <= tolerance < math.inf:
        raise TreeError(f"a tolerance of {tolerance}; wanted a finite number that is not negative")
    difference = found - wanted
    if isinstance(difference, Fraction):
        return abs(difference) <= tolerance
    return abs(float(difference)) <= tolerance


def _numbers(values: object, where: str, tolerance: float | None) -> tuple[Scalar, ...]:
    if not isinstance(values, list | tuple):
        raise TreeError(f"{where} is {type(values).__name__}; wanted a list of numbers")
    if len(values) > STAGES_LIMIT:
        raise TreeError(f"{where} has {len(values)} numbers; at most {STAGES_LIMIT} stages")
    found: list[Scalar] = []
    for i, value in enumerate(values):
        try:
            exact = tolerance is not None and isinstance(value, float) and math.isfinite(value)
            found.append(Fraction(value) if exact else as_scalar(value))
        except TreeError as error:
            raise TreeError(f"{where}[{i + 1}]: {error}") from error
    return tuple(found)


def _padded(row: tuple[Scalar, ...], i: int, s: int) -> tuple[Scalar, ...]:
    if len(row) not in (s, i, i + 1):
        raise TreeError(f"row {i + 1} of A has {len(row)} numbers; wanted {s}, or {i} or {i + 1} of a lower triangle")
    return row + (ZERO,) * (s - len(row))
