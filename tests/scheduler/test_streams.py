"""Everybody at once, uncontrolled."""

from __future__ import annotations

from spacetime.plan import Segment
from spacetime.scheduler.streams import streams
from tests.scheduler.harness import CORES, TableCosts, snapshot, tenant_view


def test_each_tenant_runs_its_oldest_request_on_the_whole_device() -> None:
    a, b, busy = tenant_view("a", 1, 2), tenant_view("b", 3), tenant_view("busy", 1, running=1, max_concurrency=2)
    plan = streams(snapshot(a, b, busy), TableCosts())
    assert not plan.isolated
    assert [lane.requests for lane in plan.lanes] == [a.waiting[:1], b.waiting]
    assert all(not lane.fused and lane.segments == (Segment(CORES.whole),) for lane in plan.lanes)
