"""Who is next: the waiting tenants of a snapshot as cohorts, in order of urgency. Only `space_time` imports it.

Urgent is whose oldest request is due first; then priority, device time per weight, and arrival decide. Deadlines alone
would let a flood, whose requests are always about to be late, go before everybody else, and would let those without a
deadline starve. So

- a deadline that cannot be met any more is none: its tenant goes by what it has been served;
- a tenant that was served more than the mean of those that wait is treated as if it had that much more time, at most
  twice its objective;
- a tenant served no more than the mean that has waited for PATIENCE_US is as if due: it goes before every deadline to
  come. While it waits others are served, so it is no more than the mean sooner or later: its wait is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import inf

from spacetime.plan import RequestView, Snapshot, TenantView
from spacetime.scheduler.protocols import CostModel

ROWS_PER_LANE = 64  # a request with more rows goes alone
PATIENCE_US = 1_000_000  # how long one waits behind others' deadlines and priorities


Urgency = tuple[float, int, float, int]  # deadline, priority, served time per weight, arrival

# Requests of one tenant that go into one lane, and their rows. Hundreds are made per decision, hence no class.
Chunk = tuple[int, Urgency, TenantView, tuple[RequestView, ...]]


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


def cohorts_by_urgency(snapshot: Snapshot, costs: CostModel) -> list[Cohort]:
    """The most urgent first. What cannot be fused, and a straggler, is a cohort of its own."""
    ranks = _Ranks(snapshot, costs)
    impatient_us = snapshot.now_us - PATIENCE_US
    cohorts: dict[str | tuple[str, str], Cohort] = {}
    chunks_of: dict[str | tuple[str, str], list[Chunk]] = {}
    for tenant in snapshot.tenants:
        if tenant.running >= tenant.max_concurrency:
            continue
        waiting = tenant.waiting
        head = waiting[0]
        key = tenant.cohort if tenant.fusible and not tenant.apart else (tenant.cohort, tenant.name)
        chunks = chunks_of.get(key)
        if chunks is None:
            chunks = chunks_of[key] = []
            cohorts[key] = Cohort(tenant.cohort, tenant.fusible, tenant.fusible and not tenant.apart, chunks)
        deadline_us, arrival_us, share = head.deadline_us, head.arrival_us, tenant.served_us / tenant.weight
        due_us = inf
        if deadline_us is not None or arrival_us <= impatient_us:
            due_us = ranks.due_us(tenant, head, share)
            cohorts[key].has_deadlines |= deadline_us is not None
        urgency = (due_us, tenant.priority, share, arrival_us)
        if tenant.min_units > 1:
            cohorts[key].min_units = max(cohorts[key].min_units, tenant.min_units)
        if len(waiting) == 1:
            chunks.append((head.rows, urgency, tenant, waiting))
        else:
            parts = islice(_split(tenant, urgency), tenant.max_concurrency - tenant.running)
            cohorts[key].num_extra -= 1
            for part in parts:
                chunks.append(part)
                cohorts[key].num_extra += 1
    return sorted(cohorts.values(), key=_urgency)


def _urgency(cohort: Cohort) -> Urgency:
    return min([chunk[1] for chunk in cohort.chunks])


class _Ranks:
    """When tenants are due that have a deadline, or have waited for long."""

    def __init__(self, snapshot: Snapshot, costs: CostModel) -> None:
        self._snapshot = snapshot
        self._costs = costs
        self._mean_share: float | None = None
        self._quickest_us: dict[tuple[str, int, bool], float] = {}

    def due_us(self, tenant: TenantView, head: RequestView, share: float) -> float:
        if self._mean_share is None:
            shares = [peer.served_us / peer.weight for peer in self._snapshot.tenants]
            self._mean_share = sum(shares) / len(shares)
        excess_us = share - self._mean_share
        deadline_us, now_us = head.deadline_us, self._snapshot.now_us
        if deadline_us is not None and now_us + self._quickest(tenant, head.rows) <= deadline_us:
            return deadline_us + min(max(0.0, excess_us), deadline_us - head.arrival_us)
        if excess_us <= 0 and now_us - head.arrival_us >= PATIENCE_US:
            return head.arrival_us + PATIENCE_US
        return inf

    def _quickest(self, tenant: TenantView, rows: int) -> float:
        """The rows by themselves on the whole device."""
        key = (tenant.cohort, rows, tenant.fusible)
        known = self._quickest_us.get(key)
        if known is None:
            units = self._snapshot.device.num_units
            known = self._quickest_us[key] = min(
                [
                    self._costs.lane_us(tenant.cohort, tenants=1, rows=rows, units=units, fused=fused)
                    for fused in forms(tenant.fusible)
                ]
            )
        return known


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
