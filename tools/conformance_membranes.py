"""Compiled membrane systems against published answers: one line for each case, exit code 1 where one fails.

    python tools/conformance_membranes.py FOLDER [--only NAME,NAME] [--json]

FOLDER holds the case files. Every file is compiled into an artifact of its own, loaded and run; the interpreter is not
asked. What is expected of them stands in `membrane_cases.py`, and nowhere else. Random runs have fixed seeds.
`parse -> print -> parse` must give the same system for each .pli besides.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from membrane_cases import CASES, Case, Wrong, same_when_printed

from echoc.errors import EchoError


def judged(name: str, check: Callable[[Case], str], case: Case) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        told, passed = check(case), True
    except (Wrong, EchoError) as error:
        told, passed = str(error), False
    return {"case": name, "ok": passed, "told": told, "seconds": round(time.perf_counter() - begin, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of the case files")
    parser.add_argument("--only", default="", help="some of the files, with commas between")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    chosen = [(n, c) for n, c in CASES if not options.only or n in options.only.split(",")]
    if not chosen:
        parser.error(f"--only {options.only} is no case; known: {', '.join(n for n, _ in CASES)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="echoc-") as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, check in chosen:
            case = Case(options.folder, name, Path(work))
            checks = [(name, check)]
            if name.endswith(".pli"):
                checks.append((f"{name} printed", same_when_printed))
            for what, one in checks:
                row = judged(what, one, case)
                rows.append(row)
                if not options.json:
                    print(
                        f"{'ok  ' if row['ok'] else 'FAIL'} {what}: {row['told']} ({row['seconds']:.2f} s)", flush=True
                    )
    failed = sum(not row["ok"] for row in rows)
    if options.json:
        print(json.dumps({"schema": "echoc-conformance/1", "cases": rows, "failed": failed}, indent=2))
    else:
        print(f"{len(rows) - failed} of {len(rows)} ok")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
