"""The product's policy: fuse, right-size, or neither; order, balance, the row cap, the batching window."""

from __future__ import annotations

from typing import Any

from spacetime.plan import Lane, Plan, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler.space_time import HOLD_GAP_US, HOLD_SHARE, MAX_HOLD_US, ROWS_PER_LANE, space_time
from tests.scheduler.harness import CORES, TableCosts, snapshot, tenant_view

FUSING_PAYS = TableCosts(lambda tenants, rows, units: 1000.0 + 1000.0 / units)  # rows are free
ROWS_COST = TableCosts(lambda tenants, rows, units: 1000.0 * rows)  # neither fusing nor more units help


def four(**options: Any) -> list[TenantView]:
    return [tenant_view(f"t{i}", 1, **options) for i in range(4)]


def shapes(plan: Plan) -> list[tuple[int, int]]:
    """(rows, units) of each lane."""
    return [(lane.num_rows, lane.units) for lane in plan.lanes]


def test_a_cohort_fuses_when_that_is_faster() -> None:
    assert shapes(space_time(snapshot(*four()), FUSING_PAYS)) == [(4, 4)]


def test_a_cohort_spreads_over_the_units_when_that_is_faster() -> None:
    assert shapes(space_time(snapshot(*four()), ROWS_COST)) == [(1, 1)] * 4


def test_two_lanes_of_two_when_the_cost_model_says_so() -> None:
    costs = TableCosts(lambda tenants, rows, units: 100.0 if (rows, units) == (2, 2) else 1000.0)
    assert shapes(space_time(snapshot(*four()), costs)) == [(2, 2)] * 2


def test_cohorts_that_share_the_device_are_right_sized() -> None:
    cohorts = [tenant_view(name, 1, cohort=name) for name in "abcd"]
    assert shapes(space_time(snapshot(*cohorts), FUSING_PAYS)) == [(1, 1)] * 4
    assert shapes(space_time(snapshot(*cohorts[:2]), FUSING_PAYS)) == [(1, 2), (1, 2)], "no unit is left idle"


def test_order_is_deadline_then_priority_then_service_then_arrival() -> None:
    ordered = [
        tenant_view("deadline", 1, cohort="0", deadline_us=5000, served_us=9, priority=9),
        tenant_view("priority", 1, cohort="1", priority=-1, served_us=9),
        tenant_view("light", 1, cohort="2", served_us=4, weight=4.0, arrival_us=9),
        tenant_view("old", 1, cohort="3", served_us=2),
        tenant_view("young", 1, cohort="4", served_us=2, arrival_us=1),
    ]
    plan = space_time(snapshot(*reversed(ordered)), FUSING_PAYS)
    assert [lane.cohort for lane in plan.lanes] == ["0", "1", "2", "3"]


def test_lanes_are_balanced_by_rows() -> None:
    tenants = [tenant_view(f"t{i}", rows) for i, rows in enumerate((8, 4, 2, 2))]
    costs = TableCosts(lambda tenants, rows, units: 1.0 if (tenants, units) == (2, 2) else 1000.0)
    assert sorted(lane.num_rows for lane in space_time(snapshot(*tenants), costs).lanes) == [8, 8]


def test_lanes_keep_to_the_row_cap_and_large_requests_go_alone() -> None:
    tenants = [tenant_view("big", 3 * ROWS_PER_LANE), *(tenant_view(f"t{i}", 40, 20, 10) for i in range(3))]
    plan = space_time(snapshot(*tenants), FUSING_PAYS)
    assert sorted(lane.num_rows for lane in plan.lanes if lane.tenants != ("big",)) == [60] * 3
    big = [lane for lane in plan.lanes if "big" in lane.tenants]
    assert all(lane.tenants == ("big",) for lane in big)


def test_balancing_keeps_to_the_row_cap_too() -> None:
    three = [tenant_view(f"t{i}", 40) for i in range(3)]  # 120 rows would be two full lanes, but no two fit in one
    prefer_two = TableCosts(lambda tenants, rows, units: 1.0 if (rows, units) == (60, 1) else 1000.0)
    assert [lane.num_rows for lane in space_time(snapshot(*three), prefer_two).lanes] == [40] * 3


