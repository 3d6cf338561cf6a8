"""Tenants of one runtime in a process of its own, and their traffic. tenants, interference and overheads import it.

Tenants and who sends are in one process, as a user has them: what sending costs is part of what is measured.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench import mlperf
from bench.models_subjects import example, variants
from bench.sides import Remote
from bench.timing import duration_us
from spacetime import Runtime
from spacetime.arrivals import Phase
from spacetime.backends import make_backend
from spacetime.device import Capabilities
from spacetime.errors import OptionError
from spacetime.loadgen import open_loop
from spacetime.runtime.tenant import Tenant
from spacetime.scheduler.protocols import Backend, Policy
from spacetime.scheduler.registry import policy_names
from spacetime.workload import Arrival, Resident, Workload, mmpp, poisson

MIX = ("resnet18", "bert_base", "gru", "mlp")
SMALL_MIX = ("resnet18", "bert", "gru", "mlp")  # for CPUs: bert_base alone takes 100 ms there
BURST_RATE, QUIET_RATE = 4.0, 0.5  # of a tenant's mean rate, in the two phases of its bursts ...
BURST_S, QUIET_S = 0.05, 0.3  # ... and how long these last on average
ARRIVALS = ("poisson", "bursts")
LONG_S = 600.0  # for one request, behind everything that was sent
NEEDS = {
    "static": ("partitions",),
    "gslice": ("partitions",),
    **{name: ("partitions",) for name in ("krisp", "krisp_packed", "krisp_distributed")},
    **{name: ("partitions",) for name in ("krisp_overlap", "krisp_overlap_packed", "krisp_overlap_distributed")},
    "space_time_reserved": ("partitions",),
    "space_time_floating": ("placement", "segments"),
}
LACKS = {
    "partitions": "this device cannot confine lanes to partitions",
    "placement": "this device does not place kernels by itself",
    "segments": "lanes keep their partition on this device",
}
FEW_POLICIES = ("time_slice", "streams", "static", "gslice", "krisp", "space_time", "space_time_floating")


# -- what to play ----------------------------------------------------------------------------------------------------


def mix_of(device: str) -> tuple[str, ...]:
    return SMALL_MIX if device == "cpu" else MIX


def residents(models: Sequence[str], count: int, weights: Sequence[float] = (1.0,)) -> tuple[Resident, ...]:
    """Models take turns over the tenants, weights over the rounds of models."""
    return tuple(
        Resident(f"{models[i % len(models)]}/{i // len(models)}", models[i % len(models)], None, weight)
        for i in range(count)
        for weight in (weights[i // len(models) % len(weights)],)
    )


def with_slos(tenants: Sequence[Resident], lone_us: Mapping[str, float], times: float, floor: float) -> list[Resident]:
    """`times` the model's own lone latency; at least `floor` times the slowest one's: nobody interrupts a lane."""
    slowest_us = max(lone_us[tenant.model] for tenant in tenants)
    return [
        Resident(t.name, t.model, round(max(times * lone_us[t.model], floor * slowest_us)), t.weight) for t in tenants
    ]


def capacity_per_s(tenants: Sequence[Resident], lone_us: Mapping[str, float]) -> float:
    """Requests per second of all tenants, one after another: what a device serves that nothing shares."""
    return 1e6 * len(tenants) / sum(lone_us[tenant.model] for tenant in tenants)


def open_traffic(
    tenants: Sequence[Resident], rate_per_s: float, duration_s: float, arrivals: str, seed: int = 0
) -> Workload:
    """So many requests of one row a second in all; every tenant sends as often as the others, independently."""
    each = rate_per_s / len(tenants)
    if arrivals == "poisson":
        return poisson([(tenant.name, each) for tenant in tenants], duration_s, seed=seed)
    if arrivals != "bursts":
        raise OptionError(f"arrivals {arrivals!r} do not exist", f"known: {', '.join(ARRIVALS)}", "name one of these")
    phases = (Phase(BURST_RATE * each, BURST_S), Phase(QUIET_RATE * each, QUIET_S))
    return mmpp([(tenant.name, phases) for tenant in tenants], duration_s, seed=seed)


def policies(capabilities: Capabilities, *, few: bool = False) -> list[tuple[str, str | None]]:
    """Registered policies, each with the reason why this device cannot run it as it is meant; or None."""
    names = [name for name in policy_names() if not few or name in FEW_POLICIES]
    return [(name, _why_not(name, capabilities)) for name in names]


def _why_not(policy: str, capabilities: Capabilities) -> str | None:
    return next((LACKS[need] for need in NEEDS.get(policy, ()) if not getattr(capabilities, need)), None)


# -- figures ---------------------------------------------------------------------------------------------------------


def nearest_rank(values: Sequence[float], fraction: float) -> float:
    """The value within which `fraction` of all are; infinite ones are requests that were never served."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] if ordered else math.inf


