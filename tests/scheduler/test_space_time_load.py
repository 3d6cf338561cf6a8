"""What `space_time` does when a device has much to do: fewer units for a lane, longer lanes where cutting costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.plan import Plan, Snapshot
from spacetime.scheduler.load import Parts
from spacetime.scheduler.space_time import LANE_SHARE, LONG_SHARE, space_time, space_time_reserved
from tests.scheduler.harness import TableCosts, snapshot, tenant_view

ONE = Device("one core", "null", num_units=1)
TWO = Device("two cores", "null", num_units=2)
SIXTEEN = Device("sixteen cores", "null", num_units=16)
LOADS = st.integers(0, 100).map(lambda hundredths: hundredths / 100)
SLO_US = 40_000


def scaling(serial_us: float, parallel_us: float) -> TableCosts:
    """The same for every row."""
    return TableCosts(lambda tenants, rows, units: rows * (serial_us + parallel_us / units))


def alone(load: float, *, device: Device = TWO, parts: Parts = (), **options: Any) -> Snapshot:
    return replace(snapshot(tenant_view("a", 1, **options), device=device), load=load, load_parts=parts)


def units(plan: Plan) -> int:
    (lane,) = plan.lanes
    return lane.units


def test_an_idle_device_gives_a_lone_request_all_it_has() -> None:
    assert units(space_time(alone(0.0), scaling(900, 1000))) == 2


def test_near_saturation_the_unit_time_counts() -> None:
    """Two cores take 1,400 us and one 1,900: 2,800 us of a core, or 1,900."""
    chosen = [units(space_time(alone(step / 20), scaling(900, 1000))) for step in range(21)]
    assert chosen[0] == 2 and chosen[-1] == 1
    assert all(more >= less for more, less in pairwise(chosen)), "the units go down once"


@given(LOADS, LOADS, st.floats(1, 1e4), st.floats(1, 1e6))
def test_the_more_others_ask_for_the_fewer_units(one: float, other: float, serial_us: float, shared_us: float) -> None:
    costs = scaling(serial_us, shared_us)
    quiet, busy = [units(space_time(alone(load, device=SIXTEEN), costs)) for load in sorted([one, other])]
    assert busy <= quiet


def test_what_scales_perfectly_gets_all_units_at_any_load() -> None:
    assert units(space_time(alone(0.98, device=SIXTEEN), scaling(0, 1000))) == 16


def test_a_cohort_that_makes_all_of_the_load_by_itself_gets_all_units() -> None:
    costs = scaling(900, 1000)
    assert units(space_time(alone(0.9, parts=(("cohort", 1.0),)), costs)) == 2
    assert units(space_time(alone(0.9, parts=(("other", 1.0),)), costs)) == 1
    assert units(space_time(alone(0.9, parts=(("cohort", 1.0),), fusible=False), costs)) == 1, "its requests queue up"


def test_a_deadline_counts_more_than_the_load() -> None:
    due = {"deadline_us": 1000 + 1500, "slo_us": 1500}
    assert units(space_time(alone(0.98, **due), scaling(900, 1000))) == 2


def test_what_is_left_does_not_widen_a_lane_at_any_price() -> None:
    """Two cohorts on three cores each gain from the third one: 3,000 -> 1,800 us, for a fifth more unit-time."""
    three = Device("three cores", "null", num_units=3)
    costs = TableCosts(lambda tenants, rows, units: 3000 if units == 1 else 1800)
    seen = snapshot(tenant_view("a", 1, cohort="a"), tenant_view("b", 1, cohort="b"), device=three)

    def sizes(load: float) -> list[int]:
        return sorted([lane.units for lane in space_time(replace(seen, load=load), costs).lanes])

    assert sizes(0.0) == [1, 2]
    assert sizes(0.98) == [1, 1]


# -- the length of lanes --------------------------------------------------------------------------------------------


def queue(num_requests: int, load: float = 0.0) -> Snapshot:
    """Somebody else was promised an answer within SLO_US, and may come."""
    return replace(snapshot(tenant_view("queue", *[1] * num_requests), device=ONE), promised_us=SLO_US, load=load)


def rows(plan: Plan) -> int:
    (lane,) = plan.lanes
    return lane.num_rows


def fused(first_us: float, more_us: float) -> TableCosts:
    return TableCosts(lambda tenants, rows, units: first_us + more_us * (rows - 1))


@pytest.mark.parametrize("load", [0.0, 0.5, 0.98])
def test_requests_longer_than_a_lane_may_be_are_fused_all_the_same(load: float) -> None:
    """Cut to single requests, they would keep the device for much longer in all."""
    assert LANE_SHARE * SLO_US < 10_500
    assert rows(space_time(queue(8, load), fused(10_500, 3500))) == 1 + int((LONG_SHARE * SLO_US - 10_500) / 3500)


def test_lanes_stay_short_where_long_ones_save_nothing() -> None:
    for load in (0.0, 0.5, 0.98):
        assert rows(space_time(queue(36, load), fused(1000, 1000))) == LANE_SHARE * SLO_US / 1000


def test_the_load_decides_where_long_lanes_save_little() -> None:
    costs = fused(1500, 900)
    lengths = [rows(space_time(queue(26, load / 20), costs)) for load in range(21)]
    assert lengths[0] == 1 + int((LANE_SHARE * SLO_US - 1500) / 900)
    assert lengths[-1] == 26, "all of them: one more lane would cost the others 600 us"
    assert all(short <= long for short, long in pairwise(lengths))


def test_what_is_too_long_by_itself_is_batched_as_its_own_objective_allows() -> None:
    """One row takes 12 ms already, and the others have the other core."""
    costs = fused(12_000, 7000)
    for slo_us, device, most_us in (
        (2 * SLO_US, TWO, LONG_SHARE * 2 * SLO_US),
        (None, TWO, LONG_SHARE * SLO_US),
        (2 * SLO_US, ONE, LONG_SHARE * SLO_US),
    ):
        given = snapshot(tenant_view("queue", *[1] * 8, slo_us=slo_us), device=device)
        plan = space_time(replace(given, free_atoms=1, promised_us=SLO_US, load=0.9), costs)
        assert rows(plan) == 1 + int((most_us - 12_000) / 7000)


def test_a_flood_gets_no_long_lanes() -> None:
    flood = tenant_view("flood", *[1] * 64, arrivals_per_s=1e5)
    seen = replace(snapshot(flood, device=ONE), promised_us=SLO_US, load=0.98)
    for policy in (space_time, space_time_reserved):
        assert rows(policy(seen, fused(4500, 900))) == 1 + int((LANE_SHARE * SLO_US - 4500) / 900)


def test_no_lane_is_longer_than_its_own_deadlines_allow() -> None:
    """Only as much as ends in time with the tightest of them."""
    hasty = tenant_view("queue", *[1] * 8, slo_us=SLO_US, deadline_us=1000 + 18_000)
    other = tenant_view("other", 1, cohort="other", slo_us=SLO_US)
    assert rows(space_time(replace(snapshot(hasty, other, device=ONE), load=0.98), fused(10_500, 3500))) == 3
