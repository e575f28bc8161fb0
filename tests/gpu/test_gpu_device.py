"""Every op on a GPU of this machine. ECHOC_GPU_CASES may name a folder that tools/gpu_cases.py has made elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from echoc.errors import DeviceError
from echoc.runtime.devices.gpu import open_driver

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import gpu_cases

LEVELS = {"sm_90": "sm_90a"}


def architecture() -> str:
    """The target of the first NVIDIA GPU; empty where there is none."""
    try:
        devices = open_driver("cuda").devices()
    except DeviceError:
        return ""
    return f"cuda:{LEVELS.get(devices[0]['architecture'], devices[0]['architecture'])}" if devices else ""


@pytest.mark.gpu
@pytest.mark.skipif(not architecture(), reason="no GPU, or no driver for it")
def test_every_op_on_the_device(tmp_path: Path) -> None:
    folder = Path(os.environ.get("ECHOC_GPU_CASES") or tmp_path)
    if folder == tmp_path:
        assert gpu_cases.make(folder, architecture(), 8) == 0
    assert gpu_cases.run(folder) == 0


def test_what_is_wrong_is_told() -> None:
    wanted = np.array([1.0, -2.0, np.inf, np.nan, 1e300])
    found = np.array([1.0, -2.0, np.inf, np.nan, np.inf], np.float32)
    assert gpu_cases.compare(found, wanted, 1e-5) == ""
    assert "error 0.1" in gpu_cases.compare(found + np.float32([0, 0.1, 0, 0, 0]), wanted, 1e-5)
    assert "not finite at [[2]]" in gpu_cases.compare(np.where(np.arange(5) == 2, np.float32(7), found), wanted, 1e-5)
    assert gpu_cases.compare(np.array([1, 2]), np.array([1, 3]), 0.0) == "1 of 2 values differ"
