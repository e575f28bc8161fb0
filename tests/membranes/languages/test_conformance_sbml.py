"""The scoring of stochastic cases: a case of our own with a law in closed form, right and wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("libsbml", reason="the extra `sbml` is not installed")

TOOL = Path(__file__).resolve().parents[3] / "tools" / "conformance_sbml.py"
MODEL = """<sbml xmlns="http://www.sbml.org/sbml/level3/version2/core" level="3" version="2"><model id="m">
<listOfCompartments><compartment id="c" size="1" constant="true"/></listOfCompartments>
<listOfSpecies><species id="X" compartment="c" initialAmount="0" hasOnlySubstanceUnits="true" constant="false"
boundaryCondition="false"/><species id="S" compartment="c" initialAmount="7" hasOnlySubstanceUnits="true"
constant="false" boundaryCondition="true"/></listOfSpecies>
<listOfParameters><parameter id="y" constant="false"/></listOfParameters>
<listOfRules><assignmentRule variable="y"><math xmlns="http://www.w3.org/1998/Math/MathML"><apply><times/><cn>3</cn>
<ci>X</ci></apply></math></assignmentRule></listOfRules>
<listOfReactions><reaction id="in" reversible="false"><listOfProducts><speciesReference species="X" stoichiometry="1"
constant="true"/></listOfProducts><kineticLaw><math xmlns="http://www.w3.org/1998/Math/MathML"><cn>4</cn></math>
</kineticLaw></reaction><reaction id="out" reversible="false"><listOfReactants><speciesReference species="X"
stoichiometry="1" constant="true"/></listOfReactants><kineticLaw><math xmlns="http://www.w3.org/1998/Math/MathML">
<apply><times/><cn>0.5</cn><ci>X</ci></apply></math></kineticLaw></reaction></listOfReactions></model></sbml>"""


def write_case(folder: Path, name: str, scale: float, model: str = MODEL) -> None:
    """Immigration and death: Poisson with mean 8 (1 - e^(-t / 2)), times `scale` in what is expected."""
    case = folder / name
    case.mkdir()
    (case / f"{name}-sbml-l3v2.xml").write_text(model)
    (case / f"{name}-settings.txt").write_text("start: 0\noutput: X-mean\nmeanRange: (-3, 3)\nsdRange: (-5, 5)\n")
    rows = ["time,X-mean,X-sd,y-mean,y-sd,S-mean,S-sd"]
    for t in range(6):
        mean = 8 * (1 - math.exp(-t / 2)) * scale
        rows.append(f"{t},{mean},{mean**0.5},{3 * mean},{3 * mean**0.5},7,0")
    (case / f"{name}-results.csv").write_text("\n".join(rows) + "\n")


def test_right_and_wrong_expectations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("conformance_sbml", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for name, scale, model in (("00001", 1.0, MODEL), ("00002", 1.1, MODEL), ("00003", 1.0, "<sbml>")):
        write_case(tmp_path, name, scale, model)
    monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path), "--runs", "3000", "--seed", "2", "--json"])
    assert tool.main() == 1
    told = json.loads(capsys.readouterr().out)
    assert [case["outcome"] for case in told["cases"]] == ["ok", "failed", "refused"]
    right, wrong, refused = told["cases"]
    assert right["variables"]["y"]["z"] == pytest.approx(right["variables"]["X"]["z"], abs=2e-3)
    assert right["variables"]["S"] == {**right["variables"]["S"], "z": 0, "y": 0, "exact": 1.0}
    assert wrong["variables"]["X"]["z_outside"] > 3 and "not XML" in refused["told"]
