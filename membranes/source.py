"""Source texts of membrane languages, places in them, and the error that shows the place."""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from echoc.compiler.ir.algebra import Where
from echoc.errors import CompileError

MAX_BYTES = 64 << 20  # of one source file
MAX_SHOWN = 160  # characters of a source line in a message


class SourceError(CompileError):
    """A mistake in a source: the message is `file:line:column: found; wanted`, the line, and a caret below it.

    file, line, column: the place, counted from 1 (line 0: the file as a whole).
    text: the line of the source.
    expected: what should stand there instead, or "".
    """

    def __init__(self, found: str, *, file: str, line: int, column: int, text: str = "", expected: str = "") -> None:
        self.file, self.line, self.column, self.text, self.expected = file, line, column, text, expected
        message = f"{Where(file, line, column)}: {found}"
        if expected:
            message += f"; expected {expected}"
        super().__init__(message + (excerpt(text, column) if line else ""))


def excerpt(line: str, column: int) -> str:
    """A line of a source and below it a caret at a column, each on a line of its own; "" for a blank line."""
    if not line.strip():
        return ""
    shown, at = _cut(line, column - 1)
    return f"\n  {shown}\n  {' ' * at}^"


def _cut(line: str, at: int) -> tuple[str, int]:
    """A printable part of a line around `at`, and the place of `at` in it."""
    first = max(0, at - MAX_SHOWN // 2) if len(line) > MAX_SHOWN else 0
    return "".join(c if c.isprintable() else " " for c in line[first : first + MAX_SHOWN]), at - first


@dataclass(frozen=True)
class SourceText:
    """The text of one file; `file` is its name in messages."""

    file: str
    text: str

    @classmethod
    def read(cls, path: str | os.PathLike[str], text: str | None = None) -> SourceText:
        """The file at `path` as UTF-8, or `text` under that name. A byte order mark at its start is dropped.

        Raises CompileError if it cannot be read, is larger than 64 MiB or is not UTF-8.
        """
        name = os.fspath(path)
        if text is None:
            text = _load(name)
        elif len(text) > MAX_BYTES:
            raise CompileError(f"{name}: {len(text)} characters of source; at most {MAX_BYTES} are read")
        return cls(name, text.removeprefix("\ufeff"))

    @cached_property
    def starts(self) -> list[int]:
        """The offset of every line."""
        starts, at = [0], self.text.find("\n")
        while at >= 0:
            starts.append(at + 1)
            at = self.text.find("\n", at + 1)
        return starts

    def where(self, offset: int) -> Where:
        """Line and column of a character offset."""
        line = bisect_right(self.starts, offset)
        return Where(self.file, line, offset - self.starts[line - 1] + 1)

    def line(self, number: int) -> str:
        """A line by its number, without its end; "" outside the text."""
        if not 1 <= number <= len(self.starts):
            return ""
        start = self.starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else len(self.text)].rstrip("\r")

    def excerpt(self, where: Where) -> str:
        """The line at a place and a caret, if the place is in this file."""
        return excerpt(self.line(where.line), where.column) if where.file == self.file and where.line else ""

    def error(self, found: str, offset: int, expected: str = "") -> SourceError:
        """The error for a mistake at an offset."""
        return self.error_at(found, self.where(min(offset, len(self.text))), expected)

    def error_at(self, found: str, where: Where, expected: str = "") -> SourceError:
        """The error for a mistake at a place."""
        return SourceError(
            found, file=self.file, line=where.line, column=where.column, text=self.line(where.line), expected=expected
        )


def _load(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CompileError(f"cannot read {name!r}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise CompileError(f"{name}: more than {MAX_BYTES} bytes; a source this large is not read")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        source = SourceText(name, data[: error.start].decode("utf-8"))
        raise source.error(
            f"the byte 0x{data[error.start]:02x} is not UTF-8 text", len(source.text), "a text file in UTF-8"
        ) from error
