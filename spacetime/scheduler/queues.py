"""Per-tenant queues and the tenant views made from them. Only the loop imports it.

A decision over many waiting tenants must be cheap, so a tenant's view is kept until the tenant, or how many peers it
has, changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from itertools import islice

from spacetime.errors import OptionError, RejectedError, SpacetimeError
from spacetime.plan import RequestView, Resize, TenantView
from spacetime.scheduler.metering import Meter
from spacetime.scheduler.protocols import Executable
from spacetime.scheduler.request import Request, TenantSpec

VISIBLE_REQUESTS = 256  # of one tenant: more than a lane holds, so that a flood does not make decisions slow
ACTIVE_US = 100_000  # a tenant that submitted within this time may join its cohort's next lane
PROMISED_US = 1_000_000  # who has an objective and submitted within this time counts for Snapshot.promised_us
LOOKS_PER_PUSH = 64  # at requests of a full queue that may have been cancelled, on average

Activity = dict[str, int]  # tenant -> its last submit, least recent first; one per cohort


class Tenant:
    """A tenant's waiting requests, in order of arrival, and its books."""

    __slots__ = (
        "_apart",
        "_left",
        "_lift_us",
        "_search_in",
        "_share_since_us",
        "activity",
        "check_us",
        "executable",
        "expires",
        "meter",
        "preparing",
        "ran_us",
        "running",
        "share",
        "share_units",
        "spec",
        "view",
        "waiting",
    )

    def __init__(self, spec: TenantSpec, executable: Executable, activity: Activity) -> None:
        self.waiting: dict[int, Request] = {}
        self.meter = Meter()
        self.running = 0
        self.ran_us: int | None = None  # when its last lane started
        self.check_us: int | None = None  # when its head is looked at next; lateness.py keeps it
        self._left: Future[None] | None = None
        self._lift_us = 0.0
        self._search_in = 0  # so many more pushes to a full queue, then it is searched for cancelled requests
        self._apart = False
        self.share_units: int | None = None
        self._share_since_us = 0
        self.preparing: Resize | None = None
        self.assign(spec, executable, activity)

    def assign(self, spec: TenantSpec, executable: Executable, activity: Activity) -> None:
        """Another cohort, other limits; what waits keeps waiting."""
        self.spec = spec
        self.expires = spec.expires
        self.executable = executable
        self.activity = activity
        self.view: TenantView | None = None  # None: it is out of date
        self.share = 0.0  # device time per weight, as the view has it

    @property
    def has_peers(self) -> bool:
        """Whether others of its cohort are active."""
        return len(self.activity) > 1

    def lift(self, virtual_time: float) -> None:
        """Idle time is no credit: a tenant that comes back starts level with those that are being served."""
        behind_us = virtual_time * self.spec.weight - (self.meter.device_us + self._lift_us)
        if behind_us > 0:
            self._lift_us += behind_us

    def arrived(self, at_us: int) -> None:
        self.meter.arrived(at_us)
        self.view = None

    def pop(self, view: RequestView) -> Request:
        self.view = None
        return self.waiting.pop(view.id)

    def drop_cancelled(self) -> None:
        """Make room in a full queue. A search is paid for by many pushes, whoever floods whom."""
        if self._search_in > 0:
            self._search_in -= 1
            return
        self._search_in = len(self.waiting) // LOOKS_PER_PUSH
        for request in [request for request in self.waiting.values() if request.is_cancelled]:
            self.pop(request.view)
            begun = request.begin()
            assert not begun, "a cancelled future stays cancelled"
            self.meter.cancelled += 1

    def resize(self, resize: Resize) -> None:
        """Executables for another size are being made; the old size serves meanwhile."""
        self.preparing = resize
        self.view = None

    def resized(self, units: int, now_us: int) -> None:
        """The size is in force."""
        self.preparing = None
        self.share_units, self._share_since_us = units, now_us
        self.view = None

    def stays(self) -> None:
        """The other size could not be had."""
        self.preparing = None
        self.view = None

    @property
    def apart(self) -> bool:
        return self._apart

    @apart.setter
    def apart(self, apart: bool) -> None:
        self._apart = apart
        self.view = None

    def reset(self) -> None:
        """None of its lanes is known any more."""
        self.running = 0
        self.preparing = None
        self.view = None
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

    @staticmethod
    def lane_started(tenants: Iterable[Tenant], now_us: int) -> None:
        """These share a lane that starts."""
        for tenant in tenants:
            tenant.running += 1
            tenant.ran_us = now_us
            tenant.view = None

    @staticmethod
    def lane_ended(tenants: Iterable[Tenant]) -> None:
        for tenant in tenants:
            tenant.running -= 1
            tenant.view = None
            if tenant._left is not None:
                tenant._complete_leave()

    def reject(self, request: Request, error: SpacetimeError) -> None:
        if request.reject(error):
            self.meter.rejected += 1
        else:
            self.meter.cancelled += 1

    def look(self) -> TenantView:
        """Its view, made anew."""
        spec, meter, waiting, completions = self.spec, self.meter, self.waiting, self.meter.completions
        seen_us, active_peers = meter.seen_us, len(self.activity) - 1
        served_us = round(meter.device_us + self._lift_us)
        if len(waiting) == 1:  # as of most tenants
            (head,) = waiting.values()
            shown: tuple[RequestView, ...] = (head.view,)
        else:
            shown = tuple([request.view for request in islice(waiting.values(), VISIBLE_REQUESTS)])
        self.share = served_us / spec.weight
        view = self.view = TenantView(
            spec.name,
            spec.cohort,
            spec.fusible,
            spec.weight,
            spec.priority,
            spec.slo_us,
            served_us,
            spec.max_concurrency,
            self.running,
            shown,
            active_peers if active_peers > 0 else 0,
            spec.min_units,
            self.share_units,
            self.preparing is not None,
            meter.arrivals.per_s(seen_us),
            completions.per_s(seen_us),
            completions.mean,
            self._apart,
            self._share_since_us,
        )
        return view


