"""`echoc run` and `echoc compile` for membrane systems: P systems of objects and of numbers."""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from echoc.cli.console import human_bytes, print_json, progress_bar, say, stopwatch
from echoc.cli.stepping import Stop, in_pieces, stoppable
from echoc.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from echoc.membranes.view.trace import Frame, Header, TraceWriter
    from echoc.runtime.artifact import Artifact
    from echoc.runtime.systems import SystemProgram, SystemRun

SUFFIXES = (".pli", ".kpl", ".pep", ".xml", ".sbml", ".toml")
LISTED = 100_000  # membranes of a configuration that a trace lists one by one
LISTED_PAGES = 2_000_000  # of 15 objects each: larger configurations are told by their sums


@dataclass(frozen=True)
class Wishes:
    """What the command line asks of a run."""

    steps: int | None = None
    until: float | None = None
    seed: int = 0
    runs: int = 1
    trace: Path | None = None
    plot: Path | None = None
    html: Path | None = None
    text: bool = False
    memory: int | None = None
    threads: int | None = None
    as_json: bool = False
    input: Path | None = None

    @property
    def watched(self) -> bool:
        """Whether every step is to be seen."""
        return self.text or any(path is not None for path in (self.trace, self.plot, self.html))


@dataclass
class Told:
    """What a run has come to, beside its configuration."""

    error: str | None = None
    reason: str = "steps"
    extra: dict[str, Any] = field(default_factory=dict)


def is_source(path: Path) -> bool:
    """Whether a file is in a membrane language."""
    return path.suffix.lower() in SUFFIXES


def parse_bytes(text: str | None) -> int | None:
    """`512M`, `2G` or a number of bytes."""
    if text is None:
        return None
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    head = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = head[-1:] if head[-1:] in units and not head[-1:].isdigit() else ""
    number = head.removesuffix(unit) if unit else head
    try:
        size = int(float(number) * units[unit])
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is no amount of memory; wanted something like 512M or 2G")
    return size


