"""A site and a program without a machine: latencies are a function, the clock counts what was called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.profiler.records import Environment
from spacetime.profiler.site import Call, Ideal, Run, Sample, time_on_host

Latency = Callable[[str, int, float], float]  # of a kernel, on so many units, at a time


def kernel(index: int, width: int = 8, name: str = "") -> Kernel:
    """Kernels of equal width are the same work."""
    moving = TensorSpec((Rows(), width), "float32", 0)
    return Kernel(
        index=index,
        name=name or f"layer{index}",
        op="linear",
        kind="gemm",
        inputs=(moving, TensorSpec((width, width), "float32")),
        outputs=(moving,),
        weights=(),
        deps=(index - 1,) if index else (),
        attributes="",
        flops_per_row=2 * width * width,
        bytes_per_row=8 * width,
        weight_bytes=4 * width * width,
    )


def program(*widths: int, signature: str = "feedfeedfeedfeed") -> Program:
    kernels = tuple(kernel(index, width) for index, width in enumerate(widths))
    return Program(signature, kernels[0].inputs[:1], kernels[-1].outputs, (), kernels)


class FakeSite:
    """A device of some sizes; `latency_us(key, units, now)` is what a call takes, `disturbed` what goes wrong."""

    torch_device = "cpu"
    overhead_us = 0.05
    reading_us = clock_us = asking_us = 0.0

    def __init__(self, sizes: Sequence[int], latency_us: Latency, disturbed: Callable[[int], bool] = lambda _: False):
        self.sizes = tuple(sizes)
        self.environment = Environment("fake", "cpu", self.sizes[-1], "none", (("torch", "0"),))
        self.latency_us, self.disturbed = latency_us, disturbed
        self.units = self.sizes[-1]
        self.time_us = 0.0
        self.num_timed = 0
        self.num_swept = 0
        self.visits: list[int] = []  # sizes in the order that they were confined to

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def now_us(self) -> float:
        return self.time_us

    def interruptions(self) -> int:
        return 0

    def confine(self, units: int) -> None:
        self.units = units
        self.visits.append(units)

    def call(self, key: str) -> Call:
        def run() -> None:
            self.time_us += self.latency_us(key, self.units, self.time_us)

        return run

    def sample(self, call: Call, calls: int) -> Sample:
        start_us = self.time_us
        for _ in range(calls):
            call()
        self.num_timed += 1
        us = (self.time_us - start_us) / calls
        return Sample(us * 50, True) if self.disturbed(self.num_timed) else Sample(us, False)

    def time_run(self, run: Run, num_kernels: int) -> Sequence[Sample]:
        return time_on_host(self, run, num_kernels)

    def sweep(self) -> None:
        self.num_swept += 1

    def ideals(self) -> Mapping[str, Ideal]:
        return {name: Ideal(partial(self.call, name), 1) for name in ("compute", "bandwidth", "launch")}


class FakeRun:
    """A program on a fake site."""

    def __init__(self, described: Program, site: FakeSite) -> None:
        self.keys = [kernel.key for kernel in described.kernels]
        self.site = site
        self.num_runs = 0
        self.asked: list[int] = []  # kernels that were passed, in kernels()
        self.has_code = False
        self.wholes: list[tuple[int, int]] = []

    def kernels(self, rows: int) -> Iterator[tuple[int, Call]]:
        self.num_runs += 1
        for index, key in enumerate(self.keys):
            self.asked.append(index)
            yield index, self.site.call(key)

    def time(self, rows: int, site: object) -> list[Sample]:
        self.num_runs += 1
        keys = [*self.keys, "between", *("whole" for _ in self.wholes)]
        return [self.site.sample(self.site.call(key), 1) for key in keys]


def law(parallel_us: float, serial_us: float) -> Latency:
    return lambda key, units, now_us: parallel_us / units + serial_us
