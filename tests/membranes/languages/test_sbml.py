"""SBML: models of our own, their statistics against the solution of their master equation, and what is refused."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import Mode, Rule, System
from echoc.compiler.ir.expression import TIME as TIME_NAME
from echoc.compiler.ir.expression import Expression, evaluate
from echoc.errors import CompileError
from echoc.membranes.sbml import read, values
from echoc.membranes.source import SourceError

pytest.importorskip("libsbml", reason="the extra `sbml` is not installed")

MATH = '<math xmlns="http://www.w3.org/1998/Math/MathML">{}</math>'
CELL = '<compartment id="cell" spatialDimensions="3" size="2" constant="true"/>'


TIME = '<csymbol encoding="text" definitionURL="http://www.sbml.org/sbml/symbols/time">t</csymbol>'


def apply(op: str, *arguments: str) -> str:
    return f"<apply><{op}/>{''.join(arguments)}</apply>"


def ci(*names: str) -> str:
    return "".join(f"<ci>{n}</ci>" for n in names)


def cn(value: float) -> str:
    return f"<cn>{value!r}</cn>"


def species(name: str, amount: float = 0, more: str = "", compartment: str = "cell", substance: bool = True) -> str:
    given = {"initialAmount": amount, "boundaryCondition": "false", "constant": "false"}
    given = {k: v for k, v in given.items() if k not in more and not (k == "initialAmount" and "initial" in more)}
    attributes = " ".join(f'{k}="{v}"' for k, v in given.items())
    kind = f'compartment="{compartment}" hasOnlySubstanceUnits="{str(substance).lower()}"'
    return f'<species id="{name}" {kind} {attributes} {more}/>'


def reaction(name: str, left: dict[str, float], right: dict[str, float], law: str, more: str = "", local: str = "",
             reversible: bool = False) -> str:  # fmt: skip
    def side(tag: str, counts: dict[str, float]) -> str:
        items = "".join(
            f'<speciesReference species="{s}" stoichiometry="{n}" constant="true"/>' for s, n in counts.items()
        )
        return f"<{tag}>{items}</{tag}>" if counts else ""

    kinetic = f"<kineticLaw>{MATH.format(law)}{local}</kineticLaw>" if law else ""
    return (f'<reaction id="{name}" reversible="{str(reversible).lower()}">{side("listOfReactants", left)}'
            f'{side("listOfProducts", right)}{more}{kinetic}</reaction>')  # fmt: skip


def model(species_: str, reactions: str, parameters: dict[str, float] | None = None, compartments: str = CELL,
          extra: str = "", functions: str = "") -> str:  # fmt: skip
    """A document; the first line of each part has a line of its own."""
    given = "".join(f'<parameter id="{k}" value="{v}" constant="true"/>' for k, v in (parameters or {}).items())
    parts = [
        f"<listOfFunctionDefinitions>{functions}</listOfFunctionDefinitions>" if functions else "",
        f"<listOfCompartments>{compartments}</listOfCompartments>",
        f"<listOfSpecies>{species_}</listOfSpecies>",
        f"<listOfParameters>{given}</listOfParameters>" if given else "",
        extra,
        f"<listOfReactions>{reactions}</listOfReactions>" if reactions else "",
    ]
    inner = "\n".join(p for p in parts if p)
    return (f'<?xml version="1.0" encoding="UTF-8"?>\n<sbml xmlns="http://www.sbml.org/sbml/level3/version2/core" '
            f'level="3" version="2"><model id="made">\n{inner}\n</model></sbml>')  # fmt: skip


def system(*arguments: str, **options: object) -> System:
    return read("made.xml", text=model(*arguments, **options))  # type: ignore[arg-type]


def rates(built: System, counts: dict[str, float]) -> list[float]:
    """The value of every rule's law at some counts; numbers as they are."""
    return [evaluate(r.rate, counts) if isinstance(r.rate, Expression) else float(r.rate or 0) for r in built.rules]


