"""What bench/overheads.py measures, each in a process of its own: runtimes that are resized, moved, added to.

The policies here are instruments: unlike real ones they remember what they were asked, and do what they are told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from random import Random
from statistics import median
from typing import Any

import torch
from torch import nn

from bench.models_subjects import example, variants
from bench.timing import duration_us
from bench.traffic import LONG_S, Flood, Served, residents
from spacetime import Runtime
from spacetime.arrivals import poisson_times
from spacetime.backends import make_backend
from spacetime.backends.null import NullBackend
from spacetime.device import Device, Partition
from spacetime.errors import PlanError
from spacetime.loadgen import monotonic_us
from spacetime.plan import Lane, Plan, Resize, Segment, Snapshot, TenantView
from spacetime.scheduler.protocols import CostModel, Policy

WINDOW_US = 50_000  # around a resize
STAYS, BETWEEN, WITHIN = "stays", "moves between lanes", "moves within a lane"
BEFORE, REMOVING = "before", "while removing"
ADDING_KIN, ADDING_NEW = "while adding to a known cohort", "while adding a new architecture"
NEWCOMERS = 4


class Handing:
    """Linear layers on a device that takes no time: what is left is the host's."""

    def __init__(self, policy: str, count: int) -> None:
        torch.set_grad_enabled(False)
        self._modules = [nn.Linear(8, 8).eval() for _ in range(count)]
        self._row, rows = torch.ones(1, 8), torch.ones(2, 8)
        self._runtime = Runtime(NullBackend(), policy, admission="off")
        self._tenants = [self._runtime.add(module, (rows,), f"t{i}") for i, module in enumerate(self._modules)]

    def rounds_us(self, count: int) -> tuple[list[float], list[float], float]:
        """A submit, and a round until all have results, `count` times; and a plain call."""
        submits_us, rounds_us = [], []
        for _ in range(count + 1):
            start_us = time.perf_counter_ns() / 1e3
            futures = [self._tenants[0].submit(self._row)]
            submits_us.append(time.perf_counter_ns() / 1e3 - start_us)
            futures += [tenant.submit(self._row) for tenant in self._tenants[1:]]
            for future in futures:
                future.result(timeout=LONG_S)
            rounds_us.append(time.perf_counter_ns() / 1e3 - start_us)
        plain_us = median([duration_us(lambda: self._modules[0](self._row)) for _ in range(count + 1)])
        return submits_us[1:], rounds_us[1:], plain_us

    def close(self) -> None:
        self._runtime.close()


# -- a tenant that is resized, or moved --------------------------------------------------------------------------------


class Placed(Served):
    """One tenant on a backend that is known, under a policy that is told what to do."""

    def __init__(self, device: str, model: str, policy: Policy) -> None:
        self.backend = make_backend(device)
        super().__init__(device, policy, residents((model,), 1), backend=self.backend)
        (self.name,) = self.handles


@dataclass(frozen=True, slots=True)
class Swaps:
    """Resizes: when they were asked for, how long until they were in force; and when requests ended."""

    asked_us: list[int]
    swap_us: list[float]
    ends_us: list[int]
    small_units: int
    large_units: int


class Sizer:
    """A policy: a lane at a time, on as many units as are in force; asks for those that are wanted."""

    def __init__(self) -> None:
        self.wanted: int | None = None
        self.asked_us: int | None = None
        self.in_force_us: int | None = None
        self.in_force = threading.Event()

    def want(self, units: int) -> None:
        self.in_force.clear()
        self.asked_us = self.in_force_us = None
        self.wanted = units

    def __call__(self, snapshot: Snapshot, costs: CostModel) -> Plan:
        if not snapshot.tenants:
            return Plan()
        tenant, device, wanted = snapshot.tenants[0], snapshot.device, self.wanted
        resizes: tuple[Resize, ...] = ()
        if wanted is not None and tenant.share_units != wanted:
            if self.asked_us is None:
                self.asked_us = snapshot.now_us
            resizes = (Resize(tenant.name, wanted),)
        elif wanted is not None and not self.in_force.is_set():
            self.in_force_us = snapshot.now_us
            self.in_force.set()
        if snapshot.running:
            return Plan(resizes=resizes)
        return Plan((_lane(tenant, device.partition(tenant.share_units or device.num_units)),), resizes=resizes)


class Resizing(Placed):
    """A tenant whose size changes while it serves."""

    def __init__(self, device: str, model: str) -> None:
        self._sizer = Sizer()
        super().__init__(device, model, self._sizer)

    def swaps(self, count: int) -> Swaps:
        small, large = half(self.backend.device).granted_units, self.backend.device.num_units
        ends_us: list[int] = []
        asked_us, swap_us = [], []

        def submit(name: str) -> Future[Any]:
            future = self.submit(name)
            future.add_done_callback(lambda _: ends_us.append(self.backend.now_us()))
            return future

        flood = Flood(submit, (self.name,), 4)
        for index in range(count):
            flood.wait(2 * WINDOW_US * 1e-6)
            self._sizer.want(small if index % 2 == 0 else large)
            if not self._sizer.in_force.wait(LONG_S):
                raise RuntimeError(f"a resize was not in force after {LONG_S:.0f} s")
            if self._sizer.asked_us is None or self._sizer.in_force_us is None:  # it had that size already
                continue
            asked_us.append(self._sizer.asked_us)
            swap_us.append(float(self._sizer.in_force_us - self._sizer.asked_us))
        flood.wait(2 * WINDOW_US * 1e-6)
        flood.stop()
        return Swaps(asked_us, swap_us, sorted(ends_us), small, large)


