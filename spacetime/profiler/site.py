"""Where kernels are timed: a Protocol, and the CPU behind it. Used by the profiler; gpu_site.py has the one for GPUs.

A site is entered on the thread that measures, and confines what that thread runs to some of the device's units.
The CPU has one OpenMP team at a time (docs/decisions/002): changing the number of cores lets the team go, and the
next call starts another one. torch is imported when something is run: before that, a site tells what it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from spacetime.backends.cores import available_cores, can_pin
from spacetime.errors import OptionError
from spacetime.profiler.environment import cpu_environment, last_level_cache_bytes
from spacetime.profiler.records import Environment

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Call = Callable[[], object]
Reading = tuple[int, float, float, int | None]  # kernel, start, end, interruptions so far
# A run of a program: it reads the clock around every kernel, and tells (clock, interruptions, keep a reading).
Run = Callable[[Callable[[], float], Callable[[], int], Callable[[Reading], object]], object]

SWEPT_IF_UNKNOWN_BYTES = 256 << 20
PRODUCT_SIDE = 512
COPIED_BYTES = 32 << 20
NUM_EMPTY_CALLS = 2_000
LEAST_US = 0.01  # nothing takes no time, whatever is subtracted
LONG_US = 25.0  # what was quicker was not interrupted, and asking the system would disturb what comes next


@dataclass(frozen=True, slots=True)
class Sample:
    us: float  # of one call
    disturbed: bool  # other work on the machine interrupted it


@dataclass(frozen=True, slots=True)
class Ideal:
    """A kernel that shows what the device can do."""

    make: Callable[[], Call]  # with what it reads and writes
    amount: int  # of floating point operations, of bytes; 1: of launches


class Site(Protocol):
    @property
    def environment(self) -> Environment: ...

    @property
    def torch_device(self) -> str:
        """Where what it times has its tensors, as torch names it: "cpu", "cuda:0"."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of units that it can confine work to, ascending; the last is the whole device."""

    @property
    def overhead_us(self) -> float:
        """What the timing itself adds to every call."""

    @property
    def reading_us(self) -> float:
        """What it takes to read the clock twice around a kernel, and to write that down."""

    def now_us(self) -> float: ...

    def interruptions(self) -> int:
        """A count that grows when other work takes units from this process."""

    def confine(self, units: int) -> None:
        """Calls that follow run on so many units."""

    def sample(self, call: Call, calls: int) -> Sample:
        """The mean of so many calls in a row."""

    def time_run(self, run: Run, num_kernels: int) -> Sequence[Sample]:
        """A sample of every kernel of one run, and last, of all that lies between them."""

    def sweep(self) -> None:
        """Drive everything out of the caches."""

    def ideals(self) -> Mapping[str, Ideal]:
        """For "compute", "bandwidth" and "launch"."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class HostClock(Protocol):
    """What `time_on_host` needs of a site."""

    @property
    def reading_us(self) -> float: ...

    @property
    def clock_us(self) -> float:
        """How far two readings in a row are apart."""

    @property
    def asking_us(self) -> float:
        """What it takes to ask for interruptions."""

    def now_us(self) -> float: ...

    def interruptions(self) -> int: ...


def time_on_host(clock: HostClock, run: Run, num_kernels: int) -> list[Sample]:
    """Where a call has ended when it returns.

    What lies between the kernels is the calls of modules, views, memory that is given back. The readings are in none.
    """
    readings: list[Reading] = []
    interruptions = at_first = clock.interruptions()
    begin_us = clock.now_us()
    run(clock.now_us, clock.interruptions, readings.append)
    whole_us = clock.now_us() - begin_us
    samples = [Sample(0.0, False)] * (num_kernels + 1)
    for kernel, start_us, end_us, now_interruptions in readings:
        # What interrupted the steps since the kernel before is put down to this one.
        disturbed = now_interruptions is not None and now_interruptions > interruptions
        samples[kernel] = Sample(max(end_us - start_us - clock.clock_us, LEAST_US), disturbed)
        interruptions = now_interruptions or interruptions
    num_asked = sum(reading[-1] is not None for reading in readings)
    timing_us = len(readings) * clock.reading_us + num_asked * clock.asking_us
    between_us = whole_us - sum(sample.us for sample in samples) - timing_us
    samples[-1] = Sample(max(between_us, 0.0), clock.interruptions() > at_first)
    return samples


class CpuSite:
    """The cores that this process may use."""

    torch_device = "cpu"

    def __init__(self, environment: Environment | None = None) -> None:
        """`environment`: where it is known without torch."""
        self._cores = available_cores()
        self._swept: torch.Tensor | None = None
        self._readings: list[Reading] = []
        self.environment = cpu_environment() if environment is None else environment
        self.sizes = tuple(range(1, len(self._cores) + 1)) if can_pin() else (len(self._cores),)
        self.overhead_us = self.reading_us = self.clock_us = self.asking_us = 0.0

    def __enter__(self) -> Self:
        import torch

        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        self.overhead_us = min(self.sample(_nothing, NUM_EMPTY_CALLS).us for _ in range(5))
        self.reading_us = self._quickest_us(self._read)
        self.asking_us = self._quickest_us(self.interruptions)
        self.clock_us = median(end_us - start_us for _, start_us, end_us, _ in self._readings)
        self._readings.clear()
        return self

    def _quickest_us(self, call: Call) -> float:
        return min(self.sample(call, NUM_EMPTY_CALLS).us for _ in range(5)) - self.overhead_us

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._no_grad.__exit__(kind, error, traceback)
        self._swept = None
        self._readings.clear()
        from spacetime.backends.threads import release_team

        release_team()

    def now_us(self) -> float:
        return time.perf_counter_ns() / 1e3

    def interruptions(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource is not None else 0

    def confine(self, units: int) -> None:
        from spacetime.backends.threads import confine, release_team

        release_team()
        confine(self._cores[:units])

    def sample(self, call: Call, calls: int) -> Sample:
        interruptions = self.interruptions()
        turns = range(calls)
        start_ns = time.perf_counter_ns()
        for _ in turns:
            call()
        end_ns = time.perf_counter_ns()
        return Sample((end_ns - start_ns) / 1e3 / calls, self.interruptions() > interruptions)

    def time_run(self, run: Run, num_kernels: int) -> Sequence[Sample]:
        return time_on_host(self, run, num_kernels)

    def _read(self) -> None:
        """As in the function that straight.py writes."""
        now = self.now_us
        start = now()
        end = now()
        self._readings.append((0, start, end, self.interruptions() if end - start > LONG_US else None))

    def sweep(self) -> None:
        if self._swept is None:
            import torch

            self._swept = torch.zeros(_bytes_to_sweep(), dtype=torch.uint8)
        self._swept.add_(1)

    def ideals(self) -> Mapping[str, Ideal]:
        return {
            "compute": Ideal(_product, 2 * PRODUCT_SIDE**3),
            "bandwidth": Ideal(_copy, 2 * COPIED_BYTES),
            "launch": Ideal(_launch, 1),
        }


def _product() -> Call:
    import torch

    square = torch.rand(PRODUCT_SIDE, PRODUCT_SIDE)
    return lambda: torch.mm(square, square)


def _copy() -> Call:
    import torch

    source = torch.zeros(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _launch() -> Call:
    import torch

    single = torch.zeros(1)
    return lambda: torch.relu(single)


def make_site(device: str) -> Site:
    """The site for the name of a device that is here."""
    if device == "cpu":
        return CpuSite()
    kind, colon, index = device.partition(":")
    if kind in ("cuda", "hip") and (index.isdecimal() if colon else not index):
        from spacetime.profiler.gpu_site import open_gpu_site  # needs a GPU to be of use

        return open_gpu_site(int(index or 0), kind)
    raise OptionError(
        f"kernels cannot be measured on {device!r}",
        "known: cpu, cuda:N, hip:N, and model:NAME, which is modelled",
        "name one of these",
    )


def _nothing() -> None:
    """What the calls that are timed cost by themselves."""


def _bytes_to_sweep() -> int:
    known = last_level_cache_bytes()
    wanted = SWEPT_IF_UNKNOWN_BYTES if known is None else known + known // 4
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:  # not Linux: an allocation that fails says so itself
        return wanted
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > free // 2:
        raise OptionError(
            "the caches cannot be swept",
            f"that takes a buffer of {wanted >> 20} MiB, more than the last-level cache; {free >> 20} MiB are free",
            'free some memory, or measure with cache="warm"',
        )
    return wanted
