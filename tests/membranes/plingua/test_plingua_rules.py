"""How rules of every form are mapped into the algebra."""

import pytest

from echoc.compiler.ir.algebra import (
    Bound,
    Group,
    Guard,
    Inner,
    Mode,
    Priority,
    Result,
    Rule,
    Send,
    System,
    Target,
)
from echoc.membranes.plingua import PLinguaError, read

ANY = """
!any { ?[u --> v]'h; ?[u --> v, @d]'h; u1 ?[v1]'h --> u2 ?[v2]'h; ?[v1]'h --> w; ?[v1]'h --> ?[v2]'h ?[v3]'g;
       [u ?[v]'h1 --> w ?[w1]'h1]'h; [u []'h1 []'h2 --> v [w1]'h1 [w2]'h2]'h;
       [u [v]'h1 --> w [w1]'h2]'h; [u [v]'h1 --> w]'h; [u []'h1 --> v [w, @d]'h1]'h; u1 [v1]'h --> u2 [v2, @d]'h;
       [u [v]'h1]'h --> w [w1 [w2]'h1]'h; }
@model(any) = any;
@model<any>
"""


def one(rule: str, mu: str = "[[]'2 []'3]'1") -> Rule:
    """The one rule of a system with the structure `mu`; its place does not matter here."""
    system = read("one.pli", text=f"{ANY} def main() {{ @mu = {mu}; {rule} }}")
    (found,) = system.rules
    assert found.where.line > 0
    return found


def same(found: Rule, **parts: object) -> None:
    parts.setdefault("label", None)
    assert found == Rule(**parts, where=found.where)  # type: ignore[arg-type]


A, B, C = (("a", 1),), (("b", 1),), (("c", 1),)


def test_evolution_without_charges_looks_at_none() -> None:
    same(one("[a*3, b --> c, b*0]'2;"), label="2", consume=(("a", 3), ("b", 1)), produce=C)


def test_evolution_with_charges_needs_the_charge_in_front() -> None:
    same(one("[a --> b]'2;", "[+[]'2]'1"), label="2", charge=0, consume=A, produce=B)
    same(one("-[a --> b]'2;"), label="2", charge=-1, consume=A, produce=B)


def test_the_outer_form_can_change_the_charge() -> None:
    same(one("[a]'2 --> +[b]'2;"), label="2", charge=0, new_charge=1, consume=A, produce=B)
    same(one("[a]'2 --> [b]'2;"), label="2", consume=A, produce=B)


def test_dissolution_by_the_symbol() -> None:
    same(one("[a --> b, @d]'2;"), label="2", consume=A, produce=B, dissolve=True)


def test_send_in() -> None:
    same(one("a []'2 --> [b];"), consume=A, inner=(Inner("2", None, (), (Result("2", None, B),)),))
    same(one("a -[]'2 --> +[b]'2;"), consume=A, inner=(Inner("2", -1, (), (Result("2", 1, B),)),))


def test_send_out_binds_the_membrane() -> None:
    same(one("[a]'2 --> []'2 b;"), produce=B, inner=(Inner("2", None, A, (Result("2", None, ()),)),))


def test_send_out_past_children_is_held_by_the_membrane() -> None:
    same(
        one("[a []'3]'2 --> b [c []'3]'2;", "[[[]'3]'2]'1"),
        label="2",
        consume=A,
        produce=C,
        inner=(Inner("3", None, (), (Result("3", None, ()),)),),
        send=(Send(Target.OUT, B),),
    )


def test_dissolution_leaves_the_product_around() -> None:
    same(one("[a]'2 --> b;"), produce=B, inner=(Inner("2", None, A, ()),))


def test_a_membrane_that_gets_objects_and_dissolves_leaves_them_around() -> None:
    same(one("a []'2 --> [b, @d]'2;"), consume=A, produce=B, inner=(Inner("2", None, (), ()),))


def test_division_fills_in_labels() -> None:
    same(one("[a]'2 --> +[b] -[c]'3;"), inner=(Inner("2", 0, A, (Result("2", 1, B), Result("3", -1, C))),))


def test_children() -> None:
    same(
        one("[a []'2 []'3 --> b [c]'2 []'3]'1;"),
        label="1",
        consume=A,
        produce=B,
        inner=(Inner("2", None, (), (Result("2", None, C),)), Inner("3", None, (), (Result("3", None, ()),))),
    )


def test_a_child_can_be_relabelled_or_dissolved() -> None:
    same(one("[a [b]'2 --> [c]'3]'1;"), label="1", consume=A, inner=(Inner("2", None, B, (Result("3", None, C),)),))
    same(one("[a [b]'2 --> c]'1;"), label="1", consume=A, produce=C, inner=(Inner("2", None, B, ()),))
    same(one("[a []'2 --> [c, @d]'2]'1;"), label="1", consume=A, produce=C, inner=(Inner("2", None, (), ()),))


def system(text: str) -> System:
    return read("system.pli", text=text)


