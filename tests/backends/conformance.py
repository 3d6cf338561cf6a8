"""What every backend promises, as executables and helpers that need no torch. A new backend adds a line to BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import Any

from spacetime.backends.cpu import CpuBackend
from spacetime.backends.cuda.backend import CudaBackend
from spacetime.backends.cuda.gpu import unusable
from spacetime.backends.null import NullBackend
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment
from spacetime.scheduler.protocols import Backend, Executable, LaneResult, Outcome
from spacetime.sim.backend import SimBackend
from spacetime.sim.devices import find
from tests.backends.cuda.fake_gpu import fake_backend


class DrivenSim(SimBackend):
    """The suite lets no virtual time pass, so every start does."""

    def __init__(self) -> None:
        super().__init__(find("h200"))

    def start(
        self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Callable[[LaneResult], None]
    ) -> None:
        super().start(lane, executable, payloads, done)
        while self.num_running:
            self.advance()


BACKENDS: dict[str, Callable[[], Backend]] = {
    "cpu": CpuBackend,
    "null": NullBackend,
    "sim": DrivenSim,
    "cuda on a fake GPU": fake_backend,
    "cuda on a fake GPU, without partitions": partial(fake_backend, partitions=False),
}

A_REAL_GPU = "cuda on a real GPU"
if unusable("cuda") is None:
    BACKENDS[A_REAL_GPU] = CudaBackend

# Backends whose lanes run beside the thread that starts them. The null backend runs them at once, on that thread.
ASYNCHRONOUS = tuple(name for name in BACKENDS if name.startswith(("cpu", "cuda")))

PATIENCE_S = 30  # a hang fails the test instead of the suite


class Double:
    """Twice the payload."""

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        return [Outcome(2 * payload) for payload in payloads]


class Calls:
    """Calls its payloads, and answers with what they return; what they raise, it raises."""

    def run(self, lane: Lane, payloads: Sequence[Callable[[], Any]]) -> list[Outcome]:
        return [Outcome(payload()) for payload in payloads]


class Answers:
    """So many outcomes, whatever was asked."""

    def __init__(self, count: int) -> None:
        self.count = count

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        return [Outcome("answer")] * self.count


def lane_on(partition: Partition, requests: int = 1) -> Lane:
    views = tuple(RequestView(index, "tenant", 1, 0) for index in range(requests))
    return Lane("cohort", views, (Segment(partition),))


def start(
    backend: Backend,
    executable: Executable,
    *payloads: Any,
    on: Partition | None = None,
    reports: list[LaneResult] | None = None,
) -> Future[LaneResult]:
    """A lane with one request per payload, on a partition or the whole device; `reports` sees every report."""
    ended: Future[LaneResult] = Future()

    def done(result: LaneResult) -> None:
        if reports is not None:
            reports.append(result)
        if not ended.done():
            ended.set_result(result)

    backend.start(lane_on(on or backend.device.whole, len(payloads)), executable, payloads, done)
    return ended


def partitions(backend: Backend) -> list[Partition]:
    """Every partition of one or two atoms, and the whole device."""
    device = backend.device
    singles = [1 << atom for atom in range(device.num_atoms)]
    pairs = [low | high for low, high in pairwise(singles)]
    parts = {atoms: device.partition(atoms.bit_count() * device.units_per_atom, atoms) for atoms in singles + pairs}
    return [*parts.values(), device.whole]
