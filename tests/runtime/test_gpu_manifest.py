"""Manifests of GPU artifacts: what a launch may say is checked before a driver is asked."""

from pathlib import Path
from typing import Any

import pytest
from gpu_fake import axis, gpu_manifest
from toy_model import write_artifact

from echoc.errors import ArtifactError
from echoc.runtime.artifact import Artifact


def opened(folder: Path, description: dict[str, Any]) -> Artifact:
    return Artifact(write_artifact(folder / "a.echo", description, {}))


def test_launches_are_typed(tmp_path: Path) -> None:
    manifest = opened(tmp_path, gpu_manifest("cuda")).manifest
    launch = manifest.variants[0].launches[0]
    assert (launch.symbols, launch.dependent) == ((0, 3), True)
    assert (launch.grid[0].terms, launch.grid[0].tile) == (((1, (0,)),), 4)
    binary = manifest.binaries["toy_logits"]
    assert (binary.entry, binary.threads, binary.shared_bytes, binary.extra_pointers) == ("toy_logits", 64, 60000, 1)


def test_kernels_that_choose_tokens_are_typed(tmp_path: Path) -> None:
    sampler = opened(tmp_path, gpu_manifest("cuda")).manifest.sampler
    assert sampler is not None
    assert (sampler.peaks, sampler.sample, sampler.parts, sampler.dependent) == ("toy_peaks", "toy_sample", 4, True)
    description = gpu_manifest("cuda")
    del description["kernels"]["sample"]
    assert opened(tmp_path, description).manifest.sampler is None


@pytest.mark.parametrize("change", [{"peaks": "none"}, {"sample": "none"}, {"sample": 3}, {"parts": 0}, {"parts": "4"}])
def test_kernels_that_choose_no_tokens_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    description = gpu_manifest("cuda")
    description["kernels"]["sample"] |= change
    with pytest.raises(ArtifactError, match=rf"kernels\.sample\.{next(iter(change))}"):
        opened(tmp_path, description)


@pytest.mark.parametrize(
    "grid",
    [
        [],
        [axis(0, 1)] * 4,
        [[]],
        [[[[1, [0]]]]],
        [[[[1, [0]]], 0]],
        [[[[1, [0]]], -4]],
        [[[[1, [0]]], 1 << 62]],
        [[[[1, [0]]], 1.5]],
        [[[[1, [0]]], True]],
        [[[[1 << 62, [0]]], 1]],
        [[[["many", [0]]], 1]],
        [[[[1, [4]]], 1]],
        [[[[1, [-1]]], 1]],
        [[[[1, ["T"]]], 1]],
        [[[[1, "T"]], 1]],
        [[[[1, 0]], 1]],
        [[[[1, [0] * 9]], 1]],
        [[[[1, [0]]] * 65, 1]],
        [[5, 1]],
        [7],
        [None],
    ],
)
def test_grids_that_are_none_are_refused(tmp_path: Path, grid: Any) -> None:
    description = gpu_manifest("cuda")
    description["variants"][0]["launches"][0]["grid"] = grid
    with pytest.raises(ArtifactError, match=r"variants\[0\]\.launches\[0\]\.grid"):
        opened(tmp_path, description)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": "absent"}, r"kernel 'absent' in .*not among its kernels\.binaries"),
        ({"kernel": ["toy_read"]}, "wanted str"),
        ({"symbols": [4]}, r"\[4\] at .*symbols, wanted indices of its 4 symbols"),
        ({"symbols": [-1]}, "wanted indices"),
        ({"symbols": ["T"]}, "wanted indices"),
        ({"symbols": "T"}, "wanted list"),
        ({"symbols": [True]}, "wanted indices"),
        ({"dependent": "yes"}, "wanted bool"),
        ({"args": [["stack", 0]]}, r"wanted \[kind, number\]"),
        ({"grid": None}, "wanted list"),
    ],
)
def test_launches_that_are_none_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    description = gpu_manifest("cuda")
    description["variants"][0]["launches"][0] |= changes
    with pytest.raises(ArtifactError, match=words):
        opened(tmp_path, description)


@pytest.mark.parametrize(
    "matrix",
    [[0, "u8", 1], [9, "u8", 1, 16], [2, "u8", 1, 16], [0, "u8", 0, 16], [0, "bit", 1, 16], [0, "u8", 1, True]],
)
def test_matrices_that_are_none_are_refused(tmp_path: Path, matrix: list[Any]) -> None:
    description = gpu_manifest("cuda")
    description["variants"][0]["launches"][2] |= {"kernel": "toy_mapped", "matrices": [matrix]}
    with pytest.raises(ArtifactError, match=r"in variants\[0\]\.launches\[2\]\.matrices, wanted"):
        opened(tmp_path, description)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 0}, r"has 0 at kernels\.binaries\.toy_read\.threads, wanted 1\.\.1024"),
        ({"threads": 2048}, r"wanted 1\.\.1024"),
        ({"threads": "64"}, "wanted int"),
        ({"shared_bytes": -1}, "wanted 0..1048576"),
        ({"shared_bytes": 1 << 40}, "wanted 0..1048576"),
        ({"extra_pointers": 1000}, "wanted 0..8"),
        ({"entry": None}, "entry, wanted str"),
        ({"member": 5}, "member, wanted str"),
        ({"boxes": [[8, 16]]}, r"has \[8, 16\] in kernels.*boxes, wanted \[rows"),
        ({"boxes": [[8, 16, 48]]}, "swizzling of 0, 32"),
        ({"boxes": [[0, 16, 32]]}, "rows and columns of 1 to 256"),
        ({"boxes": [[8, 16, 32]]}, "has 0 matrices .*wanted 1: so many tensor maps"),
    ],
)
def test_kernels_that_are_none_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    description = gpu_manifest("rocm")
    description["kernels"]["binaries"]["toy_read"] |= changes
    with pytest.raises(ArtifactError, match=words):
        opened(tmp_path, description)


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        ({"format": "i8", "kernel": "absent", "tile": 1}, "kernel 'absent' in kernels"),
        ({"format": "i8", "kernel": "toy_fill", "tile": 0}, "tile, wanted 1"),
        ({"format": "i8", "kernel": "toy_fill"}, "tile, wanted int"),
        ({"kernel": "toy_fill", "tile": 1}, "format, wanted str"),
        (5, r"no object at kernels\.fill\[0\]"),
    ],
)
def test_fills_that_are_none_are_refused(tmp_path: Path, fill: Any, words: str) -> None:
    description = gpu_manifest("cuda")
    description["kernels"]["fill"] = [fill]
    with pytest.raises(ArtifactError, match=words):
        opened(tmp_path, description)
