"""Mass-action fields of chemical systems, their elementary differentials, and B-series steps, against exact methods."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tableaus import EULER, GAUSS2, HEUN, IMPLICIT_EULER, KUTTA, MIDPOINT

from echoc.compiler.ir.algebra import Cell, Group, Guard, Inner, Mode, Rule, Send, System, Target, Where, bag
from echoc.compiler.ir.expression import Expression, call, name, number
from echoc.membranes.trees.bseries import exact_flow, modified_equation, of_method, series
from echoc.membranes.trees.levels import Tree, TreeError, trees_up_to
from echoc.membranes.trees.massaction import Field, Vector, elementary_differential, mass_action, step
from echoc.membranes.trees.tableau import Tableau

H = Fraction(1, 10)


def reaction(consume: dict[str, int], produce: dict[str, int], rate: float | Expression) -> Rule:
    return Rule("m", consume=bag(consume), produce=bag(produce), rate=rate, where=Where("reactions.txt", 3, 7))


def system(*rules: Rule) -> System:
    cells = (Cell("m", objects=bag({"X": 3, "Y": 2})),)
    return System("chemical", cells, rules, (Group(tuple(range(len(rules)))),), mode=Mode.GILLESPIE)


FOXES = system(
    reaction({"X": 1}, {"X": 2}, 1.0),
    reaction({"X": 1, "Y": 1}, {"Y": 2}, 0.5),
    reaction({"Y": 1}, {}, 0.25),
    reaction({"X": 2}, {"Y": 1}, 0.5),
)


def explicit_step(method: Tableau, field: Field, y: Vector, h: Fraction) -> Vector:
    """The Runge-Kutta step itself, stage by stage."""
    stages: list[Vector] = []

    def moved(weights: Sequence[object]) -> Vector:
        pairs = list(zip(weights, stages, strict=False))
        moves = [sum((w * k[i] for w, k in pairs if isinstance(w, Fraction)), start=Fraction(0)) for i in range(len(y))]
        return tuple(start + h * move for start, move in zip(y, moves, strict=True))

    for row in method.a:
        stages.append(field(moved(row)))
    return moved(method.b)


def test_the_field_of_known_reactions() -> None:
    """A pair of X meets in x^2/2 ways for large x, and takes two X away."""
    field = mass_action(FOXES)
    assert field.species == ("X", "Y")
    assert field((3, 2)) == (Fraction(3 - 3 - 2 * Fraction(9, 4)), Fraction(3) - Fraction(1, 2) + Fraction(9, 4))
    assert str(field) == "dX/dt = X - 1/2*X*Y - 1/2*X^2\ndY/dt = 1/2*X*Y + 1/4*X^2 - 1/4*Y"
    assert field.start(FOXES, "m") == (3, 2)
    assert mass_action(system(reaction({"X": 1}, {"X": 1}, 2.0)))((5, 1)) == (0, 0)


def test_rates_are_taken_for_what_they_are() -> None:
    field = mass_action(system(reaction({"X": 1}, {}, 0.1)))
    assert field((1, 0))[0] == -Fraction(0.1) != -Fraction(1, 10)


def test_elementary_differentials_of_a_product() -> None:
    """x' = x y, y' = x: F by hand from the gradients (y, x), (1, 0), and the one second derivative f''(u, v)."""
    field = mass_action(
        system(reaction({"X": 1, "Y": 1}, {"X": 2, "Y": 1}, 1.0), reaction({"X": 1}, {"X": 1, "Y": 1}, 1.0))
    )
    x, y = Fraction(3), Fraction(2)
    f = (x * y, x)
    known: dict[Tree, Vector] = {
        (): (x, y),
        (1,): f,
        (1, 2): (y * f[0] + x * f[1], f[0]),
        (1, 2, 2): (2 * f[0] * f[1], Fraction(0)),
        (1, 2, 2, 2): (Fraction(0), Fraction(0)),
    }
    for tree, value in known.items():
        assert elementary_differential(field, tree, (x, y)) == value
    below = known[1, 2]
    assert elementary_differential(field, (1, 2, 3), (x, y)) == (y * below[0] + x * below[1], below[0])
    assert elementary_differential(field, (1, 2, 3, 2), (x, y)) == (below[0] * f[1] + below[1] * f[0], Fraction(0))


@pytest.mark.parametrize(("method", "nodes"), [(EULER, 1), (HEUN, 3), (MIDPOINT, 3), (KUTTA, 7)])
def test_the_series_of_an_explicit_method_is_its_step(method: Tableau, nodes: int) -> None:
    """For reactions of two molecules only trees with at most two branches at a node count, and s stages see no deeper
    than s levels: at 2^s - 1 nodes the series ends and equals the step, in rationals."""
    field = mass_action(FOXES)
    y = field.start(FOXES, "m")
    exact = explicit_step(method, field, y, H)
    found = of_method(method, nodes)
    assert step(field, found, y, H) == exact
    if nodes > 1:
        assert step(field, found.truncated(nodes - 1), y, H) != exact


def test_the_exact_flow_of_decay_is_the_exponential_series() -> None:
    field = mass_action(system(reaction({"X": 1}, {}, 1.0)))
    total, term = Fraction(0), Fraction(1)
    for n in range(9):
        total += term
        term *= -H / (n + 1)
    assert step(field, exact_flow(8), (1, 0), H) == (total, 0)


def test_the_exact_flow_of_annihilation_is_a_geometric_series() -> None:
    """2 X -> X at rate 2: x' = -x^2, x(h) = x / (1 + h x). Every tree counts here."""
    field = mass_action(system(reaction({"X": 2}, {"X": 1}, 2.0)))
    assert step(field, exact_flow(9), (1, 0), H)[0] == sum((-H) ** n for n in range(10))


