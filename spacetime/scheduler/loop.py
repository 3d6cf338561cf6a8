"""The loop as a state machine: snapshot -> policy -> verify -> start lanes -> complete futures.

`Scheduler` has no thread and no clock: whoever drives it calls its methods from one thread at a time and
`step()` after them. The driver does so for real devices, the simulator with a virtual clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from operator import attrgetter

from spacetime.errors import ClosedError, PlanError, RejectedError, SpacetimeError
from spacetime.plan import Lane, MergedView, Plan, RequestView, Snapshot
from spacetime.scheduler.holds import Holds
from spacetime.scheduler.lateness import Lateness
from spacetime.scheduler.load import DeviceLoad
from spacetime.scheduler.merged_lanes import MergedLanes
from spacetime.scheduler.metering import value_bytes
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
from spacetime.scheduler.resizing import Resizes
from spacetime.scheduler.running import Running, broken
from spacetime.scheduler.stragglers import Stragglers
from spacetime.scheduler.verify import verify
from spacetime.trace import LaneEvent, Trace

_log = logging.getLogger("spacetime")
_ARRIVAL_US = attrgetter("arrival_us")

Post = Callable[[Callable[[], None]], None]  # have the driver call a function between two steps; from any thread


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
        self._lateness = Lateness(self._queues, costs, backend.device)
        self._resizes = Resizes(self._queues, backend, post)
        self._stragglers = Stragglers()
        self._merged = MergedLanes(self._queues, costs)
        self._holds = Holds()
        self._load = DeviceLoad()
        self._running: dict[int, Running] = {}
        self._num_started = 0
        self._freed_at_us = 0
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

    def runs(self, lane: Lane) -> bool:
        """Is it one of those that run, or a part of one? Any thread may ask."""
        views = set(map(id, lane.requests))
        return any(
            id(request.view) in views for running in list(self._running.values()) for request in running.requests
        )

    def add_tenant(self, spec: TenantSpec, executable: Executable) -> None:
        """Tenants of one cohort bring the same executable."""
        if self.closed:
            raise ClosedError(f"tenant {spec.name!r} cannot be added", "the runtime is closed", "make another Runtime")
        self._queues.add(spec, executable)

    def replace_tenant(self, spec: TenantSpec, executable: Executable) -> None:
        """Another cohort, executable or limits for a tenant; lanes that run end as they began."""
        cohort = self._queues.find(spec.name).spec.cohort
        self._queues.replace(spec, executable)
        if spec.cohort != cohort:
            self._forget(spec.name, cohort)
            self._queues.tenants[spec.name].apart = False
        self._lateness.watch(self._queues.tenants[spec.name])

    def remove_tenant(self, name: str) -> Future[None]:
        """Reject what waits; the future completes when the tenant's last running lane has ended."""
        tenant = self._queues.remove(name)
        self._lateness.unwatch(tenant)
        self._forget(name, tenant.spec.cohort)
        error = RejectedError(f"tenant {name!r} was removed", "the request had not started", "add the tenant again")
        waiting, tenant.waiting = tenant.waiting, {}  # lanes that run keep the tenant, not what waited in it
        for request in waiting.values():
            tenant.reject(request, error)
        return tenant.leave()

    def idleness(self, name: str) -> Callable[[], bool]:
        """Says, whenever it is asked, whether nothing of this tenant waits or runs; so it is when it has left."""
        tenant, known = self._queues.find(name), self._queues.tenants
        return lambda: known.get(name) is not tenant or not (tenant.waiting or tenant.running)

    def add_merged(self, view: MergedView, executable: Executable) -> None:
        """From now on lanes may hold tenants of all these cohorts. It goes when one of the cohorts does."""
        self._merged.add(view, executable)

    def remove_merged(self, merged: str) -> None:
        """No lane of it starts any more; those that run end as they began."""
        self._merged.remove(merged)

    def submit(self, request: Request) -> None:
        """Queue a request; whatever forbids it ends up in its future."""
        tenant = self._queues.tenants.get(request.view.tenant)
        if tenant is None:
            what = f"tenant {request.view.tenant!r} does not exist"
            request.reject(RejectedError(what, "it may have been removed", "add the tenant again"))
        elif self.closed:
            tenant.arrived(request.view.arrival_us)
            facts = "the request came after close()"
            tenant.reject(request, ClosedError("the runtime is closed", facts, "make another Runtime"))
        else:
            is_head = not tenant.waiting
            self._queues.push(tenant, request)
            if is_head and tenant.expires:
                self._lateness.watch(tenant)

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
        if self._lateness:
            self._end(self._lateness.take(self.backend.now_us()))
        while self._queues:
            snapshot = self.snapshot()
            try:
                plan = self._decide(snapshot)
            except PlanError as error:
                self._reject([view for tenant in snapshot.tenants for view in tenant.waiting], error)
                continue
            self._holds.watch(snapshot, plan)
            for lane in plan.lanes:
                self._start(lane, plan.isolated)
            if plan.resizes:
                self._resizes.begin(plan.resizes)
            if self._running or plan.wake_at_us is not None:
                late_us = self._lateness.next_us()
                return plan.wake_at_us if late_us is None else min(late_us, plan.wake_at_us or late_us)
            # Every request of the plan had been cancelled: ask again for the others.
        return None

    def snapshot(self) -> Snapshot:
        """What the policy sees now."""
        backend, queues, running = self.backend, self._queues, self._running.values()
        device, now_us = backend.device, backend.now_us()
        lanes: list[Lane] = []
        since_us: list[int] = []
        free = device.all_atoms
        for each in running:
            free &= ~each.atoms
            lanes.append(each.lane)
            since_us.append(each.started_us)
        return Snapshot(
            now_us,
            device,
            free,
            queues.views(),
            tuple(lanes),
            backend.capabilities,
            queues.roster,
            tuple(since_us),
            self._freed_at_us,
            queues.promised_us(now_us),
            self._merged.views,
            self._holds.in_vain(now_us),
            self._load.at(now_us),
            self._load.parts,
        )

    def lane_done(self, lane_id: int, result: LaneResult) -> None:
        """Complete the lane's futures and keep the books."""
        running = self._running.pop(lane_id, None)
        if running is None:
            if lane_id in self._abandoned:
                self._abandoned.discard(lane_id)
                return
            raise PlanError(f"lane {lane_id} ended twice", "it runs no more", "a backend calls done once per lane")
        now_us = self._freed_at_us = self.backend.now_us()
        if len(result.outcomes) != len(running.requests):
            result = broken(running, result)
        Tenant.lane_ended(running.members)
        lane_ok = self._meter(running, result, now_us)
        self._events.append(LaneEvent(running.lane, result.start_us, result.end_us, lane_ok))
        floats = running.lane.placement is not None  # it had fewer units than it asked for, when others held them
        if lane_ok and running.isolated and not floats:  # what overlapped or broke says nothing about the next lane
            # From start to now: what it costs to hand a lane over and back is part of what a lane costs.
            self._observe(running, self.backend.now_us() - running.started_us)
            self._judge(running, result.end_us - result.start_us)
        for tenant in running.members:
            if tenant.expires:
                self._lateness.watch(tenant)
        for request, outcome in zip(running.requests, result.outcomes, strict=True):  # last: it wakes those that wait
            if outcome.error is None:
                request.future.set_result(outcome.value)
            else:
                request.future.set_exception(outcome.error)

    def stats(self) -> dict[str, dict[str, int | float]]:
        """Per tenant: counters, latency quantiles, device time, load, and whether it is apart for being slow."""
        now_us, books = self.backend.now_us(), {}
        for name, tenant in self._queues.tenants.items():
            num_waiting = len(tenant.waiting)
            books[name] = tenant.meter.as_dict() | {
                "waiting": num_waiting,
                "running": tenant.meter.num_open - num_waiting,
                "load": tenant.meter.load(now_us),
                "apart": tenant.apart,
                "slowdown": self._stragglers.slowdown(name),
                "evictions": self._stragglers.evictions(name),
            }
        return books

    def trace(self) -> Trace:
        """The last lanes that ended."""
        return Trace(tuple(self._events))

    def _decide(self, snapshot: Snapshot) -> Plan:
        """The policy's plan, verified; whatever is wrong with it is a PlanError that names the policy."""
        try:
            plan = self._policy(snapshot, self._costs)
            verify(plan, snapshot, self.backend.capabilities)
            if plan.resizes:
                self._resizes.check(plan.resizes)
        except Exception as error:
            what = f"policy {policy_name(self._policy)!r} failed"
            facts = str(error) if isinstance(error, PlanError) else f"{type(error).__name__}: {error}"
            raise PlanError(what, facts, "the requests it had to plan are rejected") from error
        if not plan.lanes and plan.wake_at_us is None and not self._running:
            facts = f"{len(snapshot.tenants)} tenants wait, nothing runs, and no lane or wake_at_us is in the plan"
            what = f"policy {policy_name(self._policy)!r} would wait forever"
            raise PlanError(what, facts, "start a lane whenever the device is idle")
        return plan

    def _start(self, lane: Lane, isolated: bool) -> None:
        """Hand a lane to the backend, without the requests that were cancelled meanwhile."""
        requests: list[Request] = []
        tenants: list[Tenant] = []
        num_rows = 0
        for tenant, request in self._queues.pop_each(lane.requests):
            if request.begin():
                requests.append(request)
                tenants.append(tenant)
                num_rows += request.view.rows
            else:
                tenant.meter.cancelled += 1
        if not requests:
            return
        if len(requests) < len(lane.requests):
            lane = replace(lane, requests=tuple([request.view for request in requests]))
        lane_id, now_us = self._num_started, self.backend.now_us()
        self._num_started += 1
        members = (tenant,) if len(tenants) == 1 else tuple(dict.fromkeys(tenants))
        atoms, units = lane.atoms, lane.units
        predicted_us = None
        if members[0].apart:
            predicted_us = self._costs.lane_us(
                lane.cohort, tenants=len(members), rows=num_rows, units=units, fused=lane.fused
            )
        merged, executable = self._merged.find(lane.cohort) or (None, members[0].executable)
        cohorts = () if merged is None else tuple([tenant.spec.cohort for tenant in tenants])
        since_us = next(iter(self._running.values())).started_us if self._running else now_us
        num_met = sum([at_us < self._freed_at_us or at_us > since_us for at_us in map(_ARRIVAL_US, lane.requests)])
        sizes = (num_rows, num_met, atoms, units)
        self._running[lane_id] = Running(
            lane, requests, tenants, members, *sizes, isolated, now_us, predicted_us, merged, cohorts
        )
        if merged is None:
            self._lateness.lane_started(lane.cohort, lane.fused)
        Tenant.lane_started(members, now_us)
        payloads = [request.payload for request in requests]
        try:
            self.backend.start(lane, executable, payloads, partial(self._post_done, lane_id))
        except Exception as error:
            now_us = self.backend.now_us()
            self._post_done(lane_id, LaneResult((Outcome(error=error),) * len(requests), now_us, now_us))

    def _post_done(self, lane_id: int, result: LaneResult) -> None:
        self._post(partial(self.lane_done, lane_id, result))

    def _meter(self, running: Running, result: LaneResult, now_us: int) -> bool:
        """Charge the lane's tenants. Whether all of its requests ended well."""
        lane_us = (result.end_us - result.start_us) * running.units / self.backend.device.num_units
        isolated, lane_ok = running.isolated, True
        met = running.num_met / len(running.requests)
        self._load.lane_ended(now_us, lane_us, met, running.cohorts or (running.lane.cohort,))
        if running.merged is not None:
            charges = self._merged.charges(running.lane, running.cohorts, lane_us)
        else:
            us_per_row = lane_us / running.num_rows
            charges = [us_per_row * view.rows for view in running.lane.requests]
        ended = zip(running.requests, running.tenants, result.outcomes, charges, strict=True)
        for request, tenant, outcome, charged_us in ended:
            view, ok = request.view, True
            if outcome.error is not None:
                ok = lane_ok = False
            num_bytes = request.input_bytes + value_bytes(outcome.value)
            tenant.meter.record(view.rows, charged_us, now_us - view.arrival_us, ok, now_us, num_bytes, isolated)
        return lane_ok

    def _observe(self, running: Running, duration_us: int) -> None:
        lane, members = running.lane, running.members
        if running.merged is not None:
            self._merged.observe(running.merged, lane, running.cohorts, duration_us)
        elif len(members) > 1 or not members[0].apart:  # a straggler by itself says nothing about its peers
            tenants, rows, units = len(members), running.num_rows, running.units
            self._costs.observe(
                lane.cohort, tenants=tenants, rows=rows, units=units, fused=lane.fused, duration_us=duration_us
            )

    def _judge(self, running: Running, device_us: int) -> None:
        """Does one of the lane's tenants make it slow?"""
        first = running.members[0]
        if running.merged is not None or not first.spec.fusible or not (first.has_peers or first.apart):
            return  # where it has nobody to be compared with, or is compared with unlike ones
        lane, known, names = running.lane, self._queues.tenants, []
        for tenant in running.members:
            name = tenant.spec.name
            if known.get(name) is not tenant or tenant.spec.cohort != lane.cohort:
                return  # it has left meanwhile
            names.append(name)
        arrangement = (len(names), running.num_rows, running.atoms or running.units, lane.fused)
        changed = self._stragglers.observe(lane.cohort, arrangement, names, device_us, running.predicted_us)
        if changed is not None:
            known[changed].apart = not known[changed].apart
            _log.warning("tenant %r %s", changed, "runs apart" if known[changed].apart else "shares lanes again")

    def _forget(self, name: str, cohort: str) -> None:
        """The tenant has left the cohort."""
        self._stragglers.forget(name)
        if not self._queues.has_cohort(cohort):
            self._lateness.forget(cohort)
            self._resizes.forget(cohort)
            self._stragglers.forget_cohort(cohort)
            self._merged.forget(cohort)
            self._holds.forget(cohort)
            self._costs.retire(cohort)

    def _reject(self, views: Sequence[RequestView], error: SpacetimeError) -> None:
        """End requests that wait. All leave their queues first: a future's callback may come back to us."""
        self._end([(self._queues.tenants[view.tenant], self._queues.pop(view), error) for view in views])

    def _end(self, taken: Sequence[tuple[Tenant, Request, SpacetimeError]]) -> None:
        for tenant, request, error in taken:
            tenant.reject(request, error)
