"""Expressions, variables, modules, ranges and loops."""

from pathlib import Path

import pytest

from echoc.membranes.plingua import Limits, PLinguaError, parse, read
from echoc.membranes.plingua.syntax import Block, Module, Ranged


def objects(body: str, around: str = "", **options: object) -> dict[str, int]:
    """What the skin holds after `body` has run in main."""
    text = f"@model<transition>\n{around}\ndef main() {{ @mu = []'1; {body} }}"
    return dict(read("t.pli", text=text, **options).cells[0].objects)  # type: ignore[arg-type]


def value(expression: str, around: str = "") -> int:
    """A whole number, which is not negative."""
    return objects(f"@ms(1) = a*({expression}), zero;", around).get("a", 0)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3 - 4", 3),
        ("(0-7) % 3 + 10", 9),
        ("(int_t)(7 / 2.0 * 10)", 35),
        ("7 / 2 * 10", 35),
        ("@ceil 6.5 + @log 8 + @max0 (0-3)", 10),
        ("3 - -2", 5),
        ("1 << 4 >> 1 | 1", 9),
        ("6 & 3 ^ 1", 2),
        ("~0 + 5", 4),
        ("!0 + !5", 1),
        ("1 < 2 && 2 <= 2 || 1/0", 1),
        ("0 && 1/0", 0),
        ("1 <> 1.0", 0),
        ('"ab" < "b"', 1),
        ("0x1F", 31),
        ("2.9", 2),
        ("1e3", 1000),
        ("true + false", 1),
        ("ceil(2.1) + floor(2.9) + round(2.5)", 8),
        ("system::sqrt(49)", 7),
        ("@ceil(6.5)", 7),
        ("pow(2, 10) + log2(8) + log(9, 3)", 1029),
        ("abs(0-3)", 3),
        ('len("four")', 4),
        ('(int_t)"12ab"', 12),
        ("(int_t)(system::pi * 100)", 314),
        ("(int_t)e", 2),
        ("2 ^ 3 ^ 2", 64),
        ("2 ^ 32 - 1", 4294967295),
    ],
)
def test_expressions(expression: str, expected: int) -> None:
    assert value(expression) == expected


def test_in_version_5_the_roof_is_the_exclusive_or_and_whole_numbers_divide_to_whole_ones() -> None:
    model = "!p { [u --> v]'h; } @model(own) = p; @model<own>"
    body = "@ms(1) = a*(2^32 - 1), b*(7 / 2), c*((0-7) / 2 + 10), d*((double_t)7 / 2 * 10);"
    text = f"{model} def main() {{ @mu = []'1; {body} }}"
    assert read("t.pli", text=text).cells[0].objects == (("a", 29), ("b", 3), ("c", 7), ("d", 35))


def test_assignment_operators_and_increments() -> None:
    body = "x = 5; x += 2; x *= 3; x -= 1; x /= 4; x <<= 2; x |= 3; x &= 22; x ^= 1; x %= 20; let y = x++; y += ++x;"
    assert objects(f"{body} @ms(1) = x*x, y*y;") == {"x": 5, "y": 8}


def test_indexed_variables_and_objects() -> None:
    assert objects("k{1,2} = 4; i = 1; @ms(1) = o{i,i+1}*k{i,2}, o{-1}, o{0};") == {"o{1,2}": 4, "o{-1}": 1, "o{0}": 1}


def test_constants_outside_and_inside_of_modules() -> None:
    around = "k{1} = 2; k{2} = 3;\nk{1} = 4;\nn = 5;"
    assert objects("k{3} = 6; @ms(1) = a*k{1}, b*k{2}, c*k{3}, d*n;", around) == {"a": 4, "b": 3, "c": 6, "d": 5}


