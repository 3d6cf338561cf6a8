"""The loop as a state machine: snapshot -> policy -> verify -> start lanes -> complete futures.

`Scheduler` has no thread and no clock: whoever drives it calls its methods from one thread at a time and
`step()` after them. The driver does so for real devices, the simulator with a virtual clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from spacetime.errors import ClosedError, PlanError, RejectedError, SpacetimeError
from spacetime.plan import Lane, Plan, RequestView, Snapshot
from spacetime.scheduler.protocols import (
    Backend,
    Executable,
    LaneResult,
    LearningCostModel,
    Outcome,
    Policy,
)
from spacetime.scheduler.queues import Queues, Tenant
from spacetime.scheduler.registry import policy_name
from spacetime.scheduler.request import Request, TenantSpec
from spacetime.scheduler.verify import verify
from spacetime.trace import LaneEvent, Trace

Post = Callable[[Callable[[], None]], None]  # have the driver call a function between two steps; from any thread


@dataclass(frozen=True, slots=True)
class _Running:
    """A lane on the device. It keeps its tenants: by the time it ends their names may belong to others."""

    lane: Lane
    requests: tuple[Request, ...]
    tenants: tuple[Tenant, ...]
    isolated: bool
    started_us: int


class Scheduler:
    """Queues in front of one backend, served by one policy."""

    def __init__(
        self, backend: Backend, policy: Policy, costs: LearningCostModel, post: Post, *, trace_events: int = 10_000
    ) -> None:
        self.backend = backend
        self.closed = False
        self._policy = policy
        self._costs = costs
        self._post = post
        self._queues = Queues()
        self._running: dict[int, _Running] = {}
        self._num_started = 0
        self._abandoned: set[int] = set()
        self._events: deque[LaneEvent] = deque(maxlen=trace_events)

    @property
    def num_waiting(self) -> int:
        return self._queues.num_waiting

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._running and not self._queues

    def add_tenant(self, spec: TenantSpec, executable: Executable) -> None:
        """Tenants of one cohort bring the same executable."""
        if self.closed:
            raise ClosedError(f"tenant {spec.name!r} cannot be added", "the runtime is closed", "make another Runtime")
        self._queues.add(spec, executable)

    def replace_tenant(self, spec: TenantSpec, executable: Executable) -> None:
        """Another cohort, executable or limits for a tenant; lanes that run end as they began."""
        self._queues.replace(spec, executable)

    def remove_tenant(self, name: str) -> Future[None]:
        """Reject what waits; the future completes when the tenant's last running lane has ended."""
        tenant = self._queues.remove(name)
        error = RejectedError(f"tenant {name!r} was removed", "the request had not started", "add the tenant again")
        for request in tenant.waiting.values():
            tenant.reject(request, error)
        return tenant.leave()

    def submit(self, request: Request) -> None:
        """Queue a request; whatever forbids it ends up in its future."""
        tenant = self._queues.tenants.get(request.view.tenant)
        if tenant is None:
            what = f"tenant {request.view.tenant!r} does not exist"
            request.reject(RejectedError(what, "it may have been removed", "add the tenant again"))
        elif self.closed:
            tenant.meter.submitted += 1
            facts = "the request came after close()"
            tenant.reject(request, ClosedError("the runtime is closed", facts, "make another Runtime"))
        else:
            self._queues.push(tenant, request)

    def close(self, drain: bool) -> None:
        """Accept nothing more. What waits is served (drain) or rejected; what runs ends."""
        self.closed = True
        if not drain:
            facts = "the request had not started"
            self.reject_waiting(RejectedError("the runtime was closed", facts, "close(drain=True) serves it"))

    def reject_waiting(self, error: SpacetimeError) -> None:
        """End everything that waits."""
        waiting = [request.view for tenant in self._queues.tenants.values() for request in tenant.waiting.values()]
        self._reject(waiting, error)

    def abandon(self, error: SpacetimeError) -> None:
        """The driver was interrupted in the middle of something: end everything, so that nobody waits for ever.

        Nothing is counted back: an interruption may have come between two halves of a change.
        """
        abandoned, self._running = self._running, {}
        self._abandoned |= abandoned.keys()
        waiting = self._queues.clear()
        for running in abandoned.values():
            for request, tenant in zip(running.requests, running.tenants, strict=True):
                tenant.reset()
                if not request.future.done():
                    tenant.meter.failed += 1
                    request.future.set_exception(error)
        for tenant, request in waiting:
            tenant.reject(request, error)

    def step(self) -> int | None:
        """Start what can start now. Returns the time at which to step again even if nothing happens before."""
        while self._queues:
            snapshot = self.snapshot()
            try:
                plan = self._decide(snapshot)
            except PlanError as error:
                self._reject([view for tenant in snapshot.tenants for view in tenant.waiting], error)
                continue
            for lane in plan.lanes:
                self._start(lane, plan.isolated)
            if self._running or plan.wake_at_us is not None:
                return plan.wake_at_us
            # Every request of the plan had been cancelled: ask again for the others.
        return None

    def snapshot(self) -> Snapshot:
        """What the policy sees now."""
        device = self.backend.device
        busy = 0
        lanes = tuple([running.lane for running in self._running.values()])
        for lane in lanes:
            busy |= lane.atoms
        free, now_us = device.all_atoms & ~busy, self.backend.now_us()
        return Snapshot(now_us, device, free, self._queues.views(), lanes, self.backend.capabilities)

    def lane_done(self, lane_id: int, result: LaneResult) -> None:
        """Complete the lane's futures and keep the books."""
        running = self._running.pop(lane_id, None)
        if running is None:
            if lane_id in self._abandoned:
                return
            raise PlanError(f"lane {lane_id} ended twice", next_step="a backend calls done once per lane")
        outcomes = result.outcomes
        if len(outcomes) != len(running.requests):
            facts = f"{len(running.requests)} requests, {len(outcomes)} outcomes"
            what = f"a lane of cohort {running.lane.cohort!r} is broken"
            error = SpacetimeError(what, facts, "a backend reports every request")
            outcomes = (Outcome(error=error),) * len(running.requests)
        result = LaneResult(outcomes, result.start_us, result.end_us)
        lane_ok = all(outcome.error is None for outcome in outcomes)
        for tenant in dict.fromkeys(running.tenants):
            tenant.started(-1)
        self._events.append(LaneEvent(running.lane, result.start_us, result.end_us, lane_ok))
        self._meter(running, result)
        if lane_ok and running.isolated:  # what overlapped others or broke says nothing about the next lane
            # From start to now: what it costs to hand a lane over and back is part of what a lane costs.
            self._observe(running.lane, self.backend.now_us() - running.started_us)
        for request, outcome in zip(running.requests, outcomes, strict=True):  # last: it wakes the waiting threads
            if outcome.error is None:
                request.future.set_result(outcome.value)
            else:
                request.future.set_exception(outcome.error)

    def stats(self) -> dict[str, dict[str, int | float]]:
        """Counters, latency quantiles and device time per tenant."""
        return {name: tenant.meter.as_dict() for name, tenant in self._queues.tenants.items()}

    def trace(self) -> Trace:
        """The last lanes that ended."""
        return Trace(tuple(self._events))

    def _decide(self, snapshot: Snapshot) -> Plan:
        """The policy's plan, verified; whatever is wrong with it is a PlanError that names the policy."""
        name = policy_name(self._policy)
        try:
            plan = self._policy(snapshot, self._costs)
            verify(plan, snapshot, self.backend.capabilities)
        except Exception as error:
            facts = str(error) if isinstance(error, PlanError) else f"{type(error).__name__}: {error}"
            raise PlanError(f"policy {name!r} failed", facts, "the requests it had to plan are rejected") from error
        if not plan.lanes and plan.wake_at_us is None and not self._running:
            facts = f"{len(snapshot.tenants)} tenants wait, nothing runs, and no lane or wake_at_us is in the plan"
            raise PlanError(f"policy {name!r} would wait forever", facts, "start a lane whenever the device is idle")
        return plan

    def _start(self, lane: Lane, isolated: bool) -> None:
        """Hand a lane to the backend, without the requests that were cancelled meanwhile."""
        begun: list[tuple[Request, Tenant]] = []
        for view in lane.requests:
            tenant, request = self._queues.tenants[view.tenant], self._queues.pop(view)
            if request.begin():
                begun.append((request, tenant))
            else:
                tenant.meter.cancelled += 1
        if not begun:
            return
        if len(begun) < len(lane.requests):
            lane = Lane(lane.cohort, tuple(request.view for request, _ in begun), lane.segments, lane.fused)
        requests, tenants = zip(*begun, strict=True)
        lane_id = self._num_started
        self._num_started += 1
        self._running[lane_id] = _Running(lane, requests, tenants, isolated, self.backend.now_us())
        for tenant in dict.fromkeys(tenants):
            tenant.started(1)
        payloads = [request.payload for request in requests]
        try:
            self.backend.start(lane, tenants[0].executable, payloads, partial(self._post_done, lane_id))
        except Exception as error:
            now_us = self.backend.now_us()
            self._post_done(lane_id, LaneResult((Outcome(error=error),) * len(requests), now_us, now_us))

    def _post_done(self, lane_id: int, result: LaneResult) -> None:
        self._post(partial(self.lane_done, lane_id, result))

    def _meter(self, running: _Running, result: LaneResult) -> None:
        now_us, lane = self.backend.now_us(), running.lane
        lane_us = (result.end_us - result.start_us) * lane.units / self.backend.device.num_units
        us_per_row = lane_us / lane.num_rows
        for request, tenant, outcome in zip(running.requests, running.tenants, result.outcomes, strict=True):
            view = request.view
            tenant.meter.record(view.rows, us_per_row * view.rows, now_us - view.arrival_us, outcome.error is None)

    def _observe(self, lane: Lane, duration_us: int) -> None:
        self._costs.observe(
            lane.cohort,
            tenants=len(lane.tenants),
            rows=lane.num_rows,
            units=lane.units,
            fused=lane.fused,
            duration_us=duration_us,
        )

    def _reject(self, views: Sequence[RequestView], error: SpacetimeError) -> None:
        """End requests that wait. All leave their queues first: a future's callback may come back to us."""
        ending = [(self._queues.tenants[view.tenant], self._queues.pop(view)) for view in views]
        for tenant, request in ending:
            tenant.reject(request, error)