def at(built: System, time: float, seed: int) -> dict[str, int]:
    """The counts of the first cell at a time."""
    configuration = oracle.start(built)
    while not oracle.halted(built, configuration):
        after = oracle.step(built, configuration, seed)
        if after.time > time:
            break
        configuration = after
    return dict(configuration.cells[0].objects)


def moments(built: System, name: str, time: float, runs: int) -> tuple[float, float]:
    found = np.array([at(built, time, seed).get(name, 0) for seed in range(runs)])
    return float(found.mean()), float(found.std(ddof=1))


def near(found: tuple[float, float], mean: float, deviation: float, runs: int) -> None:
    """Within 4 standard errors of the mean, and the deviation within 4 of its own."""
    assert abs(found[0] - mean) < 4 * deviation / math.sqrt(runs), (found, mean, deviation)
    assert abs(found[1] - deviation) < 4 * deviation / math.sqrt(2 * runs), (found, mean, deviation)


def test_birth_and_death() -> None:
    """mean n e^((l - m) t), variance n (l + m) / (l - m) e^((l - m) t) (e^((l - m) t) - 1)."""
    birth, death, time, runs = 0.1, 0.4, 2.0, 150
    built = system(
        species("X", 20),
        reaction("b", {"X": 1}, {"X": 2}, apply("times", ci("l", "X")))
        + reaction("d", {"X": 1}, {}, apply("times", ci("m", "X"))),
        {"l": birth, "m": death},
    )
    assert built.mode is Mode.GILLESPIE and built.name == "made"
    assert [(r.label, r.consume, r.produce, r.rate) for r in built.rules] == [
        ("cell", (("X", 1),), (("X", 2),), birth), ("cell", (("X", 1),), (), death),
    ]  # fmt: skip
    growth = math.exp((birth - death) * time)
    variance = 20 * (birth + death) / (birth - death) * growth * (growth - 1)
    near(moments(built, "X", time, runs), 20 * growth, math.sqrt(variance), runs)


def test_immigration_and_death() -> None:
    """From nothing it is Poisson with mean a / m (1 - e^(-m t))."""
    runs, mean = 150, 4 / 0.5 * (1 - math.exp(-0.5 * 3))
    built = system(
        species("X"),
        reaction("i", {}, {"X": 1}, ci("a")) + reaction("d", {"X": 1}, {}, apply("times", ci("m", "X"))),
        {"a": 4, "m": 0.5},
    )
    assert [r.rate for r in built.rules] == [4.0, 0.5]
    near(moments(built, "X", 3, runs), mean, math.sqrt(mean), runs)


def test_dimerisation() -> None:
    """Against the master equation, solved on its 11 states."""
    k1, k2, time, runs = 0.05, 0.2, 3.0, 200
    pairs = apply("divide", apply("times", ci("k1", "P"), apply("minus", ci("P"), cn(1))), cn(2))
    built = system(
        species("P", 20) + species("P2"),
        reaction("dimerise", {"P": 2}, {"P2": 1}, pairs)
        + reaction("split", {"P2": 1}, {"P": 2}, apply("times", ci("k2", "P2"))),
        {"k1": k1, "k2": k2},
    )
    assert isinstance(built.rules[0].rate, Expression) and built.rules[1].rate == k2
    generator = np.zeros((11, 11))  # by the number of pairs
    for n in range(11):
        left = 20 - 2 * n
        for to, rate in ((n + 1, k1 * left * (left - 1) / 2), (n - 1, k2 * n)):
            if rate:
                generator[n, to] += rate
                generator[n, n] -= rate
    chance = np.eye(11)[0]
    for _ in range(3000):  # Euler, 1e-3 a step
        chance = chance + chance @ generator * (time / 3000)
    mean = float(chance @ np.arange(11))
    deviation = math.sqrt(float(chance @ np.arange(11) ** 2) - mean**2)
    near(moments(built, "P2", time, runs), mean, deviation, runs)


