"""What AMD code objects say of their kernels, read from the objects: every architecture, and files that are none."""

from __future__ import annotations

import struct

import pytest

from echoc.compiler.targets.gpu import code_object, probe
from echoc.compiler.targets.gpu.build import build_kernels
from echoc.compiler.targets.gpu.levels import LEVELS, Level
from echoc.errors import CompileError


@pytest.mark.parametrize("level", LEVELS["rocm"], ids=lambda level: level.name)
def test_built_kernels_are_described_by_their_objects(level: Level) -> None:
    kernel = probe.probes(level.device)["read"]
    (built,) = build_kernels({kernel.name: kernel}, level, lambda *_: None).values()
    found = code_object.kernels(built.image)[built.facts()["entry"]]
    assert found[".wavefront_size"] == level.device.warp
    assert found[".max_flat_workgroup_size"] == built.facts()["threads"] == 4 * level.device.warp
    assert found[".vgpr_count"] == built.facts()["registers"] > 0
    assert found[".group_segment_fixed_size"] <= level.shared_bytes


@pytest.mark.parametrize("image", [b"", b"\x7fELF", b"MZ" + bytes(80), b"\x7fELF\x01\x01" + bytes(80)])
def test_other_files_are_refused(image: bytes) -> None:
    with pytest.raises(CompileError, match="ELF-64"):
        code_object.kernels(image)


def test_an_object_without_metadata_is_refused() -> None:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x28, 64)
    struct.pack_into("<HH", header, 0x3A, 64, 1)
    with pytest.raises(CompileError, match="note of AMDGPU"):
        code_object.kernels(bytes(header) + bytes(64))
