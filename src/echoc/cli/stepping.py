"""Long runs: a Ctrl-C ends them between two steps, and everything up to there is kept and told."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from echoc.cli.console import INTERRUPTED, say

Item = TypeVar("Item")
LEAST, MOST = 0.05, 0.2  # seconds between two looks at the keyboard
LONGEST = 1 << 20  # steps between two looks


class Stop:
    """Whether the run is to end: set by Ctrl-C. A second one does not wait for the step, nor does one in `waited`."""

    asked = False
    waits = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked or self.waits:
            raise KeyboardInterrupt
        self.asked = True
        if sys.stderr.isatty():
            say("echoc: stopping after this step (once more to leave at once)")

    def waited(self, items: Iterator[Item]) -> Iterator[Item]:
        """Items that may be long in coming."""
        while True:
            self.waits = True
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.waits = False
            yield item

    def leave(self, where: str) -> None:
        """Ends the command if it was interrupted."""
        if self.asked:
            say(f"echoc: interrupted {where}")
            raise SystemExit(INTERRUPTED)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """For the length of the block, Ctrl-C only asks to stop."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop.ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def in_pieces(advance: Callable[[int], int], steps: int | None, stop: Stop, progress: Any) -> None:
    """Calls `advance(count)`, which takes at most so many steps and returns how many it took, up to `steps` in all
    (None: as long as it takes as many as it is asked for), in pieces of a fraction of a second.
    """
    piece, done = 1, 0
    while not stop.asked and (steps is None or done < steps):
        wanted = piece if steps is None else min(piece, steps - done)
        begin = time.perf_counter()
        taken = advance(wanted)
        elapsed = time.perf_counter() - begin
        done += taken
        progress("run", done, steps or 0)
        if taken < wanted:
            return
        if elapsed < LEAST:
            piece = min(2 * piece, LONGEST)
        elif elapsed > MOST:
            piece = max(1, piece // 2)