def test_concentrations_and_sizes() -> None:
    """cell * k * [A] * [B] is k / size times the product of the counts."""
    built = system(
        species("A", 0, 'initialConcentration="5"', substance=False) + species("B", 8, substance=False),
        reaction("r", {"A": 1, "B": 1}, {}, apply("times", ci("cell", "k", "A", "B"))),
        {"k": 3},
    )
    assert built.cells[0].objects == (("A", 10), ("B", 8))
    assert built.rules[0].rate == 3 / 2


def test_functions_local_parameters_rules_and_boundaries() -> None:
    body = apply("plus", ci("a"), apply("power", ci("b"), cn(2)))
    lambda_ = f"<lambda><bvar><ci>a</ci></bvar><bvar><ci>b</ci></bvar>{body}</lambda>"
    function = f'<functionDefinition id="f">{MATH.format(lambda_)}</functionDefinition>'
    start = '<initialAssignment symbol="q">' + MATH.format(apply("times", ci("k"), cn(2))) + "</initialAssignment>"
    double = '<assignmentRule variable="y">' + MATH.format(apply("times", cn(2), ci("A"))) + "</assignmentRule>"
    rules = f"<listOfInitialAssignments>{start}</listOfInitialAssignments><listOfRules>{double}</listOfRules>"
    local = '<listOfLocalParameters><localParameter id="k" value="7"/></listOfLocalParameters>'
    piece = (
        f"<piecewise><piece>{ci('q')}{apply('gt', ci('y'), cn(4))}</piece><otherwise>{cn(1)}</otherwise></piecewise>"
    )
    built = system(
        species("A", 3) + species("y", 0, 'constant="false" boundaryCondition="true"')
        + species("S", 50, 'boundaryCondition="true"'),
        reaction("r1", {"S": 1}, {"A": 1}, f"<apply>{ci('f', 'A', 'k')}</apply>", local=local)
        + reaction("r2", {"A": 1}, {"S": 1}, apply("times", piece, ci("S"))),
        {"k": 5, "q": 0}, extra=rules, functions=function,
    )  # fmt: skip
    assert built.cells[0].objects == (("A", 3),)
    assert [(r.consume, r.produce) for r in built.rules] == [((), (("A", 1),)), ((("A", 1),), ())]
    assert built.features == {"value of y": "(2.0 * A)"}
    assert rates(built, {"A": 3}) == [3 + 49, 10 * 50]
    assert rates(built, {"A": 2}) == [2 + 49, 50]


@pytest.mark.parametrize(
    ("math_", "value"),
    [
        (apply("min", ci("A"), cn(2), cn(9)), 2), (apply("max", ci("A"), cn(2)), 3), (apply("root", ci("A")), 3**0.5),
        (apply("log", ci("A")), math.log10(3)), (apply("ln", ci("A")), math.log(3)), (apply("minus", ci("A")), -3),
        (apply("plus"), 0),
        (apply("plus", *[ci("A")] * 777), 2331),
        (apply("and", apply("lt", cn(1), ci("A"), cn(9)), "<true/>"), 1), ("<pi/>", math.pi),
        (apply("xor", "<true/>", "<true/>", "<true/>"), 1), (apply("neq", ci("A"), cn(3)), 0),
        (apply("floor", apply("divide", ci("A"), cn(2))), 1), (apply("factorial", cn(4)), 24),
        (apply("root", f"<degree>{cn(3)}</degree>", ci("A")), 3 ** (1 / 3)),
        (apply("log", f"<logbase>{cn(2)}</logbase>", ci("A")), math.log2(3)),
        ('<cn type="e-notation">12<sep/>2</cn>', 1200), ('<cn type="rational">1<sep/>4</cn>', 0.25),
    ],
)  # fmt: skip
def test_mathml(math_: str, value: float) -> None:
    assert rates(system(species("A", 3), reaction("r", {"A": 1}, {}, math_)), {"A": 3})[0] == pytest.approx(value)


