"""AMD's devices, through libamdhip64."""

from echoc.runtime.devices.gpu import GpuDevice, open_device

__all__ = ["GpuDevice", "open_device"]
