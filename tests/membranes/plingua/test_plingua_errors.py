"""What is wrong is said with its place, and nothing else happens, whatever the input."""

import sys
from pathlib import Path

import pytest

from echoc.errors import CompileError
from echoc.membranes.plingua import Limits, PLinguaError, parse, read

ACTIVE = "@model<membrane_division>\n"
OPEN = "def main() { @mu = [[]'2]'1;\n"


def fails(text: str, **options: object) -> PLinguaError:
    with pytest.raises(PLinguaError) as caught:
        read("t.pli", text=text, **options)  # type: ignore[arg-type]
    assert isinstance(caught.value, CompileError)
    return caught.value


def test_an_error_shows_file_line_column_the_line_and_a_caret() -> None:
    error = fails(f"{ACTIVE}{OPEN}  [a --> b'2;\n}}")
    assert str(error) == (
        "t.pli:3:11: found \"'\"; wanted an object, a membrane, an arrow or ']'\n    [a --> b'2;\n            ^"
    )
    (only,) = error.diagnostics
    assert (only.where.file, only.where.line, only.where.column) == ("t.pli", 3, 11)


def test_several_mistakes_are_reported_at_once() -> None:
    text = f"{ACTIVE}{OPEN} [a --> ;\n [b --> c]'2;\n @ms(1 = a;\n if (1 [a --> b]'2;\n}}\n def g( {{ }}\n k = ;"
    assert [d.where.line for d in fails(text).diagnostics] == [3, 5, 6, 8, 9]
    text = (
        f"{ACTIVE}{OPEN} [a{{i}} --> b]'2;\n [a, b --> c]'2;\n @ms(2) = a*(0-1);\n {{ [c --> b]'2 :: 2; }} : 1<=i<=9;"
    )
    text += "}"
    assert [d.where.line for d in fails(text).diagnostics] == [3, 4, 5, 6]


