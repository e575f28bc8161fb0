"""Kernel P systems: blocks in order, guards at the start of the step, targets, structural rules, links."""

from echoc.compiler.ir.algebra import Bag, Bound, Cell, Group, Guard, Mode, Rule, Send, System, Target, bag
from echoc.compiler.ir.oracle import Application, Configuration, check, choose, generator, halted, run, start


def system(cells: list[Cell], *blocks: tuple[Bound, list[Rule]], links: list[tuple[int, int]] | None = None) -> System:
    rules: list[Rule] = []
    groups = []
    for bound, block in blocks:
        groups.append(Group(tuple(range(len(rules), len(rules) + len(block))), bound))
        rules += block
    both = [pair for i, j in links or [] for pair in ((i, j), (j, i))]
    return System("kernel", tuple(cells), tuple(rules), tuple(groups), mode=Mode.ORDERED, links=tuple(both))


def contents(configuration: Configuration) -> list[tuple[str, Bag]]:
    return sorted((c.label, bag(c.objects)) for c in configuration.cells.values())


def test_blocks_run_in_order_on_what_the_ones_before_left() -> None:
    first = (Bound.CHOICE, [Rule("P", bag({"a": 2}), bag("x"))])
    second = (Bound.MAXIMAL, [Rule("P", bag("a"), bag("y"))])
    assert contents(run(system([Cell("P", None, bag({"a": 5}))], first, second), 1, 0)) == [
        ("P", bag({"x": 1, "y": 3}))
    ]
    assert contents(run(system([Cell("P", None, bag({"a": 5}))], second, first), 1, 0)) == [("P", bag({"y": 5}))]


def test_a_later_block_sees_no_products_and_the_guard_of_the_start() -> None:
    first = (Bound.MAXIMAL, [Rule("P", bag("a"), bag("b"))])
    second = (Bound.MAXIMAL, [Rule("P", bag("b"), bag("c")), Rule("P", bag("k"), bag("m"), guard=Guard("ge", "a", 2))])
    s = system([Cell("P", None, bag({"a": 2, "k": 1}))], first, second)
    assert contents(run(s, 1, 0)) == [("P", bag({"b": 2, "m": 1}))]


def test_a_sequence_that_stops_ends_the_step_of_the_membrane() -> None:
    sequence = (Bound.SEQUENCE, [Rule("P", bag("a"), bag("b")), Rule("P", bag("z"))])
    after = (Bound.MAXIMAL, [Rule("P", bag("k"), bag("m"))])
    s = system(
        [Cell("P", None, bag({"a": 1, "k": 1})), Cell("P", None, bag({"a": 1, "k": 1, "z": 1}))], sequence, after
    )
    end = run(s, 1, 0)
    assert [dict(c.objects) for c in end.cells.values()] == [{"b": 1, "k": 1}, {"b": 1, "m": 1}]
    only_after = system([Cell("P", None, bag("k"))], sequence, after)
    assert halted(only_after, start(only_after))


def test_division_replaces_the_membrane_and_later_blocks_do_not_run_there() -> None:
    divide = (Bound.CHOICE, [Rule("P", bag("d"), divide=(("P", bag("x")), ("Q", bag("y"))))])
    after = (Bound.MAXIMAL, [Rule("P", bag("a"), bag("b"))])
    s = system([Cell("P", None, bag({"d": 1, "a": 2})), Cell("R")], divide, after, links=[(0, 1)])
    end = run(s, 1, 0)
    assert contents(end) == [("P", bag({"a": 2, "x": 1})), ("Q", bag({"a": 2, "y": 1})), ("R", ())]
    assert end.links == {(0, 1), (1, 0), (2, 1), (1, 2)}  # both parts have the links of the divided one


def test_linked_cells_that_divide_together_are_linked_each_with_each() -> None:
    divide = (Bound.CHOICE, [Rule("P", bag("d"), divide=(("P", ()), ("P", ())))])
    s = system([Cell("P", None, bag("d")), Cell("P", None, bag("d"))], divide, links=[(0, 1)])
    end = run(s, 1, 0)
    assert end.links == {(i, j) for i in range(4) for j in range(4) if (i in (0, 2)) != (j in (0, 2))}


