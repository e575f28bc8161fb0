"""Golden files: texts that tests compare with and a flag rewrites."""

from __future__ import annotations

from pathlib import Path

import pytest


class Golden:
    """Compares a text with the file named after the test: tests/golden/<module>/<test>.<suffix>."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        path = Path(str(request.node.path))
        name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
        self.stem = path.parent / path.stem.removeprefix("test_") / name
        self.update = bool(request.config.getoption("--update-golden"))

    def check(self, text: str, suffix: str) -> None:
        path = self.stem.with_name(f"{self.stem.name}.{suffix}")
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden file {path}; make it with: pytest --update-golden"
        assert text == path.read_text(), f"{path} differs; if that is meant: pytest --update-golden"