def test_the_number_of_mistakes_is_bounded() -> None:
    assert len(fails(f"{ACTIVE}{OPEN}" + "[a --> ;\n" * 100 + "}").diagnostics) == 20
    assert len(fails(f"{ACTIVE}{OPEN}" + "[a, b --> c]'2;\n" * 100 + "}").diagnostics) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@model<nothing> def main() { @mu = []'1; }", "unknown model nothing; known: .*transition"),
        ("@model<simple_kernel_psystems> def main() { @mu = []'1; }", "kP-Lingua"),
        (f"{ACTIVE}{OPEN} [a, b --> c]'2; }}", r"the rule \[a, b\]'2 --> \[c\]'2 is outside of the model"),
        (f"{ACTIVE}{OPEN} a []'9 --> [b]'9; }}", "needs a membrane with the label 9, which none has"),
        (f"{ACTIVE}{OPEN} [a --> b]'9; }}", "is of the label 9, which no membrane has"),
        (f"{ACTIVE}{OPEN} [a]'1 --> b; }}", "dissolves 1, the skin"),
        (f"{ACTIVE}{OPEN} [a]'1 --> [b] [c]; }}", "divides 1, the skin"),
        (f"@model<transition>{OPEN} [a --> @d]'1; }}", "dissolves 1, the skin"),
        (f"{ACTIVE}{OPEN} @ms(9) = a; }}", "@ms of the label 9: no membrane has it"),
        (f"{ACTIVE}{OPEN} @mu(9) += []'3; }}", "no membrane has the label 9"),
        (f"{ACTIVE}{OPEN} @mu = []'1; }}", "defined twice"),
        (f"{ACTIVE} def main() {{ [a --> b]'1; }}", "no initial membrane structure"),
        (f"{ACTIVE} def other() {{ }}", "wanted one module main; found 0; modules: other"),
        (f"{ACTIVE}{OPEN} x = y; }}", "unknown variable y"),
        (f"{ACTIVE}{OPEN} f(1); }} def f(a, b) {{ }}", "the module f takes 2 arguments; found 1"),
        (f"{ACTIVE}{OPEN} g(1); }}", "there is no module or function g"),
        (f"{ACTIVE}{OPEN} x = f(); }} def f() {{ }}", "returns nothing"),
        (f"{ACTIVE}{OPEN} x = 1 / 0; }}", "division by zero"),
        (f"{ACTIVE}{OPEN} x = sqrt(0-1); }}", r"sqrt\(-1\) is not defined"),
        (f'{ACTIVE}{OPEN} x = "a" * 2; }}', "not defined for a string and a whole number"),
        (f"{ACTIVE}{OPEN} x = 3000000000 * 4000000000; }}", "overflow"),
        (f"{ACTIVE}{OPEN} @ms(1) = a*9223372036854775808; }}", "does not fit in 64 bits"),
        (f"{ACTIVE}{OPEN} @ms(1) = a*9223372036854775807, a; }}", "does not fit in 64 bits"),
        (f"{ACTIVE}{OPEN} @ms(1) = a*(0-2); }}", "negative multiplicity -2"),
        (f"{ACTIVE}{OPEN} @ms(1) = a*1e300; }}", "does not fit in 64 bits"),
        (f"{ACTIVE}{OPEN} @ms(1) = a{{0.5}}; }}", "an index is a whole number; found a double"),
        (f"{ACTIVE}{OPEN} (0-1) [a --> b]'1; }}", "the priority -1"),
        (f"{ACTIVE}{OPEN} (1) [a --> b]'1; (2) [a --> b]'1; }}", r"has the priority 1 at t\.pli:3:2; here: 2"),
        (f"@model<transition>{OPEN} [# --> b]'1; }}", "consumes nothing"),
        (f"{ACTIVE}{OPEN} [a --> b]'1 :: 1.5; }}", "the probability 1.5; wanted 0 to 1"),
        (f"{ACTIVE}{OPEN} else {{ }} }}", "'else' without 'if'"),
        (f"{ACTIVE}{OPEN} ?[a --> b]'1; }}", "for patterns only"),
        (f"{ACTIVE}{OPEN} [a [b [c]'3]'2 --> d]'1; }}", "a membrane and its children, no deeper"),
        (f'{ACTIVE}{OPEN} [a --> b]\'1 "a*"; }}', "spiking models only"),
        (f'{ACTIVE} @priority = "odd"; {OPEN} }}', 'wanted "strong" or "weak"'),
        (f'{ACTIVE} @mode = "odd"; {OPEN} }}', "wanted one of"),
        (f'{ACTIVE} @mode = "dcba"; @mode = "parallel"; {OPEN} }}', "two values"),
        (f"{ACTIVE} def f() {{ }} def f() {{ }} {OPEN} }}", "a second module f of 0 parameters"),
        ("!p { [u --> v]'h; } @model(m) = p, q; @model<m> def main() { @mu = []'1; }", "names the pattern q"),
        ("!p { [u --> v]'h; } @model(m) = @1{p, @2{p}}; @model<m> def main() { @mu = []'1; }", "bounded group inside"),
        ("!p { [u --> v]'h; } @model(m) = @0{p}; @model<m>", "bound 0"),
        ("@model<tissue_separation> def main() { @mu = [[]'1]'0; [a]'1 --> []'1 []'1; }", "needs two alphabets"),
        ("!p { [a --> [b]'i]'h; } @model(m) = p; @model<m> def main() { @mu = [[]'2]'1; [a --> [b]'2]'1; }", "creates"),
        ('@model<spiking_psystems> def main() { @mu = 1; [a --> a]\'1 "a(b)"; }', "wanted 'a'"),
        ("@model<spiking_psystems> def main() { @mu = 1; @marcs = (1,2); }", "no neuron has this label"),
        ("@model<spiking_psystems> def main() { @mu = 1; [a, b --> a]'1; }", "one kind of object"),
        (
            "@model<spiking_psystems> def main() { @mu = 1; (1) [a --> a]'1; }",
            "an expression and a delay, nothing else",
        ),
        ("graph(3);", "a call outside of a module"),
        ("/* open", "a comment that never ends"),
        ('x = "open', "a string that never ends"),
        ("x = 1" + "0" * 500 + ";", "a number of 501 digits"),
        ("def f(a, a) { }", "two parameters of one name"),
        ("", "wanted one module main"),
        ("\0\x01\x02", "begins no word"),
    ],
)
def test_messages(text: str, message: str) -> None:
    assert fails(text).args[0]
    with pytest.raises(PLinguaError, match=message):
        read("t.pli", text=text)


def test_includes_that_are_missing_or_go_round(tmp_path: Path) -> None:
    (tmp_path / "a.pli").write_text('@include "b.pli"\ndef main() { @mu = []\'1; }')
    with pytest.raises(PLinguaError, match=r"no file b\.pli; looked for .*; built in: .*transition_model"):
        read(tmp_path / "a.pli")
    (tmp_path / "b.pli").write_text('@include "a.pli"')
    with pytest.raises(PLinguaError, match=r"the file includes itself: a\.pli -> b\.pli -> a\.pli"):
        read(tmp_path / "a.pli")
    with pytest.raises(PLinguaError, match="no file"):
        read(tmp_path / "none.pli")
    with pytest.raises(PLinguaError, match="no file"):
        read(tmp_path)


