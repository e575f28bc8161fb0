"""`echoc run` for numerical P systems: trajectories of their variables."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from echoc.cli.console import print_json, progress_bar, say, stopwatch
from echoc.cli.stepping import Stop, stoppable
from echoc.cli.systems import show_trace
from echoc.errors import EchoError, RequestError

if TYPE_CHECKING:
    from echoc.cli.systems import Wishes
    from echoc.runtime.artifact import Artifact

LOOK = 1 << 10  # steps between two looks at the progress bar
SEEDS, RUNS = 1 << 64, 1 << 32
Row = np.ndarray[Any, np.dtype[np.float64]]


class Numbers:
    """A numerical P system: what its variables come to, in one run or in several."""

    def __init__(self, artifact: "Artifact", wishes: "Wishes") -> None:
        from echoc.runtime.program import Program

        self.artifact, self.wishes = artifact, wishes
        if wishes.until is not None:
            raise RequestError("a numerical P system counts steps, it has no time: leave --until out")
        if not 0 <= wishes.seed < SEEDS or wishes.runs > RUNS:
            raise RequestError(f"seed {wishes.seed} and {wishes.runs} runs; wanted 0 to 2^64 - 1 and 1 to 2^32")
        if wishes.runs > 1 and wishes.watched:
            raise typer.BadParameter("--trace, --text, --plot and --html show one run; leave --runs out")
        if wishes.steps is None:
            raise typer.BadParameter("a numerical P system never halts: say how many steps with --steps N")
        self.steps, self.done, self.stop = wishes.steps, 0, Stop()
        try:
            source = artifact.manifest.raw["source"]
            self.name = str(source.get("name") or artifact.path.stem)
            self.names = [str(v[0]) for v in source["variables"]]
            self.first: Row = np.array([float(v[2]) for v in source["variables"]])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EchoError(f"{artifact.path} does not name its variables: {error!r}; compile it again") from None
        self.program = Program(artifact, num_threads=wishes.threads or 1)  # a step is short: others only wait

    def run(self) -> None:
        self.many() if self.wishes.runs > 1 else self.one()

    def one(self) -> None:
        wishes = self.wishes
        with stopwatch() as seconds, stoppable() as self.stop, progress_bar(enabled=not wishes.as_json) as progress:
            if wishes.watched:
                with tempfile.TemporaryDirectory(prefix="echoc-") as folder:
                    path = wishes.trace or Path(folder) / "trace.jsonl"
                    values = self.watch(path, progress)
                    elapsed = seconds()
                    show_trace(path, wishes)
            else:
                values = self.last(0, progress)
                elapsed = seconds()
        if wishes.as_json:
            print_json({**self.described(), "values": self.table(values), "seconds": round(elapsed, 6)})
        elif not wishes.text:
            typer.echo(f"{self.name}: at step {self.done}")
            typer.echo(", ".join(f"{n} = {v:.12g}" for n, v in zip(self.names, values, strict=True)))
        self.stop.leave(f"at step {self.done}; the run stands there")

    def many(self) -> None:
        wishes = self.wishes
        with stopwatch() as seconds, stoppable() as self.stop, progress_bar(enabled=not wishes.as_json) as progress:
            ends = np.empty((wishes.runs, len(self.names)))
            for run in range(wishes.runs):
                ends[run] = self.last(run, lambda *_: None)
                if self.stop.asked:
                    ends = ends[:run]
                    break
                progress("run", run + 1, wishes.runs)
            elapsed = seconds()
        if not len(ends):
            self.stop.leave("before a run had ended")
        with np.errstate(all="ignore"):  # of values that are not finite, no spread is either
            found = {"mean": ends.mean(axis=0), "sd": ends.std(axis=0, ddof=min(1, len(ends) - 1)),
                     "min": ends.min(axis=0), "max": ends.max(axis=0)}  # fmt: skip
        if wishes.as_json:
            runs = [{"run": run, "values": self.table(values)} for run, values in enumerate(ends)]
            spread = {what: self.table(values) for what, values in found.items()}
            summary = {"runs": len(ends), "values": {n: {w: spread[w][n] for w in spread} for n in self.names}}
            print_json({**self.described(), "runs": runs, "summary": summary, "seconds": round(elapsed, 6)})
        else:
            told = zip(self.names, found["mean"], found["sd"], strict=True)
            typer.echo(f"{self.name}: {len(ends)} runs, at step {self.steps}")
            typer.echo(", ".join(f"{name} {mean:.6g} (sd {sd:.4g})" for name, mean, sd in told))
            say(f"({len(ends)} runs in {elapsed:.3f} s)")
        self.stop.leave(f"at {len(ends)} of {wishes.runs} runs")

    def described(self) -> dict[str, Any]:
        return {"artifact": str(self.artifact.path), "name": self.name, "mode": "numerical", "seed": self.wishes.seed,
                "steps": self.done, **({"interrupted": True} if self.stop.asked else {})}  # fmt: skip

    def table(self, values: Row) -> dict[str, Any]:
        """The values by name, as JSON has them."""
        return {n: float(v) if np.isfinite(v) else str(v) for n, v in zip(self.names, values, strict=True)}

    def trajectory(self, run: int, progress: Any) -> Iterator[Row]:
        """The values after each step of a run, up to Ctrl-C; the next step overwrites them."""
        from echoc.runtime.program import ValueInstance

        numbers = {"seed": np.array(self.wishes.seed, np.uint64).astype(np.int64), "run": np.array(run)}
        taken = {port.name for port in self.artifact.manifest.ports if port.direction == "in"}
        instance = ValueInstance(self.program, {name: n for name, n in numbers.items() if name in taken})
        self.done = 0
        while self.done < self.steps and not self.stop.asked:
            values = instance.step(copy=False)["values"]
            self.done += 1
            if self.done % LOOK == 0:
                progress("run", self.done, self.steps)
            yield values

    def last(self, run: int, progress: Any) -> Row:
        values = self.first
        for after in self.trajectory(run, progress):
            values = after
        return values

    def watch(self, path: Path, progress: Any) -> Row:
        """The trace of a run; returns the values at its end."""
        from echoc.membranes.view.trace import Frame, Header, TraceWriter

        header = Header(self.name, "numerical", self.wishes.seed, source=self.artifact.path.name)
        values = self.first
        with TraceWriter(path, header) as writer:
            writer.write(Frame(0, values=self.number_table(values)))
            for step, values in enumerate(self.trajectory(0, progress), 1):
                writer.write(Frame(step, values=self.number_table(values)))
            writer.end(halted=False, reason="interrupted" if self.stop.asked else "steps")
        return values

    def number_table(self, values: Row) -> dict[str, float]:
        return dict(zip(self.names, values.tolist(), strict=True))
