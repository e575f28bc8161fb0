"""Sources, places in them, and errors that show the line and point into it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from echoc.compiler.ir.algebra import Where
from echoc.errors import CompileError

MAX_SHOWN = 160  # characters of a source line in a message


@dataclass(slots=True)
class Source:
    """One file: its name for messages and its text."""

    file: str
    text: str
    _starts: list[int] = field(default_factory=list)

    def where(self, offset: int) -> Where:
        """Line and column of a character offset."""
        if not self._starts:
            starts, at = [0], self.text.find("\n")
            while at >= 0:
                starts.append(at + 1)
                at = self.text.find("\n", at + 1)
            self._starts = starts
        line = bisect_right(self._starts, offset)
        return Where(self.file, line, offset - self._starts[line - 1] + 1)

    def excerpt(self, where: Where) -> str:
        """The line of `where` and below it a caret at its column; long lines are cut around the column."""
        start = self._starts[where.line - 1]
        end = self.text.find("\n", start)
        line = self.text[start : end if end >= 0 else len(self.text)].rstrip("\r")
        column = where.column - 1
        first = max(0, column - MAX_SHOWN // 2) if len(line) > MAX_SHOWN else 0
        shown = "".join(c if c.isprintable() else " " for c in line[first : first + MAX_SHOWN])
        return f"  {shown}\n  {' ' * (column - first)}^"


class Mark(NamedTuple):
    """A place in a source."""

    source: Source
    offset: int


class Fault(Exception):
    """A mistake in the source at one place; collected into a `PLinguaError`."""

    def __init__(self, message: str, mark: Mark) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake: what, where, and the source line with a caret."""

    message: str
    where: Where
    excerpt: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if str(self.where) else self.message
        return f"{text}\n{self.excerpt}" if self.excerpt else text


class PLinguaError(CompileError):
    """A P-Lingua source that is not a P system; `diagnostics` holds every mistake that was found."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(str(d) for d in diagnostics))
        self.diagnostics = tuple(diagnostics)


def diagnose(fault: Fault) -> Diagnostic:
    source = fault.mark.source
    if not source.text:  # of the file as a whole
        return Diagnostic(fault.message, Where(source.file))
    where = source.where(fault.mark.offset)
    return Diagnostic(fault.message, where, source.excerpt(where))


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on the work that a source may ask for; each raises an error that names it.

    steps: iterations of ranges and loops, and calls, together.
    """

    steps: int = 5_000_000
    rules: int = 1_000_000
    cells: int = 1_000_000
    calls: int = 1_000  # modules inside modules
    brackets: int = 200  # membranes inside membranes
    parentheses: int = 64
    characters: int = 64 << 20  # of all files together
    files: int = 1_000
    errors: int = 20  # reported at once
