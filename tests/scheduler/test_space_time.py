"""The product's policy: fuse, right-size, or neither; order, balance, the row cap, the batching window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spacetime.device import Capabilities, Device, Partition
from spacetime.plan import Lane, Plan, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler.peers import HOLD_GAP_US, HOLD_SHARE, MAX_HOLD_US, REJOIN_SHARE
from spacetime.scheduler.selection import ROWS_PER_LANE
from spacetime.scheduler.space_time import LANE_SHARE, space_time, space_time_floating
from spacetime.scheduler.tables import KernelTimes
from tests.scheduler.harness import CORES, TableCosts, snapshot, tenant_view

ONE = Device("one core", "null", num_units=1)
EIGHT = Device("eight cores", "null", num_units=8)
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


def test_stragglers_get_a_lane_of_their_own() -> None:
    slow = tenant_view("slow", 1, apart=True)
    lanes = space_time(snapshot(*four(), slow), FUSING_PAYS).lanes
    assert sorted(lane.tenants for lane in lanes) == [("slow",), ("t0", "t1", "t2", "t3")]


def test_a_cohort_leaves_others_their_share() -> None:
    """Eight tenants would like four lanes of their own; the other cohort's turn comes before their third."""
    many = [tenant_view(f"t{i}", 40) for i in range(8)]
    lanes = space_time(
        snapshot(*many, tenant_view("other", 40, cohort="other", arrival_us=9), device=EIGHT), ROWS_COST
    ).lanes
    assert "other" in {lane.cohort for lane in lanes}


def test_what_still_waits_has_another_turn() -> None:
    """A cohort that leaves its share to one that needs less takes what is left in the end."""
    many = [tenant_view(f"t{i}", 60) for i in range(8)]
    lanes = space_time(snapshot(*many, tenant_view("other", 1, cohort="other"), device=EIGHT), ROWS_COST).lanes
    assert sum(lane.units for lane in lanes) == 8


def test_lanes_are_larger_than_a_tenant_needs_where_sizes_are_odd() -> None:
    needy = [tenant_view(name, 1, cohort=name, min_units=3) for name in "ab"]
    plan = space_time(snapshot(*needy, *four(), device=EIGHT), FUSING_PAYS)
    assert all(lane.units >= 3 for lane in plan.lanes if lane.cohort in "ab") and len(plan.lanes) == 3


# -- deadlines ------------------------------------------------------------------------------------------

PER_ROW = TableCosts(lambda tenants, rows, units: 100.0 * rows)


def test_a_lane_does_not_grow_to_where_its_tightest_member_is_late() -> None:
    """On one unit: eight rows take 800 us."""
    calm = [tenant_view(f"t{i}", 1) for i in range(7)]
    (lane,) = space_time(snapshot(*calm, tenant_view("tight", 1, deadline_us=1350), device=ONE), PER_ROW).lanes
    assert "tight" in lane.tenants and lane.num_rows == 3, "now is 1000"
    (lane,) = space_time(snapshot(*calm, tenant_view("lax", 1, deadline_us=1800), device=ONE), PER_ROW).lanes
    assert lane.num_rows == 8


def test_who_cannot_be_in_time_shrinks_nobodys_lane() -> None:
    calm = [tenant_view(f"t{i}", 1) for i in range(7)]
    (lane,) = space_time(snapshot(*calm, tenant_view("hopeless", 1, deadline_us=1099), device=ONE), PER_ROW).lanes
    assert lane.num_rows == 8


def test_a_deep_queue_is_cut_where_its_deadlines_say_so() -> None:
    deep = tenant_view("deep", 1, 1, 1, 1, 1, 1, deadline_us=1250, max_concurrency=1)
    (lane,) = space_time(snapshot(deep, device=ONE), PER_ROW).lanes
    assert [view.id for view in lane.requests] == [0, 1]


def test_a_deadline_may_take_more_than_its_share_of_the_units() -> None:
    scaling = TableCosts(lambda tenants, rows, units: 10.0 + 800.0 * rows / units)
    others = [tenant_view(name, 1, cohort=name) for name in "abcdefg"]
    urgent = tenant_view("urgent", 1, cohort="urgent", deadline_us=1150)
    lanes = space_time(snapshot(*others, urgent, device=EIGHT), scaling).lanes
    assert [lane.units for lane in lanes if lane.cohort == "urgent"] == [8]
    relaxed = tenant_view("relaxed", 1, cohort="urgent", deadline_us=9000)
    assert len(space_time(snapshot(*others, relaxed, device=EIGHT), scaling).lanes) == 8


def test_nobody_is_held_back_into_being_late() -> None:
    now_us = 5000
    slow = TableCosts(lambda *_: 10_000.0)

    def hold(deadline_us: int | None) -> Plan:
        waiting = tenant_view("t", 1, active_peers=5, arrival_us=now_us, deadline_us=deadline_us)
        return space_time(snapshot(waiting, now_us=now_us), slow)

    assert hold(None).wake_at_us == now_us + HOLD_GAP_US
    assert hold(now_us + 10_020).wake_at_us == now_us + 20
    assert hold(now_us + 10_000).lanes


# -- what is left ---------------------------------------------------------------------------------------


class Uneven(TableCosts):
    """Cohort "wide" makes use of all units that it gets, and "narrow" of one."""

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        if cohort == "narrow":
            return 1000.0 + units  # a larger lane is no use
        return 8000.0 / units**0.9


def test_what_is_left_goes_where_it_gains_most() -> None:
    wide, narrow = tenant_view("w", 1, cohort="wide"), tenant_view("n", 1, cohort="narrow", arrival_us=1)
    lanes = {lane.cohort: lane.units for lane in space_time(snapshot(wide, narrow, device=EIGHT), Uneven()).lanes}
    assert lanes == {"wide": 7, "narrow": 1}


