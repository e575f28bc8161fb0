"""The table of verbs."""

from typing import Annotated

import typer

import echoc
from echoc.cli import bench, compile, doctor, inspect, run, trees, tune

app = typer.Typer(
    name="echoc",
    help="Compile language models and membrane systems into one artifact of fused kernels, look inside it, and run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"echoc {echoc.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the verb."""


app.command("compile")(compile.command)
app.command("run")(run.command)
app.command("inspect")(inspect.command)
app.command("bench", context_settings=bench.PASS_ON)(bench.command)
app.command("tune")(tune.command)
app.command("doctor")(doctor.command)
app.add_typer(trees.app, name="trees")
