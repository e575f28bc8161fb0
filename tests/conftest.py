"""Options of the test run. Lies here also so that tests of every folder can import the helpers beside it."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files with what was found")
    parser.addoption("--seeds", type=int, default=None, help="random programs that tests/fuzz compiles")


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


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Golden files beside the test, rewritten by --update-golden."""
    return Golden(request)
