"""`echoc bench`: measure."""

from echoc.cli.console import DebugOption, JsonOption, verb


@verb
def command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Measure prefill, decode and batched decode against the machine's own limits."""