class Mover:
    """A policy: a lane at a time on half of the atoms: the first, or each in turn, or one and then the other."""

    moves = STAYS

    def __call__(self, snapshot: Snapshot, costs: CostModel) -> Plan:
        if not snapshot.tenants or snapshot.running:
            return Plan()
        tenant, device = snapshot.tenants[0], snapshot.device
        lane = _lane(tenant, half(device, upper=self.moves == BETWEEN and tenant.waiting[0].id % 2 == 1))
        if self.moves == WITHIN:
            times = costs.kernel_times(tenant.cohort, tenants=1, rows=lane.num_rows, fused=False)
            middle = times.num_kernels // 2
            if not middle:
                raise PlanError(
                    "a lane cannot move in its middle", f"it has {times.num_kernels} kernels", "take a larger model"
                )
            segments = (Segment(half(device), 0, middle), Segment(half(device, upper=True), middle))
            lane = replace(lane, segments=segments)
        return Plan((lane,))


class Moving(Placed):
    """A tenant whose lanes change places."""

    def __init__(self, device: str, model: str) -> None:
        self._mover = Mover()
        super().__init__(device, model, self._mover)

    def has_segments(self) -> bool:
        return self.backend.capabilities.segments

    def differences_us(self, moves: str, num_blocks: int, calls: int) -> tuple[list[float], list[float]]:
        """Medians of blocks that move, less those of blocks that stay; and the latter."""
        found_us: dict[str, list[float]] = {moves: [], STAYS: []}
        for index in range(num_blocks + 1):
            for way in (STAYS, moves) if index % 2 else (moves, STAYS):
                self._mover.moves = way
                found_us[way].append(median([duration_us(self._call) for _ in range(calls)]))
        still_us = found_us[STAYS][1:]
        return [move - stay for move, stay in zip(found_us[moves][1:], still_us, strict=True)], still_us

    def _call(self) -> None:
        self.submit(self.name).result(timeout=LONG_S)  # with a time limit: on the lane's own thread, whatever its size


def half(device: Device, *, upper: bool = False) -> Partition:
    """The first half of the atoms, or as many of the others."""
    number = device.num_atoms // 2
    atoms = ((1 << number) - 1) << (number if upper else 0)
    units = number * device.units_per_atom
    return Partition(atoms, units, units)


def _lane(tenant: TenantView, partition: Partition) -> Lane:
    return Lane(tenant.cohort, tenant.waiting[:1], (Segment(partition),), fused=False)


# -- coming and going --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """Requests of those that stay: when they were due, how long they took; what went on when; how long changes took."""

    requests: list[tuple[int, int]]  # due_us, latency_us
    spans_us: dict[str, tuple[int, int]]
    changes_ms: dict[str, list[float]]

    def during(self, what: str) -> list[float]:
        begin_us, end_us = self.spans_us[what]
        return [float(latency_us) for due_us, latency_us in self.requests if begin_us <= due_us < end_us]

    def seconds(self, what: str) -> float:
        begin_us, end_us = self.spans_us[what]
        return (end_us - begin_us) / 1e6


class Changing(Served):
    """A runtime that is added to and removed from while it serves."""

    def __init__(self, device: str, model: str, count: int, newcomer: str) -> None:
        super().__init__(device, "space_time", residents((model,), count))
        self._kin = list(variants(model, NEWCOMERS, device, "float32"))
        self._kin_rows = example(model, 2, device, "float32")
        (self._new,) = variants(newcomer, 1, device, "float32")
        self._new_rows = example(newcomer, 2, device, "float32")

    def changes(self, rate_per_s: float, before_s: float) -> Changes:
        """`rate_per_s` of all that stay together."""
        requests: list[tuple[int, int]] = []
        stop = threading.Event()
        sender = threading.Thread(target=self._send, args=(rate_per_s, stop, requests), daemon=True)
        sender.start()
        names = [f"kin/{index}" for index in range(NEWCOMERS)]
        spans_us: dict[str, tuple[int, int]] = {}
        changes_ms: dict[str, list[float]] = {}

        def perform(what: str, actions: Sequence[Callable[[], object]]) -> None:
            begin_us = monotonic_us()
            changes_ms[what] = [duration_us(action) / 1e3 for action in actions]
            spans_us[what] = begin_us, monotonic_us()

        add, remove = self.runtime.add, self.runtime.remove
        try:
            perform(BEFORE, [lambda: time.sleep(before_s)])
            kin = zip(names, self._kin, strict=True)
            perform(ADDING_KIN, [lambda n=n, m=m: add(m, self._kin_rows, n) for n, m in kin])  # type: ignore[misc]
            perform(ADDING_NEW, [lambda: add(self._new, self._new_rows, "new")])
            perform(REMOVING, [lambda n=n: remove(n) for n in (*names, "new")])  # type: ignore[misc]
        finally:
            stop.set()
            sender.join()
        return Changes(requests, spans_us, changes_ms)

    def _send(self, rate_per_s: float, stop: threading.Event, requests: list[tuple[int, int]]) -> None:
        """Poisson, each request to a random tenant, until told to stop; then wait for what was sent."""
        rng, names, futures = Random(0), list(self.handles), []
        start_us = monotonic_us()
        for at_s in poisson_times(rate_per_s, LONG_S, rng):
            due_us = start_us + int(at_s * 1e6)
            if stop.wait(max(0.0, (due_us - monotonic_us()) * 1e-6)):
                break
            future = self.submit(rng.choice(names))
            future.add_done_callback(lambda _, due_us=due_us: requests.append((due_us, monotonic_us() - due_us)))  # type: ignore[misc]
            futures.append(future)
        for future in futures:
            future.result(timeout=LONG_S)