def test_a_deep_queue_may_fill_several_lanes() -> None:
    plan = space_time(snapshot(tenant_view("a", 60, 60, 60, max_concurrency=2)), ROWS_COST)
    assert [lane.num_rows for lane in plan.lanes] == [60, 60]


def test_what_cannot_be_fused_runs_plain_request_by_request() -> None:
    stubborn = [tenant_view(f"t{i}", 1, 1, fusible=False) for i in range(2)]
    plan = space_time(snapshot(*stubborn), FUSING_PAYS)
    assert [(lane.tenants, lane.num_rows, lane.fused) for lane in plan.lanes] == [
        (("t0",), 1, False),
        (("t1",), 1, False),
    ]


def test_a_cohort_runs_plain_when_that_is_faster() -> None:
    class PlainPays(TableCosts):
        def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
            return 1000.0 if fused else 100.0

    lanes = space_time(snapshot(*four()), PlainPays()).lanes
    assert lanes and not any(lane.fused for lane in lanes)
    assert {name for lane in lanes for name in lane.tenants} == {"t0", "t1", "t2", "t3"}


def test_a_tenant_gets_the_units_it_needs_and_is_not_overtaken_meanwhile() -> None:
    wide = tenant_view("wide", 1, cohort="wide", fusible=False, min_units=4, arrival_us=1)
    narrow = tenant_view("narrow", 1, cohort="narrow", arrival_us=2)
    (lane,) = space_time(snapshot(wide, narrow), ROWS_COST).lanes
    assert (lane.tenants, lane.units) == (("wide",), 4)
    running = (Lane("x", (RequestView(9, "x", 1, 0),), (Segment(CORES.partition(1)),)),)
    assert space_time(snapshot(wide, narrow, running=running), ROWS_COST) == Plan(), "or it would wait for ever"


def test_running_lanes_keep_their_atoms() -> None:
    running = Lane("x", (RequestView(9, "x", 1, 0),), (Segment(CORES.partition(3)),))
    (lane,) = space_time(snapshot(*four(), running=(running,)), FUSING_PAYS).lanes
    assert lane.atoms == 0b1000
    full = Lane("x", (RequestView(9, "x", 1, 0),), (Segment(CORES.whole),))
    assert space_time(snapshot(*four(), running=(full,)), FUSING_PAYS) == Plan()


def test_a_cohort_waits_a_moment_for_active_peers() -> None:
    now_us, slow, quick = 5000, TableCosts(lambda *_: 1e6), TableCosts(lambda *_: 1000.0)
    newest = tenant_view("newest", 1, active_peers=5, arrival_us=now_us)

    def waiting_since(oldest_us: int) -> Snapshot:
        return snapshot(tenant_view("oldest", 1, active_peers=5, arrival_us=oldest_us), newest, now_us=now_us)

    assert space_time(waiting_since(now_us), slow) == Plan(wake_at_us=now_us + HOLD_GAP_US), "arrivals must go on"
    oldest_us = now_us - MAX_HOLD_US + 10
    assert space_time(waiting_since(oldest_us), slow) == Plan(wake_at_us=now_us + 10), "and not for too long"
    assert space_time(waiting_since(oldest_us - 10), slow).lanes
    oldest_us = now_us - int(HOLD_SHARE * 1000) + 10
    assert space_time(waiting_since(oldest_us), quick) == Plan(wake_at_us=now_us + 10), "nor for long beside its lane"
    assert space_time(waiting_since(oldest_us - 10), quick).lanes


def test_nobody_waits_for_peers_that_cannot_come() -> None:
    assert space_time(snapshot(*four(active_peers=3, arrival_us=1000)), FUSING_PAYS).lanes, "all peers are here"
    peer = Lane("cohort", (RequestView(9, "peer", 1, 0),), (Segment(CORES.partition(1)),))
    waiting = snapshot(*four(active_peers=4, arrival_us=1000), running=(peer,))
    assert space_time(waiting, FUSING_PAYS).lanes, "the fifth one is running"


def test_a_held_cohort_does_not_hold_up_the_others() -> None:
    other = tenant_view("other", 1, cohort="other")
    plan = space_time(snapshot(*four(active_peers=5, arrival_us=1000), other), FUSING_PAYS)
    assert [lane.cohort for lane in plan.lanes] == ["other"] and plan.wake_at_us is not None
