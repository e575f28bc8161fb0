"""Finding a GPU and its driver: what is missing, too old or another one is said before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_fake import Driver

from echoc import _native
from echoc.errors import DeviceError
from echoc.runtime.devices.gpu import open_driver
from echoc.runtime.program import Program

Make = Callable[..., Path]
only_cuda = pytest.mark.parametrize("gpu", ["cuda"], indirect=True)


def test_the_driver_tells_of_its_devices(gpu: Driver) -> None:
    gpu.set("devices", 2)
    driver = open_driver(gpu.vendor)
    devices = driver.devices()
    assert driver.version == 12040
    assert len(devices) == 2
    assert devices[0]["name"] == "Fake GPU"
    wanted = {"cuda": ("sm_90", 32, 132, 232448), "rocm": ("gfx942", 64, 304, 65536)}[gpu.vendor]
    keys = ("architecture", "warp_size", "multiprocessors", "shared_memory_bytes")
    assert tuple(devices[0][key] for key in keys) == wanted


@pytest.mark.parametrize("vendor", ["cuda", "rocm"])
def test_an_absent_library_is_no_driver(vendor: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(f"ECHOC_{vendor.upper()}_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(DeviceError, match=r"no (NVIDIA|ROCm) driver: .*none\.so.*install.*--target cpu"):
        open_driver(vendor)


def test_a_library_without_the_functions_is_too_old() -> None:
    with pytest.raises(DeviceError, match="no function cuInit: the driver is too old, update it"):
        _native.GpuDriver("cuda", "libm.so.6")
    with pytest.raises(DeviceError, match="no function hipInit: the driver is too old, update ROCm"):
        _native.GpuDriver("rocm", "libm.so.6")


def test_a_failing_start_is_named(gpu: Driver) -> None:
    gpu.fail("cuInit", 803)
    with pytest.raises(DeviceError, match=rf"{gpu.name('cuInit')}: FAKE_ERROR_803 \(as the test says\).*too old"):
        open_driver(gpu.vendor)


def test_no_device_and_too_high_an_index(gpu: Driver, gpu_artifact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gpu_artifact()
    with pytest.raises(DeviceError, match=r"device_index is 1, the .* driver finds 1 device"):
        Program(path, num_pages=4, device_index=1)
    with pytest.raises(DeviceError, match="device_index is -1"):
        Program(path, num_pages=4, device_index=-1)
    monkeypatch.setenv("ECHOC_DEVICE_INDEX", "3")
    with pytest.raises(DeviceError, match="device_index is 3"):
        Program(path, num_pages=4)
    monkeypatch.setenv("ECHOC_DEVICE_INDEX", "first")
    with pytest.raises(DeviceError, match="ECHOC_DEVICE_INDEX is 'first', wanted the number"):
        Program(path, num_pages=4)
    monkeypatch.delenv("ECHOC_DEVICE_INDEX")
    gpu.set("devices", 0)
    with pytest.raises(DeviceError, match=r"finds no device: see (nvidia-smi|rocminfo)"):
        Program(path, num_pages=4)
    assert open_driver(gpu.vendor).devices() == []


@only_cuda
@pytest.mark.parametrize(
    ("level", "major", "minor", "runs"),
    [
        ("sm_90a", 9, 0, True),
        ("sm_90", 9, 0, True),
        ("sm_80", 8, 0, True),
        ("sm_80", 8, 6, True),
        ("sm_86", 8, 0, False),
        ("sm_80", 9, 0, False),
        ("sm_90a", 10, 0, False),
        ("sm_90a", 9, 1, False),
        ("sm_100", 10, 3, True),
        ("sm_100a", 10, 3, False),
        ("sm_100", 9, 0, False),
        ("sm_", 9, 0, False),
        ("gfx942", 9, 0, False),
        ("", 9, 0, False),
    ],
)
def test_kernels_run_on_devices_of_their_level(
    gpu: Driver, gpu_artifact: Make, level: str, major: int, minor: int, runs: bool
) -> None:
    gpu.set("major", major)
    gpu.set("minor", minor)
    path = gpu_artifact(lambda m: m["target"].update(level=level))
    if runs:
        assert Program(path, num_pages=4).device.num_pages == 4
        return
    with pytest.raises(DeviceError, match=rf"compiled for cuda:{level}, the device is Fake GPU \(sm_{major}{minor}\)"):
        Program(path, num_pages=4)


@pytest.mark.parametrize("gpu", ["rocm"], indirect=True)
def test_code_objects_run_on_the_architecture_they_name(gpu: Driver, gpu_artifact: Make) -> None:
    with pytest.raises(DeviceError, match=r"rocm:gfx90a, the device is Fake GPU \(gfx942\).*--target rocm:gfx942"):
        Program(gpu_artifact(lambda m: m["target"].update(level="gfx90a")), num_pages=4)


@pytest.mark.parametrize(("status", "words"), [(209, "another architecture"), (222, "driver is too old")])
def test_a_kernel_that_the_driver_refuses_is_named(gpu: Driver, gpu_artifact: Make, status: int, words: str) -> None:
    gpu.fail("cuModuleLoadData", status)
    with pytest.raises(DeviceError, match=rf"of kernel toy_\w+ on a \w+ \(Fake GPU\): FAKE_ERROR_{status}.*{words}"):
        Program(gpu_artifact(), num_pages=4)
    assert gpu.in_use == 0


@pytest.mark.parametrize("damage", ["empty", "text", "short", "other"])
def test_what_is_no_object_of_the_device_is_refused(
    gpu: Driver, gpu_artifact: Make, gpu_kernels: bytes, damage: str
) -> None:
    images = {"empty": b"", "text": b"// kernel" * 50, "short": gpu_kernels[:3000], "other": gpu_kernels}
    path = gpu_artifact(**{"kernels/toy.bin": images[damage]})
    with pytest.raises(DeviceError, match=r"is no whole object for a (cuda|rocm) device; compile the model again"):
        Program(path, num_pages=4)
    assert gpu.in_use == 0
