"""Options of the test run. Lies here also so that tests of every folder can import the helpers beside it."""

from __future__ import annotations

import pytest
from golden_files import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files with what was found")
    parser.addoption("--seeds", type=int, default=None, help="random programs that tests/fuzz compiles")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Golden files beside the test, rewritten by --update-golden."""
    return Golden(request)
