"""The stochastic cases of the SBML test suite, compiled and run: exit code 1 where one fails or is refused.

    python tools/conformance_sbml.py FOLDER [--runs 10000] [--seed 1] [--only 00001,00002] [--level l3v2] [--json]

FOLDER is cases/stochastic of the suite (github.com/sbmlteam/sbml-test-suite). Each case is scored as the suite does,
over n runs: at each of its times, Z = sqrt(n) (m - mean) / sd and Y = sqrt(n / 2) (s^2 / sd^2 - 1), m and s the mean
and standard deviation of the sample, lie in the case's ranges, (-3, 3) and (-5, 5); where the sd is 0 the sample must
be exact, to the digits given.

Y has the variance 1 only for normal counts: in general it is 1 + k / 2, k the excess kurtosis. In parentheses stands Y
divided by the root of that, with k from the sample; it is told, and decides nothing. One of fifty times of exact runs
has |Z| above 3 in about one case of ten.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import echoc
from echoc.compiler.ir.expression import evaluate, names
from echoc.errors import EchoError
from echoc.membranes.sbml import values
from echoc.runtime.runs import Batch
from echoc.runtime.systems import SystemProgram

Array = NDArray[np.float64]


def settings(folder: Path) -> dict[str, str]:
    """`key: value` lines of the case's settings."""
    text = next(folder.glob("*-settings.txt")).read_text()
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines() if ":" in line)}


def expected(folder: Path) -> tuple[Array, dict[str, Array]]:
    """Times, and the columns of the results by name: `X-mean`, `X-sd`."""
    with next(folder.glob("*-results.csv")).open() as file:
        rows = list(csv.reader(file))
    table = np.array([[float(cell) for cell in row] for row in rows[1:] if row])
    return table[:, 0], {name.strip(): table[:, i] for i, name in enumerate(rows[0]) if i}


def samples(model: Path, times: Array, variables: list[str], runs: int, seed: int) -> dict[str, Array]:
    """[runs, times] of each variable: a species' count, or what an assignment rule gives."""
    with tempfile.TemporaryDirectory(prefix="echoc-") as work:
        program = echoc.load(echoc.compile(model, output=Path(work) / "case.echo"))
    assert isinstance(program, SystemProgram)
    batch = program.create_many(runs, seed=seed)
    assert isinstance(batch, Batch)
    records = batch.advance(times=times)
    objects = {o: int(place) for cell in batch.runs.cells for o, place in cell["objects"].items()}
    others, found = values(model), {}

    def counts(species: str) -> Array:
        place = objects.get(species)  # none: it never comes to be
        return np.zeros(records.shape[:2]) if place is None else records[..., place].astype(np.float64)

    for variable in variables:
        if variable in others:
            used = dict.fromkeys(names(others[variable]))
            columns = [counts(o).ravel() for o in used] or [np.zeros(runs * len(times))]
            states, back = np.unique(np.stack(columns), axis=1, return_inverse=True)
            each = [evaluate(others[variable], dict(zip(used, state, strict=False))) for state in states.T]
            found[variable] = np.array(each)[back].reshape(records.shape[:2])
        else:
            found[variable] = counts(variable)
    return found


def score(found: Array, mean: Array, sd: Array | None, limits: list[float]) -> dict[str, float]:
    """The largest |Z| and |Y| over the times, at how many they pass their limits, and |Y| by the fourth moment."""
    runs = len(found)
    m, s2 = found.mean(0), found.var(0, ddof=1)
    if sd is None:
        sd = np.sqrt(s2)
    random = sd > 0
    exact = bool(np.allclose(m[~random], mean[~random], rtol=1e-5, atol=1e-5))
    z = math.sqrt(runs) * (m - mean)[random] / sd[random]
    y = math.sqrt(runs / 2) * (s2[random] / sd[random] ** 2 - 1)
    fourth = np.mean((found - m)[:, random] ** 4, axis=0)
    excess = fourth / np.maximum(s2[random], 1e-300) ** 2 - 3
    own = np.abs(y) / np.sqrt(np.maximum(1 + excess / 2, 1e-3))
    return {
        "z": float(np.abs(z).max(initial=0.0)), "y": float(np.abs(y).max(initial=0.0)), "exact": float(exact),
        "y_by_kurtosis": float(own.max(initial=0.0)), "excess_kurtosis": float(excess.max(initial=0.0)),
        "times": len(z), "z_outside": int((np.abs(z) >= limits[0]).sum()),
        "y_outside": int((np.abs(y) >= limits[1]).sum()),
    }  # fmt: skip


def judged(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"case": folder.name, "outcome": "ok", "variables": {}}
    begin = time.perf_counter()
    try:
        found = sorted(folder.glob(f"*-sbml-{options.level}.xml"))
        if not found:
            return row | {"outcome": "refused", "told": f"there is no model of the level {options.level}"}
        given = settings(folder)
        limits = [float(given[key].strip("()").split(",")[1]) for key in ("meanRange", "sdRange")]
        times, columns = expected(folder)
        variables = sorted({name.rpartition("-")[0] for name in columns})
        for variable, values in samples(found[-1], times, variables, options.runs, options.seed).items():
            scores = score(values, columns[f"{variable}-mean"], columns.get(f"{variable}-sd"), limits)
            scored_y = f"{variable}-sd" in columns
            fits = not scores["z_outside"] and not (scores["y_outside"] and scored_y) and scores["exact"]
            row["variables"][variable] = {k: round(v, 3) for k, v in scores.items()}
            if not fits:
                row["outcome"] = "failed"
    except EchoError as error:
        row |= {"outcome": "refused", "told": str(error).splitlines()[0]}
    return row | {"seconds": round(time.perf_counter() - begin, 2)}


def line(row: dict[str, Any]) -> str:
    told = row.get("told") or "; ".join(
        f"{v} |Z| {s['z']:.2f} |Y| {s['y']:.2f} ({s['y_by_kurtosis']:.2f})"
        + (
            f", outside at {s['z_outside']} and {s['y_outside']} of {s['times']} times"
            if row["outcome"] == "failed"
            else ""
        )
        for v, s in row["variables"].items()
    )
    return f"{row['outcome']:<7} {row['case']}: {told}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="some of the cases, with commas between")
    parser.add_argument("--level", default="*", help="such as l2v4; default: the newest that a case has")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    folders = [f for f in sorted(options.folder.glob("[0-9]*")) if not only or f.name in only]
    if not folders:
        parser.error(f"{options.folder} holds no such cases; wanted cases/stochastic of the SBML test suite")
    rows = []
    for folder in folders:
        rows.append(judged(folder, options))
        if not options.json:
            print(line(rows[-1]), flush=True)
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("ok", "failed", "refused")}
    if options.json:
        head = {"schema": "echoc-conformance-sbml/1", "runs": options.runs, "seed": options.seed}
        print(json.dumps({**head, **counts, "cases": rows}, indent=2))
    else:
        print(f"{counts['ok']} of {len(rows)} ok, {counts['failed']} failed, {counts['refused']} refused")
    return 1 if counts["failed"] or counts["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
