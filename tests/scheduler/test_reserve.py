"""What a flood may not take: who floods, what is reserved, and that nobody starves of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.plan import Lane, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler.arrangements import atoms_needed
from spacetime.scheduler.reserve import UNSEEN_SHARE, Part, floods, parts, reserved_atoms
from spacetime.scheduler.selection import cohorts_by_urgency
from spacetime.scheduler.space_time import space_time_reserved
from tests.scheduler.harness import TableCosts, snapshot, tenant_view

SIXTEEN = Device("sixteen atoms of eight", "null", num_units=132, units_per_atom=8)
SLO_US = 20_000
SCALES = TableCosts(lambda tenants, rows, units: 1000.0 * rows * max(1.0, 64 / units))  # up to eight atoms
NOW_US = 1_000_000


def flood(name: str = "flood", **options: Any) -> TenantView:
    """Thirty requests, each a millisecond of the device, that came within one."""
    view = tenant_view(name, *[1] * 30, slo_us=SLO_US, max_concurrency=99, **options)
    came = [replace(each, arrival_us=NOW_US - 1000 + 10 * index) for index, each in enumerate(view.waiting)]
    return replace(view, waiting=tuple(came))


def victim(name: str = "victim", rows: int = 1, **options: Any) -> TenantView:
    return tenant_view(name, rows, slo_us=SLO_US, arrival_us=NOW_US, deadline_us=NOW_US + SLO_US, **options)


def seen(*tenants: TenantView, device: Device = SIXTEEN, **options: Any) -> Snapshot:
    found = snapshot(*tenants, device=device, now_us=NOW_US)
    return replace(found, **options)


def parts_of(given: Snapshot) -> list[Part]:
    free = given.free_atoms.bit_count()
    return parts(cohorts_by_urgency(given, SCALES), free, given, SCALES)


def names(part: Part) -> set[str]:
    return {chunk[2].name for cohort in part.cohorts for chunk in cohort.chunks}


def flooding(given: Snapshot) -> frozenset[str]:
    return floods(cohorts_by_urgency(given, SCALES), given, SCALES)


def held_by(name: str, given: Snapshot) -> int:
    return sum(lane.atoms.bit_count() for lane in space_time_reserved(given, SCALES).lanes if name in lane.tenants)


# -- who floods ------------------------------------------------------------------------------------------


def test_a_flood_is_more_than_could_be_served_that_came_faster_than_it_could_be() -> None:
    assert flooding(seen(flood(), victim())) == {"flood"}
    assert flooding(seen(flood(), promised_us=SLO_US)) == {"flood"}, "the victim need not wait"
    assert flooding(seen(flood())) == set(), "who would it keep from anything?"
    assert flooding(seen(flood(), promised_us=10_000_000)) == set(), "all of it will be served long before"


def test_a_queue_that_came_slowly_is_no_flood_however_long() -> None:
    deep = flood()
    slow = [replace(each, arrival_us=10_000 * index) for index, each in enumerate(deep.waiting)]
    assert flooding(seen(replace(deep, waiting=tuple(slow)), victim())) == set()


def test_a_rate_is_a_flood_while_its_queue_is_short() -> None:
    for rate_per_s, is_flood in ((900.0, True), (600.0, False)):  # a row takes a millisecond of the device
        often = victim("often", arrivals_per_s=rate_per_s)
        assert flooding(seen(often, promised_us=SLO_US)) == ({"often"} if is_flood else set())


def test_two_floods_are_both_kept_from_nobody_but_others() -> None:
    two = seen(flood("one", deadline_us=NOW_US + SLO_US), flood("other"))
    assert flooding(two) == {"one", "other"}
    assert reserved_atoms(two, frozenset(["one", "other"]), SCALES) == 0, "neither is the other's victim"


def test_who_needs_many_units_at_once_cannot_be_kept_to_a_few() -> None:
    assert flooding(seen(flood(min_units=64), victim())) == set()


# -- what is reserved ------------------------------------------------------------------------------------


def test_without_a_flood_all_are_served_together() -> None:
    (part,) = parts_of(seen(victim("a"), victim("b"), promised_us=7000))
    assert names(part) == {"a", "b"} and part.most_atoms == 16 and part.promised_us == 7000


def test_what_waits_is_left_what_its_lane_needs_and_what_may_come_a_share() -> None:
    among = frozenset(["flood"])
    assert reserved_atoms(seen(flood(), victim()), among, SCALES) == 8, "less is more than 5% slower"
    unseen = seen(flood(), promised_us=SLO_US)
    assert reserved_atoms(unseen, among, SCALES) == 13 == int(UNSEEN_SHARE * 16)
    two = Device("two cores", "null", num_units=2)
    assert reserved_atoms(replace(unseen, device=two), among, SCALES) == 1, "one is left to the flood"


def test_a_flood_leaves_the_reserve_free_running_lanes_included() -> None:
    given = seen(flood(), promised_us=SLO_US)
    assert held_by("flood", given) == 3
    partition = SIXTEEN.partition(16)
    running = Lane("cohort", (RequestView(9, "flood", 1, 0),), (Segment(partition),))
    beside = replace(given, running=(running,), free_atoms=SIXTEEN.all_atoms & ~partition.atoms)
    assert held_by("flood", beside) == 1
    assert held_by("flood", seen(flood())) == 16, "nobody else is promised anything: it has the device"


def test_a_victim_rides_with_no_flood_and_its_lane_is_as_if_there_were_none() -> None:
    plan = space_time_reserved(seen(flood(), victim()), SCALES)
    (own,) = [lane for lane in plan.lanes if "victim" in lane.tenants]
    assert own.tenants == ("victim",)
    (alone,) = space_time_reserved(seen(victim()), SCALES).lanes
    assert own.units == alone.units
    crowded = seen(flood(deadline_us=NOW_US + 1500), victim(cohort="another"))
    plan = space_time_reserved(crowded, SCALES)
    assert plan.lanes[0].tenants == ("flood",), "it is more urgent"
    (own,) = [lane for lane in plan.lanes if "victim" in lane.tenants]
    assert own.units >= 56, "and yet leaves what the victim needs"


def test_a_second_lane_of_the_others_does_not_start_on_what_a_flood_just_left() -> None:
    own = SIXTEEN.partition(64)  # the reserve
    of_flood = SIXTEEN.partition(56, SIXTEEN.all_atoms & ~own.atoms)
    running = (
        Lane("cohort", (RequestView(8, "victim", 1, 0),), (Segment(own),)),
        Lane("cohort", (RequestView(9, "flood", 1, 0),), (Segment(of_flood),)),
    )
    free = SIXTEEN.all_atoms & ~own.atoms & ~of_flood.atoms
    given = seen(flood(), victim(max_concurrency=9, running=1), running=running, free_atoms=free)
    assert free.bit_count() == 1
    assert held_by("victim", given) == 0 and held_by("flood", given) == 1


def test_lanes_of_a_flood_are_short_for_those_who_wait_too() -> None:
    (crowd,) = [part for part in parts_of(seen(flood(), victim())) if "flood" in names(part)]
    assert crowd.promised_us == SLO_US
    assert all(lane.num_rows <= 5 for lane in space_time_reserved(seen(flood(), victim()), SCALES).lanes)


@pytest.mark.parametrize("units", [64, 132])
def test_who_can_do_with_nothing_less_is_not_starved_by_the_reserve(units: int) -> None:
    """A lane that needs the whole device is next, and what is free stays free until all is."""
    large = victim("large", min_units=units, fusible=False, cohort="large")
    given = seen(flood(), large)
    lanes = space_time_reserved(given, SCALES).lanes
    assert any("large" in lane.tenants for lane in lanes)
    partition = SIXTEEN.partition(8)
    running = Lane("cohort", (RequestView(9, "flood", 1, 0),), (Segment(partition),))
    later = replace(given, running=(running,), free_atoms=SIXTEEN.all_atoms & ~partition.atoms)
    lanes = space_time_reserved(later, SCALES).lanes
    assert any("large" in lane.tenants for lane in lanes) or not lanes


@given(
    st.integers(1, 40), st.integers(1, 8), st.integers(1, 3), st.booleans(), st.lists(st.integers(1, 70), max_size=4)
)
def test_no_flood_takes_of_the_reserve_and_something_always_starts(
    num_atoms: int, units_per_atom: int, num_floods: int, one_cohort: bool, rows: list[int]
) -> None:
    device = Device("any", "null", num_units=num_atoms * units_per_atom, units_per_atom=units_per_atom)
    crowd = [flood(f"flood {index}") for index in range(num_floods)]
    others = [victim(f"victim {i}", many, cohort="cohort" if one_cohort else "c") for i, many in enumerate(rows)]
    given = seen(*crowd, *others, device=device, promised_us=SLO_US)
    among = flooding(given)
    assume(among >= {tenant.name for tenant in crowd})
    lanes = space_time_reserved(given, SCALES).lanes
    assert lanes
    taken = sum(lane.atoms.bit_count() for lane in lanes if among.intersection(lane.tenants))
    reserved = reserved_atoms(given, among, SCALES)
    assert taken <= max(0, num_atoms - reserved) and reserved <= max(0, num_atoms - 1)
    assert atoms_needed(1, device) == 1
    for lane in lanes:
        assert among.issuperset(lane.tenants) or among.isdisjoint(lane.tenants)
