"""Per-tenant queues and the tenant views made from them. Only the loop imports it.

A decision over many waiting tenants must be cheap, so a tenant's view is kept until the tenant changes.
"""

from __future__ import annotations

from concurrent.futures import Future
from itertools import islice

from spacetime.errors import OptionError, RejectedError, SpacetimeError
from spacetime.plan import RequestView, TenantView
from spacetime.scheduler.metering import Meter
from spacetime.scheduler.protocols import Executable
from spacetime.scheduler.request import Request, TenantSpec

VISIBLE_REQUESTS = 256  # of one tenant: more than a lane holds, so that a flood does not make decisions slow
ACTIVE_US = 100_000  # a tenant that submitted within this time may join its cohort's next lane

Activity = dict[str, int]  # tenant -> its last submit, least recent first; one per cohort


class Tenant:
    """A tenant's waiting requests, in order of arrival, and its books."""

    __slots__ = ("_activity", "_left", "_lift_us", "_view", "executable", "meter", "running", "spec", "waiting")

    def __init__(self, spec: TenantSpec, executable: Executable, activity: Activity) -> None:
        self.waiting: dict[int, Request] = {}
        self.meter = Meter()
        self.running = 0
        self._left: Future[None] | None = None
        self._lift_us = 0.0
        self.assign(spec, executable, activity)

    def assign(self, spec: TenantSpec, executable: Executable, activity: Activity) -> None:
        """Another cohort, other limits; what waits keeps waiting."""
        self.spec = spec
        self.executable = executable
        self._activity = activity
        self._view: TenantView | None = None

    @property
    def served_us(self) -> float:
        return self.meter.device_us + self._lift_us

    def lift(self, virtual_time: float) -> None:
        """Idle time is no credit: a tenant that comes back starts level with those that are being served."""
        self._lift_us += max(0.0, virtual_time * self.spec.weight - self.served_us)

    def push(self, request: Request) -> None:
        self.waiting[request.view.id] = request
        self._view = None

    def pop(self, view: RequestView) -> Request:
        self._view = None
        return self.waiting.pop(view.id)

    def started(self, count: int) -> None:
        """`count` lanes began (or, negative, ended)."""
        self.running += count
        self._view = None
        self._complete_leave()

    def reset(self) -> None:
        """None of its lanes is known any more."""
        self.running = 0
        self._view = None
        self._complete_leave()

    def leave(self) -> Future[None]:
        """A future that completes when the last running lane has ended."""
        self._left = Future()
        left = self._left
        self._complete_leave()
        return left

    def _complete_leave(self) -> None:
        if self._left is not None and self.running == 0:
            self._left.set_result(None)
            self._left = None

    def reject(self, request: Request, error: SpacetimeError) -> None:
        if request.reject(error):
            self.meter.rejected += 1
        else:
            self.meter.cancelled += 1

    def view(self) -> TenantView:
        active_peers = max(0, len(self._activity) - 1)
        if self._view is None or self._view.active_peers != active_peers:
            spec = self.spec
            self._view = TenantView(
                spec.name,
                spec.cohort,
                spec.fusible,
                spec.weight,
                spec.priority,
                spec.slo_us,
                round(self.served_us),
                spec.max_concurrency,
                self.running,
                tuple([request.view for request in islice(self.waiting.values(), VISIBLE_REQUESTS)]),
                active_peers,
                spec.min_units,
            )
        return self._view


class Queues:
    """All tenants, and which of them wait."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}
        self._waiting: dict[str, Tenant] = {}
        self._activity: dict[str, Activity] = {}
        self._virtual_time = 0.0  # the least served time per weight among those that wait; never goes back

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    @property
    def num_waiting(self) -> int:
        return sum(len(tenant.waiting) for tenant in self._waiting.values())

    def views(self) -> tuple[TenantView, ...]:
        """One view per tenant that waits."""
        views = tuple([tenant.view() for tenant in self._waiting.values()])
        least_served = min([view.served_us / view.weight for view in views], default=0.0)
        self._virtual_time = max(self._virtual_time, least_served)
        return views

    def add(self, spec: TenantSpec, executable: Executable) -> None:
        if spec.name in self.tenants:
            raise OptionError(f"tenant {spec.name!r} exists already", next_step="choose another name, or remove it")
        self.tenants[spec.name] = Tenant(spec, executable, self._activity.setdefault(spec.cohort, {}))

    def replace(self, spec: TenantSpec, executable: Executable) -> None:
        tenant = self.find(spec.name)
        self._retire(tenant)
        activity = self._activity.setdefault(spec.cohort, {})
        tenant.assign(spec, executable, activity)

    def remove(self, name: str) -> Tenant:
        """Forget the tenant; the caller ends what still waits in it."""
        tenant = self.find(name)
        del self.tenants[name]
        self._waiting.pop(name, None)
        self._retire(tenant)
        return tenant

    def find(self, name: str) -> Tenant:
        if name not in self.tenants:
            known = ", ".join(sorted(self.tenants)) or "none"
            raise OptionError(f"tenant {name!r} does not exist", f"known: {known}")
        return self.tenants[name]

    def push(self, tenant: Tenant, request: Request) -> None:
        """Queue a request, or reject it when the tenant's queue is full."""
        tenant.meter.submitted += 1
        limit = tenant.spec.max_queue
        name = tenant.spec.name
        if len(tenant.waiting) >= limit:
            facts = f"{len(tenant.waiting)} requests wait, max_queue is {limit}"
            error = RejectedError(f"tenant {name!r}: the queue is full", facts, "submit slower, or raise max_queue")
            tenant.reject(request, error)
            return
        assert request.view.id not in tenant.waiting, "request ids are unique in a tenant"
        self._touch(tenant, request.view.arrival_us)
        if tenant.waiting:
            tenant.push(request)
        else:
            tenant.lift(self._virtual_time)
            self._waiting[name] = tenant
            tenant.push(request)
            tenant.view()  # made here, so that a decision over many tenants finds theirs ready

    def pop(self, view: RequestView) -> Request:
        """Take a request that waits out of its queue."""
        tenant = self.tenants[view.tenant]
        request = tenant.pop(view)
        if not tenant.waiting:
            del self._waiting[view.tenant]
        return request

    def clear(self) -> list[tuple[Tenant, Request]]:
        """Empty every queue, and start over: what waited is the caller's to end."""
        waited = [(tenant, request) for tenant in self.tenants.values() for request in tenant.waiting.values()]
        self._waiting.clear()
        for tenant in self.tenants.values():
            tenant.waiting.clear()
            tenant.reset()
        return waited

    def _touch(self, tenant: Tenant, now_us: int) -> None:
        """Note that the tenant is active, and forget peers that no longer are."""
        activity = self._activity[tenant.spec.cohort]
        activity.pop(tenant.spec.name, None)
        activity[tenant.spec.name] = now_us
        while now_us - activity[oldest := next(iter(activity))] > ACTIVE_US:
            del activity[oldest]

    def _retire(self, tenant: Tenant) -> None:
        cohort = tenant.spec.cohort
        self._activity[cohort].pop(tenant.spec.name, None)
        if not any(peer.spec.cohort == cohort for peer in self.tenants.values() if peer is not tenant):
            del self._activity[cohort]