def test_variables_of_a_module_are_its_own_and_globals_are_shared() -> None:
    around = "g = 1; def f(x) { let y = x; g = g + y; return x * 2; } def f() { return 7; }"
    assert objects("let y = 3; let z = f(y + 1); @ms(1) = y*y, z*z, g*g, f*(f());", around) == {
        "y": 3,
        "z": 8,
        "g": 5,
        "f": 7,
    }


def test_parameters_hide_globals() -> None:
    assert objects("f(3); @ms(1) = x*x;", "x = 9; def f(x) { x = 4; @ms(1) += p*x; }") == {"x": 9}
    assert objects("f(3); @ms(1) += x*x;", "x = 9; def f(x) { x = 4; @ms(1) += p*x; }") == {"p": 4, "x": 9}


def test_recursion_with_a_return_value() -> None:
    around = "def fact(n) { if (n <= 1) return 1; else return n * fact(n - 1); }"
    assert value("fact(10)", around) == 3628800
    assert value("deep(900)", "def deep(n) { if (n == 0) { return 0; } return 1 + deep(n - 1); }") == 900


def test_loops() -> None:
    body = "s = 0; for (i = 0; i < 5; i++) { if (i == 3) s += 10; else if (i == 4) s += 100; else { s += 1; } }"
    assert objects(f"{body} @ms(1) = s*s;") == {"s": 113}
    assert objects("n = 3; while (n > 0) { @ms(1) += a*n; n--; }") == {"a": 6}
    assert objects("n = 0; do { n = n + 1; } while (n < 1); @ms(1) = n*n;") == {"n": 1}


def test_a_return_ends_loops_and_ranges() -> None:
    around = "def f() { { if (i == 3) return i; } : 1 <= i <= 9; return 0; } def g() { while (1) { return 4; } }"
    assert value("f()*10 + g()", around) == 34


def test_ranges_the_last_is_the_outermost_and_conditions_filter() -> None:
    body = "@ms(1) += o{i,j} : i < j <= 4, 1 <= i < 4, i <> 2, j <> 2 + 1;"
    assert set(objects(body)) == {"o{1,2}", "o{1,4}", "o{3,4}"}


def test_a_range_may_need_the_variable_of_a_range_before_it() -> None:
    assert set(objects("@ms(1) += o{i,j} : 1 <= i <= 2, i <= j <= 2;")) == {"o{1,1}", "o{1,2}", "o{2,2}"}


def test_a_range_variable_is_local_to_its_statement() -> None:
    assert objects("i = 7; @ms(1) += a{i} : 1 <= i <= 2; @ms(1) += b{i};") == {"a{1}": 1, "a{2}": 1, "b{7}": 1}
    with pytest.raises(PLinguaError, match="unknown variable j"):
        objects("@ms(1) += a{j} : 1 <= j <= 2; @ms(1) += b{j};")


def test_multisets_are_replaced_and_extended() -> None:
    assert objects("@ms(1) = a, b; @ms(1) = c*2, c, d*0, #; @ms(1) += d*2.9;") == {"c": 3, "d": 2}
    assert objects("@ms(1) = a; @ms(1) = ;") == {}


def test_multisets_with_ranges_of_their_own() -> None:
    body = "n = 2; @ms(1) = z, &{a{i}*i, b} : {1 <= i <= n + 1, i <> 2}, z; call more;"
    around = "def more() { [&{a{i}} : {1 <= i <= 3} --> &{c{i,j}} : {1 <= j < i, 2 <= i <= k}, d]'1 : 2 <= k <= 3; }"
    assert objects(body, around) == {"z": 2, "a{1}": 1, "a{3}": 3, "b": 2}
    rules = read("t.pli", text=f"@model<transition> {around} def main() {{ @mu = []'1; call more; }}").rules
    assert [r.consume for r in rules] == [(("a{1}", 1), ("a{2}", 1), ("a{3}", 1))] * 2
    assert [tuple(o for o, _ in r.produce) for r in rules] == [("c{2,1}", "d"), ("c{2,1}", "c{3,1}", "c{3,2}", "d")]


