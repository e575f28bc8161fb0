"""Where the pages of a CPU program's states lie."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from echoc.errors import ArtifactError
from echoc.runtime.devices.cpu_pool import StateMemory


def memory(states: list[tuple[str, int]], num_pages: int) -> tuple[StateMemory, Any]:
    specs = [SimpleNamespace(name=f"s{i}", kind=kind, bytes_per_page=size) for i, (kind, size) in enumerate(states)]
    manifest: Any = SimpleNamespace(states=specs)
    return StateMemory(manifest, num_pages, "here"), manifest


@pytest.mark.parametrize("sizes", [[64] * 5, [32768] * 4, [17408] * 3, [200_000] * 2, [64, 128], [96], []])
@pytest.mark.parametrize("num_pages", [1, 7, 300])
def test_every_page_has_a_place_of_its_own(sizes: list[int], num_pages: int) -> None:
    states = [("value", 40), *(("pages", size) for size in sizes), ("value", 8)]
    pool, manifest = memory(states, num_pages)
    table = np.arange(num_pages, dtype=np.int32).reshape(1, -1)
    places = pool.entries(table)
    assert places.shape == table.shape
    assert places.dtype == table.dtype
    taken = []
    for base, state in zip(pool.bases, manifest.states, strict=True):
        rows = places[0].astype(np.int64) if state.kind == "pages" else np.zeros(1, np.int64)
        taken += [(base + int(row) * state.bytes_per_page, state.bytes_per_page) for row in rows]
    taken.sort()
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(taken))
    assert taken[0][0] >= 0
    assert sum(taken[-1]) <= pool.data.size
    assert not pool.data[:4096].any()


def test_the_first_pages_of_many_states_share_huge_pages() -> None:
    """32 states of 16 KB a page: 16 tokens of all of them lie in the first few megabytes, not in 64."""
    pool, _ = memory([("pages", 16384)] * 32, 1000)
    assert max(pool.bases) < 8 << 20


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ArtifactError, match="s0 is of kind 'ring'"):
        memory([("ring", 8)], 1)