@dataclass(frozen=True, slots=True)
class Played:
    """How open-loop traffic went: each tenant's latencies in us, infinite where a request was not served."""

    latencies_us: dict[str, list[float]]
    duration_us: int
    errors: tuple[str, ...] = ()

    @property
    def all_us(self) -> list[float]:
        return [us for tenant in self.latencies_us.values() for us in tenant]

    def over_slo(self, tenants: Iterable[Resident]) -> list[float]:
        """Latencies as parts of the tenants' SLOs."""
        slo_us = {tenant.name: tenant.slo_us for tenant in tenants}
        return [us / (slo_us[name] or math.inf) for name, its in self.latencies_us.items() for us in its]


# -- a runtime with tenants ------------------------------------------------------------------------------------------


class Served:
    """Tenants of a runtime under one policy. Made in another process by `serving`."""

    def __init__(
        self, device: str, policy: str | Policy, tenants: Sequence[Resident], backend: Backend | None = None
    ) -> None:
        torch.set_grad_enabled(False)
        self.inputs = {model: example(model, 1, device, "float32") for model in {t.model for t in tenants}}
        self.runtime = Runtime(backend or device, policy, admission="off")
        self._models = {tenant.name: tenant.model for tenant in tenants}
        groups: dict[str, list[Resident]] = defaultdict(list)
        for tenant in tenants:
            groups[tenant.model].append(tenant)
        added: dict[str, Tenant] = {}
        for model, group in groups.items():
            rows = example(model, 2, device, "float32")
            for tenant, module in zip(group, variants(model, len(group), device, "float32"), strict=True):
                slo_ms = None if tenant.slo_us is None else tenant.slo_us / 1e3
                added[tenant.name] = self.runtime.add(module, rows, tenant.name, slo_ms=slo_ms, weight=tenant.weight)
        self.handles = {tenant.name: added[tenant.name] for tenant in tenants}
        self._flood: Flood | None = None

    def submit(self, name: str) -> Future[Any]:
        return self.handles[name].submit(*self.args(name))

    def args(self, name: str) -> tuple[Tensor, ...]:
        return self.inputs[self._models[name]]

    def lone_us(self, name: str, count: int) -> float:
        """The median of calls, one at a time, while nobody else does anything."""
        return median([duration_us(lambda: self.handles[name](*self.args(name))) for _ in range(count)])

    def warm_up(self, seconds: float, outstanding: int = 2) -> None:
        """All tenants in a closed loop: executables are used once, the cost model settles."""
        self._each_once()
        self.saturate(tuple(self.handles), seconds, outstanding)

    def _each_once(self) -> None:
        """With a time limit, so that this thread runs no lane: its team of threads would stay, and slow others."""
        for future in [self.submit(name) for name in self.handles]:
            future.result(timeout=LONG_S)

    def saturate(self, names: Sequence[str], seconds: float, outstanding: int) -> dict[str, int]:
        """Requests that each of these tenants has served in so long, when all have so many on their way always."""
        flood = Flood(self.submit, names, outstanding)
        flood.wait(seconds)
        counts = dict(flood.counts)
        flood.stop()
        return counts

    def start_flood(self, names: Sequence[str], outstanding: int) -> None:
        self._flood = Flood(self.submit, names, outstanding)

    def stop_flood(self) -> dict[str, int]:
        """Requests that ended since its start."""
        flood, self._flood = self._flood, None
        return {} if flood is None else flood.stop()

    def play(self, workload: Workload, patience_s: float) -> Played:
        """Open-loop traffic; then one request of each tenant, so that nothing of it is left."""
        latencies: dict[str, list[float]] = {name: [] for name in workload.tenants}
        names = [arrival.tenant for arrival in workload.arrivals]

        def submit(index: int, arrival: Arrival) -> Future[Any]:
            return self.submit(arrival.tenant)

        def ended(index: int, latency_us: int, error: str | None) -> None:
            latencies[names[index]].append(latency_us if error is None else math.inf)

        load = open_loop(workload, submit, ended=ended, patience_s=patience_s)
        if self._flood is None:
            self._each_once()
        return Played(latencies, load.duration_us, load.errors)

    def harnessed(self, what: mlperf.Drive) -> mlperf.Driven:
        """Traffic of a harness that is not ours."""
        return mlperf.drive(self.submit, tuple(self.handles), what)

    def close(self) -> None:
        self.stop_flood()
        self.runtime.close()


