"""P systems written in Python: `python examples/membranes/builders.py`.

`binary` and `satisfiable` build what binary.pli and sat.pli describe, for any number and any formula;
`predators` is a chemical system. Each is compiled like a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import echoc
from echoc.compiler.ir.algebra import System
from echoc.membranes.builder import Mode, PSystem, inside, nothing
from echoc.runtime.systems import SystemProgram


def binary(number: int, bits: int = 20) -> System:
    """Bit i of the number is what is left of a{i}."""
    P = PSystem("binary", model="transition")
    a = P.indexed("a")
    P.structure("[]'1")
    P.start("1", a[0] * number)
    for i in range(bits):
        P.rule("1", a[i] * 2 >> a[i + 1])
    return P.system()


def satisfiable(clauses: Sequence[Sequence[int]]) -> System:
    """Is there an assignment under which every clause has a true literal? Literals are numbers: 3 is variable 3, -3 its
    negation. How it works is told in sat.pli."""
    n, m = max(abs(literal) for clause in clauses for literal in clause), len(clauses)
    P = PSystem("sat", model="membrane_division")
    variable, true, false, seen_true, seen_false = (P.indexed(name) for name in ("v", "t", "f", "T", "F"))
    generation, clock = P.indexed("g"), P.indexed("d")
    c, r, o, yes, no = P.objects("c r o yes no")
    P.structure("[ -[]'2 ]'1")
    P.start("1", clock[0])
    P.start("2", sum((variable[i] for i in range(1, n + 1)), generation[0] + c * m))

    for k in range(n):
        P.rule("2", generation[k] >> generation[k + 1], charge=-1)
    for j, clause in enumerate(clauses, 1):
        for i in range(1, n + 1):
            P.rule("2", true[i, j] >> seen_true[i, j] + r * (i in clause), charge=0)
            P.rule("2", false[i, j] >> seen_false[i, j] + r * (-i in clause), charge=0)
            P.rule("2", seen_true[i, j] >> true[i, j + 1], charge=1)
            P.rule("2", seen_false[i, j] >> false[i, j + 1], charge=1)
    P.rule("2", r >> nothing, charge=1)
    steps = n + 3 * m + 3
    for k in range(steps):
        P.rule("1", clock[k] >> clock[k + 1], charge=0)

    with P.at_most(1):
        for i in range(1, n + 1):
            halves = inside("2", true[i, 1], charge=-1) + inside("2", false[i, 1], charge=-1)
            P.rule(inside("2", variable[i], charge=-1) >> halves)
        P.rule(inside("2", generation[n], charge=-1) >> o + inside("2", charge=0))
        P.rule(inside("2", r, charge=0) >> o + inside("2", charge=1))
        P.rule(inside("2", c, charge=1) >> o + inside("2", charge=0))
        P.rule(inside("2", true[1, m + 1], charge=0) >> yes + inside("2", charge=0))
        P.rule(inside("2", false[1, m + 1], charge=0) >> yes + inside("2", charge=0))
        P.rule(inside("1", yes, charge=0) >> yes + inside("1", charge=1))
        P.rule(inside("1", clock[steps], charge=0) >> no + inside("1", charge=-1))
    return P.system()


def predators() -> System:
    """Lotka and Volterra's prey and predators, one animal at a time."""
    P = PSystem("predators", mode=Mode.GILLESPIE)
    prey, predator = P.objects("prey predator")
    P.structure("[]'field")
    P.start("field", prey * 200 + predator * 80)
    P.rule("field", prey >> prey * 2, rate=1.0)
    P.rule("field", prey + predator >> predator * 2, rate=0.005)
    P.rule("field", predator >> nothing, rate=0.6)
    return P.system()


def compiled(system: System, folder: Path) -> SystemProgram:
    """Compile a system and load it."""
    program = echoc.load(echoc.compile(system, output=folder / f"{system.name}.echo"))
    assert isinstance(program, SystemProgram)
    return program


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        run = compiled(binary(1234), Path(name)).create()
        run.advance()
        (skin,) = run.membranes()
        print("1234 is a sum of powers of two:", ", ".join(sorted(skin["objects"])))

        run = compiled(satisfiable([[1, 2], [-1, 3], [-2, -3, 4], [-4, 1], [3, -2]]), Path(name)).create()
        run.advance()
        answer = run.environment()
        solutions = answer.get("yes", 0) + run.membranes()[0]["objects"].get("yes", 0)
        print(f"step {run.steps}: {', '.join(answer)} ({solutions} solutions)")

        many = compiled(predators(), Path(name)).create_many(100, seed=1)
        many.advance(until=10.0)
        prey = many.counts[:, many.runs.place("field", "prey")]
        print(f"prey at time 10 in 100 runs: {prey.min()} to {prey.max()}, mean {prey.mean():.1f}")


if __name__ == "__main__":
    main()
