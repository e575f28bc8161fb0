"""Charges, division, separation, dissolution."""

from echoc.compiler.ir.algebra import Bound, Cell, Group, Inner, Result, Rule, Send, System, Target, bag
from echoc.compiler.ir.oracle import choose, generator, halted, run, start

ONE = Bound.AT_MOST


def tree(cells: list[Cell], *rules: Rule, bound: Bound = Bound.MAXIMAL) -> System:
    return System("test", tuple(cells), rules, (Group(tuple(range(len(rules))), bound),))


def shapes(s: System, steps: int = 1, seed: int = 0) -> list[tuple[str, int, dict[str, int]]]:
    return sorted(
        ((c.label, c.charge, dict(c.objects)) for c in run(s, steps, seed).cells.values()), key=lambda x: (x[0], str(x))
    )


def test_dissolution_keeps_the_products_and_gives_all_to_the_membrane_around() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"a": 2, "k": 1})), Cell("3", 1, bag("z"))]
    s = tree(cells, Rule("2", bag("a"), bag("b"), dissolve=True))
    end = run(s, 1, 0)
    assert {c.label: (c.parent, dict(c.objects)) for c in end.cells.values()} == {
        "1": (None, {"b": 2, "k": 1}),
        "3": (0, {"z": 1}),
    }


def test_the_rules_of_a_dissolved_membrane_are_gone() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"a": 1}))]
    s = tree(cells, Rule("2", bag("a"), bag("b"), dissolve=True), Rule("2", bag("b"), bag("c")))
    assert run(s, None, 0).cells[0].objects == {"b": 1}


def test_nested_dissolutions_end_in_the_first_membrane_that_stays() -> None:
    cells = [Cell("1"), Cell("2", 0, bag("a")), Cell("3", 1, bag("a")), Cell("4", 2, bag("x"))]
    s = tree(cells, Rule("2", bag("a"), bag("b"), dissolve=True), Rule("3", bag("a"), bag("c"), dissolve=True))
    end = run(s, 1, 0)
    assert [(c.label, c.parent, dict(c.objects)) for c in end.cells.values()] == [
        ("1", None, {"b": 1, "c": 1}),
        ("4", 0, {"x": 1}),
    ]


def test_what_is_sent_into_a_dissolving_membrane_is_not_lost() -> None:
    cells = [Cell("1", None, bag("s")), Cell("2", 0, bag("a"))]
    send = Rule("1", bag("s"), send=(Send(Target.IN, bag("t"), "2"),))
    assert run(tree(cells, send, Rule("2", bag("a"), dissolve=True)), 1, 0).cells[0].objects == {"t": 1}


def test_the_skin_never_dissolves() -> None:
    flagged = tree([Cell("1", None, bag("a"))], Rule("1", bag("a"), bag("b"), dissolve=True))
    assert shapes(flagged) == [("1", 0, {"b": 1})]
    inner = tree([Cell("1", None, bag("a"))], Rule(None, produce=bag("b"), inner=(Inner("1", None, bag("a")),)))
    assert halted(inner, start(inner))


def test_dissolution_of_an_inner_membrane_happens_by_one_application() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"a": 3}))]
    s = tree(cells, Rule(None, produce=bag("b"), inner=(Inner("2", None, bag("a")),)))
    assert shapes(s) == [("1", 0, {"a": 2, "b": 1})]


def test_division_copies_content_children_and_products_of_the_step() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"d": 1, "a": 2, "k": 5})), Cell("3", 1, bag("x"))]
    divide = Rule(None, inner=(Inner("2", 0, bag("d"), (Result("2", 1, bag("p")), Result("2", -1, bag("q")))),))
    s = tree(cells, divide, Rule("2", bag("a"), bag("b")))
    assert shapes(s) == [
        ("1", 0, {}),
        ("2", -1, {"b": 2, "k": 5, "q": 1}),
        ("2", 1, {"b": 2, "k": 5, "p": 1}),
        ("3", 0, {"x": 1}),
        ("3", 0, {"x": 1}),
    ]
    end = run(s, 1, 0)
    assert end.cells[1].charge == 1 and end.cells[2].parent == 1  # the first part keeps the id and the children
    assert sorted(c.id for c in end.cells.values()) == [0, 1, 2, 3, 4]


def test_n_divisions_make_two_to_the_n_membranes() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({f"d{i}": 1 for i in range(6)}))]
    rules = [
        Rule(None, inner=(Inner("2", None, bag([f"d{i}"]), (Result("2", produce=bag([f"t{i}"])), Result("2"))),))
        for i in range(6)
    ]
    end = run(tree(cells, *rules, bound=ONE), None, 3)
    assert end.step == 6
    parts = {tuple(c.objects) for c in end.cells.values() if c.label == "2"}
    assert len(parts) == 64 and len(end.cells) == 65