def serving(device: str, policy: str, tenants: Sequence[Resident]) -> Remote:
    return Remote(Served, device, policy, tuple(tenants))


class Capable:
    """A device's capabilities, asked for in another process: a look at a GPU costs memory there."""

    def __init__(self, device: str) -> None:
        backend = make_backend(device)
        self._capabilities = backend.capabilities
        self._num_atoms = backend.device.num_atoms
        backend.close()

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def num_atoms(self) -> int:
        return self._num_atoms


def capabilities_of(device: str) -> Capabilities:
    with Remote(Capable, device) as capable:
        capable.require()
        found: Capabilities = capable.call("capabilities")
        return found


def lone_latencies_us(device: str, models: Sequence[str], count: int) -> dict[str, float]:
    """Of one tenant of each model, called one at a time under `space_time`, after as many calls to warm up."""
    tenants = residents(models, len(models))
    with serving(device, "space_time", tenants) as served:
        served.require()
        for tenant in tenants:
            served.call("lone_us", tenant.name, count)
        return {tenant.model: served.call("lone_us", tenant.name, count) for tenant in tenants}


class Flood:
    """So many requests of each tenant wait or run at any time, until it is stopped."""

    def __init__(self, submit: Callable[[str], Future[Any]], names: Sequence[str], outstanding: int) -> None:
        self.counts = dict.fromkeys(names, 0)
        self.failures: list[str] = []
        self._submit = submit
        self._stopping = threading.Event()
        self._all_ended = threading.Event()
        self._lock = threading.Lock()
        self._open = len(names) * outstanding
        for _ in range(outstanding):
            for name in names:
                self._send(name)

    def wait(self, seconds: float) -> None:
        """So long, or until a request fails."""
        self._stopping.wait(seconds)

    def stop(self) -> dict[str, int]:
        """Send no more, and wait for what was sent; how many requests of each tenant ended."""
        self._stopping.set()
        self._all_ended.wait()
        if self.failures:
            raise RuntimeError(f"{len(self.failures)} requests of a flood failed: {self.failures[0]}")
        return self.counts

    def _send(self, name: str) -> None:
        while not self._stopping.is_set():
            future = self._submit(name)
            if not future.done():  # what ends at once must not recurse into the callback
                future.add_done_callback(partial(self._go_on, name))
                return
            self._count(name, future)
        with self._lock:
            self._open -= 1
            if self._open == 0:
                self._all_ended.set()

    def _go_on(self, name: str, future: Future[Any]) -> None:
        self._count(name, future)
        self._send(name)

    def _count(self, name: str, future: Future[Any]) -> None:
        error = future.exception()
        with self._lock:
            if error is None:
                self.counts[name] += 1
            else:
                self.failures.append(str(error))
                self._stopping.set()
