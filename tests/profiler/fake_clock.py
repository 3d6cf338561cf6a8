"""A GPU whose kernels take planted times: the fake GPU of the backend's tests with a clock of its own.

The device runs what is queued on it: `work(us)` is a kernel, which takes longer on fewer units as its law says; the
host queues each in `host_us`. `Timer.wait` keeps the device busy, so that the host can get ahead of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from spacetime.backends.cuda.driver import Driver, DriverError
from spacetime.backends.cuda.gpu import Facts
from spacetime.backends.cuda.streams import Partitions, open_partitions
from spacetime.profiler.gpu_site import GpuSite, Sizes
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.cuda.fake_gpu import FakeGpu

READING_US = 1.5  # what two marks with nothing between them are apart
OPERATION_US = 25.0  # of any of torch's own
OLD = "the driver supports CUDA 12.2, they need 12.4"  # what the fake of the backend says, too
Law = Callable[[int], float]  # latency over units


class ClockedGpu(FakeGpu):
    """`device_us` is when the device is done with all that was queued; `host_us` is the host's time."""

    def __init__(self, driver: FakeDriver | None) -> None:
        super().__init__(driver)
        self.device_us = self.host_us = 0.0
        self.num_swept_bytes = 1 << 12

    def facts(self) -> Facts:
        return replace(super().facts(), cache_bytes=self.num_swept_bytes // 2)

    @property
    def units(self) -> int:
        """Of the partition that the calling thread's stream is on."""
        stream = self.current().cuda_stream
        return 132 if self.driver is None else len(self.driver.sms_of(stream))

    def begin(self, stream: int, name: str) -> int:
        """Real operations take their time too."""
        self.work(OPERATION_US)
        return super().begin(stream, name)

    def work(self, us: float, launch_us: float = 5.0) -> None:
        self.host_us += launch_us
        self.device_us = max(self.device_us, self.host_us) + us


@dataclass(eq=False)
class ClockMark:
    gpu: ClockedGpu
    at_us: float

    def has_passed(self) -> bool:
        return self.at_us <= self.gpu.host_us

    def synchronize(self) -> None:
        self.gpu.host_us = max(self.gpu.host_us, self.at_us)

    def us_until(self, later: Any) -> float:
        assert later.has_passed() and self.has_passed(), "both are waited for before they are read"
        return float(later.at_us - self.at_us)


class ClockTimer:
    def __init__(self, gpu: ClockedGpu) -> None:
        self.gpu = gpu
        self.waits_us: list[float] = []

    def mark(self) -> ClockMark:
        self.gpu.work(READING_US, launch_us=0.1)
        return ClockMark(self.gpu, self.gpu.device_us)

    def wait(self, us: float) -> None:
        self.waits_us.append(us)
        self.gpu.work(us)


class ClockedSite(GpuSite):
    """`gpu` and `timer` in view, and kernels that are made of laws."""

    def __init__(self, *, partitions: bool = True) -> None:
        driver = FakeDriver() if partitions else None

        def open_driver() -> Driver:
            if driver is None:
                raise DriverError("this driver has no green contexts", OLD)
            return driver

        def opener(*rest: Any) -> Partitions:
            return open_partitions(*rest, driver=open_driver)

        self.gpu = ClockedGpu(driver)
        self.timer = ClockTimer(self.gpu)
        super().__init__(self.gpu, self.timer, opener=opener, sizes=Sizes(8, 1 << 10))

    def now_us(self) -> float:
        return self.gpu.host_us

    def kernel(self, law: Law) -> Callable[[], None]:
        return lambda: self.gpu.work(law(self.gpu.units))


def knee_at(units: int, us: float = 20.0) -> Law:
    """Perfect scaling up to so many units, nothing beyond."""
    return lambda now: us * max(1.0, units / now)