def test_the_modified_equation_of_implicit_euler_on_decay() -> None:
    """x1 = x / (1 + h) is the flow of x' = -log(1 + h)/h x."""
    field = mass_action(system(reaction({"X": 1}, {}, 1.0)))
    found = step(field, modified_equation(of_method(IMPLICIT_EULER, 8)), (1, 0), H)[0]
    assert found == sum(Fraction((-1) ** n, n) * H**n for n in range(1, 9))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.fractions(-3, 3, max_denominator=5), min_size=4, max_size=4), st.sampled_from(list(trees_up_to(4))))
def test_what_is_conserved_stays_so_in_every_term(values: list[Fraction], tree: Tree) -> None:
    """X + E <-> C -> E + P keeps E + C and X + C + P, so every elementary differential does."""
    field = mass_action(
        system(
            reaction({"X": 1, "E": 1}, {"C": 1}, 0.5),
            reaction({"C": 1}, {"X": 1, "E": 1}, 0.25),
            reaction({"C": 1}, {"E": 1, "P": 1}, 2.0),
        )
    )
    at = dict(zip("XECP", values, strict=True))
    found = elementary_differential(field, tree, [at.get(species, Fraction(0)) for species in field.species])
    moved = dict(zip(field.species, found, strict=True))
    assert moved["E"] + moved["C"] == 0
    assert moved["X"] + moved["C"] + moved["P"] == 0


def test_polynomial_rate_laws() -> None:
    x, y = name("X"), name("Y")
    law = call("div", call("mul", call("pow", call("add", x, y), number(2)), call("neg", x)), number(4))
    field = mass_action(system(reaction({"X": 1}, {}, call("sub", law, number(0.5)))))
    assert field((3, 2))[0] == -(Fraction(25 * -3, 4) - Fraction(1, 2))


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (call("exp", name("X")), "exp in a rate law is no polynomial"),
        (call("div", number(1), name("X")), "div in a rate law"),
        (call("div", name("X"), number(0)), "div in a rate law"),
        (call("pow", name("X"), number(0.5)), "pow in a rate law"),
        (call("pow", name("X"), number(1e9)), "pow in a rate law"),
        (call("pow", call("pow", name("X"), number(60)), number(60)), "degree"),
        (name("Z"), "'Z' in a rate law is no object"),
        (number(float("inf")), "the number inf"),
    ],
)
def test_rate_laws_that_are_no_polynomial_are_refused(law: Expression, message: str) -> None:
    with pytest.raises(TreeError, match=message) as caught:
        mass_action(system(reaction({"X": 1}, {}, law)))
    assert "reactions.txt:3:7" in str(caught.value)


def test_deep_and_shared_rate_laws_neither_crash_nor_hang() -> None:
    deep = name("X")
    for _ in range(4000):
        deep = call("neg", deep)
    assert mass_action(system(reaction({"X": 1}, {}, deep)))((3, 0))[0] == -3
    shared = name("X")
    for _ in range(200):
        shared = call("add", shared, shared)
    with pytest.raises(TreeError, match="more than"):
        mass_action(system(reaction({"X": 1}, {}, shared)))


GOOD = reaction({"X": 1}, {"Y": 1}, 1.0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (replace(GOOD, rate=None), "no rate"),
        (replace(GOOD, rate=float("nan")), "rate constant is nan"),
        (replace(GOOD, send=(Send(Target.OUT, bag(["X"])),)), "send"),
        (replace(GOOD, dissolve=True), "dissolve"),
        (replace(GOOD, guard=Guard("ge", "X", 2)), "guard"),
        (replace(GOOD, promoters=bag(["Y"])), "promoters"),
        (replace(GOOD, charge=0), "charge"),
        (replace(GOOD, priority=1), "priority"),
        (replace(GOOD, inner=(Inner("m"),)), "inner"),
        (replace(GOOD, consume=bag({"X": 1000})), "1000 molecules"),
    ],
)
def test_rules_that_are_no_reactions_are_refused_with_their_place(rule: Rule, message: str) -> None:
    with pytest.raises(TreeError, match=message) as caught:
        mass_action(system(GOOD, rule))
    assert "reactions.txt:3:7" in str(caught.value)


def test_systems_without_one_field_are_refused() -> None:
    with pytest.raises(TreeError, match="mode parallel"):
        mass_action(replace(FOXES, mode=Mode.PARALLEL))
    with pytest.raises(TreeError, match="no membrane has rules"):
        mass_action(system())
    two = replace(FOXES, cells=(*FOXES.cells, Cell("n", parent=0)), rules=(GOOD, replace(GOOD, label="n")))
    with pytest.raises(TreeError, match="membranes m, n have rules"):
        mass_action(two)
    assert mass_action(two, "n")((3, 0)) == (-3, 3)
    with pytest.raises(TreeError, match="0 membranes have the label q"):
        mass_action(two, "q")
    with pytest.raises(TreeError, match="2 membranes have the label m"):
        mass_action(replace(FOXES, cells=FOXES.cells * 2))


def test_vectors_and_series_that_do_not_fit_are_refused() -> None:
    field = mass_action(FOXES)
    with pytest.raises(TreeError, match="a vector of 3 numbers"):
        field((1, 2, 3))
    with pytest.raises(TreeError, match="directions"):
        elementary_differential(field, (1, *(2,) * 40), (1, 2))
    with pytest.raises(TreeError, match="not rational"):
        step(field, series(1, {(1,): "sqrt(2)"}), (1, 2), H)
    assert step(field, of_method(GAUSS2, 4), (1, 2), H) == step(field, exact_flow(4), (1, 2), H)
