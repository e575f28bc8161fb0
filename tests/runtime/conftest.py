"""Fixtures around the GPU driver of the tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpu_fake import Driver, build_gpu_artifact, build_kernels, gpu_manifest


@pytest.fixture(scope="session")
def gpu_drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Driver]:
    folder = tmp_path_factory.mktemp("drivers")
    return {vendor: Driver(folder, vendor) for vendor in ("cuda", "rocm")}


@pytest.fixture(scope="session")
def gpu_kernels(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["cuda", "rocm"])
def gpu(
    request: pytest.FixtureRequest, gpu_drivers: dict[str, Driver], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Driver]:
    """The tests' driver of a vendor, found as a user's library is."""
    driver = gpu_drivers[request.param]
    driver.reset()
    for vendor, each in gpu_drivers.items():
        monkeypatch.setenv(f"ECHOC_{vendor.upper()}_LIBRARY", str(each.path))
    monkeypatch.delenv("ECHOC_DEVICE_INDEX", raising=False)
    monkeypatch.delenv("ECHOC_GPU_SYNCHRONOUS", raising=False)
    yield driver
    driver.reset()


@pytest.fixture
def gpu_artifact(gpu: Driver, gpu_kernels: bytes, tmp_path: Path) -> Callable[..., Path]:
    """Makes the toy model's artifact for the driver; `change` edits the manifest, members are added."""

    def make(change: Callable[[Any], None] = lambda manifest: None, **members: bytes) -> Path:
        description = gpu_manifest(gpu.vendor)
        change(description)
        return build_gpu_artifact(tmp_path / "toy.echo", description, gpu_kernels, **members)

    return make
