"""The command line of the harness, free of any CLI framework: `python -m echoc.bench MODEL ...`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoc.bench.earlier import read_reports
from echoc.bench.engines import PEER_NAMES
from echoc.bench.gpu import COLUMNS, GpuReport
from echoc.bench.harness import BenchOptions, Progress, run_benchmark, run_stages
from echoc.bench.report import SCHEMA, Report
from echoc.bench.sampling import SamplingPlan
from echoc.bench.states import CORE_STATES
from echoc.bench.suite import STAGES, prepare, suite_stages
from echoc.bench.tables import limit_lines, tables
from echoc.errors import EchoError


@dataclass(frozen=True)
class Command:
    """A parsed command line.

    `options`: one for each model. `suite`: stages of `suite.py` to run, none for the options alone. `json`: a path, '-'
    for stdout, None for nowhere. `prepare`: make checkpoints, conversions and artifacts, time nothing.
    `go_on`: with what the file `json` holds.
    """

    options: Sequence[BenchOptions]
    suite: Sequence[str]
    json: str | None
    prepare: bool
    go_on: bool


def parse(arguments: Sequence[str]) -> Command:
    """Reads the command line; argparse ends the process where it is wrong."""
    defaults = BenchOptions(model="")
    parser = argparse.ArgumentParser(prog="echoc bench", description=__doc__)
    parser.add_argument("model", nargs="+", help="artifact, checkpoint folder, or the name of a shape made at random")
    parser.add_argument("--checkpoint", help="folder that the artifact was compiled from, for peers")
    parser.add_argument("--weights-dtype", help="f32, bf16, fp8, int8, int4, or several with commas")
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--prefill", type=_numbers, default=list(defaults.prefill), help="prompt lengths, or 0")
    parser.add_argument("--prompts", type=int, default=defaults.prompts, help="prompts prefilled at once (echoc only)")
    parser.add_argument("--decode", type=int, default=defaults.decode_tokens, help="tokens to decode, or 0")
    parser.add_argument("--context", type=_numbers, default=list(defaults.contexts), help="tokens before decoding")
    parser.add_argument("--mixed", type=_span, metavar="LOW-HIGH", help="contexts of a batch, evenly (echoc only)")
    parser.add_argument("--batch", type=_numbers, default=list(defaults.batches), help="sequences at once, or 0")
    parser.add_argument("--continuous", type=int, default=0, metavar="N", help="N at once, fed from a queue")
    parser.add_argument("--kv-dtype", help="formats of keys and values: bf16, int8, fp8, or several with commas")
    parser.add_argument("--beside-busy", action="store_true", help="also with a busy process on one of the cores")
    parser.add_argument("--starts", action="store_true", help="also fresh processes: first token and memory")
    every = ",".join(STAGES)
    parser.add_argument("--suite", nargs="?", const=every, metavar="STAGES", help=f"a CPU's workloads: {every}")
    parser.add_argument("--prepare", action="store_true", help="make what the run needs, time nothing")
    parser.add_argument("--vs", action="append", default=[], help=f"a peer: {', '.join(PEER_NAMES)}")
    parser.add_argument("--peer-python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--no-own", action="store_true", help="time the peers only")
    parser.add_argument("--deterministic", action="store_true", help="time echoc's deterministic mode")
    parser.add_argument("--rounds", type=int, default=defaults.plan.rounds, help="clean samples wanted")
    parser.add_argument("--max-rounds", type=int, default=None, help="samples tried at most (3 times the rounds)")
    parser.add_argument("--patience", type=float, default=defaults.plan.patience_seconds, help="s to wait for cores")
    parser.add_argument("--wait", type=float, default=0.0, help="s to wait for free cores before a sample")
    parser.add_argument("--wait-total", type=float, default=defaults.plan.wait_total, help="s to wait so for a model")
    parser.add_argument("--max-lost", type=float, default=defaults.plan.max_lost, help="share others may take")
    parser.add_argument("--work", type=Path, default=defaults.work, help="folder for converted models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the report (stdout without FILE)")
    parser.add_argument("--continue", action="store_true", dest="go_on", help="measure what the file of --json lacks")
    parsed = parser.parse_args(arguments)
    if parsed.go_on and parsed.json in (None, "-"):
        parser.error("--continue needs the report to go on with: --json FILE")
    plan = SamplingPlan(
        rounds=parsed.rounds,
        max_rounds=parsed.max_rounds or 3 * parsed.rounds,
        patience_seconds=parsed.patience,
        max_lost=parsed.max_lost,
        wait_seconds=parsed.wait,
        wait_total=parsed.wait_total,
    )
    options = BenchOptions(
        model=parsed.model[0],
        checkpoint=parsed.checkpoint,
        weights_dtypes=parsed.weights_dtype.split(",") if parsed.weights_dtype else (),
        threads=parsed.threads,
        prefill=parsed.prefill,
        prompts=parsed.prompts,
        decode_tokens=parsed.decode,
        contexts=parsed.context,
        mixed=parsed.mixed,
        batches=parsed.batch,
        continuous=parsed.continuous,
        kv_dtypes=parsed.kv_dtype.split(",") if parsed.kv_dtype else (None,),
        beside_busy=parsed.beside_busy,
        starts=parsed.starts,
        vs=[name for entry in parsed.vs for name in entry.split(",")],
        peer_pythons=parse_pythons(parsed.peer_python),
        own=not parsed.no_own,
        deterministic=parsed.deterministic,
        seed=parsed.seed,
        work=parsed.work,
        plan=plan,
    )
    models = [dataclasses.replace(options, model=name) for name in parsed.model]
    stages = parsed.suite.split(",") if parsed.suite else ()
    return Command(models, stages, parsed.json, parsed.prepare, parsed.go_on)


def _numbers(text: str) -> list[int]:
    """Numbers separated by commas; 0 alone means none."""
    return [number for number in (int(part) for part in text.split(",")) if number]


def _span(text: str) -> tuple[int, int]:
    """LOW-HIGH, both at least 1."""
    low, dash, high = text.partition("-")
    if not (dash and low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted two contexts from 1 as LOW-HIGH, such as 128-384")
    return int(low), int(high)


def parse_pythons(entries: Sequence[str]) -> dict[str, str]:
    """PEER=PYTHON entries as a table."""
    pythons = {}
    for entry in entries:
        peer, equals, python = entry.partition("=")
        if not equals or peer not in PEER_NAMES or not python:
            raise EchoError(f"--peer-python {entry!r}: wanted PEER=PYTHON with a peer of {', '.join(PEER_NAMES)}")
        pythons[peer] = python
    return pythons


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr where that is a terminal, else a line for each new text with the seconds since the start.

    It is drawn between samples only: a refreshing thread would take a core from what is being timed.
    """
    if not sys.stderr.isatty():
        begun = time.monotonic()

        def tell(progress: Progress) -> None:
            if progress.text:
                print(f"{time.monotonic() - begun:6.0f} s  {progress.text}", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=progress.text, refresh=True)

        yield show


