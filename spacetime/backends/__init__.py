"""Devices that lanes run on: partitions, workers, executables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from spacetime.errors import OptionError
from spacetime.scheduler.protocols import Backend


@runtime_checkable
class DeviceMemory(Protocol):
    """What a backend has to say beside `Backend` when its device has memory and an order of work of its own."""

    @property
    def torch_device(self) -> str:
        """Where modules that become tenants are: "cuda:0"."""

    def accept(self, payload: Any) -> Any:
        """On the submitting thread: what to start lanes with instead of a request's call."""

    def retire(self, memory: Sequence[Any]) -> None:
        """Weights have been put in place; what they replaced may still be read, and must live until lanes end."""

    def free_bytes(self) -> int | None:
        """What can still be had; None: it is the host's memory, of which the system tells."""

    def graph_bytes(self) -> dict[str, int]:
        """Of captured graphs, by tenant."""

    @property
    def unconfined(self) -> str:
        """Why lanes are not confined to partitions; "" when they are."""

    def uncaptured(self) -> tuple[str, ...]:
        """What cannot become a graph, and why."""


class HostMemory:
    """Of devices that share the host's memory, and its order: what is written is there."""

    torch_device = "cpu"
    unconfined = ""  # Capabilities.partitions says what there is to say

    def accept(self, payload: Any) -> Any:
        return payload

    def retire(self, memory: Sequence[Any]) -> None:
        """Whoever reads it holds it."""

    def free_bytes(self) -> int | None:
        return None

    def graph_bytes(self) -> dict[str, int]:
        return {}

    def uncaptured(self) -> tuple[str, ...]:
        return ()


def memory_of(backend: Backend) -> DeviceMemory:
    return backend if isinstance(backend, DeviceMemory) else HostMemory()


def make_backend(device: str | Backend) -> Backend:
    """The backend for a device name; a backend object is taken as it is (users' tests pass a NullBackend)."""
    if not isinstance(device, str):
        return device
    from spacetime.backends.cpu import CpuBackend  # they import torch, which backends/null.py does without
    from spacetime.backends.cuda.gpu import unusable

    if device == "auto":
        device = "cpu" if unusable() else "cuda:0" if unusable("hip") else "hip:0"
    if device == "cpu":
        return CpuBackend()
    kind, colon, index = device.partition(":")
    if kind in ("cuda", "hip") and (index.isdecimal() if colon else not index):
        from spacetime.backends.cuda.backend import CudaBackend  # needs a GPU to be of use

        return CudaBackend(int(index or 0), kind)
    raise OptionError(
        f"device {device!r} does not exist",
        "known: auto, cpu, cuda:N, hip:N",
        "name one of these, N from 0; others are not supported",
    )
