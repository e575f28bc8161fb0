"""Counting, generation in order, rank and unrank."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoc.membranes.trees.counting import COUNT_LIMIT, RANK_LIMIT, count, counts, random_tree, rank, unrank
from echoc.membranes.trees.keys import canonical
from echoc.membranes.trees.levels import NODES_LIMIT, TreeError, generate, trees

# OEIS A000081, offset 0.
A000081: tuple[int, ...] = (0, 1, 1, 2, 4, 9, 20, 48, 115, 286, 719, 1842, 4766, 12486, 32973, 87811, 235381, 634847)
A000081 += (1721159, 4688676, 12826228)


def test_counts_are_a000081() -> None:
    assert tuple(counts(20)) == A000081
    assert counts(0) == [0]
    assert counts(1) == [0, 1]
    assert count(30) == 354426847597


def test_large_counts_grow_as_otter_says() -> None:
    """a(n) ~ 0.439924 * 2.955765^n * n^(-3/2) (Otter 1948)."""
    n = 700
    ratio = count(n) * 10**9 // count(n - 1) / 10**9
    assert abs(ratio * (n / (n - 1)) ** 1.5 - 2.955765) < 1e-5


@pytest.mark.parametrize("n", range(1, 13))
def test_the_iterator_gives_every_tree_once_in_falling_order(n: int) -> None:
    found = list(trees(n))
    assert len(found) == A000081[n]
    assert all(one > other for one, other in pairwise(found))
    assert all(canonical(tree) == tree for tree in found)
    assert found[0] == tuple(range(1, n + 1))
    assert found[-1] == (1,) + (2,) * (n - 1)


def test_generation_in_place_is_the_same_list_each_time() -> None:
    assert len({id(levels) for levels in generate(8)}) == 1
    assert sum(1 for _ in generate(14)) == A000081[14]
    assert list(trees(0)) == []


def test_generation_costs_a_constant_number_of_changes_for_each_tree() -> None:
    """The levels that change from one sequence to the next are less than three on average, at any size."""
    for n in (10, 13):
        before: list[int] = list(range(1, n + 1))
        changes = 0
        for levels in generate(n):
            changes += sum(a != b for a, b in zip(before, levels, strict=True))
            before = list(levels)
        assert changes < 3 * A000081[n]


@pytest.mark.parametrize("n", range(1, 10))
def test_rank_and_unrank_agree_with_the_iterator(n: int) -> None:
    for position, tree in enumerate(trees(n)):
        assert rank(tree) == position
        assert unrank(n, position) == tree


def test_rank_agrees_with_the_iterator_for_twelve_nodes() -> None:
    for position, tree in enumerate(trees(12)):
        if position % 5 == 0:
            assert rank(tree) == position
        if position % 50 == 0:
            assert unrank(12, position) == tree


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_positions_go_round(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30))
    position = data.draw(st.integers(0, count(n) - 1))
    tree = unrank(n, position)
    assert canonical(tree) == tree
    assert len(tree) == n
    assert rank(tree) == position


def test_positions_go_round_for_a_hundred_nodes() -> None:
    position = random.Random(5).randrange(count(100))
    assert rank(unrank(100, position)) == position
    assert unrank(100, 0) == tuple(range(1, 101))
    assert unrank(100, count(100) - 1) == (1,) + (2,) * 99


def test_larger_positions_are_smaller_sequences() -> None:
    positions = sorted(random.Random(3).sample(range(count(25)), 12))
    found = [unrank(25, position) for position in positions]
    assert found == sorted(found, reverse=True)


def test_random_trees_are_uniform() -> None:
    """Chi squared of 9 shapes over 1800 draws, 8 degrees of freedom: beyond 26.1 with probability 0.001."""
    generator = random.Random(11)
    drawn = [random_tree(5, generator) for _ in range(1800)]
    assert sum((drawn.count(tree) - 200) ** 2 / 200 for tree in trees(5)) < 26.1
    assert random_tree(40, 7) == random_tree(40, 7) != random_tree(40, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count(-1), "does not exist"),
        (lambda: count(COUNT_LIMIT + 1), "at most"),
        (lambda: count(10**30), "at most"),
        (lambda: next(trees(-3)), "does not exist"),
        (lambda: next(trees(NODES_LIMIT + 1)), "at most"),
        (lambda: unrank(5, 9), r"0 \.\. 8"),
        (lambda: unrank(5, -1), r"0 \.\. 8"),
        (lambda: unrank(0, 0), "smallest has 1"),
        (lambda: unrank(RANK_LIMIT + 1, 0), "at most"),
        (lambda: rank(tuple(range(1, RANK_LIMIT + 2))), "at most"),
        (lambda: random_tree(0, 1), "smallest has 1"),
    ],
)
def test_what_has_no_answer_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(TreeError, match=message):
        call()