def test_reversible_reactions_become_two() -> None:
    difference = apply("minus", apply("times", ci("k", "A")), apply("times", ci("q", "B")))
    built = system(
        species("A", 4, substance=False) + species("B", 2, substance=False),
        reaction("r", {"A": 1}, {"B": 2}, apply("times", ci("cell"), difference), reversible=True),
        {"k": 3, "q": 5},
    )
    forward, backward = built.rules
    assert (forward.consume, forward.produce) == ((("A", 1),), (("B", 2),))
    assert (backward.consume, backward.produce) == ((("B", 2),), (("A", 1),))
    assert rates(built, {"A": 4, "B": 2}) == [3.0, 10.0]  # a number for A, a law of counts for 2 B
    alone = system(species("A", 4), reaction("r", {"A": 1}, {}, ci("A"), reversible=True))
    assert len(alone.rules) == 1


def nested(outside: str) -> str:
    parts = "".join(
        f'<compartment id="{c}" size="1" {o}/>' for c, o in (("inner", f'outside="{outside}"'), ("outer", ""))
    )
    species_ = "".join(f'<species id="{s}" compartment="{c}" initialAmount="9" hasOnlySubstanceUnits="true"/>'
                       for s, c in (("A", "inner"), ("B", "outer")))  # fmt: skip
    return ('<sbml xmlns="http://www.sbml.org/sbml/level2/version4" level="2" version="4"><model id="two">'
            f"<listOfCompartments>{parts}</listOfCompartments><listOfSpecies>{species_}</listOfSpecies><listOfReactions>"
            '<reaction id="r" reversible="false"><listOfReactants><speciesReference species="A"/></listOfReactants>%s'
            f"<kineticLaw>{MATH.format(ci('A'))}</kineticLaw></reaction></listOfReactions></model></sbml>")  # fmt: skip


def test_compartments_are_membranes_where_reactions_stay_in_them() -> None:
    apart = read("two.xml", text=nested("outer") % "")
    assert [(c.label, c.parent, c.objects) for c in apart.cells] == [
        ("outer", None, (("B", 9),)), ("inner", 0, (("A", 9),)),
    ]  # fmt: skip
    assert apart.rules[0].label == "inner"
    crossing = "<listOfProducts><speciesReference species='B'/></listOfProducts>"
    one = read("two.xml", text=nested("outer") % crossing)
    assert [(c.label, c.objects) for c in one.cells] == [("two", (("A", 9), ("B", 9)))]
    flat = system(species("A", 1) + species("B", 2, compartment="c2"), reaction("r", {"A": 1}, {}, ci("A")),
                  compartments=CELL + CELL.replace('"cell"', '"c2"'))  # fmt: skip
    assert [(c.label, c.parent) for c in flat.cells] == [("made", None), ("cell", 0), ("c2", 0)]


ONE = reaction("r", {"A": 1}, {}, ci("A"))
DOUBLING = (
    '<functionDefinition id="g0">'
    + MATH.format(f"<lambda><bvar><ci>x</ci></bvar><apply><times/>{ci('x', 'x')}</apply></lambda>")
    + "</functionDefinition>"
)


def tower(height: int) -> str:
    """g0(g0(...A))"""
    return f"<apply>{ci('g0')}" * height + ci("A") + "</apply>" * height


def chain(length: int, depth: int = 30) -> str:
    """Assignment rules, each with the next inside some negatives."""
    rules = "".join(
        f'<assignmentRule variable="p{i}">'
        + MATH.format("<apply><abs/>" * depth + ci(f"p{i + 1}") + "</apply>" * depth)
        + "</assignmentRule>"
        for i in range(length)
    )
    return f"<listOfRules>{rules}</listOfRules>"


def forking(length: int) -> str:
    """Functions, each with the next one twice, so that writing them out doubles with each."""
    made = ""
    for i in range(length):
        twice = "".join(f"<apply>{ci(f'g{i + 1}')}{apply('plus', ci('x'), cn(n))}</apply>" for n in (1, 2))
        body = apply("plus", twice) if i < length - 1 else ci("x")
        lambda_ = f"<lambda><bvar>{ci('x')}</bvar>{body}</lambda>"
        made += f'<functionDefinition id="g{i}">{MATH.format(lambda_)}</functionDefinition>'
    return made


