"""Every example of examples/membranes, compiled, gives the answer that its text promises."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import echoc
from echoc.compiler.ir.algebra import Rule, System, Where
from echoc.membranes.reading import read
from echoc.runtime.program import Program
from echoc.runtime.systems import SystemProgram

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "membranes"
Load = Callable[[str], SystemProgram]
CLAUSES = [[1, 2], [-1, 3], [-2, -3, 4], [-4, 1], [3, -2]]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """An example by its file's name, compiled when it is first asked for."""
    folder = tmp_path_factory.mktemp("examples")

    def program(name: str) -> SystemProgram:
        path = folder / f"{name}.echo"
        if not path.exists():
            echoc.compile(FOLDER / name, output=path)
        loaded = echoc.load(path)
        assert isinstance(loaded, SystemProgram)
        return loaded

    return program


@pytest.fixture(scope="module")
def builders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("membrane_builders", FOLDER / "builders.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_told_and_tested() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".pli", ".kpl", ".pep", ".xml", ".py")}
    told = set(re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    tested = set(re.findall(r'"(\w+\.(?:pli|kpl|pep|xml|py))"', Path(__file__).read_text(encoding="utf-8")))
    assert files == told
    assert files <= tested


def test_binary_leaves_the_bits(load: Load) -> None:
    run = load("binary.pli").create()
    assert run.advance().steps == 10  # the highest bit of 1234
    (skin,) = run.membranes()
    bits = {int(re.findall(r"\d+", name)[0]): count for name, count in skin["objects"].items()}
    assert sum(count << bit for bit, count in bits.items()) == 1234
    assert set(bits.values()) == {1}


def test_triangle_whatever_chance_says(load: Load) -> None:
    program, sizes = load("triangle.pli"), set()
    for index in range(40):
        run = program.create(seed=2, run=index)
        outcome = run.advance()
        (skin,) = run.membranes()
        n = skin["objects"].get("b", 0)
        assert outcome.steps == n + 1
        assert skin["objects"].get("c", 0) == n * (n + 1) // 2
        sizes.add(n)
    assert len(sizes) > 3


def solutions(clauses: list[list[int]]) -> int:
    n = max(abs(literal) for clause in clauses for literal in clause)
    return sum(
        all(any((literal > 0) == values[abs(literal) - 1] for literal in clause) for clause in clauses)
        for values in itertools.product((False, True), repeat=n)
    )


def test_sat_says_yes_and_counts_the_solutions(load: Load) -> None:
    run = load("sat.pli").create(seed=1)
    n, m = 4, len(CLAUSES)
    assert run.advance(n + 3 * m + 2).halted is False
    assert run.environment() == {}
    run.advance(1)
    assert run.environment() == {"yes": 1}
    run.advance()
    membranes = run.membranes()
    assert len(membranes) == 1 + 2**n
    assert 1 + membranes[0]["objects"].get("yes", 0) == solutions(CLAUSES) > 1


def test_sat_says_no(builders: ModuleType, tmp_path: Path) -> None:
    clauses = [[1, 2], [1, -2], [-1, 2], [-1, -2]]
    assert solutions(clauses) == 0
    run = builders.compiled(builders.satisfiable(clauses), tmp_path).create()
    assert run.advance().steps == 2 + 3 * 4 + 4
    assert run.environment() == {"no": 1}


def test_coloring_finds_the_colourings(load: Load) -> None:
    run = load("coloring.pli").create(seed=3)
    run.advance()
    edges = [(1, 2), (1, 3), (1, 4), (1, 5), (2, 3), (3, 4), (4, 5), (5, 2)]
    wanted = {c for c in itertools.product("rgb", repeat=5) if all(c[i - 1] != c[j - 1] for i, j in edges)}
    cells = [m["objects"] for m in run.membranes() if m["label"] == "2"]
    assert len(cells) == 3**5
    (outside,) = [m["objects"] for m in run.membranes() if m["parent"] is None]
    assert outside.get("yes") == 1
    assert "no" not in outside
    unspoilt = [cell for cell in cells if "q" in cell or "undecided" in cell]  # one has swapped its q
    assert {"".join(next(c for c in "rgb" if f"{c}{{{i}}}" in cell) for i in range(1, 6)) for cell in unspoilt} == {
        "".join(c) for c in wanted
    }
    assert len(unspoilt) == len(wanted) > 0


def test_epidemic_keeps_everybody(load: Load) -> None:
    program = load("epidemic.pli")
    batch = program.create_many(50, seed=4)
    assert program.mode == "dcba"
    for _ in range(30):
        batch.advance(2)
        assert (batch.counts >= 0).all()
        assert (batch.counts.sum(axis=1) == 2000).all()
    second = [cell for cell in batch.runs.cells if cell["label"] == "1"][1]
    assert (batch.counts[:, second["objects"]["R"]] > 0).mean() > 0.9  # it has come to the other town


def test_adder_adds(load: Load) -> None:
    run, before, bits = load("adder.pli").create(), 0, []
    while not run.halted:
        run.advance(1)
        spikes = run.environment().get("a", 0)
        bits.append(spikes - before)
        before = spikes
    assert sum(bit << i for i, bit in enumerate(bits[1:])) == 27 + 46


def test_vote_goes_by_the_margin(load: Load) -> None:
    run = load("vote.kpl").create()
    run.advance()
    assert (run.steps, run.halted) == (2, True)
    objects = {m["name"]: m["objects"] for m in run.membranes()}
    assert objects.pop("hall") == {"passed": 3}
    assert set(map(len, objects.values())) == {0}


def test_thermostat_follows_its_equations(tmp_path: Path) -> None:
    program = echoc.load(echoc.compile(FOLDER / "thermostat.pep", output=tmp_path / "thermostat.echo"))
    assert isinstance(program, Program)
    temperature, heat, total = 5.0, 0.0, 0.0
    for _ in range(60):
        values = program.step({})["values"]
        temperature, heat, total = (
            0.9 * temperature + 0.5 + heat, 0.3 * (20 - temperature) + 0.05 * total, total + 20 - temperature,
        )  # fmt: skip
        assert np.allclose(values, (temperature, heat, total), rtol=1e-12, atol=1e-12)
    assert abs(temperature - 20) < 1e-6


def test_dust_settles_on_its_fractal(tmp_path: Path) -> None:
    """x = 0.ddd... in base 3 with the digits 0 and 2 only, drawn apart for x and y, and the last one drawn first."""
    program = echoc.load(echoc.compile(FOLDER / "dust.pep", output=tmp_path / "dust.echo"))
    assert isinstance(program, Program)
    digits = []
    for run in range(400):
        instance = program.create(seed=8, run=run)
        for _ in range(12):
            values = instance.step()["values"]
        whole = np.rint(values * 3**12).astype(int)
        assert np.allclose(whole, values * 3**12, atol=1e-6)
        digits.append([np.base_repr(n, 3).zfill(12) for n in whole])
        assert all(set(number) <= {"0", "2"} for number in digits[-1])
    twos = np.array([[d == "2" for d in x + y] for x, y in digits])
    share = np.corrcoef(twos.T) - np.eye(24)
    assert abs(twos.mean() - 0.5) < 0.02 and np.abs(share).max() < 0.25  # 5 standard deviations of a correlation


def test_dimer_reaches_its_equilibrium(load: Load) -> None:
    pytest.importorskip("libsbml", reason="the extra `sbml` is not installed")
    batch = load("dimer.xml").create_many(2000, seed=5)
    batch.advance(until=20.0)
    place = batch.runs.place("cell", "D")
    assert place is not None
    found = batch.counts[:, place]
    weights = [1.0]  # of 0, 1, ... dimers: binding and splitting balance between neighbours
    for dimers in range(50):
        monomers = 100 - 2 * dimers
        weights.append(weights[-1] * 0.02 * monomers * (monomers - 1) / 2 / (0.5 * (dimers + 1)))
    numbers = np.arange(51)
    mean = np.average(numbers, weights=weights)
    deviation = np.sqrt(np.average((numbers - mean) ** 2, weights=weights))
    assert abs(found.mean() - mean) < 4 * deviation / np.sqrt(len(found))
    assert abs(found.std() / deviation - 1) < 4 / np.sqrt(2 * len(found))


def placeless(system: System) -> tuple[set[Rule], list[tuple[object, ...]]]:
    rules = {dataclasses.replace(rule, where=Where()) for rule in system.rules}
    return rules, [(c.label, c.parent, c.objects, c.charge) for c in system.cells]


@pytest.mark.parametrize("name", ["binary.pli", "sat.pli"])
def test_the_builders_make_what_the_files_say(name: str, builders: ModuleType) -> None:
    twin = {"binary.pli": lambda: builders.binary(1234), "sat.pli": lambda: builders.satisfiable(CLAUSES)}[name]()
    file = read(FOLDER / name)
    assert isinstance(file, System)
    assert placeless(twin) == placeless(file)


def test_the_builders_run(builders: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    builders.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1234 is a sum of powers of two: a{10}, a{1}, a{4}, a{6}, a{7}"
    assert lines[1] == f"step 22: yes ({solutions(CLAUSES)} solutions)"
    low, high = map(int, re.findall(r"(\d+) to (\d+)", lines[2])[0])
    assert 0 <= low < high