def parse_parameters(given: list[str]) -> dict[str, float]:
    """`NAME=VALUE` pairs."""
    out = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            out[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise typer.BadParameter(f"{text!r} is not of the form NAME=NUMBER")
    return out


def compile_source(
    source: Path, output: Path, target: str, include: list[Path], parameters: list[str], seed: int | None,
    *, show_progress: bool, allow_substochastic: bool = False,
) -> float:  # fmt: skip
    """Compile a file of a membrane language; returns the seconds it took."""
    from echoc.membranes.compiling import compile as compile_system

    options: dict[str, Any] = {}
    if include:
        options["include_paths"] = include
    if parameters:
        options["parameters"] = parse_parameters(parameters)
    if seed is not None:
        options["seed"] = seed
    if allow_substochastic:
        options["allow_substochastic"] = True
    with stopwatch() as seconds, progress_bar(enabled=show_progress) as progress:
        compile_system(source, target=target, output=output, progress=progress, **options)
        return seconds()


@contextmanager
def as_artifact(path: Path, show_progress: bool, allow_substochastic: bool = False) -> Iterator[Path]:
    """The artifact of a file: itself, or what a source compiles to, for the length of the block."""
    if not is_source(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="echoc-") as folder:
        output = Path(folder) / f"{path.stem}.echo"
        compile_source(
            path, output, "cpu", [], [], None, show_progress=show_progress, allow_substochastic=allow_substochastic
        )
        yield output


def holds_system(artifact: "Artifact") -> bool:
    """Whether an artifact is run by `run_system`."""
    raw = artifact.manifest.raw
    return any(isinstance(raw.get(key), dict) for key in ("system", "compound")) or (
        raw.get("source", {}).get("kind") == "numerical"
    )


def run_system(artifact: "Artifact", wishes: Wishes) -> None:
    """Run what an artifact holds and print what came of it. Leaves with exit code 1 where a run could not go on."""
    if "compound" in artifact.manifest.raw:
        from echoc.cli.topologies import run_topology

        return run_topology(artifact, wishes, wishes.input)
    if wishes.input is not None:
        raise typer.BadParameter("--input is what comes in at the ports of a topology; this is none")
    if "system" not in artifact.manifest.raw:
        from echoc.cli.number_systems import Numbers

        return Numbers(artifact, wishes).run()
    from echoc.runtime.systems import SystemProgram

    program = SystemProgram(artifact, num_threads=wishes.threads, max_bytes=wishes.memory)
    if wishes.until is not None and program.mode != "gillespie":
        raise RequestError(f"--until is a time of chemical systems; this one is in mode {program.mode}: use --steps")
    if wishes.runs > 1:
        if wishes.watched:
            raise typer.BadParameter("--trace, --text, --plot and --html show one run; leave --runs out")
        return Many(program, wishes).run()
    return One(program, wishes).run()


class One:
    """One run of a P system of objects."""

    def __init__(self, program: "SystemProgram", wishes: Wishes) -> None:
        self.program, self.wishes = program, wishes
        self.live = program.create(seed=wishes.seed)

    def run(self) -> None:
        wishes = self.wishes
        told = Told()
        with stopwatch() as seconds, stoppable() as stop, progress_bar(enabled=not wishes.as_json) as progress:
            try:
                if wishes.watched:
                    with tempfile.TemporaryDirectory(prefix="echoc-") as folder:
                        self.watch(wishes.trace or Path(folder) / "trace.jsonl", told, stop, progress)
                else:
                    advance(self.live, wishes, stop, progress)
            except DeviceError as error:
                told.error = str(error)
            elapsed = seconds()
        if stop.asked:
            told.extra["interrupted"] = True
        self.tell(told, elapsed)
        if told.error is not None:
            say(f"echoc: {told.error}")
            raise SystemExit(1)
        stop.leave(f"at step {self.live.steps}; the run stands there")

    def watch(self, path: Path, told: Told, stop: Stop, progress: Any) -> None:
        """Step by step, into a trace; then the text and the pictures that were asked for."""
        from echoc.membranes.view.trace import TraceWriter

        with TraceWriter(path, header(self.program, self.wishes), partial=self.wishes.trace is not None) as writer:
            reason, message = self.follow(writer, stop, progress), ""
            if isinstance(reason, DeviceError):
                told.error = message = str(reason)
                reason = "overflow" if "2^63" in message else "memory"
            writer.end(halted=self.live.halted, reason=reason, message=message)
        told.reason = reason
        show_trace(path, self.wishes)

    def follow(self, writer: "TraceWriter", stop: Stop, progress: Any) -> Any:
        """Writes every configuration; returns why it stopped, or the error that stopped it."""
        writer.write(frame(self.live, self.program, recorded=False))
        done, wanted = 0, self.wishes.steps
        while wanted is None or done < wanted:
            if stop.asked:
                return "interrupted"
            try:
                outcome = self.live.advance(1, record=True)
            except DeviceError as error:
                return error
            if outcome.halted and outcome.steps == done:
                return "no rule applies"
            done = outcome.steps
            if self.wishes.until is not None and (self.live.time or 0.0) > self.wishes.until:
                return "steps"
            writer.write(frame(self.live, self.program, recorded=True))
            progress("run", done, wanted or 0)
            if outcome.halted:
                return "no rule applies"
        return "steps"

    def tell(self, told: Told, elapsed: float) -> None:
        if self.wishes.as_json:
            document = {
                "artifact": str(self.program.artifact.path), **described(self.program), "seed": self.wishes.seed,
                **standing(self.live), "memory": self.live.memory(), "seconds": round(elapsed, 6),
            }  # fmt: skip
            document |= told.extra
            if told.error is not None:
                document["error"] = told.error
            print_json(document)
        elif not self.wishes.text:
            say_standing(self.live, self.program)
            memory = self.live.memory()
            held = f", {human_bytes(memory['peak_bytes'])} at most" if "peak_bytes" in memory else ""
            say(f"({self.live.steps} steps in {elapsed:.3f} s{held})")


class Many:
    """Several runs of one seed, side by side."""

    def __init__(self, program: "SystemProgram", wishes: Wishes) -> None:
        self.program, self.wishes = program, wishes

    def run(self) -> None:
        wishes = self.wishes
        errors: dict[int, str] = {}
        with stopwatch() as seconds, stoppable() as stop, progress_bar(enabled=not wishes.as_json) as progress:
            runs = list(self.rows(errors, stop, progress))
            elapsed = seconds()
        if not runs:
            stop.leave("before a run had ended")
        means = summary(runs)
        document = {
            "artifact": str(self.program.artifact.path), **described(self.program), "seed": wishes.seed,
            "runs": [run | ({"error": errors[run["run"]]} if run["run"] in errors else {}) for run in runs],
            "summary": means, "seconds": round(elapsed, 6), **({"interrupted": True} if stop.asked else {}),
        }  # fmt: skip
        if wishes.as_json:
            print_json(document)
        else:
            typer.echo("\n".join(summary_lines(runs, means)))
            say(f"({len(runs)} runs in {elapsed:.3f} s)")
        if errors:
            first = min(errors)
            say(f"echoc: {len(errors)} of {len(runs)} runs could not go on; run {first}: {errors[first]}")
            raise SystemExit(1)
        stop.leave(f"at {len(runs)} of {wishes.runs} runs")

    def rows(self, errors: dict[int, str], stop: Stop, progress: Any) -> Iterator[dict[str, Any]]:
        """How the runs stand; where membranes come and go, of those that had ended before an interruption."""
        if self.program.engine == "runs":
            batch = self.program.create_many(self.wishes.runs, seed=self.wishes.seed)
            try:
                advance_batch(batch, self.wishes, stop, progress)
            except DeviceError as error:
                errors[0] = str(error)
            for index in range(self.wishes.runs):
                yield {"run": index, **standing(self.program.row(batch, index))}
            return
        size = self.program.most_together
        for first in range(0, self.wishes.runs, size):
            if stop.asked:
                return
            yield from self.together(first, min(size, self.wishes.runs - first), errors, stop, progress)

    def together(
        self, first: int, count: int, errors: dict[int, str], stop: Stop, progress: Any
    ) -> Iterator[dict[str, Any]]:
        """Runs of a population. What does not fit its share of the memory is run again with all of it."""
        batch: Any = self.program.create_many(count, seed=self.wishes.seed, first=first)
        advance_batch(batch, self.wishes, stop, progress)
        found = dict(enumerate(batch))
        rows = {i: standing(run) for i, run in found.items() if not stop.asked or run.halted or i in batch.errors}
        failed, batch = batch.errors, None
        del found
        for i, row in rows.items():
            error = failed.get(i)
            if error is not None and error.out_of_memory and count > 1 and not stop.asked:
                live, error = self.program.create(seed=self.wishes.seed, run=first + i), None
                try:
                    advance(live, self.wishes, stop, lambda *_: None)
                except DeviceError as again:
                    error = again
                if stop.asked:
                    continue
                row = standing(live)
            if error is not None:
                errors[first + i] = str(error)
            yield {"run": first + i, **row}


def advance(live: "SystemRun", wishes: Wishes, stop: Stop, progress: Any) -> None:
    """As far as was asked: steps, a time, or until it halts."""
    options: dict[str, Any] = {} if wishes.until is None else {"until": wishes.until}

    def take(count: int) -> int:
        before = live.steps
        live.advance(count, **options)
        return live.steps - before

    in_pieces(take, wishes.steps, stop, progress)


def advance_batch(batch: Any, wishes: Wishes, stop: Stop, progress: Any) -> None:
    from echoc.runtime.population import PopulationLimit

    options: dict[str, Any] = {} if wishes.until is None else {"until": wishes.until}

    def take(count: int) -> int:
        before = batch.steps.copy()
        with suppress(PopulationLimit):  # the others have gone on
            batch.advance(count, **options)
        return int((batch.steps - before).max(initial=0))

    in_pieces(take, wishes.steps, stop, progress)


def described(program: "SystemProgram") -> dict[str, Any]:
    return {"name": program.name, "model": program.model, "mode": program.mode}


def standing(live: "SystemRun") -> dict[str, Any]:
    """Where a run stands, as JSON has it: every membrane, or the sums by label of a very large configuration."""
    out: dict[str, Any] = {
        "steps": live.steps, "halted": live.halted, "halting_step": live.steps if live.halted else None,
        "num_membranes": live.memory()["membranes"], "environment": live.environment(),
    }  # fmt: skip
    if is_large(live):
        return out | {"totals": live.totals()}
    out["membranes"] = live.membranes()
    if live.time is not None:
        out["time"] = live.time
    links = live.links()
    if links:
        out["links"] = [list(pair) for pair in links]
    return out


def is_large(live: "SystemRun") -> bool:
    """Whether a configuration is better not listed membrane by membrane."""
    return live.memory().get("pages", 0) > LISTED_PAGES


def say_standing(live: "SystemRun", program: "SystemProgram") -> None:
    """The configuration for a person."""
    from echoc.membranes.view.text import configuration_text

    what = f"halted at step {live.steps}" if live.halted else f"at step {live.steps}"
    clock = f", time {live.time:.6g}" if live.time is not None else ""
    typer.echo(f"{program.name or program.artifact.path.stem}: {what}{clock}")
    typer.echo(configuration_text(frame(live, program, recorded=False)))


def header(program: "SystemProgram", wishes: Wishes) -> "Header":
    from echoc.membranes.view.trace import Header

    return Header(
        program.name or program.artifact.path.stem, program.model, wishes.seed, 0, tuple(program.labels),
        tuple(program.objects), tuple(program.rules), program.artifact.path.name,
    )  # fmt: skip


def frame(live: "SystemRun", program: "SystemProgram", *, recorded: bool) -> "Frame":
    """The configuration of a run; of very many membranes, the sums by label."""
    from echoc.membranes.view.trace import Fired, Frame, Membrane, Total

    applied = tuple(Fired(a.rule, a.members, a.times) for a in live.applied()) if recorded else ()
    environment = live.environment()
    if live.memory()["membranes"] > LISTED or is_large(live):
        counts = {label: Total(t["membranes"], t["objects"]) for label, t in live.totals().items()}
        return Frame(live.steps, environment=environment, applied=(), time=live.time, counts=counts)
    membranes = tuple(
        Membrane(
            m["id"], m["label"], m["charge"], m["parent"], m["objects"], m.get("name", ""), m.get("closed", 0)
        )
        for m in live.membranes()
    )  # fmt: skip
    links = tuple(live.links()) if program.links_matter else ()
    return Frame(live.steps, membranes, environment, links, applied, live.time)


def show_trace(path: Path, wishes: Wishes) -> None:
    """The text and the pictures of a trace that was written."""
    from echoc.membranes.view.reading import read_trace

    if wishes.text and not wishes.as_json:
        from echoc.membranes.view.text import trace_text

        for line in trace_text(read_trace(path)):
            typer.echo(line)
    if wishes.plot is not None:
        from echoc.membranes.view.plot import plot

        plot(path, wishes.plot)
    if wishes.html is not None:
        from echoc.membranes.view.page import html

        html(path, wishes.html)
    for written in (wishes.trace, wishes.plot, wishes.html):
        if written is not None:
            say(f"wrote {written}")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over runs: mean and standard deviation of steps, of membranes, and of objects by label and in the environment."""
    sums: dict[str, dict[str, list[int]]] = {}
    for index, run in enumerate(runs):
        places = [("environment", run["environment"])] + [(m["label"], m["objects"]) for m in run.get("membranes", [])]
        places += [(label, total["objects"]) for label, total in run.get("totals", {}).items()]
        for place, objects in places:
            for name, count in objects.items():
                counts = sums.setdefault(place, {}).setdefault(name, [0] * len(runs))
                counts[index] += count
    return {
        "runs": len(runs), "halted": sum(run["halted"] for run in runs), "steps": spread([r["steps"] for r in runs]),
        "membranes": spread([r["num_membranes"] for r in runs]),
        "objects": {place: {name: spread(c) for name, c in found.items()} for place, found in sums.items()},
    }  # fmt: skip


def spread(values: list[int]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values), "max": max(values),
    }  # fmt: skip


def summary_lines(runs: list[dict[str, Any]], means: Mapping[str, Any]) -> Iterator[str]:
    steps, membranes = means["steps"], means["membranes"]
    yield (
        f"{means['runs']} runs, {means['halted']} halted; steps {steps['min']:g} to {steps['max']:g}, mean "
        f"{steps['mean']:.6g}; membranes {membranes['min']:g} to {membranes['max']:g}"
    )
    for place, objects in means["objects"].items():
        yield f"{place}: " + ", ".join(
            f"{name} {found['mean']:.6g} (sd {found['sd']:.4g})" for name, found in objects.items()
        )


def report_compiled(path: Path, elapsed: float, as_json: bool) -> None:
    """What `echoc compile` says of an artifact that it wrote."""
    size = path.stat().st_size
    if as_json:
        sys.stdout.write(
            json.dumps({"artifact": str(path), "bytes": size, "seconds": round(elapsed, 3)}, indent=2) + "\n"
        )
    else:
        say(f"wrote {path} ({human_bytes(size)}) in {elapsed:.1f} s")
