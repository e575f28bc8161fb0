"""What can be wrong with a topology, and where."""

from __future__ import annotations

from dataclasses import dataclass

from echoc.compiler.ir.algebra import Where
from echoc.errors import CompileError
from echoc.membranes.source import SourceText


class TopologyError(CompileError):
    """A topology that cannot be compiled; the message says where, what was found, and what to do."""


NOWHERE = Where()


@dataclass(frozen=True)
class Place:
    """Where something of a topology was written: a place in a file, or (made in Python) the path of its membrane."""

    path: str
    where: Where = NOWHERE
    source: SourceText | None = None

    def error(self, found: str, wanted: str = "") -> TopologyError:
        """The error for a mistake here."""
        rest = f"; {wanted}" if wanted else ""
        if self.source is None or not self.where.line:
            at = f"{self.where}: " if str(self.where) else ""
            return TopologyError(f"{at}{self.path}: {found}{rest}")
        shown = self.source.error_at(found, self.where)
        lines = str(shown).split("\n", 1)
        return TopologyError(f"{lines[0]}{rest}" + (f"\n{lines[1]}" if len(lines) > 1 else ""))
