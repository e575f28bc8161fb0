"""Membrane structures as text: `[ []'2 +[]'3 ]'1`."""

from __future__ import annotations

import re

from echoc.compiler.ir.algebra import Cell

from .source import SourceText
from .tokens import MAX_DEPTH, Tokens

PATTERN = re.compile(r"(?P<skip>\s+)|(?P<open>[+\-0]?\s*\[)|(?P<close>\]\s*')|(?P<label>[\w{}(),.]+)")
CHARGES = {"+": 1, "-": -1}


def parse_structure(text: str) -> list[Cell]:
    """The cells of a structure, parents first, in the order in which they open.

    A charge (+, -, 0) may stand before a bracket; the label follows the closing one after `'`.
    Raises SourceError where the text is something else.
    """
    tokens = Tokens(SourceText("<structure>", text), PATTERN, "")
    charges: list[int] = []
    parents: list[int | None] = []
    labels: list[str] = []
    open_: list[int] = []
    while tokens.next.kind != "end":
        token = tokens.take()
        if token.kind == "open":
            if len(open_) >= MAX_DEPTH:
                raise tokens.error(f"membranes nested more than {MAX_DEPTH} deep", "a flatter structure", token)
            if parents and not open_:
                raise tokens.error("a second skin", "one membrane around all others", token)
            parents.append(open_[-1] if open_ else None)
            charges.append(CHARGES.get(token.text[0], 0))
            labels.append("")
            open_.append(len(labels) - 1)
        elif token.kind == "close" and open_:
            labels[open_.pop()] = tokens.expect_kind("label", "the label of the membrane that ends here").text
        else:
            raise tokens.error(f"found {token}", "'['" if not open_ else "'[' or ']' with a label, as in ]'1", token)
    if open_ or not labels:
        raise tokens.error("the structure ends here", "']' and a label" if open_ else "'[]' and a label")
    return [Cell(*cell) for cell in zip(labels, parents, [()] * len(labels), charges, strict=True)]
