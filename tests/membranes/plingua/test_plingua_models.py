"""Which model a file is of."""

from __future__ import annotations

import pytest

from echoc.errors import CompileError
from echoc.membranes.plingua import read


def test_version_2_says_variant() -> None:
    text = "def main() { @mu = []'1; @ms(1) = a; [a --> b]'1; }"
    old = read("t.pli", text=f"@variant<membrane_division>\n{text}")
    assert old.rules == read("t.pli", text=f"@model<membrane_division>\n{text}").rules
    with pytest.raises(CompileError, match=r"t\.pli:1:1: wanted @model<name> or @variant<name>"):
        read("t.pli", text=f"@version<membrane_division>\n{text}")