def test_active_membranes_bound_what_touches_the_membrane() -> None:
    found = system(
        "@model<membrane_division> def main() { @mu = [[]'2]'1; [a --> b]'2; [a]'2 --> +[b][c]; a []'2 --> [b]; }"
    )
    assert found.groups == (Group((0,), Bound.MAXIMAL), Group((1, 2), Bound.AT_MOST, 1))
    assert (found.mode, found.priority, found.model) == (Mode.PARALLEL, Priority.STRONG, "membrane_division")
    send_out = system("@model<membrane_division> def main() { @mu = []'1; +[a]'1 --> -[]'1 b; }")
    assert send_out.groups == (Group((0,), Bound.AT_MOST, 1),)
    same(send_out.rules[0], produce=B, inner=(Inner("1", 1, A, (Result("1", -1, ()),)),))


def test_priorities_and_features_of_the_system() -> None:
    found = system(
        '@model<transition> @priority = "weak"; @mode = "sequential"; @note = 1.5; '
        "def main() { @mu = []'1; (1) [a --> b]'1; (2) [a --> c]'1; }"
    )
    assert [r.priority for r in found.rules] == [1, 2]
    assert (found.priority, found.mode, found.features["note"]) == (Priority.WEAK, Mode.SEQUENTIAL, "1.5")


def test_tissue_exchange_with_the_environment_and_between_cells() -> None:
    found = system(
        "@model<tissue_division> def main() { @mu = [[]'1 []'2]'0; @ms(0) = s; @ms(1) = a;"
        " [a]'1 <--> [s*2]'0; [s]'0 <--> [b]'2; [a]'1 <--> [b]'2; [a]'1 <--> [#]'2; [b]'2 --> [b]'2 [c]'2; }"
    )
    assert found.unbounded == frozenset({"s"})
    assert found.cells[0].objects == ()
    out, back, between, give, divide = found.rules
    same(
        out, label="0", consume=(("s", 2),), produce=A, inner=(Inner("1", None, A, (Result("1", None, (("s", 2),)),)),)
    )
    same(
        back, label="0", consume=(("s", 1),), produce=B, inner=(Inner("2", None, B, (Result("2", None, (("s", 1),)),)),)
    )
    same(between, inner=(Inner("1", None, A, (Result("1", None, B),)), Inner("2", None, B, (Result("2", None, A),))))
    same(give, inner=(Inner("1", None, A, (Result("1", None, ()),)), Inner("2", None, (), (Result("2", None, A),))))
    same(divide, inner=(Inner("2", None, B, (Result("2", None, B), Result("2", None, C))),))
    assert found.groups == (Group((0, 1, 2, 3)), Group((4,), Bound.AT_MOST, 1))


def test_population_rules_bind_the_membrane_and_set_its_charge() -> None:
    found = system(
        "@model<probabilistic> def main() { @mu = [[[]'1]'101,101 [[]'1]'102,102]'p; @ms(1,101) = a; @ms(1) += b;"
        " [a --> b]'1 :: 1; c [a]'1 --> +[b]'1 c :: 0.25; c [a]'1 --> +[]'1 :: 0.75;"
        " [[a]'101 []'102]'p --> [[]'101 [b]'102]'p; [[a]'102 --> [c]'101]'p; }"
    )
    assert found.mode is Mode.DCBA
    assert [(c.label, c.name, c.objects) for c in found.cells] == [
        ("p", "", ()),
        ("101", "101", ()),
        ("1", "", (("a", 1), ("b", 1))),
        ("102", "102", ()),
        ("1", "", B),
    ]
    evolve, enter, _, move, other = found.rules
    same(evolve, inner=(Inner("1", 0, A, (Result("1", 0, B),)),), probability=1.0)
    same(enter, consume=C, produce=C, inner=(Inner("1", 0, A, (Result("1", 1, B),)),), probability=0.25)
    same(
        move,
        label="p",
        inner=(Inner("101", 0, A, (Result("101", 0, ()),)), Inner("102", 0, (), (Result("102", 0, B),))),
    )
    same(
        other,
        label="p",
        inner=(Inner("102", 0, A, (Result("102", 0, ()),)), Inner("101", 0, (), (Result("101", 0, C),))),
    )


def test_a_rule_of_one_environment_gives_its_cells_a_label_of_their_own() -> None:
    found = system(
        "@model<probabilistic> def main() { @mu = [[[]'1]'e,e [[]'1]'f,f [[]'1]'g,g]'p; [a --> a]'1; [b --> c]'1,e; }"
    )
    assert [c.label for c in found.cells] == ["p", "e", "1,e", "f", "1", "g", "1"]
    assert [r.inner[0].label for r in found.rules] == ["1,e", "1", "1,e"]
    assert [r.inner[0].consume for r in found.rules] == [A, A, B]


def test_probabilities_of_a_rule_that_is_written_twice_are_added() -> None:
    found = system(
        "@model<probabilistic> def main() { @mu = [[]'1]'0; [a --> b]'1 :: 0.5; [a --> b]'1 :: 0.25;"
        " [a --> c]'1 :: 0.25; [b --> c]'1 :: 1; [b --> c]'1 :: 1; [c --> c]'1 :: 0; }"
    )
    assert [r.probability for r in found.rules] == [0.75, 0.25, 1.0]


