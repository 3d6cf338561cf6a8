"""Where kernels are timed on a GPU: partitions of the CUDA backend, clocked by the device itself. `make_site` opens it.

Small kernels take less time than their launch, so a host that launches and waits would time itself. Here the device is
first given something to wait for; everything that is timed is queued behind that, between two marks on the stream, and
runs without a gap once the wait is over. If the first mark has passed before the last launch was queued, the device
may have waited for the host: the sample counts as disturbed, and the next wait is longer. Figures are thus those of a
replayed graph, not of eager calls. What two marks with nothing between them are apart is subtracted.

Partitions are the same green contexts that lanes run on. Where there are none, kernels cannot be confined: the whole
device is the only size, and the environment says why.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from spacetime.backends.cuda.backend import Opener, describe
from spacetime.backends.cuda.gpu import Gpu, TorchGpu
from spacetime.backends.cuda.green import Grant
from spacetime.backends.cuda.streams import open_partitions
from spacetime.device import Device, Partition
from spacetime.errors import PartitionError
from spacetime.profiler.environment import gpu_environment
from spacetime.profiler.site import SWEPT_IF_UNKNOWN_BYTES, Call, Ideal, Reading, Run, Sample

FIRST_WAIT_US = 50.0
LONGEST_WAIT_US = 50_000.0  # what needs more waits for the device itself, and cannot be queued in time
LEAST_US = 0.01  # of what launches nothing
NUM_EMPTY_PAIRS = 20
CALIBRATING_CYCLES = 2_000_000


class Mark(Protocol):
    """A point on a stream, and the time when the device came there."""

    def has_passed(self) -> bool: ...

    def synchronize(self) -> None: ...

    def us_until(self, later: Any) -> float:
        """Both have passed."""


class Timer(Protocol):
    """The device's own clock, on the calling thread's stream."""

    def mark(self) -> Mark: ...

    def wait(self, us: float) -> None:
        """Keep the stream busy for about so long. The call itself returns at once."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the kernels that show what the device can do; it must be the device that they keep busy, not a cache."""

    product_side: int = 4096
    copied_bytes: int = 1 << 30


