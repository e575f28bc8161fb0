"""Running the command line as a user does: a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled kernels and artifacts of these tests, apart from the user's own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def echoc(tmp_path: Path, cache: Path) -> Run:
    """`echoc("inspect", path)` in an empty folder; returns the finished process."""
    environment = {**os.environ, "ECHOC_CACHE": str(cache), "COLUMNS": "120"}
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments: object, stdin: str = "", timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "echoc", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=work,
            env=environment,
            timeout=timeout,
            check=False,
        )

    return run