def test_separation_deals_by_the_alphabets_that_were_replaced() -> None:
    found = system(
        "@model<tissue_separation> def main() { @mu = [[]'1 []'2]'0; @ms(1) += S, a; @ms(2) += b; @ms(1) = S, a, b, z;"
        " @ms(2) = q; [S]'1 --> []'1 [c]'1; }"
    )
    first, second = found.rules[0].inner[0].results
    assert (first.keeps, second.keeps) == (frozenset({"S", "a", "c", "q", "z"}), frozenset({"b"}))
    assert second.produce == C


def test_separation_by_the_alphabets_of_version_4() -> None:
    alphabets = "@ms1 = S; @ms1 += a; @ms2 = b;"
    text = f"@model<TSCS> def main() {{ @mu = [[]'1]'0; {alphabets} @ms(1) = S, a, b; [S]'1 --> []'1 []'1; }}"
    first, second = system(text).rules[0].inner[0].results
    assert (first.keeps, second.keeps) == (frozenset({"S", "a"}), frozenset({"b"}))


def test_stochastic_rules_have_rates() -> None:
    found = system("@model<stochastic> def main() { @mu = []'1; [a, b --> c]'1 :: 2.5; [c --> #]'1 :: 40; }")
    assert found.mode is Mode.GILLESPIE
    assert [(r.rate, r.probability) for r in found.rules] == [(2.5, None), (40.0, None)]


def test_guards_of_version_4() -> None:
    body = "@guard {>=+a{i}*n} && ({<b} || {<>+c*2}) ? (1) [a{i} --> b]'1 : 1 <= i <= 2; @guard {=+b} ? [b --> c]'1;"
    found = system(f"@model<transition> n = 3; def main() {{ @mu = [[]'2]'1; {body} }}")
    inner = Guard("any", parts=(Guard("lt", "b", 1), Guard("ne", "c", 2)))
    assert [r.guard for r in found.rules] == [
        Guard("all", parts=(Guard("ge", "a{1}", 3), inner)),
        Guard("all", parts=(Guard("ge", "a{2}", 3), inner)),
        Guard("eq", "b", 1),
    ]
    assert [r.priority for r in found.rules] == [1, 1, None]
    with pytest.raises(PLinguaError, match="a guard is for rules that a membrane holds"):
        system("@model<membrane_division> def main() { @mu = [[]'2]'1; @guard {>a} ? a []'2 --> [b]'2; }")


def test_equal_rules_are_one() -> None:
    found = system("@model<transition> def main() { @mu = []'1; [a --> b]'1; [a]'1 --> [b]'1; [a --> b, b]'1; }")
    assert [r.produce for r in found.rules] == [B, (("b", 2),)]


def test_models_of_the_source_and_the_feature_that_names_a_pattern() -> None:
    text = (
        "!one { [a --> b]'h; } !two { [u --> v]'h; } @model(m) = @3{one}, two; @model<m>"
        " def main() { @mu = []'1; [x --> y]'1; [x*2 --> y]'1; [z --> x]'1 @ pattern = \"two\"; }"
    )
    assert system(text).groups == (Group((1, 2)), Group((0,), Bound.AT_MOST, 3))


@pytest.mark.parametrize(
    ("pattern", "rule", "fits"),
    [
        ("?[a --> v]'h", "+[x]'1 --> -[y]'1", True),
        ("?1[a --> v]'h", "+[x]'1 --> -[y]'1", False),
        ("+[a --> v]'h", "[x --> y]'1", False),
        ("[a --> b]'h", "[x --> y*2]'1", False),
        ("[x --> yes]'h", "[x --> yes]'1", True),
        ("[x --> yes]'h", "[x --> no]'1", False),
        ("[u1 --> u1]'h", "[p, q --> q, p]'1", True),
        ("[u1 --> u1]'h", "[p, q --> p]'1", False),
        ("[u []'h1 []'h1 --> v []'h1 []'h1]'h", "[x []'2 []'3 --> y []'2 []'3]'1", False),
        ("[u []'h1 []'h2 --> v [w]'h1 []'h2]'h", "[x []'2 []'3 --> y []'2 [z]'3]'1", True),
        ("[u --> v]'h", "[x --> @d]'2", False),
        ("[u --> v]'h1,h2", "[x --> y]'1", False),
        ("[a]'h --> ", "[x]'2 --> ", True),
    ],
)
def test_patterns(pattern: str, rule: str, fits: bool) -> None:
    text = f"!p {{ {pattern}; }} @model(m) = p; @model<m> def main() {{ @mu = [[]'2 []'3]'1; {rule}; }}"
    if fits:
        assert len(system(text).rules) == 1
    else:
        with pytest.raises(PLinguaError, match="outside of the model m, which allows\n    p: "):
            system(text)
