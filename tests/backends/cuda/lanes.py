"""A cohort of small modules, and lanes of it, without a runtime: what tests of the CUDA backend start."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture import cohort
from spacetime.capture.program import Captured
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment
from spacetime.scheduler.protocols import LaneResult
from tests.capture.tenants import capture, weights_of
from tests.runtime.models import EXAMPLE, WIDTH, assert_equal, plain, tiny

PATIENCE_S = 30


class Cohort:
    """Tenants "a", "b", ... of one architecture, and their plain modules."""

    def __init__(self, names: str = "abc") -> None:
        self.modules: dict[str, nn.Module] = {}
        self.executable = CohortExecutable(cohort.Cohort(_captured()), self.modules)
        for name in names:
            self.join(name)

    def join(self, name: str, seed: int | None = None) -> None:
        module = self.modules[name] = tiny(ord(name) if seed is None else seed)
        self.executable.join(name, weights_of(_captured(), module))

    def leave(self, name: str) -> None:
        self.executable.cohort.leave(name)
        del self.modules[name]


@cache
def _captured() -> Captured:
    return capture(tiny(), EXAMPLE)


def is_handed_on(gpu: Any) -> bool:
    """Has a closed backend left its partitions to the next one, with no lane and no graph on any of their streams?"""
    [left] = gpu.driver.parked[0]
    made = (*left._menu.values(), *left._extra.values())
    return not any(each.leased or any(each.lanes.values()) for each in made)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.linspace(-1 - seed, 1, count * WIDTH).reshape(count, WIDTH)


def call(x: Tensor) -> Call:
    return Call((x,), (x,))


def lane_of(mix: Sequence[tuple[str, Tensor]], partition: Partition, *, fused: bool = True) -> Lane:
    views = tuple(RequestView(index, name, x.shape[0], 0) for index, (name, x) in enumerate(mix))
    return Lane("cohort", views, (Segment(partition),), fused)


def start(
    backend: CudaBackend,
    cohort: Cohort,
    *mix: tuple[str, Tensor],
    on: Partition | None = None,
    fused: bool = True,
    payloads: Sequence[Any] | None = None,
) -> Future[LaneResult]:
    """A lane with one request for each (tenant, input)."""
    ended: Future[LaneResult] = Future()
    lane = lane_of(mix, on or backend.device.whole, fused=fused)
    backend.start(lane, cohort.executable, payloads or [call(x) for _, x in mix], ended.set_result)
    return ended


def check(cohort: Cohort, ended: Future[LaneResult], *mix: tuple[str, Tensor]) -> None:
    for (name, x), outcome in zip(mix, ended.result(PATIENCE_S).outcomes, strict=True):
        assert outcome.error is None, outcome.error
        assert_equal(outcome.value, plain(cohort.modules[name], x))


def serve(backend: CudaBackend, cohort: Cohort, *mix: tuple[str, Tensor], times: int = 1, **how: Any) -> None:
    """Lanes one after another; each answers like the plain modules, and the background comes to rest."""
    for _ in range(times):
        check(cohort, start(backend, cohort, *mix, **how), *mix)
        backend.settle()