def test_parent_and_child_divide_in_one_step() -> None:
    cells = [Cell("1"), Cell("2", 0, bag("d")), Cell("3", 1, bag("e"))]
    outer = Rule(None, inner=(Inner("2", None, bag("d"), (Result("2"), Result("2"))),))
    inner = Rule(None, inner=(Inner("3", None, bag("e"), (Result("3", 1), Result("3", -1))),))
    end = run(tree(cells, outer, inner), 1, 0)
    twos = [c.id for c in end.cells.values() if c.label == "2"]
    assert [sorted(c.charge for c in end.cells.values() if c.parent == t) for t in twos] == [[-1, 1], [-1, 1]]


def test_separation_deals_out_the_content() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"s": 1, "a": 3, "b": 2, "c": 1}))]
    parts = (Result("2", keeps=frozenset("ab")), Result("3", produce=bag("p"), keeps=frozenset("cs")))
    assert shapes(tree(cells, Rule(None, inner=(Inner("2", None, bag("s"), parts),)))) == [
        ("1", 0, {}),
        ("2", 0, {"a": 3, "b": 2}),
        ("3", 0, {"c": 1, "p": 1}),
    ]


def test_a_membrane_divides_once_a_step() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"d": 4}))]
    s = tree(cells, Rule(None, inner=(Inner("2", None, bag("d"), (Result("2"), Result("2"))),)))
    assert shapes(s) == [("1", 0, {}), ("2", 0, {"d": 3}), ("2", 0, {"d": 3})]


def test_a_rule_needs_its_charge_and_sets_the_new_one() -> None:
    out = Rule(None, produce=bag("b"), inner=(Inner("2", 1, bag("a"), (Result("2", -1),)),))
    s = tree([Cell("1"), Cell("2", 0, bag({"a": 3}), 1), Cell("2", 0, bag({"a": 1}), 0)], out)
    end = run(s, 1, 0)
    assert end.cells[0].objects == {"b": 3}
    assert (end.cells[1].charge, end.cells[2].charge) == (-1, 0)


def test_applications_of_a_step_agree_on_the_charge() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"a": 5}))]
    up = Rule(None, produce=bag("u"), inner=(Inner("2", 0, bag("a"), (Result("2", 1),)),))
    down = Rule(None, produce=bag("d"), inner=(Inner("2", 0, bag("a"), (Result("2", -1),)),))
    s = tree(cells, up, down)
    ends = {(c.cells[1].charge, tuple(c.cells[0].objects.items())) for c in (run(s, 1, seed) for seed in range(30))}
    assert ends == {(1, (("u", 5),)), (-1, (("d", 5),))}


def test_an_evolution_rule_goes_with_a_change_of_charge() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"a": 2, "k": 3}))]
    out = Rule(None, produce=bag("u"), inner=(Inner("2", 0, bag("a"), (Result("2", 1),)),))
    evolve = Rule("2", bag("k"), bag("m"), charge=0)
    s = System("test", tuple(cells), (out, evolve), (Group((0,), ONE), Group((1,))))
    assert shapes(s) == [("1", 0, {"u": 1}), ("2", 1, {"a": 1, "m": 3})]


def test_a_new_label_is_bound_in_the_next_step() -> None:
    cells = [Cell("1"), Cell("2", 0, bag({"a": 1}))]
    s = tree(
        cells, Rule(None, inner=(Inner("2", None, bag("a"), (Result("3", produce=bag("b")),)),)), Rule("3", bag("b"))
    )
    assert shapes(s) == [("1", 0, {}), ("3", 0, {"b": 1})]
    assert shapes(s, 2) == [("1", 0, {}), ("3", 0, {})]


def test_the_holder_gets_its_new_charge_and_sets_it_once() -> None:
    s = tree([Cell("1", None, bag({"a": 2}))], Rule("1", bag("a"), new_charge=1), Rule("1", bag("a"), new_charge=0))
    assert {run(s, 1, seed).cells[0].charge for seed in range(20)} == {0, 1}
    assert all(len(choose(s, start(s), generator(seed, 0))) == 1 for seed in range(10))


def test_canonical_forms_of_equal_trees_are_equal_whatever_the_order() -> None:
    a = tree([Cell("1"), Cell("2", 0, bag("a")), Cell("3", 0), Cell("4", 1)])
    b = tree([Cell("1"), Cell("3", 0), Cell("2", 0, bag("a")), Cell("4", 2)])
    c = tree([Cell("1"), Cell("3", 0), Cell("2", 0, bag("a")), Cell("4", 1)])
    assert start(a).canonical() == start(b).canonical() != start(c).canonical()


def test_membranes_nested_deeply_dissolve_in_one_step() -> None:
    cells = [Cell("1"), *(Cell("2", i, bag("a")) for i in range(1500))]
    s = tree(cells, Rule("2", bag("a"), bag("b"), dissolve=True))
    assert start(s).canonical() != run(s, 1, 0).canonical()
    assert shapes(s) == [("1", 0, {"b": 1500})]
