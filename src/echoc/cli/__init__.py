"""The command line: one file per verb; a room of the package is imported only when a verb needs it."""

import sys

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Run the command line on `argv` (default: the process's own) and exit.

    Exit codes: 0 done; 1 an error, told in one message on standard error; 2 wrong usage; 130 interrupted.
    """
    try:
        # Imported here so that Ctrl-C during start-up is as quiet as anywhere else.
        from echoc.cli.app import app

        app(args=argv, prog_name="echoc")
    except KeyboardInterrupt:
        sys.stderr.write("echoc: interrupted\n")
        sys.exit(130)
