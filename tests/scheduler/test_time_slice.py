"""One request at a time, oldest first, whole device."""

from __future__ import annotations

from spacetime.plan import Lane, Plan, Segment
from spacetime.scheduler.time_slice import time_slice
from tests.scheduler.harness import CORES, TableCosts, snapshot, tenant_view


def test_the_oldest_request_runs_alone() -> None:
    late, early = tenant_view("late", 1, arrival_us=20), tenant_view("early", 4, 1, arrival_us=10)
    (lane,) = time_slice(snapshot(late, early), TableCosts()).lanes
    assert lane == Lane("cohort", early.waiting[:1], (Segment(CORES.whole),), fused=False)


def test_nothing_starts_beside_a_running_lane() -> None:
    running = (Lane("x", (), (Segment(CORES.partition(1)),)),)
    assert time_slice(snapshot(tenant_view("a", 1), running=running), TableCosts()) == Plan()
