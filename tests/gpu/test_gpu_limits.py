"""What kernels take of a multiprocessor is held against what it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from echoc.compiler.targets.gpu.build import Binary
from echoc.compiler.targets.gpu.levels import level_of
from echoc.compiler.targets.gpu.limits import check
from echoc.errors import CompileError

FITS = {
    "cuda:sm_90a": Binary(b"", "k", 256, 232_448, 0, 255, 0, 1),
    "rocm:gfx90a": Binary(b"", "k", 256, 65_536, 0, 512, 0, 1, 106, 64),
    "rocm:gfx942": Binary(b"", "k", 1024, 65_536, 0, 128, 0, 1, 106, 64),
    "rocm:gfx1100": Binary(b"", "k", 640, 65_536, 0, 256, 0, 1, 106, 32),
}


@pytest.mark.parametrize("target", list(FITS))
def test_what_just_fits_is_taken(target: str) -> None:
    check("k", FITS[target], level_of(target))


@pytest.mark.parametrize(
    ("target", "change", "words"),
    [
        ("cuda:sm_90a", {"shared_bytes": 232_449}, "232449 bytes of shared memory"),
        ("cuda:sm_90a", {"registers": 256}, "256 registers a thread"),
        ("cuda:sm_90a", {"threads": 512}, "registers a lane for its 16 waves"),
        ("rocm:gfx942", {"threads": 1088}, "1088 threads"),
        ("rocm:gfx942", {"registers": 129}, "544 registers a lane for its 16 waves"),
        ("rocm:gfx90a", {"scalar_registers": 109}, "109 scalar registers"),
        ("rocm:gfx90a", {"wavefront": 32}, "wavefronts of 32 lanes"),
        ("rocm:gfx1100", {"threads": 672}, "registers a lane for its 21 waves"),
    ],
)
def test_what_does_not_fit_is_named(target: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(CompileError, match=words) as error:
        check("k", replace(FITS[target], **change), level_of(target))
    assert "kernel k" in str(error.value) and level_of(target).name in str(error.value)
