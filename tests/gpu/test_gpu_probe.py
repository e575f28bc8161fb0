"""The kernels that measure a device: they read all that they say, and multiply as often as they are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreter import launch

from echoc.compiler.targets.gpu import probe
from echoc.compiler.targets.gpu.levels import LEVELS, Level
from echoc.compiler.targets.gpu.render import Device


def test_reading_reads_every_word_once() -> None:
    kernel = probe.probes(Device("cuda"))["read"]
    words = probe.BYTES // 4
    data = torch.from_numpy(np.random.default_rng(3).integers(-99, 99, 2 * words, dtype=np.int32))
    sums = torch.zeros(2, dtype=torch.int32)
    launch(kernel, [data, sums], {"blocks": 2, "count": 0})
    assert sums.tolist() == [int(part.sum()) for part in data.split(words)]


def test_products_add_up_as_often_as_asked() -> None:
    kernel = probe.probes(Device("cuda"))["dot"]
    out = torch.zeros(2, probe.TILE, probe.TILE)
    launch(kernel, [out], {"blocks": 1, "count": 1})
    once = out[0].clone()
    launch(kernel, [out], {"blocks": 2, "count": 3})
    assert once.abs().max() > 0
    torch.testing.assert_close(out[1], 3 * once, rtol=1e-5, atol=0)


@pytest.mark.parametrize("level", [level for levels in LEVELS.values() for level in levels], ids=lambda x: x.name)
def test_every_level_has_both(level: Level) -> None:
    kernels = probe.probes(level.device)
    assert probe.facts(kernels)["read"] == kernels["read"].name
    assert probe.facts(kernels)["dot_operations"] == 2 * probe.TILE**2 * probe.DEPTH
