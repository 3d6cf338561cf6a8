"""Where lanes go: partitions by green contexts, or plain streams with the reason. Only backends/cuda and the doctor.

Plain streams confine nothing, so the device is one atom there: nobody is promised units that he does not get.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from spacetime.backends.cuda.driver import CudaDriver, Driver
from spacetime.backends.cuda.gpu import Facts, Gpu, Stream
from spacetime.backends.cuda.green import WHOLE_STREAMS, Grant, GreenContexts, Later
from spacetime.device import Partition
from spacetime.errors import SpacetimeError


class Partitions(Protocol):
    """See GreenContexts for what the calls promise."""

    num_units: int
    units_per_atom: int

    @property
    def confines(self) -> bool:
        """Do lanes stay on the units of their partition?"""

    @property
    def reason(self) -> str:
        """Why not; "" when they do."""

    def acquire(self, partition: Partition) -> Grant: ...

    def release(self, grant: Grant) -> None: ...

    def lease(self, atoms: int) -> Grant | None: ...

    def give_back(self, grant: Grant) -> None: ...

    def close(self) -> None: ...


class PlainStreams:
    """Streams on the whole device: lanes may overlap, wherever the device puts them."""

    confines = False

    def __init__(self, gpu: Gpu, num_units: int, reason: str) -> None:
        self.num_units = self.units_per_atom = num_units
        self.reason = reason
        self._gpu = gpu
        self._lock = threading.Lock()
        self._streams = [gpu.new_stream() for _ in range(WHOLE_STREAMS)]  # kept: a handle lives as long as its stream
        self._lanes = {stream.cuda_stream: 0 for stream in self._streams}
        self._spare: list[Stream] = []
        self._leased: dict[int, Stream] = {}

    def acquire(self, partition: Partition) -> Grant:
        with self._lock:
            stream = min(self._lanes, key=self._lanes.__getitem__)
            self._lanes[stream] += 1
        return Grant(stream, partition.atoms, self.num_units)

    def release(self, grant: Grant) -> None:
        with self._lock:
            self._lanes[grant.stream] -= 1

    def lease(self, atoms: int) -> Grant | None:
        stream = self._spare.pop() if self._spare else self._gpu.new_stream()
        self._leased[stream.cuda_stream] = stream
        return Grant(stream.cuda_stream, atoms, self.num_units)

    def give_back(self, grant: Grant) -> None:
        self._spare.append(self._leased.pop(grant.stream))

    def close(self) -> None:
        self._streams.clear()
        self._spare.clear()
        self._leased.clear()


def open_partitions(gpu: Gpu, facts: Facts, later: Later, driver: Callable[[], Driver] = CudaDriver) -> Partitions:
    """Green contexts where the driver has them; whatever it refuses is the reason for plain streams."""
    if facts.kind != "cuda":
        return PlainStreams(gpu, facts.num_units, "green contexts are NVIDIA's; this is a ROCm build of torch")
    try:
        return GreenContexts.opened(driver(), gpu.index, later)
    except SpacetimeError as error:
        return PlainStreams(gpu, facts.num_units, f"{error.what}: {error.facts}" if error.facts else error.what)
