"""Who is next: the waiting tenants of a snapshot as cohorts, in order of urgency. Only `space_time` imports it.

Urgent is whose oldest request is due first; then priority, device time per weight, and arrival decide. Deadlines alone
would let a flood, whose requests are always about to be late, go before everybody else, and would let those without a
deadline starve. So

- a deadline that cannot be met any more is none: its tenant goes by the first one in its queue that can be, or, if
  there is none, by what it has been served;
- a tenant that was served more than the mean of those that wait is treated as if it had that much more time, at most
  twice its objective;
- a tenant served no more than the mean that has waited for PATIENCE_US is as if due: it goes before every deadline to
  come. While it waits others are served, so it is no more than the mean sooner or later: its wait is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from operator import itemgetter

from spacetime.plan import RequestView, Snapshot, TenantView
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.tables import LaneSize

ROWS_PER_LANE = 64  # a request with more rows goes alone
PATIENCE_US = 1_000_000  # how long one waits behind others' deadlines and priorities


Urgency = tuple[float, int, float, int]  # deadline, priority, served time per weight, arrival

# Requests of one tenant that go into one lane, and their rows. Hundreds are made per decision, hence no class.
Chunk = tuple[int, Urgency, TenantView, tuple[RequestView, ...]]
ROWS_OF, URGENCY_OF = itemgetter(0), itemgetter(1)


@dataclass(slots=True, eq=False)
class Cohort:
    """Tenants that may share a lane, and what of them may start now."""

    name: str
    fusible: bool
    shared: bool  # more of its tenants may join; False for a tenant that is kept apart
    chunks: list[Chunk]
    min_units: int = 1
    has_deadlines: bool = False
    num_extra: int = 0  # chunks beyond one per tenant

    @property
    def num_missing(self) -> int:
        """Active tenants that have nothing among the chunks, which may still join."""
        return self.chunks[0][2].active_peers + 1 - (len(self.chunks) - self.num_extra)


def cohorts_by_urgency(snapshot: Snapshot, costs: CostModel) -> list[Cohort]:
    """The most urgent first. What cannot be fused, and a straggler, is a cohort of its own."""
    ranks: _Ranks | None = None
    impatient_us = snapshot.now_us - PATIENCE_US
    cohorts: dict[str | tuple[str, str], Cohort] = {}
    for tenant in snapshot.tenants:
        if tenant.running >= tenant.max_concurrency:
            continue
        key = tenant.cohort if tenant.fusible and not tenant.apart else (tenant.cohort, tenant.name)
        cohort = cohorts.get(key)
        if cohort is None:
            cohort = cohorts[key] = Cohort(tenant.cohort, tenant.fusible, tenant.fusible and not tenant.apart, [])
        waiting = tenant.waiting
        head = waiting[0]
        deadline_us, arrival_us, share = head.deadline_us, head.arrival_us, tenant.served_us / tenant.weight
        due_us = inf
        if deadline_us is not None or arrival_us <= impatient_us:
            ranks = ranks or _Ranks(snapshot, costs)
            due_us = ranks.due_us(tenant, head, share)
            cohort.has_deadlines |= deadline_us is not None
        urgency = (due_us, tenant.priority, share, arrival_us)
        if tenant.min_units > 1:
            cohort.min_units = max(cohort.min_units, tenant.min_units)
        if len(waiting) == 1:
            cohort.chunks.append((head.rows, urgency, tenant, waiting))
        else:
            parts = list(islice(_split(tenant, urgency), tenant.max_concurrency - tenant.running))
            cohort.num_extra += len(parts) - 1
            cohort.chunks.extend(parts)
    found = list(cohorts.values())
    if len(found) > 1:
        found.sort(key=lambda cohort: min(map(URGENCY_OF, cohort.chunks)))
    return found


class _Ranks:
    """When tenants are due that have a deadline, or have waited for long."""

    def __init__(self, snapshot: Snapshot, costs: CostModel) -> None:
        self._now_us = snapshot.now_us
        self._num_units = snapshot.device.num_units
        self._costs = costs
        shares = [peer.served_us / peer.weight for peer in snapshot.tenants]
        self._mean_share = sum(shares) / len(shares)
        self._quickest_us: dict[tuple[str, int, bool], float] = {}

    def due_us(self, tenant: TenantView, head: RequestView, share: float) -> float:
        now_us, arrival_us = self._now_us, head.arrival_us
        deadline_us: float | None = head.deadline_us
        excess_us = share - self._mean_share
        came_us, is_impatient = arrival_us, excess_us <= 0 and now_us - arrival_us >= PATIENCE_US
        if deadline_us is not None:
            key = (tenant.cohort, head.rows, tenant.fusible)
            quickest_us = self._quickest_us.get(key)
            if quickest_us is None:
                quickest_us = self._quickest_us[key] = self._quickest(*key)
            if now_us + quickest_us > deadline_us and len(tenant.waiting) > 1 and not is_impatient:
                deadline_us, came_us = _first_from(now_us + quickest_us, tenant.waiting)
            if now_us + quickest_us <= deadline_us:
                later_us = excess_us if excess_us > 0 else 0.0
                return deadline_us + (later_us if later_us <= deadline_us - came_us else deadline_us - came_us)
        return arrival_us + PATIENCE_US if is_impatient else inf

    def _quickest(self, cohort: str, rows: int, fusible: bool) -> float:
        """The rows by themselves on the whole device."""
        return min(lanes_us(self._costs, cohort, [(1, rows, self._num_units, fused) for fused in forms(fusible)]))


def _first_from(us: float, waiting: Sequence[RequestView]) -> tuple[float, int]:
    """The first deadline of a queue that is no sooner, and when its request came. Requests are due as they came."""
    first = bisect_left(waiting, us, key=_due_us)
    return (_due_us(waiting[first]), waiting[first].arrival_us) if first < len(waiting) else (-inf, 0)


def _due_us(view: RequestView) -> float:
    return -inf if view.deadline_us is None else view.deadline_us


def forms(fusible: bool) -> tuple[bool, ...]:
    """What `fused` may be."""
    return (True, False) if fusible else (False,)


def _split(tenant: TenantView, urgency: Urgency) -> Iterator[Chunk]:
    """A long queue in parts that keep to the row cap. A tenant that cannot be fused runs request by request."""
    waiting = tenant.waiting
    rows_per_lane = ROWS_PER_LANE if tenant.fusible else 0
    end = 0
    while end < len(waiting):
        start, rows = end, waiting[end].rows
        end += 1
        while end < len(waiting) and rows + waiting[end].rows <= rows_per_lane:
            rows += waiting[end].rows
            end += 1
        yield rows, urgency, tenant, waiting[start:end]


def lanes_us(costs: CostModel, cohort: str, lanes: Sequence[LaneSize]) -> list[float]:
    """What each of them takes."""
    at_once: Callable[[str, Sequence[LaneSize]], list[float]] | None = getattr(costs, "lanes_us", None)
    if at_once is not None:  # a ListCostModel
        return at_once(cohort, lanes)
    return [
        costs.lane_us(cohort, tenants=tenants, rows=rows, units=units, fused=fused)
        for tenants, rows, units, fused in lanes
    ]