def test_nothing_is_widened_while_somebody_waits_for_the_units() -> None:
    wide = tenant_view("w", 1, cohort="wide")
    held = tenant_view("h", 1, cohort="narrow", active_peers=5, arrival_us=1000)
    plan = space_time(snapshot(wide, held, device=EIGHT), Uneven())
    assert plan.wake_at_us is not None and sum(lane.units for lane in plan.lanes) < 8


# -- segments -------------------------------------------------------------------------------------------

SEGMENTS = Capabilities(partitions=True, segments=True, graphs=False)
PLACEMENT = replace(SEGMENTS, placement=True)


class Kernels(TableCosts):
    """Four kernels that scale, then four of which each is slower on more units."""

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        sizes = range(1, 5)
        return KernelTimes.of([[8000.0 / size for size in sizes]] * 4 + [[1000.0 + 300 * size for size in sizes]] * 4)

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        return self.kernel_times(cohort, tenants=tenants, rows=rows, fused=fused).lane_us(units)


def test_a_lane_has_segments_where_kernels_are_faster_on_fewer_units() -> None:
    (lane,) = space_time(replace(snapshot(tenant_view("t", 1)), capabilities=SEGMENTS), Kernels()).lanes
    assert [(s.partition.atoms, s.first_kernel, s.last_kernel) for s in lane.segments] == [(15, 0, 4), (1, 4, -1)]
    (lane,) = space_time(snapshot(tenant_view("t", 1)), Kernels()).lanes
    assert len(lane.segments) == 1, "this backend cannot switch"


def test_floating_lanes_ask_for_what_their_kernels_need() -> None:
    view = replace(snapshot(tenant_view("t", 1), tenant_view("u", 1, cohort="other")), capabilities=PLACEMENT)
    plan = space_time_floating(view, Kernels())
    assert not plan.isolated and len(plan.lanes) == 2
    for lane in plan.lanes:
        assert [s.partition for s in lane.segments] == [Partition.floating(4), Partition.floating(1)]
        assert lane.placement is not None and lane.placement.max_overlap > 0
    busy = replace(view, running=(plan.lanes[0],) * 4)
    assert not space_time_floating(busy, Kernels()).lanes, "four lanes of three units on average are enough for four"


def test_floating_lanes_keep_their_atoms_where_the_device_does_not_place_kernels() -> None:
    view = replace(snapshot(tenant_view("t", 1)), capabilities=SEGMENTS)
    assert space_time_floating(view, Kernels()) == space_time(view, Kernels())


# -- peers whose lane is about to end ---------------------------------------------------------------------

LOOP: dict[str, Any] = {"arrivals_per_s": 500.0, "latency_us": 2000.0}  # one request of it is in the system at any time


def halves(now_us: int, since_us: int, costs: TableCosts = FUSING_PAYS, **options: Any) -> Plan:
    """One half of a closed loop waits since 1000 on two cores, the other half runs on the other two."""
    waiting = [tenant_view(f"t{i}", 1, arrival_us=1000, active_peers=3, **(LOOP | options)) for i in range(2)]
    other = tuple(RequestView(9, f"t{i}", 1, 0) for i in (2, 3))
    running = (Lane("cohort", other, (Segment(CORES.partition(2)),)),)
    seen = snapshot(*waiting, now_us=now_us, running=running)
    return space_time(replace(seen, running_since_us=(since_us,), freed_at_us=1000), costs)


def test_half_a_closed_loop_waits_for_the_other_half_when_that_ends_soon() -> None:
    # A lane of two takes 1500 us on two cores; the other half ends at 1200, and all together take 1250.
    assert halves(1000, -300) == Plan((), 1200 + HOLD_GAP_US)


def test_half_a_closed_loop_does_not_wait_for_long_nor_for_nothing() -> None:
    assert len(halves(1000, 900).lanes) == 1, "it would wait for 1400 us"
    no_gain = TableCosts(lambda tenants, rows, units: 1000.0 * rows / units)
    assert len(halves(1000, 100, no_gain).lanes) == 1
    assert len(halves(1000, -300, deadline_us=2505).lanes) == 1, "it would be late"
    assert len(halves(1000, -300, arrivals_per_s=50.0).lanes) == 1, "who asks seldom does not come back at once"
    late_us = 1000 + int(REJOIN_SHARE * 1500)
    assert len(halves(late_us, late_us - 1400).lanes) == 1, "it has waited long enough"


def test_when_the_other_half_has_ended_it_gets_a_moment_to_come_back() -> None:
    waiting = [tenant_view(f"t{i}", 1, arrival_us=1000, active_peers=3, **LOOP) for i in range(2)]
    seen = replace(snapshot(*waiting, now_us=1110), freed_at_us=1100)
    assert space_time(seen, FUSING_PAYS) == Plan((), 1100 + HOLD_GAP_US)
    assert len(space_time(replace(seen, now_us=1100 + HOLD_GAP_US), FUSING_PAYS).lanes) == 1


# -- those who may come while a lane runs -----------------------------------------------------------------


def test_a_flood_gets_no_longer_lanes_than_the_objectives_of_others_allow() -> None:
    flood = tenant_view("flood", *[1] * 64)
    by_rows = TableCosts(lambda tenants, rows, units: 100.0 * rows)
    seen = snapshot(flood, device=ONE)
    assert shapes(space_time(seen, by_rows)) == [(64, 1)]
    assert shapes(space_time(replace(seen, promised_us=8000), by_rows)) == [(int(LANE_SHARE * 80), 1)]
    assert shapes(space_time(replace(seen, promised_us=10), by_rows)) == [(1, 1)], "one request is never cut"
