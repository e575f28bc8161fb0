"""Lists of the best values of each row, joined over threads, against sorting; and what samplers make of them."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_levels import build, levels

from echoc import _native
from echoc.runtime.candidates import Candidates
from echoc.runtime.memory import address, allocate
from echoc.runtime.sampling import SamplingParams

SOURCE = """
#include "choose.h"
#include <random>
// Rows [rows][count] cut into segments that threads take in any order, as a product hands them out.
ECHOC_EXPORT void choose(const float* x, int64_t rows, int64_t count, int32_t threads, int64_t most, int64_t segment,
                         uint64_t seed, std::byte* memory) {
  std::mt19937_64 random(seed);
  std::vector<std::pair<int64_t, int64_t>> parts;  // row, first
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t first = 0; first < count; first += segment) parts.emplace_back(row, first);
  std::shuffle(parts.begin(), parts.end(), random);
  std::vector<echoc::Chooser> choosers;
  for (int32_t tid = 0; tid < threads; ++tid)
    choosers.emplace_back(echoc::Call{nullptr, nullptr, tid, threads, nullptr}, memory, rows, most);
  for (auto [row, first] : parts) {
    alignas(64) float values[echoc::Chooser::kSegment];
    std::fill(values, values + echoc::Chooser::kSegment, 1e30f);
    const int64_t size = std::min(segment, count - first);
    std::copy_n(x + row * count + first, size, values);
    choosers[random() % static_cast<uint64_t>(threads)].take(row, first, size, values);
  }
}
"""
KINDS = ("plain", "ties", "equal", "zeros", "banned", "nan", "infinite", "all banned")
F32 = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module", params=levels())
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    source = SOURCE.replace("#include <random>", "#include <random>\n#include <utility>\n#include <vector>")
    return build(source, request.param, tmp_path_factory.mktemp("choose"), (f"-I{Path(__file__).parents[2]}",))


def values_of(kind: str, count: int, random: np.random.Generator) -> F32:
    x = random.normal(size=count).astype(np.float32) * 3
    if kind == "ties":
        return np.round(x)
    if kind in ("equal", "all banned"):
        return np.full(count, 0.5 if kind == "equal" else -math.inf, np.float32)
    if kind == "zeros":
        return np.where(x < 0, np.float32(-0.0), np.float32(0.0))
    if kind == "banned":
        x[random.random(count) < 0.9] = -math.inf
    if kind in ("nan", "infinite"):
        x[random.integers(count)] = math.nan if kind == "nan" else math.inf
    return x


def chosen(
    library: ctypes.CDLL, x: F32, wanted: list[int], threads: int, most: int, segment: int, seed: int
) -> Candidates:
    rows, count = x.shape
    memory = allocate(_native.candidates_nbytes(threads, rows, most))
    memory[:] = 0xA5
    memory[: 4 * rows] = np.array(wanted, np.int32).view(np.uint8)
    library.choose(
        ctypes.c_void_p(address(x)), ctypes.c_int64(rows), ctypes.c_int64(count), ctypes.c_int32(threads),
        ctypes.c_int64(most), ctypes.c_int64(segment), ctypes.c_uint64(seed), ctypes.c_void_p(address(memory)),
    )  # fmt: skip
    return Candidates(memory, threads, rows, most)


@pytest.mark.parametrize("seed", range(8))
def test_lists_and_tokens_are_those_of_all_values(library: ctypes.CDLL, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(40):
        count, rows, threads = int(random.integers(1, 700)), int(random.integers(1, 10)), int(random.integers(1, 4))
        most, segment = int(random.integers(1, 65)), 16 * int(random.integers(1, 17))
        kinds = [KINDS[int(random.integers(len(KINDS)))] for _ in range(rows)]
        x = np.stack([values_of(kind, count, random) for kind in kinds])
        params = [
            SamplingParams(
                temperature=float(random.choice([0.0, 0.5, 1.7])), top_k=int(random.integers(1, most + 1)),
                top_p=float(random.choice([1.0, 0.8, 0.1])), min_p=float(random.choice([0.0, 0.2])),
            )
            for _ in range(rows)
        ]  # fmt: skip
        made = [
            [
                _native.Sampler(p.native(seed=seed, end_tokens=[], bad_sequences=[]), np.empty(0, np.int32))
                for p in params
            ]
            for _ in range(2)
        ]
        wanted = [sampler.num_candidates(count) for sampler in made[0]]
        found = chosen(library, x, wanted, threads, most, segment, seed)
        for row, kind in enumerate(kinds):
            best, unbounded = found.best(row)
            order = sorted((i for i in range(count) if x[row, i] > -math.inf), key=lambda i: (-x[row, i], i))
            assert unbounded == (kind in ("nan", "infinite"))
            if not unbounded:
                assert best[: wanted[row]] == [(i, float(x[row, i])) for i in order[: wanted[row]]]
        asking = [row for row in range(rows) if wanted[row] > 0]
        for _ in range(3):  # draws of one history
            tokens = found.choose([made[0][row] for row in asking], asking, count)
            assert tokens == [token for token, _ in _native.sample([made[1][row] for row in asking], x, asking)]


def test_a_row_of_which_nothing_is_wanted_tells_what_is_not_finite(library: ctypes.CDLL) -> None:
    x = np.zeros((2, 300), np.float32)
    x[1, 299] = math.nan
    found = chosen(library, x, [0, 0], 2, 3, 64, 0)
    assert [found.best(row) for row in (0, 1)] == [([], False), ([], True)]


def test_lists_that_do_not_fit_are_refused(library: ctypes.CDLL) -> None:
    found = chosen(library, np.zeros((1, 5), np.float32), [1], 1, 2, 16, 0)
    spec = SamplingParams(temperature=0.5, top_k=3).native(seed=0, end_tokens=[], bad_sequences=[])
    sampler = _native.Sampler(spec, np.empty(0, np.int32))
    assert sampler.num_candidates(5) == 3
    assert sampler.num_candidates(3) == 0
    with pytest.raises(ValueError, match="more than the candidates"):
        found.choose([sampler], [0], 5)
    with pytest.raises(IndexError, match="no such row"):
        found.best(1)
    with pytest.raises(ValueError, match="another size"):
        Candidates(found.lists, 9, 1, 2).best(0)
    with pytest.raises(ValueError, match="one row per sampler"):
        found.choose([sampler], [], 5)
