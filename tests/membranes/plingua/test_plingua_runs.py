"""Systems that are read behave as their kind of P system does, by the interpreter."""

from itertools import product

import pytest
from plingua_examples import POPULATION, SEPARATION, SYMPORT, TISSUE, TRANSITION

from echoc.compiler.ir.oracle import Configuration, run
from echoc.membranes.plingua import read


def contents(configuration: Configuration) -> list[tuple[str, dict[str, int]]]:
    """Label and objects of every membrane, in order."""
    found = [(m.label, dict(m.objects)) for m in configuration.cells.values()]
    return sorted(found, key=lambda pair: (pair[0], sorted(pair[1].items())))


def test_maximal_parallelism_and_strong_priority() -> None:
    # f*2 -> f bars the dissolution in the first step; b doubles in every step until the membrane has dissolved.
    end = run(read("t", text=TRANSITION), 2, seed=1)
    skin = dict(contents(end))
    assert skin["1"] == {"b": 4, "t": 1}
    assert skin["3"] == {"w": 2}
    assert "2" not in skin


def test_a_division_that_keeps_the_charge_goes_on() -> None:
    text = """@model<membrane_division>
    def main() { @mu = [[]'2]'1; @ms(2) += x{i} : 1 <= i <= 4; [x{i}]'2 --> [t{i}] [f{i}] : 1 <= i <= 4; }"""
    end = run(read("t", text=text), None, seed=3)
    words = {tuple(sorted(objects)) for label, objects in contents(end) if label == "2"}
    assert end.step == 4
    assert words == {tuple(sorted(f"{b}{{{i}}}" for i, b in enumerate(w, 1))) for w in product("tf", repeat=4)}


def test_symport_and_antiport_conserve_matter() -> None:
    end = run(read("t", text=SYMPORT), None, seed=1)
    assert contents(end) == [("1", {"b": 2, "c": 1}), ("2", {"a": 4})]


def test_tissue_cells_of_one_label_all_take_part_and_the_environment_never_runs_out() -> None:
    system = read("t", text=TISSUE)
    end = run(system, 1, seed=2)
    assert contents(end)[1] == ("1", {"s": 6})
    second = run(system, 2, seed=2)
    assert contents(second)[1] == ("1", {"b": 2, "s": 4})
    assert [objects for label, objects in contents(second) if label == "2"] == [{"s": 1}, {"s": 1}]
    third = run(system, 3, seed=2)
    assert sorted(label for label, _ in contents(third)) == ["0", "1", "2", "2", "2", "2"]


def test_separation_deals_out_the_content() -> None:
    end = run(read("t", text=SEPARATION), 1, seed=1)
    ones = sorted((objects for label, objects in contents(end) if label == "1"), key=len)
    total: dict[str, int] = {}
    for objects in ones:
        for name, count in objects.items():
            total[name] = total.get(name, 0) + count
    assert "S" not in total
    assert any(not any(n.startswith("ap") for n in objects) for objects in ones)


@pytest.mark.filterwarnings("ignore")
def test_populations_conserve_individuals() -> None:
    end = run(read("t", text=POPULATION), 5, seed=1)
    assert all(count >= 0 for _, objects in contents(end) for count in objects.values())
    labels = [label for label, _ in contents(end)]
    assert labels == ["0,101", "0,102", "1", "1", "101", "102", "p"]
    by_label = dict(contents(end))
    assert by_label["0,102"]["F"] == 7 and by_label["0,102"]["G"] == 35
    assert "F" not in by_label["0,101"]


def test_the_environment_gets_what_the_skin_sends() -> None:
    text = "@model<membrane_division> def main() { @mu = []'s; @ms(s) = a*2; [a]'s --> yes []'s; }"
    end = run(read("t", text=text), None, seed=0)
    assert end.step == 2
    assert dict(end.environment) == {"yes": 2}
