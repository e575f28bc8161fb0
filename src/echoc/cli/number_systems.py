"""`echoc run` for numerical P systems: one trajectory of their variables."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from echoc.cli.console import print_json, stopwatch
from echoc.cli.systems import show_trace
from echoc.errors import EchoError, RequestError

if TYPE_CHECKING:
    from echoc.cli.systems import Wishes
    from echoc.runtime.artifact import Artifact


class Numbers:
    """A numerical P system: one trajectory of its variables."""

    def __init__(self, artifact: "Artifact", wishes: "Wishes") -> None:
        self.artifact, self.wishes = artifact, wishes
        if wishes.runs > 1 or wishes.until is not None:
            raise RequestError("a numerical P system has one trajectory, in steps: leave --runs and --until out")
        try:
            source = artifact.manifest.raw["source"]
            self.name = str(source.get("name") or artifact.path.stem)
            self.names = [str(v[0]) for v in source["variables"]]
            self.values = [float(v[2]) for v in source["variables"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EchoError(f"{artifact.path} does not name its variables: {error!r}; compile it again") from None

    def run(self) -> None:
        wishes = self.wishes
        if wishes.steps is None:
            raise typer.BadParameter("a numerical P system never halts: say how many steps with --steps N")
        with tempfile.TemporaryDirectory(prefix="echoc-") as folder, stopwatch() as seconds:
            path = wishes.trace or Path(folder) / "trace.jsonl"
            self.follow(path if wishes.watched else None, wishes.steps)
            elapsed = seconds()
            if wishes.watched:
                show_trace(path, wishes)
        if wishes.as_json:
            values = {n: v if v == v and abs(v) != float("inf") else str(v) for n, v in self.table().items()}
            print_json({"artifact": str(self.artifact.path), "name": self.name, "mode": "numerical",
                        "steps": wishes.steps, "values": values, "seconds": round(elapsed, 6)})  # fmt: skip
        elif not wishes.text:
            typer.echo(f"{self.name}: at step {wishes.steps}")
            typer.echo(", ".join(f"{name} = {value:.12g}" for name, value in self.table().items()))

    def table(self) -> dict[str, float]:
        return dict(zip(self.names, self.values, strict=True))

    def follow(self, path: Path | None, steps: int) -> None:
        from echoc.membranes.view.trace import Frame, Header, TraceWriter
        from echoc.runtime.program import Program

        program = Program(self.artifact, num_threads=self.wishes.threads)
        if path is None:
            for _ in range(steps):
                outputs = program.step({}, copy=False)
            if steps:
                self.values = [float(v) for v in outputs["values"]]
            return
        with TraceWriter(path, Header(self.name, "numerical", source=self.artifact.path.name)) as writer:
            writer.write(Frame(0, values=self.table()))
            for step in range(1, steps + 1):
                self.values = [float(v) for v in program.step({})["values"]]
                writer.write(Frame(step, values=self.table()))
            writer.end(halted=False, reason="steps")
