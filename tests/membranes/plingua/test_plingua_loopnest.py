"""Rules under ranges: loop nests give what closures give, rule by rule and mistake by mistake."""

import random

import pytest

from echoc.compiler.ir.algebra import System
from echoc.membranes.plingua import Limits, PLinguaError, build, loopnest, read

HEADS = {
    "population": "@model<probabilistic>\ndef main() { @mu = [[]'1 []'2 []'3]'0; call rules(3); }",
    "stochastic": "@model<stochastic>\ndef main() { @mu = [[]'1 []'2 []'3]'0; call rules(3); }",
    "cell": "@model<membrane_division>\ndef main() { @mu = [[]'1 []'2 []'3]'0; call rules(3); }",
}
GLOBALS = 'c = 2; r = 0.5; text = "x"; big = 9000000000000000000;\nq{1} = 0.25; q{2} = 1; q{3} = 0; q{4} = 0.5;\n'


def index(random: random.Random, depth: int = 0) -> str:
    kinds = ["i", "j", "k", "i+1", "i+j", "2*i-j", "n", "c+i", "i*j*k", "3", "-1", "-i", "i%2", "i/2"]
    rare = [
        "big*i",
        "text",
        "q{i}",
        "missing",
        "i+text",
        "abs(i)",
        "1/(i-2)",
        "r",
        "r*2",
        "i+r*2",
        "1.5",
        "i+1.0",
        '"s"',
        "pi",
    ]
    return random.choice(rare if random.random() < 0.04 else kinds)


def bag(random: random.Random) -> str:
    parts = []
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        name = random.choice(["a", "b", "y.z"])
        indices = ",".join(index(random) for _ in range(random.choice([0, 1, 1, 2, 3, 4])))
        count = f"*{random.choice(['2', 'i', '(i-1)', 'q{1}', '(j*2)'])}" if random.random() < 0.2 else ""
        parts.append(name + (f"{{{indices}}}" if indices else "") + count)
    return ", ".join(parts)


def statement(random: random.Random, kind: str) -> str:
    label = random.choice(["1", "2", "{1+i%3}", "{k}", "{1+(i+j)%3}"])
    arrow = random.choice(
        [f"[{bag(random)} --> {bag(random)}]'{label}", f"[{bag(random)}]'{label} --> {bag(random)} []'{label}",
         f"{bag(random)} []'{label} --> [{bag(random)}]'{label}", f"[{bag(random)} --> #]'{label}"]
    )  # fmt: skip
    weights = {"population": ["1", "0.5", "q{i}", "q{j}", "1-q{i}", "q{k}*q{j}", "q{i-1}", "2-1"], "cell": [""],
               "stochastic": ["1", "q{i}", "q{i}*2", "i*0.1", "0"]}  # fmt: skip
    weight = random.choice(weights[kind])
    priority = random.choice(["(1) ", "(i) ", "(-1) "]) if random.random() < 0.08 else ""
    lows = {v: random.choice(["1", "1", "0", "i" if v != "i" else "1", "c"]) for v in "ijk"}
    highs = {v: random.choice(["2", "3", "n", "c+1", "4"] * 8 + ["2.5", "r*5", '"3"', "text"]) for v in "ijk"}
    ranges = [f"{lows[v]} <{random.choice(['', '='])} {v} <= {highs[v]}" for v in "ijk"]
    ranges += random.choice([[], [], ["i <> j"], ["i <> k", "j<>2"]])
    random.shuffle(ranges)
    return f"  {priority}{arrow}{f' :: {weight}' if weight else ''} : {', '.join(ranges)};"


def outcome(source: str, limits: Limits) -> System | str:
    try:
        return read("nest.pli", text=source, limits=limits)
    except PLinguaError as error:
        return str(error)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("seed", range(40))
def test_nests_and_closures_agree(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(seed)
    rules = "\n".join(statement(generator, kind) for _ in range(generator.randint(1, 4)))
    source = f"{GLOBALS}{HEADS[kind]}\ndef rules(n)\n{{\n{rules}\n}}\n"
    limits = generator.choice([Limits(), Limits(), Limits(rules=20)])
    monkeypatch.setattr(build, "MANY", 0)
    nested = outcome(source, limits)
    monkeypatch.setattr(build, "MANY", 1 << 60)
    assert outcome(source, limits) == nested


def test_many_statements_are_nests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above compares something: nests are made, and many of them run to their end."""
    ran: list[bool] = []
    nested = build.RuleBuilder.nested
    monkeypatch.setattr(build, "MANY", 0)
    monkeypatch.setattr(build.RuleBuilder, "nested", lambda *a: ran.append(nested(*a)) or ran[-1])
    for seed in range(40):
        generator = random.Random(seed)
        rules = "\n".join(statement(generator, "cell") for _ in range(3))
        outcome(f"{GLOBALS}{HEADS['cell']}\ndef rules(n)\n{{\n{rules}\n}}\n", Limits())
    assert sum(ran) > 20


def test_a_long_inner_range_counts_as_work_where_it_is_read_ahead() -> None:
    source = """
    @model<probabilistic>
    def main() { @mu = [[]'1]'0; [a{i,j,k}]'1 --> []'1 :: p{k} : 1<=k<=1000000, 1<=j<=0, 1<=i<=1000000; }
    """
    system = read("long.pli", text=source, limits=Limits(steps=2_000_000))
    assert system.rules == ()


def test_any_number_of_ranges_and_any_bounds() -> None:
    names = [f"x{i}" for i in range(25)]
    ranges = ", ".join(f"1 <= {name} <= {2 if i < 9 else 1}" for i, name in enumerate(names))
    rule = f"[a --> b{{{','.join(names[:9])}}}]'1 : {ranges};"
    system = read("wide.pli", text=f"@model<transition> def main() {{ @mu = []'1; {rule} }}")
    assert len(system.rules) == 512
    for bound in ("1e308", "1e309", "9223372036854775807", "99999999999999999999"):
        with pytest.raises(PLinguaError):
            read(
                "far.pli", text=f"@model<transition> def main() {{ @mu = []'1; [a{{i}} --> b]'1 : 1 <= i <= {bound}; }}"
            )


def test_names_are_not_code() -> None:
    with pytest.raises(loopnest.Unsuited):
        loopnest.Writer({}, {}).key(loopnest.Name(0, 'a"', (loopnest.Number(0, 1),)))