def test_structure_is_extended_everywhere_and_stands_in_order() -> None:
    text = "@model<transition> def main() { @mu = [[]'2 []'2]'{\"skin\"}; @mu(2) += -[[]'z]'{3+k} : 0 <= k < 2; }"
    cells = read("t.pli", text=text).cells
    assert [(c.label, c.parent, c.charge) for c in cells] == [
        ("skin", None, 0),
        ("2", 0, 0),
        ("3", 1, -1),
        ("z", 2, 0),
        ("4", 1, -1),
        ("z", 4, 0),
        ("2", 0, 0),
        ("3", 6, -1),
        ("z", 7, 0),
        ("4", 6, -1),
        ("z", 9, 0),
    ]


def test_random_numbers_follow_the_seed() -> None:
    def draw(seed: int) -> dict[str, int]:
        return objects("@ms(1) += a{i}*(random(1000)+1) : 1 <= i <= 5;", seed=seed)

    assert draw(1) == draw(1) != draw(2)
    assert all(1 <= n <= 1000 for n in draw(3).values())


def test_parameters_win_over_the_file_and_feed_main() -> None:
    around = "n = 2; k{1} = 3; k{2} = 4;"
    assert objects("@ms(1) = a*n, b*k{1}, c*k{2};", around, parameters={"n": 5, "k{2}": 6}) == {"a": 5, "b": 3, "c": 6}
    text = "@model<transition> def main(n, m) { @mu = []'1; @ms(1) = a*n, b*m; }"
    assert read("t.pli", text=text, parameters={"n": 1, "m": 2}).cells[0].objects == (("a", 1), ("b", 2))
    with pytest.raises(PLinguaError, match="no value was given for m"):
        read("t.pli", text=text, parameters={"n": 1})
    with pytest.raises(PLinguaError, match="the parameter nn: no file mentions it"):
        objects("@ms(1) = a*n;", around, parameters={"nn": 1})


def test_includes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "constants.pli").write_text('@include "../shared.pli"\nk{1} = n + 1;\n')
    (tmp_path / "shared.pli").write_text("n = 3;\n")
    (tmp_path / "main.pli").write_bytes(
        '@include <constants.pli>\n@include "shared.pli"\n@model<transition> /* a\xf1o */\n'
        "def main() { @mu = []'1; @ms(1) = a*k{1}; }".encode("latin-1")
    )
    found = read(tmp_path / "main.pli", include_paths=[tmp_path / "deep"])
    assert found.cells[0].objects == (("a", 4),)
    assert found.name == "main"


def test_a_missing_model_file_falls_back_on_the_built_in_one() -> None:
    for name in ('"transition_model.pli"', "<transition_model.pli>", "<transition>"):
        text = f"@include {name}\n@model<transition>\ndef main() {{ @mu = []'1; [a --> b]'1; }}"
        assert len(read("nowhere/t.pli", text=text).rules) == 1


def test_the_tree_of_a_file() -> None:
    program = parse("x{1} = 2; ; def f(a) { ; [a --> b]'1 : 1<=i<=2;; }", "f.pli")
    module = program.definitions[1]
    assert isinstance(module, Module)
    assert (module.name, module.parameters) == ("f", ("a",))
    assert isinstance(module.body, Block)
    assert isinstance(module.body.body[0], Ranged)
    assert program.source.where(module.at).column == 13


def test_work_is_bounded() -> None:
    limits = Limits(steps=1000, rules=50, cells=20, calls=30)
    for body, name in [
        ("while (1) { x = 1; }", "steps"),
        ("x = 1 : 1 <= i <= 1000000000000000;", "steps"),
        ("[a{i} --> b]'1 : 1 <= i <= 60;", "rules"),
        ("@mu(1) += []'2 : 1 <= i <= 30;", "cells"),
        ("f();", "calls"),
    ]:
        with pytest.raises(PLinguaError, match=f"limit {name}"):
            objects(body, "def f() { f(); }", limits=limits)
