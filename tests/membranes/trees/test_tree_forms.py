"""Canonical forms, and the ways to write a tree."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoc.compiler.ir.algebra import Cell, System
from echoc.membranes.trees.forms import (
    Form,
    from_brackets,
    from_nested,
    from_parents,
    from_system,
    parse,
    to_brackets,
    to_nested,
    to_parents,
    write,
)
from echoc.membranes.trees.invariants import density, labellings, monotonic_labellings, symmetry
from echoc.membranes.trees.keys import canonical, isomorphic
from echoc.membranes.trees.levels import NODES_LIMIT, Tree, TreeError, branches, graft, subtree_sizes, trees

DEEP = 100_000


@st.composite
def parent_arrays(draw: st.DrawFn) -> list[int]:
    """Parents of up to 40 nodes, each before its children."""
    n = draw(st.integers(1, 40))
    return [-1, *(draw(st.integers(0, i - 1)) for i in range(1, n))]


def relabelled(parents: list[int], seed: int) -> list[int]:
    names = list(range(len(parents)))
    random.Random(seed).shuffle(names)
    found = [0] * len(parents)
    for node, parent in enumerate(parents):
        found[names[node]] = -1 if parent < 0 else names[parent]
    return found


@given(parent_arrays(), st.integers(0, 10**6))
def test_relabelled_trees_have_equal_keys(parents: list[int], seed: int) -> None:
    tree = from_parents(parents)
    assert from_parents(relabelled(parents, seed)) == tree
    assert canonical(tree) == tree


@given(parent_arrays())
def test_every_form_goes_round(parents: list[int]) -> None:
    tree = from_parents(parents)
    assert from_parents(to_parents(tree)) == tree
    assert from_brackets(to_brackets(tree)) == tree
    assert from_nested(to_nested(tree)) == tree
    assert parse(str(to_nested(tree))) == tree
    assert graft(branches(tree)) == tree
    for form in Form:
        assert parse(write(tree, form)) == tree


def test_keys_tell_all_trees_apart_and_no_drawing_of_one() -> None:
    """Every parent array of 6 nodes, each parent first: 5! of them, 20 trees, each as often as alpha says."""
    drawings: dict[Tree, int] = {}
    for code in range(120):
        parents, rest = [-1], code
        for node in range(1, 6):
            rest, parent = divmod(rest, node)
            parents.append(parent)
        tree = from_parents(parents)
        drawings[tree] = drawings.get(tree, 0) + 1
    assert drawings == {tree: monotonic_labellings(tree) for tree in trees(6)}


def test_isomorphism_is_not_equality_of_sequences() -> None:
    assert isomorphic((1, 2, 2, 3), (1, 2, 3, 2))
    assert not isomorphic((1, 2, 2, 3), (1, 2, 3, 3))
    assert canonical([1, 2, 3, 2, 3, 3, 2]) == (1, 2, 3, 3, 2, 3, 2)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("[]", (1,)),
        ("[[]'2[]'3]'1", (1, 2, 2)),
        ("[ [ ]'left [ [ ]'{2,3} ]'x{1,2} ]'skin", (1, 2, 3, 2)),
        ("+[ -[]'2 0[]'3 ]'1", (1, 2, 2)),
        ("-[[]'2]'1", (1, 2)),
        ("((), ((),))", (1, 2, 3, 2)),
        ("([][])", (1, 2, 2)),
        ("1 2 2 3", (1, 2, 3, 2)),
        ("0,1,1", (1, 2, 2)),
        ("-1,0,0,1", (1, 2, 3, 2)),
        ("2 0 -1", (1, 2, 3)),
    ],
)
def test_texts(text: str, tree: Tree) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty text"),
        ("  ", "an empty text"),
        ("tree", "no whole number"),
        ("1,2,x", "'x' is no whole number"),
        ("1,3", "level 2 is 3; after 1 come levels from 2 to 2"),
        ("1,2,1", "level 3 is 1"),
        ("2,3", "the first level is 2"),
        ("9" * 5000, "no whole number"),
        ("[", "column 1: this bracket is not closed"),
        ("[]]", "column 3: ] closes nothing"),
        ("[(])", "column 3: ] closes ( of column 2; wanted )"),
        ("[][]", "column 3: a second tree begins"),
        ("[\n  [a]\n]", "line 2, column 4: found 'a'"),
        ("[]'", "column 3: a label"),
        ("['2]", "column 2: a label"),
        ("[]'2'3", "column 5: a label"),
        ("+", "column 1"),
        ("[+]", "column 2"),
        ("-1,-1", "nodes 0 and 1 have no parent"),
        ("-1,2,1", "their own ancestors: 1 -> 2 -> 1"),
        ("1,2,0,-1", "their own ancestors: 0 -> 1 -> 2 -> 0"),
        ("-1,1", "their own ancestors: 1 -> 1"),
        ("-1,2", "the parent of node 1 is 2; wanted an index from 0 to 1"),
    ],
)
def test_what_is_no_tree_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(TreeError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_the_caret_stands_under_the_fault() -> None:
    with pytest.raises(TreeError) as caught:
        parse("[[]'2 x]'1")
    shown, caret = str(caught.value).splitlines()[1:]
    assert shown[caret.index("^")] == "x"
    with pytest.raises(TreeError) as caught:
        parse("[" + "[]" * 5000 + "x]")
    shown, caret = str(caught.value).splitlines()[1:]
    assert shown[caret.index("^")] == "x"
    assert len(shown) < 100


@given(st.text(alphabet="[]()'+-012,{} ax\n", max_size=40))
def test_any_text_is_a_tree_or_refused(text: str) -> None:
    try:
        tree = parse(text)
    except TreeError:
        return
    assert canonical(tree) == tree


@given(st.lists(st.one_of(st.integers(-2, 8), st.none()), max_size=8))
def test_any_array_is_a_tree_or_refused(parents: list[int | None]) -> None:
    try:
        tree = from_parents(parents)
    except TreeError:
        return
    assert len(tree) == len(parents)


@pytest.mark.parametrize("parents", [[], [0], [None, True], [None, 0.0], [None, "0"], [None, -2], [1, 0]])
def test_arrays_that_are_no_tree(parents: list[int | None]) -> None:
    with pytest.raises(TreeError):
        from_parents(parents)


def test_levels_that_are_no_numbers() -> None:
    for levels in ([], [True], [1, 2.0], ["1"], [1, None]):
        with pytest.raises(TreeError):
            canonical(levels)  # type: ignore[arg-type]


def test_deep_and_wide_trees_need_no_recursion() -> None:
    path = tuple(range(1, DEEP + 1))
    assert from_parents([*range(1, DEEP), -1]) == path
    assert parse("[" * DEEP + "]" * DEEP) == path
    assert from_nested(to_nested(path)) == path
    assert subtree_sizes(path)[0] == DEEP
    comb = canonical([level for depth in range(1, DEEP // 2) for level in (depth, depth + 1)])
    assert comb[: DEEP // 2] == tuple(range(1, DEEP // 2 + 1))
    assert canonical((1,) + (2,) * DEEP) == (1,) + (2,) * DEEP


def test_endless_and_huge_structures_are_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(TreeError, match="inside of itself"):
        from_nested(endless)
    shared: tuple[object, ...] = ()
    for _ in range(40):
        shared = (shared, shared)
    with pytest.raises(TreeError, match=f"more than {NODES_LIMIT}"):
        from_nested(shared)
    with pytest.raises(TreeError, match="found int"):
        from_nested((1,))


def test_a_system_has_the_tree_of_its_cells() -> None:
    cells = (Cell("1"), Cell("2", parent=0), Cell("3", parent=0), Cell("2", parent=2))
    assert from_system(System("transition", cells, (), ())) == (1, 2, 3, 2)
    with pytest.raises(TreeError, match="have no parent"):
        from_system(System("tissue", (Cell("1"), Cell("2")), (), ()))


@pytest.mark.parametrize("n", range(1, 10))
def test_labellings_sum_to_what_is_known(n: int) -> None:
    """Trees that grow: (n - 1)!. All labelled rooted trees: n^(n - 1) (Cayley)."""
    factorial = 1
    for i in range(1, n):
        factorial *= i
    assert sum(monotonic_labellings(tree) for tree in trees(n)) == factorial
    assert sum(labellings(tree) for tree in trees(n)) == n ** (n - 1)


def test_symmetry_and_density_of_known_trees() -> None:
    assert [(symmetry(t), density(t)) for t in trees(4)] == [(1, 24), (2, 12), (1, 8), (6, 4)]
    assert symmetry((1, 2, 3, 3, 2, 3, 3)) == 2 * 2 * 2
    assert symmetry(()) == density(()) == 1


def test_invariants_of_deep_trees() -> None:
    path = tuple(range(1, 3001))
    assert symmetry(path) == 1
    assert monotonic_labellings(path) == 1
    with pytest.raises(TreeError, match="at most"):
        density((1,) + (2,) * 200_000)
