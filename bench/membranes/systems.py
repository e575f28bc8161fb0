"""P systems from source to answer, beside what others publish: compiling, running, memory, parsing.

    python -m echoc.bench.membranes [--json] [--small] [--all]
        [--sat FILE.pli] [--parse FILE.pli] [--population FILE.pli]

Without files, generated ones: satisfiability by active membranes in the classical family with charges (Perez-Jimenez,
Romero-Jimenez, Sancho-Caparrini, Complexity classes in models of cellular computing with membranes, 2003) on random
clauses of four literals that one assignment satisfies, and a text of 40,000 constants. Each is compiled once and run on
one thread; times are CPU seconds, medians with their range, since others use the machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import echoc
from echoc.bench.stats import Summary, summarise
from echoc.membranes.reading import read
from echoc.runtime.systems import SystemProgram

RUNS = 20
COMPILES = 3


@dataclass(frozen=True)
class Peer:
    """What another simulator takes for the file that a generated one is like: CPU seconds of one thread, as told of it
    on machines that are not this one."""

    name: str
    seconds: tuple[float, float]


PEERS = {
    "sat n=8 m=64": (
        Peer("psim (github.com/RGNC/plingua, C++), sat_m20.pli", (4.3, 4.7)),
        Peer("a simulator of only this family (github.com/RGNC/pcudasat, C++), sat_m20.pli", (0.011, 0.011)),
    ),
    "sat n=6 m=33": (Peer("pLinguaCore (Java), sat_6_32.pli", (5.9, 5.9)),),
    "parse": (Peer("P-Lingua 5 (github.com/RGNC/plingua), zebra_mussel.pli", (2.7, 2.7)),),
    "population": (Peer("ABCD-GPU on one core (github.com/RGNC/abcd-gpu), 1000 runs of 42 steps", (1.7, 2.0)),),
}


def sat_source(n: int, m: int, seed: int = 1, literals: int = 4) -> str:
    """P-Lingua of the family for m random clauses over n variables, which a random assignment satisfies.

    x{i,j}, y{i,j}: variable j stands in clause i, as itself or negated. r{i,..}: clause i is satisfied.
    """
    generator = random.Random(seed)
    truth = [generator.random() < 0.5 for _ in range(n)]
    clauses = []
    for i in range(1, m + 1):
        chosen = generator.sample(range(n), min(literals, n))
        signs = [generator.random() < 0.5 for _ in chosen]
        signs[0] = truth[chosen[0]]
        clauses.append(", ".join(f"{'x' if s else 'y'}{{{i},{v + 1}}}" for s, v in zip(signs, chosen, strict=True)))
    formula = ",\n           ".join(clauses)
    return f"""@model<membrane_division>
@include "membrane_division_model.pli"

