"""What every verb shares: errors as one message, exit codes, JSON on standard output, progress on standard error."""

import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from types import FrameType
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from echoc.errors import EchoError

P = ParamSpec("P")

# What the extra named `compile` brings.
COMPILE_PACKAGES = ("torch", "transformers", "safetensors")

INTERRUPTED = 130
TERMINATED = 143
PROGRESS_AFTER_SECONDS = 2.0

DebugOption = Annotated[bool, typer.Option("--debug", help="On an error, print the traceback too.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]


def verb(body: Callable[P, None]) -> Callable[P, None]:
    """Give a verb the manners of the command line: what goes wrong becomes one message and an exit code."""

    @functools.wraps(body)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        previous = signal.signal(signal.SIGTERM, _terminate) if _in_main_thread() else None
        try:
            body(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _leave("interrupted", INTERRUPTED, debug)
        except (typer.Exit, typer.BadParameter):
            raise
        except BrokenPipeError:
            _hush()
        except EchoError as error:
            _leave(str(error), 1, debug)
        except ModuleNotFoundError as error:
            _leave(_describe_missing_module(error), 1, debug)
        except OSError as error:
            _leave(_describe_os_error(error), 1, debug)
        except MemoryError:
            _leave("out of memory; free some, or choose narrower weights with --weights-dtype", 1, debug)
        except Exception as error:
            _leave(f"internal error, please report it: {type(error).__name__}: {error}", 1, debug, hint=True)
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    return guarded


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write one line for the person at the terminal, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def package_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def human_bytes(count: float) -> str:
    """`count` bytes in binary units: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Progress:
    """A `(stage, done, total)` callback that draws a bar on standard error once the work has lasted two seconds.

    `total` 0 means that the length of the stage is unknown. When standard error is not a terminal nothing is drawn.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._lock = threading.Lock()
        self._latest: tuple[str, int, int] = ("starting", 0, 0)
        self._bar: Any = None
        self._task: Any = None
        self._closed = not (enabled and sys.stderr.isatty())
        self._timer = threading.Timer(PROGRESS_AFTER_SECONDS, self._open)
        self._timer.daemon = True
        if not self._closed:
            self._timer.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            self._latest = (stage, done, total)
            self._draw()

    def close(self) -> None:
        """Take the bar away; later calls draw nothing."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        with self._lock:
            if self._closed:
                return
            self._bar = progress.Progress(
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None)
            self._draw()
            self._bar.start()

    def _draw(self) -> None:
        if self._bar is not None:
            stage, done, total = self._latest
            self._bar.update(self._task, description=stage, completed=done, total=total or None)


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Progress]:
    """A `Progress` for the length of a block."""
    progress = Progress(enabled)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the block began, as a function."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _leave(message: str, code: int, debug: bool, hint: bool = False) -> NoReturn:
    if debug:
        traceback.print_exc()
    elif hint:
        message += " (--debug shows the traceback)"
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _hush()
    say(f"echoc: {message}")
    raise SystemExit(code)


def _hush() -> NoReturn:
    """The reader went away (`echoc ... | head`): end quietly, and keep the interpreter from flushing into the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(1)


def _describe_missing_module(error: ModuleNotFoundError) -> str:
    if (error.name or "").split(".")[0] in COMPILE_PACKAGES:
        return f"this needs {error.name}, which is not installed: pip install 'echoc[compile]'"
    return f"the installation is incomplete ({error}): reinstall echoc"


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
