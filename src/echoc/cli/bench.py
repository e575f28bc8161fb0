"""`echoc bench`: measure, with the options of the harness (`bench/cli.py`); `python -m echoc.bench` is the same."""

import typer

from echoc.cli.console import DebugOption, verb

# Everything that is not --debug, --help too, is for the harness to read.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@verb
def command(context: typer.Context, debug: DebugOption = False) -> None:
    """Measure prefill, decode and batched decode against the machine's limits and other engines."""
    from echoc.bench.cli import parse, run_command

    run_command(parse(context.args))