def event(name: str, trigger: str, sets: dict[str, str], more: str = "", flags: str = "", late: bool = False) -> str:
    """An event that is not taken for true at the start."""
    values = "".join(f'<eventAssignment variable="{v}">{MATH.format(m)}</eventAssignment>' for v, m in sets.items())
    listed = f"<listOfEventAssignments>{values}</listOfEventAssignments>" if sets else ""
    flags = flags or 'initialValue="false" persistent="true"'
    return (f'<event id="{name}" useValuesFromTriggerTime="{str(not late).lower()}"><trigger {flags}>'
            f"{MATH.format(trigger)}</trigger>{more}{listed}</event>")  # fmt: skip


def with_events(events: str, *arguments: str, **options: object) -> str:
    made = model(*arguments, **options)  # type: ignore[arg-type]
    return made.replace("</listOfReactions>", f"</listOfReactions>\n<listOfEvents>{events}</listOfEvents>")


def test_events_set_species() -> None:
    """In a membrane of their species; concentrations times the size; boundary species become objects."""
    soon = apply("geq", TIME, cn(2))
    many = apply("and", apply("gt", ci("A"), cn(3)), apply("lt", TIME, cn(9)))
    built = read("made.xml", text=with_events(
        event("e1", soon, {"A": cn(4), "S": apply("plus", ci("S"), cn(1))}, f"<delay>{MATH.format(ci('S'))}</delay>")
        + event("e2", many, {"A": cn(0)}, flags='initialValue="true" persistent="false"', late=True),
        species("A", 10, substance=False) + species("S", 5, 'boundaryCondition="true"'),
        reaction("r", {"A": 1, "S": 1}, {}, apply("times", ci("A", "S"))),
    ))  # fmt: skip
    one, two = built.events
    assert built.cells[0].objects == (("A", 10), ("S", 5)) and one.label == two.label == "cell"
    assert (one.name, one.holds, one.persistent, one.early) == ("e1", False, True, True)
    assert (two.name, two.holds, two.persistent, two.early) == ("e2", True, False, False)
    assert [(o, evaluate(v, {"S": 5})) for o, v in one.assignments] == [("A", 8), ("S", 6)]
    assert [evaluate(one.trigger, {TIME_NAME: t}) for t in (1, 2)] == [0, 1]
    assert [evaluate(two.trigger, {"A": a, TIME_NAME: 1}) for a in (6, 7)] == [0, 1]
    assert one.delay == Expression("name", symbol="S") and two.delay is None
    assert at(built, 7.0, 0) == {"S": 6}  # the first event sets off the second one
    parts = CELL + CELL.replace('"cell"', '"c2"')
    for target, labels in (("A", ["made", "cell", "c2"]), ("B", ["made"])):
        both = with_events(event("e", apply("gt", ci("A"), cn(3)), {target: cn(0)}),
                           species("A", 1) + species("B", 2, compartment="c2"), ONE, compartments=parts)  # fmt: skip
        built = read("made.xml", text=both)
        assert [c.label for c in built.cells] == labels
        assert built.events[0].label == labels[min(1, len(labels) - 1)]


def test_values_of_what_is_no_object() -> None:
    rule = (
        '<listOfRules><assignmentRule variable="y">' + MATH.format(apply("times", cn(2), ci("A"))) + "</assignmentRule>"
    )
    text = model(species("A", 3) + species("y") + species("S", 50, 'boundaryCondition="true"'), ONE,
                 extra=rule + "</listOfRules>")  # fmt: skip
    found = values("made.xml", text=text)
    assert {k: evaluate(v, {"A": 7}) for k, v in found.items()} == {"y": 14, "S": 50}


