"""What the stages share on the GPU: timing with events, streams on partitions, the census of SMs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spacetime.backends.cuda.census import Census
from spacetime.backends.cuda.driver import CudaDriver
from spacetime.backends.cuda.green import Grant, GreenContexts
from spacetime.device import Partition

__all__ = [
    "Census",
    "at_once",
    "geomean",
    "grant_of",
    "halves",
    "open_partitions",
    "partition",
    "scattered",
    "stream_of",
    "time_us",
    "worst",
]


def at_once(function: Callable[[], None]) -> None:
    """Stages want wanted partitions now."""
    function()


def open_partitions() -> GreenContexts:
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # the primary context exists from here on
    return GreenContexts(CudaDriver(), 0, at_once)


def partition(atoms: int, units_per_atom: int = 8) -> Partition:
    return Partition(atoms, atoms.bit_count() * units_per_atom, atoms.bit_count() * units_per_atom)


def grant_of(contexts: GreenContexts, atoms: int) -> Grant:
    """Exactly these atoms, or as much of them as the driver makes: what is on no menu is there at the second call."""
    asked = partition(atoms, contexts.units_per_atom)
    grant = contexts.acquire(asked)
    if grant.atoms == atoms:
        return grant
    contexts.release(grant)
    return contexts.acquire(asked)


def stream_of(contexts: GreenContexts, atoms: int) -> torch.cuda.ExternalStream:
    return torch.cuda.ExternalStream(grant_of(contexts, atoms).stream)


def halves(contexts: GreenContexts) -> tuple[int, int]:
    """Two disjoint partitions that are on the menu, whatever number of atoms this card has."""
    lower = (1 << contexts.num_atoms // 2) - 1
    return lower, (1 << contexts.num_atoms) - 1 & ~lower


def scattered(contexts: GreenContexts, mask: int) -> list[int]:
    """Shifted by 0, 1, 2 ..., as often as there are atoms for it."""
    return [mask << shift for shift in range(max(0, contexts.num_atoms - mask.bit_length() + 1))]


def time_us(function: Callable[[], Any], *, repeats: int = 30, warm_up: int = 5, inner: int = 1) -> float:
    """Median device time of a call on the current stream, by events; `inner` calls between two events."""
    for _ in range(warm_up):
        function()
    torch.cuda.synchronize()
    samples = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(inner):
            function()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1000 / inner)
    return statistics.median(samples)


def worst(result: torch.Tensor, reference: torch.Tensor) -> float:
    """max |result - reference| / max |reference|, in float64."""
    exact = reference.double()
    return float((result.double() - exact).abs().max() / exact.abs().max())


def geomean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)