def family(m, n)
{{
  @mu = [[]'2]'1;
  @ms(2) = d{{1}};

  /* assignments */
  [d{{k}}]'2 --> +[d{{k}}]'2 -[d{{k}}]'2 : 1 <= k <= n;
  +[d{{k}}]'2 --> d{{k}} []'2 : 1 <= k <= n;
  -[d{{k}}]'2 --> d{{k}} []'2 : 1 <= k <= n;
  d{{k}} []'2 --> [d{{k+1}}]'2 : 1 <= k < n;

  /* literals count down to their variable's turn; what is true then satisfies its clause */
  +[x{{i,1}} --> r{{i,1}}]'2 : 1 <= i <= m;
  -[y{{i,1}} --> r{{i,1}}]'2 : 1 <= i <= m;
  -[x{{i,1}} --> #]'2 : 1 <= i <= m;
  +[y{{i,1}} --> #]'2 : 1 <= i <= m;
  +[x{{i,j}} --> x{{i,j-1}}]'2 : 1 <= i <= m, 2 <= j <= n;
  -[x{{i,j}} --> x{{i,j-1}}]'2 : 1 <= i <= m, 2 <= j <= n;
  +[y{{i,j}} --> y{{i,j-1}}]'2 : 1 <= i <= m, 2 <= j <= n;
  -[y{{i,j}} --> y{{i,j-1}}]'2 : 1 <= i <= m, 2 <= j <= n;
  [r{{i,k}} --> r{{i,k+1}}]'2 : 1 <= i <= m, 1 <= k < 2*n;

  /* every membrane looks for r of the first clause, renumbers, and looks again */
  [d{{k}} --> d{{k+1}}]'1 : n <= k <= 3*n - 3;
  [d{{3*n-2}} --> d{{3*n-1}}, e]'1;
  e []'2 --> +[c{{1}}]'2;
  [d{{3*n-1}} --> d{{3*n}}]'1;
  [d{{k}} --> d{{k+1}}]'1 : 3*n <= k <= 3*n + 2*m + 2;
  +[r{{1,2*n}}]'2 --> r{{1,2*n}} -[]'2;
  -[r{{i,2*n}} --> r{{i-1,2*n}}]'2 : 1 <= i <= m;
  r{{1,2*n}} -[]'2 --> +[r{{0,2*n}}]'2;
  -[c{{k}} --> c{{k+1}}]'2 : 1 <= k <= m;

  /* the answer */
  +[c{{m+1}}]'2 --> c{{m+1}} +[]'2;
  [c{{m+1}} --> c{{m+2}}, t]'1;
  [t]'1 --> t +[]'1;
  +[c{{m+2}}]'1 --> yes -[]'1;
  [d{{3*n+2*m+3}}]'1 --> no +[]'1;
}}

def main()
{{
  call family({m}, {n});
  @ms(2) += {formula};
}}
"""


def constants_source(lines: int) -> str:
    """A text that is mostly constants: `lines` of them, which one rule with ranges uses."""
    width = 100
    values = "\n".join(f"k{{{i // width},{i % width}}} = {i * 37 % 1009 / 8};" for i in range(lines))
    return f"""@model<transition>
@include "transition_model.pli"
def main()
{{
  @mu = []'1;
  @ms(1) += a{{i}} : 0 <= i < {lines // width};
  [a{{i}} --> b*(floor(k{{i,0}}))]'1 : 0 <= i < {lines // width};
}}
{values}
"""


def cpu(children: bool = False) -> float:
    """CPU seconds of this process, or of the compilers that it has waited for."""
    if not children:
        return time.process_time()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compiled(path: Path, folder: Path) -> tuple[SystemProgram, Summary]:
    """The program of a file, and CPU seconds from the file to the artifact, nothing taken from the build cache."""
    seconds = []
    before = os.environ.get("ECHOC_CACHE")
    for index in range(COMPILES):
        os.environ["ECHOC_CACHE"] = str(folder / f"cache{path.stem}{index}")
        begin = cpu() + cpu(children=True)
        artifact = echoc.compile(path, output=folder / f"{path.stem}.echo")
        seconds.append(cpu() + cpu(children=True) - begin)
    if before is None:
        del os.environ["ECHOC_CACHE"]
    else:
        os.environ["ECHOC_CACHE"] = before
    return SystemProgram(artifact, num_threads=1), summarise(seconds)


def sat(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """One file of the family: compiled, then run RUNS times from the start until it halts."""
    program, compiling = compiled(path, folder)
    seconds = []
    for _ in range(RUNS + 1):
        begin = cpu()
        run = program.create()
        run.advance()
        seconds.append(cpu() - begin)
    answer = ", ".join(run.environment())
    row = {
        "name": name, "rules": len(program.rules), "steps": run.steps, "membranes": run.memory()["membranes"],
        "environment": answer, "run CPU s": summarise(seconds[1:]), "compile CPU s": compiling,
        "peak MiB of the run": run.memory()["peak_bytes"] / 2**20,
    }  # fmt: skip
    return beside(row, "run CPU s", name)


def beside(row: dict[str, Any], figure: str, key: str) -> dict[str, Any]:
    """The row with what others take; ratios over 1 are in our favour. The second ratio counts our compiling too."""
    ours = [row[figure].median]
    if "compile CPU s" in row:
        ours.append(ours[0] + row["compile CPU s"].median)
    if key in PEERS:
        row["peers"] = [
            {"name": p.name, "seconds": p.seconds, "ratios": [[s / o for s in p.seconds] for o in ours]}
            for p in PEERS[key]
        ]
    return row


def large(path: Path, folder: Path) -> dict[str, Any]:
    """One run in a process of its own, so that its peak memory is its own."""
    program, compiling = compiled(path, folder)
    command = [sys.executable, "-m", "echoc.bench.membranes.systems", "--child", str(program.artifact.path)]
    rows = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
    return {
        "name": path.stem, **{k: rows[0][k] for k in ("rules", "steps", "membranes", "environment")},
        "run CPU s": summarise([row["seconds"] for row in rows]), "compile CPU s": compiling,
        "peak MiB of the run": max(row["pages"] for row in rows) / 2**20,
        "peak MiB of the process": max(row["resident"] for row in rows) / 2**20,
    }  # fmt: skip


def child(path: str) -> None:
    program = SystemProgram(path, num_threads=1)
    run = program.create()
    begin = cpu()
    run.advance()
    document = {
        "seconds": cpu() - begin, "pages": run.memory()["peak_bytes"], "membranes": run.memory()["membranes"],
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "rules": len(program.rules),
        "steps": run.steps, "environment": ", ".join(run.environment()),
    }  # fmt: skip
    print(json.dumps(document))


def parsing(path: Path, key: str = "") -> dict[str, Any]:
    """CPU seconds from a text to a checked system."""
    seconds = []
    for _ in range(5):
        begin = cpu()
        system = read(path)
        seconds.append(cpu() - begin)
    text = path.read_text(encoding="utf-8", errors="replace")
    row = {
        "name": f"parse {path.stem}", "lines": text.count("\n"), "rules": len(getattr(system, "rules", ())),
        "parse CPU s": summarise(seconds),
    }  # fmt: skip
    return beside(row, "parse CPU s", key)


def population(path: Path, folder: Path) -> dict[str, Any]:
    """1000 runs of 42 steps of a population dynamics file."""
    program, compiling = compiled(path, folder)
    seconds = []
    for seed in range(6):
        begin = cpu()
        program.create_many(1000, seed=seed).advance(42)
        seconds.append(cpu() - begin)
    row = {"name": f"population {path.stem}", "rules": len(program.rules), "run CPU s": summarise(seconds[1:]),
           "compile CPU s": compiling}  # fmt: skip
    return beside(row, "run CPU s", "population")


def others() -> list[dict[str, Any]]:
    """What the other scripts here print; a script that fails says so in its row."""
    rows = []
    for module, *arguments in (("runs",), ("batches",), ("compound",), ("reservoirs", "speed")):
        command = [sys.executable, "-m", f"echoc.bench.membranes.{module}", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        row: dict[str, Any] = {"name": " ".join([module, *arguments]), "printed": done.stdout.splitlines()}
        if done.returncode:
            row["failed"] = done.stderr.strip().splitlines()[-1:]
        rows.append(row)
    return rows


def measured(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    def written(name: str, text: str) -> Path:
        path = folder / f"{name}.pli"
        path.write_text(text, encoding="utf-8")
        return path

    rows = []
    for n, m in ((6, 33), (8, 64)):
        rows.append(sat(f"sat n={n} m={m}", written(f"sat{n}_{m}", sat_source(n, m)), folder))
    rows += [sat(path.stem, path, folder) for path in options.sat]
    if not options.small:
        rows.append(large(written("sat17_64", sat_source(17, 64)), folder))
    rows.append(parsing(written("constants", constants_source(40_000))))
    rows += [parsing(path, "parse") for path in options.parse]
    rows += [population(path, folder) for path in options.population]
    return rows + (others() if options.all else [])


def shown(value: Any) -> str:
    if isinstance(value, Summary):
        return f"{value.median:.4g} ({value.low:.4g} to {value.high:.4g}, {value.count} samples)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(row["name"])
        for key, value in row.items():
            if key == "peers":
                for peer in value:
                    ratios = [f"{low:.3g} to {high:.3g}" for low, high in peer["ratios"]]
                    with_compiling = f", with our compiling {ratios[1]}" if ratios[1:] else ""
                    print(f"  {peer['name']}: {peer['seconds'][0]} to {peer['seconds'][1]} s told; ratio {ratios[0]}"
                          f"{with_compiling}")  # fmt: skip
            elif key == "printed":
                print("\n".join(f"  {line.strip()}" for line in value))
            elif key != "name":
                print(f"  {key}: {shown(value)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--sat", type=Path, action="append", default=[], help="a file that halts, run like the others")
    parser.add_argument("--parse", type=Path, action="append", default=[], help="a file to parse")
    parser.add_argument("--population", type=Path, action="append", default=[], help="a population dynamics file")
    parser.add_argument("--small", action="store_true", help="leave out the one with 131,072 membranes")
    parser.add_argument("--all", action="store_true", help="the other scripts of this folder too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    with tempfile.TemporaryDirectory(prefix="echoc-") as name:
        rows = measured(options, Path(name))
    if options.json:
        print(json.dumps({"schema": "echoc-bench-systems/1", "rows": rows}, indent=2, default=lambda v: v.as_dict()))
    else:
        report(rows)


if __name__ == "__main__":
    main()
