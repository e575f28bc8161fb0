"""Drivers: what turns an artifact's launch lists into work on one kind of device."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from echoc.errors import DeviceError
from echoc.runtime.artifact import Artifact
from echoc.runtime.manifest import GPUS
from echoc.runtime.memory import Bytes

DEVICES = ("cpu", *GPUS)

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int32]
PageCount = int | Callable[[int], int]  # or what makes it of the bytes that the device has for state


class Device(Protocol):
    """A loaded artifact on a device, with its weights, its pages and the variants of its rules."""

    num_pages: int
    num_threads: int

    def step(self, variant: int, dims: Sequence[int], ports: Sequence[Array]) -> None:
        """Runs variant `variant` of the manifest: `dims` the symbols' values, `ports` one C-contiguous array each."""

    def save(self) -> Bytes:
        """A copy of the states without pages, one after another."""

    def restore(self, held: Bytes) -> None:
        """Sets the states without pages to what `save` returned."""

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies pages of every state, (source, destination) in order."""

    def counters(self) -> list[dict[str, Any]]:
        """Per variant: steps, seconds, and under profiling seconds per launch."""

    def set_profiling(self, on: bool) -> None:
        """Times every launch from now on (with a barrier behind each), or stops doing so."""


def open_device(
    artifact: Artifact, *, num_pages: PageCount, num_threads: int | None, device_index: int | None = None
) -> Device:
    """Loads the artifact on the device it was compiled for, with a pool of `num_pages` pages.

    `device_index` says which of several GPUs; default: what ECHOC_DEVICE_INDEX says, else the first.
    """
    name = artifact.manifest.device
    if name not in DEVICES:
        raise DeviceError(
            f"{artifact.path} was compiled for device {name!r}; this echoc drives {', '.join(DEVICES)}: "
            "compile the model again with --target cpu:native"
        )
    driver = importlib.import_module(f"echoc.runtime.devices.{name}")
    options: dict[str, Any] = {"num_pages": num_pages, "num_threads": num_threads}
    if name in GPUS:
        options["device_index"] = device_index
    elif device_index is not None:
        raise DeviceError(f"{artifact.path} was compiled for a CPU, which has no device_index; leave it out")
    device: Device = driver.open_device(artifact, **options)
    return device
