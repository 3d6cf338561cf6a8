"""Devices that lanes run on: partitions, workers, executables."""

from __future__ import annotations

from spacetime.backends.cpu import CpuBackend
from spacetime.errors import OptionError
from spacetime.scheduler.protocols import Backend


def make_backend(device: str | Backend) -> Backend:
    """The backend for a device name; a backend object is taken as it is (users' tests pass a NullBackend)."""
    if not isinstance(device, str):
        return device
    if device in ("auto", "cpu"):
        return CpuBackend()
    raise OptionError(f"device {device!r} does not exist", "known: auto, cpu", "GPUs are not supported yet")