class Queues:
    """All tenants, and which of them wait."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.roster: tuple[str, ...] = ()  # their names; kept, so that a snapshot need not copy them
        self._waiting: dict[str, Tenant] = {}
        self._activity: dict[str, Activity] = {}
        self._regrouped: set[str] = set()  # cohorts with more active tenants, or fewer, than their views say
        self._promises: dict[int, Activity] = {}  # objective -> who has it, and when each last submitted
        self._virtual_time = 0.0  # the least served time per weight among those that wait; never goes back

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    @property
    def num_waiting(self) -> int:
        return sum(len(tenant.waiting) for tenant in self._waiting.values())

    def promised_us(self, now_us: int) -> int | None:
        """The tightest objective of those that were active recently, and have nothing that waits."""
        if not self._promises:
            return None
        for slo_us in sorted(self._promises):
            active = self._promises[slo_us]
            while active and now_us - active[oldest := next(iter(active))] > PROMISED_US:
                del active[oldest]
            if not active:
                del self._promises[slo_us]
            elif not active.keys() <= self._waiting.keys():
                return slo_us
        return None

    def views(self) -> tuple[TenantView, ...]:
        """One view per tenant that waits."""
        if not self._waiting:
            return ()
        waiting = self._waiting.values()
        if self._regrouped:
            for tenant in waiting:
                if tenant.spec.cohort in self._regrouped:
                    tenant.view = None
            self._regrouped.clear()
        views = tuple([tenant.view or tenant.look() for tenant in waiting])
        least_served = min([tenant.share for tenant in waiting])
        self._virtual_time = max(self._virtual_time, least_served)
        return views

    def add(self, spec: TenantSpec, executable: Executable) -> None:
        if spec.name in self.tenants:
            facts = f"known: {', '.join(sorted(self.tenants))}"
            raise OptionError(f"tenant {spec.name!r} exists already", facts, "choose another name, or remove it")
        self.tenants[spec.name] = Tenant(spec, executable, self._activity.setdefault(spec.cohort, {}))
        self.roster = tuple(self.tenants)

    def replace(self, spec: TenantSpec, executable: Executable) -> None:
        tenant = self.find(spec.name)
        if spec.cohort != tenant.spec.cohort:
            tenant.share_units = tenant.preparing = None  # they were for other programs
        self._retire(tenant)
        activity = self._activity.setdefault(spec.cohort, {})
        tenant.assign(spec, executable, activity)

    def remove(self, name: str) -> Tenant:
        """Forget the tenant; the caller ends what still waits in it."""
        tenant = self.find(name)
        del self.tenants[name]
        self.roster = tuple(self.tenants)
        self._waiting.pop(name, None)
        self._retire(tenant)
        return tenant

    def has_cohort(self, cohort: str) -> bool:
        return cohort in self._activity

    def find(self, name: str) -> Tenant:
        if name not in self.tenants:
            known = ", ".join(sorted(self.tenants)) or "none"
            raise OptionError(f"tenant {name!r} does not exist", f"known: {known}", "name one of these, or add it")
        return self.tenants[name]

    def push(self, tenant: Tenant, request: Request) -> None:
        """Queue a request, or reject it when the tenant's queue is full."""
        view, waiting = request.view, tenant.waiting
        tenant.meter.arrived(view.arrival_us)
        tenant.view = None
        if len(waiting) >= tenant.spec.max_queue and not self._make_room(tenant):
            facts = f"{len(waiting)} requests wait, max_queue is {tenant.spec.max_queue}"
            what = f"tenant {tenant.spec.name!r}: the queue is full"
            tenant.reject(request, RejectedError(what, facts, "submit slower, or raise max_queue"))
            return
        assert view.id not in waiting, "request ids are unique in a tenant"
        self._touch(tenant, view.arrival_us)
        waiting[view.id] = request
        if len(waiting) == 1:
            tenant.lift(self._virtual_time)
            self._waiting[view.tenant] = tenant
            tenant.look()  # here, so that a decision over many tenants finds their views ready

    def pop(self, view: RequestView) -> Request:
        """Take a request that waits out of its queue."""
        return self.pop_each((view,))[0][1]

    def pop_each(self, views: Iterable[RequestView]) -> list[tuple[Tenant, Request]]:
        """The same, of all requests of a lane."""
        tenants, popped = self.tenants, []
        for view in views:
            tenant = tenants[view.tenant]
            waiting = tenant.waiting
            popped.append((tenant, waiting.pop(view.id)))
            tenant.view = None
            if not waiting:
                del self._waiting[view.tenant]
        return popped

    def clear(self) -> list[tuple[Tenant, Request]]:
        """Empty every queue, and start over: what waited is the caller's to end."""
        waited = [(tenant, request) for tenant in self.tenants.values() for request in tenant.waiting.values()]
        self._waiting.clear()
        for tenant in self.tenants.values():
            tenant.waiting.clear()
            tenant.reset()
        return waited

    def _make_room(self, tenant: Tenant) -> bool:
        """In a full queue, if some of what waits in it was cancelled."""
        tenant.drop_cancelled()
        if not tenant.waiting:
            del self._waiting[tenant.spec.name]
        return len(tenant.waiting) < tenant.spec.max_queue

    def _touch(self, tenant: Tenant, now_us: int) -> None:
        """Note that the tenant is active, and forget peers that no longer are."""
        activity, spec = tenant.activity, tenant.spec
        name = spec.name
        if activity.pop(name, None) is None:
            self._regrouped.add(spec.cohort)
        activity[name] = now_us
        if (slo_us := spec.slo_us) is not None:
            promises = self._promises.setdefault(slo_us, {})
            promises.pop(name, None)
            promises[name] = now_us
        while now_us - activity[oldest := next(iter(activity))] > ACTIVE_US:
            del activity[oldest]
            self._regrouped.add(spec.cohort)

    def _retire(self, tenant: Tenant) -> None:
        cohort, slo_us = tenant.spec.cohort, tenant.spec.slo_us
        if slo_us is not None and (active := self._promises.get(slo_us)) is not None:
            active.pop(tenant.spec.name, None)
            if not active:
                del self._promises[slo_us]
        self._activity[cohort].pop(tenant.spec.name, None)
        self._regrouped.add(cohort)
        if not any(peer.spec.cohort == cohort for peer in self.tenants.values() if peer is not tenant):
            del self._activity[cohort]