class GpuSite:
    """A GPU, entered on the thread that measures. Tests bring a fake GPU, and partitions on a fake driver."""

    overhead_us = 0.0  # it is subtracted

    def __init__(self, gpu: Gpu, timer: Timer, *, opener: Opener = open_partitions, sizes: Sizes | None = None) -> None:
        facts = gpu.facts()
        self._gpu, self._timer, self._ideal = gpu, timer, sizes or Sizes()
        self._partitions = opener(gpu, facts, _at_once)
        self._close = weakref.finalize(self, self._partitions.close)
        self._close.atexit = False  # the process takes them with it
        device = describe(facts, gpu.index, self._partitions)
        self._partition_of = {each.granted_units: each for each in sizes_of(device)}
        self._swept_bytes = 2 * facts.cache_bytes or SWEPT_IF_UNKNOWN_BYTES
        self._swept: torch.Tensor | None = None
        self._grant: Grant | None = None
        self._under: AbstractContextManager[Any] | None = None
        self._timed: object = None
        self._waits_us: dict[int, float] = {}  # by calls in a row of what is timed; 0: it is no use to wait
        self.environment = gpu_environment(device, self._partitions.reason)
        self.sizes = tuple(self._partition_of)
        self.reading_us = 0.0

    @property
    def torch_device(self) -> str:
        return self._gpu.torch_device

    def __enter__(self) -> Self:
        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        try:
            self.confine(self.sizes[-1])
            self._gpu.warm()
            self.reading_us = min(self._empty_pair_us() for _ in range(NUM_EMPTY_PAIRS))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()
        self._no_grad.__exit__(kind, error, traceback)
        self._swept = self._timed = None
        self._close()

    def now_us(self) -> float:
        """The host's, for budgets."""
        return time.perf_counter_ns() / 1e3

    def interruptions(self) -> int:
        return 0  # nobody else's work is on the device while it is profiled

    def confine(self, units: int) -> None:
        self._leave()
        partition = self._partition_of[units]
        grant = self._grant = self._partitions.acquire(partition)
        if (grant.atoms, grant.units) != (partition.atoms, units):
            raise PartitionError(
                f"{self.environment.device}: a partition of {units} units was asked for",
                f"{grant.units} were granted",
                "another process may hold some of the device; profile when it has ended",
            )
        self._under = self._gpu.under(self._gpu.stream(grant.stream))
        self._under.__enter__()

    def _leave(self) -> None:
        """What was put on the stream has ended before anything is put on another one."""
        under, grant = self._under, self._grant
        self._under = self._grant = None
        self._gpu.finish()
        if under is not None:
            under.__exit__(None, None, None)
        if grant is not None:
            self._partitions.release(grant)

    # -- timing ---------------------------------------------------------------------------------------

    def sample(self, call: Call, calls: int) -> Sample:
        turns = range(calls)

        def launch() -> None:
            for _ in turns:
                call()

        first, last, was_ahead = self._behind_a_wait(call, calls, launch)
        return Sample(self._us(first, last, calls), not was_ahead)

    def time_run(self, run: Run, num_kernels: int) -> Sequence[Sample]:
        """Marks stand for the time: the run is told their numbers."""
        marks: list[Mark] = []
        readings: list[Reading] = []

        def now() -> float:
            marks.append(self._timer.mark())
            return len(marks) - 1

        first, last, was_ahead = self._behind_a_wait("a run", 1, lambda: run(now, self.interruptions, readings.append))
        samples = [Sample(0.0, not was_ahead)] * (num_kernels + 1)
        for kernel, start, end, _ in readings:
            samples[kernel] = Sample(self._us(marks[int(start)], marks[int(end)]), not was_ahead)
        num_gaps = 2 * len(readings) + 1  # between neighbouring marks; the kernels' are subtracted already
        between_us = first.us_until(last) - num_gaps * self.reading_us - sum(sample.us for sample in samples)
        samples[-1] = Sample(max(between_us, LEAST_US), not was_ahead)
        return samples

    def _behind_a_wait(self, timed: object, calls: int, launch: Callable[[], object]) -> tuple[Mark, Mark, bool]:
        """Marks around what is launched, and whether all of it was queued before the device came there."""
        if timed is not self._timed:
            self._timed, self._waits_us = timed, {}
        wait_us = self._waits_us.setdefault(calls, FIRST_WAIT_US)
        if wait_us:
            self._timer.wait(wait_us)
        first = self._timer.mark()
        start_us = self.now_us()
        launch()
        host_us = self.now_us() - start_us
        last = self._timer.mark()
        was_ahead = not first.has_passed()
        last.synchronize()
        if wait_us and not was_ahead:
            longer_us = 2 * max(host_us, wait_us)
            self._waits_us[calls] = longer_us if longer_us <= LONGEST_WAIT_US else 0.0
        return first, last, was_ahead

    def _us(self, first: Mark, last: Mark, calls: int = 1) -> float:
        return max((first.us_until(last) - self.reading_us) / calls, LEAST_US)

    def _empty_pair_us(self) -> float:
        self._timer.wait(FIRST_WAIT_US)
        first, last = self._timer.mark(), self._timer.mark()
        last.synchronize()
        return first.us_until(last)

    # -- caches and ceilings ----------------------------------------------------------------------------

    def sweep(self) -> None:
        """Twice the last-level cache is written, so that nothing else is left in it."""
        if self._swept is None:
            self._swept = torch.zeros(self._swept_bytes, dtype=torch.uint8, device=self.torch_device)
        self._swept.add_(1)

    def ideals(self) -> Mapping[str, Ideal]:
        side, num_bytes = self._ideal.product_side, self._ideal.copied_bytes
        return {
            "compute": Ideal(self._product, 2 * side**3),
            "bandwidth": Ideal(self._copy, 2 * num_bytes),
            "launch": Ideal(self._launch, 1),
        }

    def _product(self) -> Call:
        square = torch.rand(self._ideal.product_side, self._ideal.product_side, device=self.torch_device)
        return lambda: torch.mm(square, square)

    def _copy(self) -> Call:
        source = torch.zeros(self._ideal.copied_bytes // 4, device=self.torch_device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def _launch(self) -> Call:
        single = torch.zeros(1, device=self.torch_device)
        return lambda: torch.relu(single)


def sizes_of(device: Device) -> list[Partition]:
    """Prefixes of the atoms, which every backend keeps ready, and the whole with its remainder."""
    return [device.partition(atoms * device.units_per_atom) for atoms in range(1, device.num_atoms)] + [device.whole]


def open_gpu_site(index: int, kind: str) -> GpuSite:
    """The site of a real GPU; an `OptionError` says why there is none."""
    gpu = TorchGpu(index, kind)
    return GpuSite(gpu, TorchTimer(gpu))


class TorchTimer:
    """Events, and torch's own kernel that spins for so many cycles."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._cycles_per_us: float | None = None

    def mark(self) -> Mark:
        return _TorchMark(self._gpu.current())

    def wait(self, us: float) -> None:
        if self._cycles_per_us is None:
            self._cycles_per_us = self._calibrated()
        torch.cuda._sleep(int(us * self._cycles_per_us))

    def _calibrated(self) -> float:
        torch.cuda._sleep(CALIBRATING_CYCLES)  # the clock rises
        first = self.mark()
        torch.cuda._sleep(CALIBRATING_CYCLES)
        last = self.mark()
        last.synchronize()
        return CALIBRATING_CYCLES / first.us_until(last)


class _TorchMark:
    def __init__(self, stream: Any) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(stream)

    def has_passed(self) -> bool:
        return bool(self._event.query())

    def synchronize(self) -> None:
        self._event.synchronize()

    def us_until(self, later: Any) -> float:
        return float(self._event.elapsed_time(later._event)) * 1e3


def _at_once(function: Callable[[], None]) -> None:
    """Partitions that are not on the menu are made when they are first wanted; only the menu is asked for here."""
    function()