DELAY = f"<delay>{MATH.format(cn(-3))}</delay>"
PRIORITY = f"<priority>{MATH.format(cn(3))}</priority>"
RATE = f'<listOfRules><rateRule variable="A">{MATH.format(cn(1))}</rateRule></listOfRules>'
LOOP = ("<listOfRules><assignmentRule variable=\"p\">" + MATH.format(ci("q")) + "</assignmentRule>"
        "<assignmentRule variable=\"q\">" + MATH.format(ci("p")) + "</assignmentRule></listOfRules>")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "not XML: no element found"),
        ("a -> b", 1, "not XML"),
        ("<sbml>\n<model>\n</sbml>", 3, "mismatched tag"),
        ("<html/>", 2, ""),
        ("<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]>\n<sbml>&b;</sbml>", 1, "document type"),
        ("<a>" * 100000, 1, "at most 200 inside each other"),
        (with_events(event("boom", "<true/>", {}, DELAY), species("A", 1), ONE), 6, "the event 'boom' is -3.0"),
        (with_events(event("boom", "<true/>", {}, PRIORITY) + event("e", "<true/>", {}), species("A", 1), ONE), 6,
         "priority of the event 'boom'"),
        (with_events(event("boom", "<true/>", {"p": cn(1)}), species("A", 1), ONE, {"p": 1}), 7, "'boom' sets p"),
        (with_events(event("boom", apply("gt", apply("sin", TIME), cn(1)), {}), species("A", 1), ONE), 6,
         "linear in it"),
        (model(species("A", 1), "", extra=RATE), 5, "rate rule of A"),
        (model(species("A", 1.5), ONE), 4, "A starts with 1.5"),
        (model(species("A", -1), ONE), 4, "A starts with -1"),
        (model(species("A", float("inf")), ONE).replace('"inf"', '"INF"'), 4, "A starts with inf"),
        (model(species("A", 1).replace('initialAmount="1"', ""), ONE), 4, "no start"),
        (model(species("A", 1), reaction("r", {"A": 1.5}, {}, ci("A"))), 5, "the stoichiometry 1.5 of A"),
        (model(species("A", 1), reaction("r", {"Z": 1}, {}, ci("A"))), 5, "'Z', which does not exist"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, ci("z"))), 5, "z has no value"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, "")), 5, "has no rate law"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, f"<apply>{ci('h', 'A')}</apply>")), 5, "h is not defined"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, tower(1)), functions='<functionDefinition id="g0"/>'), 6,
         "g0 has no formula"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, apply("plus", apply("minus", ci("A"), cn(1)), cn(2)),
                                         reversible=True)), 5, "reversible reaction r"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, TIME)), 5, "time"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, ci("p")), {"p": 1, "q": 1}, extra=LOOP), 6, "on itself"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, tower(60)), functions=DOUBLING), 6, "more than 100000"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, "<apply><abs/>" * 60 + ci("p0") + "</apply>" * 60),
               {f"p{i}": 1 for i in range(40)}, extra=chain(39)), 6, "nested more than 150 deep"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, ci("p0")), {f"p{i}": 1 for i in range(90)},
               extra=chain(89, 1)), 6, "on too many rules"),
        (model(species("A", 1), reaction("r", {"A": 1}, {}, tower(1)), functions=forking(40)), 6, "more than 100000"),
        (model(species("A", 1, 'boundaryCondition="false" constant="true"'), ONE), 5, "A, which is constant"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_place(text: str, line: int, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        read("bad.xml", text=text)
    assert words in str(caught.value), str(caught.value)
    assert caught.value.line == line, str(caught.value)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libsbml", None)
    with pytest.raises(CompileError, match=r"pip install 'echoc\[sbml\]'"):
        read("made.xml", text=model(species("A", 1), ONE))


WHOLE = model(species("A", 3), reaction("r", {"A": 1}, {}, apply("times", ci("k", "A"))), {"k": 2})


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.sampled_from(["", "<", ">", '"', "A", "9" * 40, "\0", "&x;"]))
def test_damaged_models_are_read_or_refused(start: int, length: int, instead: str) -> None:
    text = WHOLE[:start] + instead + WHOLE[start + length :]
    try:
        built = read("damaged.xml", text=text)
    except CompileError:
        return
    assert all(isinstance(rule, Rule) for rule in built.rules)
