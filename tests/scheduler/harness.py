"""A scheduler on a null backend without a thread, and values to feed policies with. Shared by the scheduler's tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from spacetime.backends.null import NullBackend
from spacetime.device import Device
from spacetime.plan import Lane, RequestView, Snapshot, TenantView
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import Outcome, Policy
from spacetime.scheduler.registry import get_policy
from spacetime.scheduler.request import Request, TenantSpec, make_request
from spacetime.scheduler.tables import KernelTimes

CORES = Device("four cores", "null", num_units=4)


class Echo:
    """Gives each request its payload back; a payload that is an exception is that request's error."""

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        return [Outcome(error=p) if isinstance(p, Exception) else Outcome(p) for p in payloads]


class World:
    """Drives a Scheduler by hand: submit, then `run()` until nothing is left to do."""

    def __init__(
        self,
        policy: str | Policy = "space_time",
        *,
        device: Device = CORES,
        latency_us: int | Callable[[Lane], int] = 100,
    ) -> None:
        self.backend = NullBackend(device, latency_us=latency_us)
        self.costs = OnlineCosts()
        self.posted: deque[Callable[[], None]] = deque()
        self.scheduler = Scheduler(self.backend, get_policy(policy), self.costs, self.posted.append)
        self.specs: dict[str, TenantSpec] = {}
        self.num_requests = 0

    def add(self, name: str, cohort: str = "cohort", **options: Any) -> TenantSpec:
        spec = self.specs[name] = TenantSpec(name, cohort, **options)
        self.costs.register(cohort, None, self.backend.device)
        self.scheduler.add_tenant(spec, Echo())
        return spec

    def request(self, name: str, rows: int = 1, payload: Any = None) -> Request:
        self.num_requests += 1
        return make_request(self.specs[name], self.num_requests, rows, payload, self.backend.now_us())

    def submit(self, name: str, rows: int = 1, payload: Any = None) -> Future[Any]:
        request = self.request(name, rows, payload)
        self.scheduler.submit(request)
        return request.future

    def step(self) -> int | None:
        """What a driver does between two waits."""
        while self.posted:
            self.posted.popleft()()
        return self.scheduler.step()

    def run(self) -> None:
        """Let time pass until nothing waits and nothing runs."""
        for _ in range(10_000):
            self.step()
            if self.scheduler.idle and not self.posted:
                return
            self.backend.advance(100)
        raise AssertionError("requests wait for ever")


def tenant_view(name: str, *rows: int, cohort: str = "cohort", arrival_us: int = 0, **options: Any) -> TenantView:
    """A tenant with one waiting request per entry of `rows`."""
    deadline_us = options.pop("deadline_us", None)
    waiting = tuple(RequestView(i, name, count, arrival_us, deadline_us) for i, count in enumerate(rows))
    known = {
        "fusible": True,
        "weight": 1.0,
        "priority": 0,
        "slo_us": None,
        "served_us": 0,
        "max_concurrency": 1,
        "running": 0,
    }
    return TenantView(name, cohort, **(known | options), waiting=waiting)


def snapshot(
    *tenants: TenantView, device: Device = CORES, now_us: int = 1000, running: tuple[Lane, ...] = ()
) -> Snapshot:
    free = device.all_atoms
    for lane in running:
        free &= ~lane.atoms
    return Snapshot(now_us, device, free, tenants, running)


class TableCosts:
    """Costs by a formula: lane_us = formula(tenants, rows, units)."""

    def __init__(
        self, formula: Callable[[int, int, int], float] = lambda tenants, rows, units: 1000.0, device: Device = CORES
    ) -> None:
        self.formula = formula
        self.device = device

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        return self.formula(tenants, rows, units)

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        sizes = range(1, self.device.num_atoms + 1)
        us = [
            self.lane_us(cohort, tenants=tenants, rows=rows, units=atoms * self.device.units_per_atom, fused=fused)
            for atoms in sizes
        ]
        return KernelTimes.of([us])