def test_includes_are_bounded(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.pli").write_text(f'@include "{i + 1}.pli"\n' * 2 if i < 11 else "x = 1;")
    main = '@include "0.pli"\n@model<transition> def main() { @mu = []\'1; @ms(1) = a*x; }'
    assert read(tmp_path / "main.pli", text=main).cells[0].objects == (("a", 1),)
    with pytest.raises(PLinguaError, match="limit files"):
        read(tmp_path / "main.pli", text=main, limits=Limits(files=5))
    with pytest.raises(PLinguaError, match="limit characters"):
        read(tmp_path / "main.pli", text=main, limits=Limits(characters=100))


DEEP = 100_000


@pytest.mark.parametrize(
    "text",
    [
        f"{ACTIVE}{OPEN} @ms(1) = a*" + "(" * DEEP,
        f"{ACTIVE}{OPEN} @ms(1) = a" + "{a" * DEEP,
        f"{ACTIVE}{OPEN} x = " + "f(" * DEEP,
        f"{ACTIVE}{OPEN} x = " + "(int_t)" * DEEP,
        f"{ACTIVE}{OPEN} x = " + "x = " * DEEP,
        f"{ACTIVE}{OPEN}" + "{" * DEEP,
        f"{ACTIVE}{OPEN}" + "if (1) " * DEEP,
        f"{ACTIVE}{OPEN}" + "if (1) ; else " * DEEP,
        f"{ACTIVE}{OPEN}" + "do " * DEEP,
        "def main() { @mu = " + "[" * DEEP,
        "def main() { @mu = " + "[" * DEEP + "]'1" * DEEP + "; }",
        "@model(m) = " + "@{" * DEEP,
        "@include " * DEEP,
        "{" * DEEP,
        "'" * DEEP,
    ],
)
def test_deep_nesting_is_an_error_not_a_crash(text: str) -> None:
    before = sys.getrecursionlimit()
    assert fails(text).diagnostics
    assert sys.getrecursionlimit() == before


def test_long_flat_sources_are_no_problem() -> None:
    text = f"{ACTIVE}{OPEN} x = " + "1 + " * 20_000 + "1; y = " + "- " * 20_000 + "1; @ms(1) = a*x, b*y; }"
    assert read("t.pli", text=text).cells[0].objects == (("a", 20_001), ("b", 1))
    text = f"{ACTIVE}{OPEN} x = 3; if (x == 0) ; " + "".join(
        f"else if (x == {i}) @ms(1) = a*{i}; " for i in range(1, 400)
    )
    assert read("t.pli", text=text + "}").cells[0].objects == (("a", 3),)


def test_many_membranes_in_a_pattern_do_not_take_long() -> None:
    many, few = "[]'h " * 12, "[]'h " * 11
    text = f"!p {{ [u {many} --> v [a]'z {few}]'g; [u {many} --> v {many}]'g; }} @model(m) = p; @model<m> "
    text += "def main() { @mu = [[]'2]'1; [u " + "[]'2 " * 12 + " --> v " + "[]'2 " * 12 + "]'1; }"
    assert "too many membranes" in str(fails(text))


BLOCK = """@model<probabilistic>
def main()
{
  @mu = [[]'1]'0;
  [a --> b]'1 :: 0.5;
  [a --> c]'1 :: %s;
  [d]'1 --> +[d]'1;
}"""


def test_a_block_that_falls_short_of_one_is_told_with_its_sum() -> None:
    error = fails(BLOCK % "0.4")
    assert str(error) == (
        "t.pli:5:3: the probabilities of the 2 rules with the left side [a]'1 add up to 0.9, 0.1 short of 1; wanted 1, "
        "within 0.0001: add the rule for the rest, or say that nothing happens then, with --allow-substochastic "
        "(allow_substochastic=True in Python)\n    [a --> b]'1 :: 0.5;\n    ^"
    )


def test_the_rest_of_a_block_may_be_that_nothing_happens() -> None:
    system = read("t.pli", text=BLOCK % "0.4", allow_substochastic=True)
    idle = system.rules[-1]
    assert (idle.inner[0].consume, idle.inner[0].results[0].produce) == ((("a", 1),), (("a", 1),))
    assert idle.probability == pytest.approx(0.1)
    assert len(system.rules) == 4
    assert sorted(i for g in system.groups for i in g.rules) == [0, 1, 2, 3]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_block_above_one_is_always_wrong(allowed: bool) -> None:
    with pytest.raises(PLinguaError, match=r"t\.pli:5:3: .* add up to 1\.1, 0\.1 more than 1; wanted 1"):
        read("t.pli", text=BLOCK % "0.6", allow_substochastic=allowed)


@pytest.mark.parametrize("rounded", ["0.49995", "0.50005"])
def test_rounded_probabilities_add_up(rounded: str) -> None:
    assert len(read("t.pli", text=BLOCK % rounded).rules) == 3


def test_syntax_alone_needs_no_model() -> None:
    assert len(parse("def f() { [a --> b]'1; }").definitions) == 1
    with pytest.raises(PLinguaError, match=r"g\.pli:2:1: "):
        parse("x = 1;\n]", "g.pli")


@pytest.mark.parametrize("ranges", ["", " : 1<=i<=3"])
def test_a_rule_outside_of_a_module_is_shown(ranges: str) -> None:
    text = f"@model<membrane_division>\nort{{i}} [c]'2 --> c []'2{ranges};\ndef main() {{ @mu = [[]'2]'1; }}"
    with pytest.raises(CompileError, match=r"t\.pli:2:1: a rule outside of a module"):
        read("t.pli", text=text)
