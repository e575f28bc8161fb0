"""`echoc run` for compound topologies: inputs from a file, one step a line; what reaches the out ports, printed."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from echoc.cli.console import print_json, progress_bar, say, stopwatch
from echoc.cli.stepping import stoppable
from echoc.errors import EchoError, RequestError

if TYPE_CHECKING:
    from echoc.cli.systems import Wishes
    from echoc.runtime.artifact import Artifact


def run_topology(artifact: "Artifact", wishes: "Wishes", inputs: Path | None) -> None:
    """Step a topology along its inputs, and further to `steps`, or until nothing is left to do.

    Inputs: JSON lines, an object of port -> value (a number, a list, a mapping to counts, a text) for each step; or CSV
    with a header, the columns of a port of several numbers called `port.0`, `port.1`, ...; `-` reads standard input.
    """
    from echoc.runtime.compound import CompoundProgram, plain

    if wishes.watched or wishes.runs > 1 or wishes.until is not None or wishes.memory is not None:
        raise typer.BadParameter("a topology takes --input, --steps, --seed, --threads and --json; leave the rest out")
    program = CompoundProgram(artifact, num_threads=wishes.threads)
    run = program.create(seed=wishes.seed)
    found: list[dict[str, Any]] = []
    problem: EchoError | None = None
    with stopwatch() as seconds, stoppable() as stop, progress_bar(enabled=not wishes.as_json) as progress:
        try:
            for where, values in stop.waited(lines(inputs, wishes.steps)):
                if stop.asked or (values is None and run.idle):
                    break
                try:
                    outputs = {port: plain(value) for port, value in run.step(values).items()}
                except RequestError as error:
                    raise RequestError(f"{where}: {error}" if where else str(error)) from None
                if outputs and wishes.as_json:
                    found.append({"step": run.steps, "outputs": outputs})
                elif outputs:
                    show(run.steps, outputs)
                progress("run", run.steps, wishes.steps or 0)
        except KeyboardInterrupt:
            stop.asked = True
        except EchoError as error:
            problem = error
        elapsed = seconds()
    if wishes.as_json:
        document = {
            "artifact": str(artifact.path), "name": program.name, "seed": wishes.seed, "steps": run.steps,
            "idle": run.idle, "outputs": found, "activity": run.activity(), "seconds": round(elapsed, 6),
            **({"interrupted": True} if stop.asked else {}), **({"error": str(problem)} if problem else {}),
        }  # fmt: skip
        print_json(document)
    elif problem is None:
        say(f"({run.steps} steps in {elapsed:.3f} s; {'nothing left to do' if run.idle else 'it could go on'})")
    if problem is not None:
        raise problem
    stop.leave(f"at step {run.steps}; what came out until then is above")


def show(step: int, outputs: dict[str, Any]) -> None:
    for port, value in outputs.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"step {step}: {port} = {text}" if "\n" not in text else f"step {step}: {port} =\n{text}")


Line = tuple[str, dict[str, Any]]
"""`file:line` and the values by port."""


def lines(path: Path | None, steps: int | None) -> Iterator[Line | tuple[str, None]]:
    """The inputs of one step after another; None for a step without, up to `steps` or without end."""
    done = 0
    for line in read(path) if path is not None else ():
        if steps is not None and done >= steps:
            return
        done += 1
        yield line
    while steps is None or done < steps:
        done += 1
        yield "", None


def read(path: Path) -> Iterator[Line]:
    if str(path) == "-":
        yield from parse(sys.stdin, "standard input", table=False)
        return
    with path.open(encoding="utf-8", newline="") as file:
        yield from parse(file, str(path), table=path.suffix.lower() == ".csv")


def parse(file: TextIO, name: str, table: bool) -> Iterator[Line]:
    """The lines of a file. Raises RequestError with the file and the line."""
    try:
        yield from rows(file, name) if table else documents(file, name)
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not text in UTF-8: {error}") from None


def documents(file: TextIO, name: str) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name}:{number}: found {line.strip()[:60]!r}; wanted a JSON object: {error}") from None
        if not isinstance(values, dict):
            raise RequestError(f"{name}:{number}: found {line.strip()[:60]!r}; wanted an object of port to value")
        yield f"{name}:{number}", values


def rows(file: TextIO, name: str) -> Iterator[Line]:
    """A line a step; cells that are empty give nothing."""
    reader = csv.DictReader(file)
    try:
        for row in reader:
            where = f"{name}:{reader.line_num}"
            values: dict[str, Any] = {}
            for column, cell in row.items():
                if column is None or cell is None:
                    raise RequestError(f"{where}: the line has not as many cells as the first")
                port, dot, place = column.rpartition(".")
                if cell.strip() == "":
                    continue
                if dot and place.isdecimal():
                    values.setdefault(port, []).append(number(cell, where))
                else:
                    values[column] = number(cell, where)
            yield where, values
    except csv.Error as error:
        raise RequestError(f"{name}:{reader.line_num}: {error}") from None


def number(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise RequestError(
            f"{where}: found {cell[:40]!r}; wanted a number (texts and objects come as JSON lines)"
        ) from None