def run_command(command: Command) -> None:
    """Runs each model, prints its tables as soon as it is done, and keeps the JSON file up to date on the way."""
    reports: list[Report | GpuReport] = []
    target = command.json
    earlier = (Path(target), read_reports(Path(target))) if command.go_on and target else None

    def keep(*more: Report) -> None:
        """Writes what there is, and what an earlier run found out about other models."""
        documents = [report.as_dict() for report in (*reports, *more)]
        if target is not None and documents:
            models = [document["model"] for document in documents]
            others = [old.as_dict() for old in (earlier[1] if earlier else ()) if old.model not in models]
            write_json([*documents, *others], target)

    on_change = keep if target not in (None, "-") else lambda _report: None
    for options in command.options:
        with progress_bar() as show:
            if command.prepare:
                for line in prepare(suite_stages(options, command.suite) if command.suite else [options], show):
                    print(line, flush=True)
                continue
            if command.suite:
                reports.append(run_stages(suite_stages(options, command.suite), show, on_change, earlier))
            else:
                reports.append(run_benchmark(options, show, on_change, earlier))
        if target != "-":
            print_report(reports[-1])
    keep()


def print_report(report: Report | GpuReport) -> None:
    """The report as text and tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    if isinstance(report, GpuReport):
        for line in report.lines():
            console.print(line, highlight=False)
        table = Table(*COLUMNS, title="results")
        for result in report.results:
            table.add_row(*result.row())
        console.print(table)
        return
    machine = report.machine
    console.print(f"{machine['cpu']}, {machine['cpus']} CPUs, {report.threads} threads; model {report.model['name']}")
    for line in limit_lines(report):
        console.print(f"  {line}", highlight=False)
    for title, columns, rows in tables(report):
        if rows:
            table = Table(*columns, title=title)
            for row in rows:
                table.add_row(*row)
            console.print(table)
    document = report.as_dict()
    discarded, clean = document["samples_discarded"], document["samples_clean"]
    allowed = f"others had more than {report.max_lost:.0%} of the cores"
    console.print(f"{discarded} of {discarded + clean} samples discarded: {allowed}", highlight=False)
    states = "; ".join(f"{name}: {meaning}" for name, meaning in CORE_STATES.items())
    console.print(f"cores: {states}", highlight=False)


def write_json(documents: Sequence[dict[str, Any]], target: str) -> None:
    """One report as it is, several under `reports`, to a file (beside, then renamed) or to stdout for '-'."""
    text = json.dumps(documents[0] if len(documents) == 1 else {"schema": SCHEMA, "reports": documents}, indent=1)
    if target == "-":
        print(text)
        return
    partial = Path(target).with_name(Path(target).name + ".partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise EchoError(f"cannot write the report to {target}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the harness from the command line; returns the exit status."""
    try:
        run_command(parse(sys.argv[1:] if arguments is None else arguments))
    except EchoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
