"""Memory on machines with several nodes; this one may have one, which the kernel is told of all the same."""

import sys
from pathlib import Path

import pytest

from echoc import _native
from echoc.runtime import memory


@pytest.mark.parametrize(
    ("text", "nodes"), [("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0-1,4,6-7\n", [0, 1, 4, 6, 7]), ("\n", []), ("?", [])]
)
def test_lists_of_nodes(tmp_path: Path, text: str, nodes: list[int]) -> None:
    (tmp_path / "has_memory").write_text(text)
    assert memory.memory_nodes(str(tmp_path / "has_memory")) == nodes
    assert memory.memory_nodes(str(tmp_path / "absent")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory policies are Linux's")
def test_memory_is_spread_and_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = memory.memory_nodes()
    array = memory.allocate(1 << 20)
    if nodes:
        assert _native.interleave(array, nodes)
    assert not _native.interleave(array, [5000])
    monkeypatch.setattr(memory, "memory_nodes", lambda: [nodes[0] if nodes else 0, 1000])
    array = memory.allocate((1 << 20) + 5)  # the kernel refuses a node that is not there: the memory is as any other
    array[-1] = 7
    assert array.size == (1 << 20) + 5 and int(array.sum()) == 7