def test_dissolution_takes_the_content_and_the_links_with_it() -> None:
    s = system(
        [Cell("P", None, bag({"a": 1, "k": 4})), Cell("Q", None, bag("q"))],
        (Bound.MAXIMAL, [Rule("P", bag("a"), dissolve=True)]),
        links=[(0, 1)],
    )
    end = run(s, 1, 0)
    assert contents(end) == [("Q", bag("q"))] and not end.links


def test_one_structural_rule_a_membrane_and_step() -> None:
    rules = [Rule("P", bag("a"), divide=(("P", ()), ("P", ()))), Rule("P", bag("a"), dissolve=True)]
    s = system([Cell("P", None, bag({"a": 6}))], (Bound.MAXIMAL, rules))
    assert {tuple(c for c, _ in contents(run(s, 1, seed))) for seed in range(20)} == {("P", "P"), ()}


def test_the_target_is_one_linked_membrane_for_all_applications_of_the_step() -> None:
    cells = [Cell("P", None, bag({"a": 10})), Cell("Q"), Cell("Q"), Cell("Q")]
    rule = Rule("P", bag("a"), send=(Send(Target.LINKED, bag("b"), "Q"),))
    s = system(cells, (Bound.MAXIMAL, [rule]), links=[(0, 1), (0, 2)])
    ends = [[c.objects.get("b", 0) for c in run(s, 1, seed).cells.values()] for seed in range(30)]
    assert sorted({tuple(e) for e in ends}) == [(0, 0, 10, 0), (0, 10, 0, 0)]


def test_a_send_to_a_label_without_link_cannot_be_applied() -> None:
    s = system(
        [Cell("P", None, bag("a")), Cell("Q")],
        (Bound.MAXIMAL, [Rule("P", bag("a"), send=(Send(Target.LINKED, bag("b"), "Q"),))]),
    )
    assert halted(s, start(s))


def test_links_are_made_and_cut() -> None:
    cells = [Cell("P", None, bag({"m": 1, "c": 1})), Cell("Q"), Cell("R")]
    blocks = (Bound.CHOICE, [Rule("P", bag("m"), link="Q"), Rule("P", bag("c"), unlink="R", guard=Guard("eq", "m", 0))])
    s = system(cells, blocks, links=[(0, 2)])
    assert run(s, 1, 0).links == {(0, 1), (1, 0), (0, 2), (2, 0)}
    assert run(s, 2, 0).links == {(0, 1), (1, 0)}


def test_addition_by_guards_halts_with_the_sum_passed_on() -> None:
    """Two inputs send what they have to a counter, which hands one on when it has all four."""
    many = Guard("ge", "a", 2)
    cells = [Cell("One", None, bag({"a": 1})), Cell("Sum"), Cell("Two", None, bag({"a": 3})), Cell("Out")]
    to_sum = Send(Target.LINKED, bag({"a": 2}), "Sum")
    single = Send(Target.LINKED, bag("a"), "Sum")
    s = system(
        cells,
        (Bound.CHOICE, [Rule("One", bag({"a": 2}), send=(to_sum,), guard=many)]),
        (Bound.CHOICE, [Rule("One", bag("a"), send=(single,), guard=Guard("eq", "a", 1))]),
        (Bound.CHOICE, [Rule("Two", bag({"a": 2}), send=(to_sum,), guard=many)]),
        (Bound.CHOICE, [Rule("Two", bag("a"), send=(single,), guard=Guard("eq", "a", 1))]),
        (
            Bound.CHOICE,
            [Rule("Sum", bag("a"), send=(Send(Target.LINKED, bag("a"), "Out"),), guard=Guard("eq", "a", 4))],
        ),
        links=[(0, 1), (2, 1), (1, 3)],
    )
    end = run(s, None, 0)
    assert end.step == 3
    assert contents(end) == [("One", ()), ("Out", bag("a")), ("Sum", bag({"a": 3})), ("Two", ())]


def test_a_choice_made_elsewhere_is_checked_block_by_block() -> None:
    first = (Bound.CHOICE, [Rule("P", bag({"a": 2}), bag("x")), Rule("P", bag("a"), bag("w"))])
    second = (Bound.MAXIMAL, [Rule("P", bag("a"), bag("y"))])
    s = system([Cell("P", None, bag({"a": 5}))], first, second)
    for seed in range(10):
        check(s, start(s), choose(s, start(s), generator(seed, 0)))
    check(s, start(s), [Application(1, (0,), 1), Application(2, (0,), 4)])
