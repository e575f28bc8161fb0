"""A map of a file that is moved to huge pages holds what it held, and stays what it is."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from echoc.runtime.memory import Bytes, gather_in_huge_pages

HUGE = 2 << 20


def mapped(path: Path, size: int) -> tuple[Bytes, Bytes]:
    """A file's map, and what the file holds."""
    held = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    path.write_bytes(held.tobytes())
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8), held


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, HUGE - 1, 3 * HUGE, 7 * HUGE + 4097])
def test_contents_and_address_stay(tmp_path: Path, size: int, threads: int) -> None:
    memory, held = mapped(tmp_path / "file", size)
    before = memory.ctypes.data
    part = memory[size // 5 : size - size // 7]
    for _ in range(2):
        moved = gather_in_huge_pages(part, threads)
        assert moved % HUGE == 0 and moved <= part.size
    assert memory.ctypes.data == before
    assert np.array_equal(memory, held)
    assert (tmp_path / "file").read_bytes() == held.tobytes()


def test_no_memory_is_taken_that_is_scarce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, held = mapped(tmp_path / "file", 4 * HUGE)
    monkeypatch.setattr("echoc.runtime.memory.available_memory", lambda: 2 * memory.size - 1)
    assert gather_in_huge_pages(memory, 2) == 0
    assert np.array_equal(memory, held)
