"""A lane on the device, as the loop remembers it until it ends. Only loop.py imports it."""

from __future__ import annotations

from dataclasses import dataclass

from spacetime.errors import SpacetimeError
from spacetime.plan import Lane, MergedView
from spacetime.scheduler.protocols import LaneResult, Outcome
from spacetime.scheduler.queues import Tenant
from spacetime.scheduler.request import Request


@dataclass(slots=True, eq=False)
class Running:
    """It keeps its tenants: by the time it ends their names may belong to others."""

    lane: Lane
    requests: list[Request]
    tenants: list[Tenant]  # of each request ...
    members: tuple[Tenant, ...]  # ... and each of them once
    num_rows: int
    num_met: int  # how many of its requests came while other lanes ran
    atoms: int
    units: int
    isolated: bool
    started_us: int
    predicted_us: float | None  # of a straggler by itself
    merged: MergedView | None  # what tenants of several cohorts share it by ...
    cohorts: tuple[str, ...]  # ... and of which its requests are


def broken(running: Running, result: LaneResult) -> LaneResult:
    """In place of a result that does not answer every request."""
    what = f"a lane of cohort {running.lane.cohort!r} is broken"
    facts = f"{len(running.requests)} requests, {len(result.outcomes)} outcomes"
    error = SpacetimeError(what, facts, "a backend reports every request")
    return LaneResult((Outcome(error=error),) * len(running.requests), result.start_us, result.end_us)
