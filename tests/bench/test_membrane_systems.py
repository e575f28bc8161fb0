"""The systems that bench/membranes/systems.py generates are what their figures are said to be of."""

from pathlib import Path

import pytest

from echoc.bench.membranes.systems import PEERS, beside, constants_source, parsing, sat_source
from echoc.bench.stats import summarise
from echoc.compiler.ir import oracle
from echoc.compiler.ir.algebra import System
from echoc.membranes.plingua import read


def test_the_family_has_as_many_rules_as_the_published_member() -> None:
    assert len(read("sat.pli", text=sat_source(8, 64)).rules) == 3322


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 4)])
def test_the_family_answers_after_5n_2m_3_steps(n: int, m: int) -> None:
    system = read("sat.pli", text=sat_source(n, m, literals=2))
    end = oracle.run(system, None, seed=1)
    assert end.step == 5 * n + 2 * m + 3
    assert dict(end.environment) == {"t": 1, "yes": 1}
    assert sum(cell.label == "2" for cell in end.cells.values()) == 2**n


def test_constants_are_used_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "constants.pli"
    path.write_text(constants_source(1000))
    system = read(path)
    assert isinstance(system, System)
    assert [dict(rule.produce).get("b", 0) for rule in system.rules] == [
        int(i * 100 * 37 % 1009 / 8) for i in range(10)
    ]
    row = parsing(path)
    assert (row["rules"], row["lines"]) == (10, 1008)


def test_ratios_count_compiling_apart() -> None:
    row = beside({"run CPU s": summarise([0.5]), "compile CPU s": summarise([1.5])}, "run CPU s", "sat n=6 m=33")
    (peer,) = PEERS["sat n=6 m=33"]
    assert row["peers"][0]["ratios"] == [[s / 0.5 for s in peer.seconds], [s / 2.0 for s in peer.seconds]]
