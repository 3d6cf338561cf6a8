"""Who waits for more atoms than are free, who may start meanwhile, and that nobody waits for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.plan import Lane, Plan, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler.arrangements import choose
from spacetime.scheduler.deadlines import Deadlines
from spacetime.scheduler.peers import HOLD_GAP_US
from spacetime.scheduler.postponing import LEAN, better_at_us, in_reach_at_us, lean
from spacetime.scheduler.protocols import Policy
from spacetime.scheduler.selection import cohorts_by_urgency
from spacetime.scheduler.space_time import LANE_SHARE, space_time, space_time_reserved
from spacetime.sim.simulate import simulate
from spacetime.sim.studies import flood as study
from spacetime.workload import poisson
from tests.scheduler.harness import TableCosts, snapshot, tenant_view

SIXTEEN = Device("sixteen atoms of eight", "null", num_units=132, units_per_atom=8)
SLO_US = 20_000
NOW_US = 1_000_000
SCALES = TableCosts(lambda tenants, rows, units: 1000.0 * rows * max(1.0, 64 / units))  # up to eight atoms


class ByCohort(TableCosts):
    """As SCALES; lanes of "small" take 100 us on whatever they have; nobody knows "gone"."""

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        if cohort == "gone":
            raise OptionError("cohort 'gone' has no costs")
        return 100.0 if cohort == "small" else SCALES.lane_us(cohort, tenants=tenants, rows=rows, units=units)


COSTS = ByCohort()


def flood(name: str = "flood", **options: Any) -> TenantView:
    """Thirty requests, each a millisecond of the device, that came within one."""
    view = tenant_view(name, *[1] * 30, slo_us=SLO_US, max_concurrency=99, **options)
    came = [replace(each, arrival_us=NOW_US - 1000 + 10 * index) for index, each in enumerate(view.waiting)]
    return replace(view, waiting=tuple(came))


def victim(name: str = "victim", *, arrival_us: int = NOW_US, **options: Any) -> TenantView:
    known = {"cohort": "victims", "slo_us": SLO_US, "deadline_us": NOW_US + SLO_US, "max_concurrency": 9}
    return tenant_view(name, 1, arrival_us=arrival_us, **(known | options))


def seen(*tenants: TenantView, running: tuple[tuple[str, str, int, int], ...] = (), **options: Any) -> Snapshot:
    """`running`: (tenant, cohort, atoms, for how long) of each lane."""
    free, lanes = SIXTEEN.all_atoms, []
    for index, (name, cohort, atoms, _) in enumerate(running):
        partition = SIXTEEN.partition(atoms * 8, free)
        free &= ~partition.atoms
        lanes.append(Lane(cohort, (RequestView(1000 + index, name, 1, 0),), (Segment(partition),)))
    given = snapshot(*tenants, device=SIXTEEN, now_us=NOW_US)
    since_us = tuple(NOW_US - for_us for _, _, _, for_us in running)
    return replace(given, running=tuple(lanes), free_atoms=free, running_since_us=since_us, **options)


def atoms_of(plan: Plan) -> dict[tuple[str, ...], int]:
    return {lane.tenants: lane.atoms.bit_count() for lane in plan.lanes}


# -- floods: space_time ----------------------------------------------------------------------------------


def test_lanes_are_short_for_the_sake_of_those_that_wait_too() -> None:
    """The other's objective counts, be it absent or not; its own does not."""
    deep = tenant_view("deep", *[1] * 30, slo_us=SLO_US, deadline_us=NOW_US + 10 * SLO_US)
    (lane,) = space_time(seen(deep), COSTS).lanes
    assert lane.num_rows == 30
    other = victim(running=9)  # it waits, but may have no more lanes
    (lane,) = space_time(seen(deep, other), COSTS).lanes
    assert COSTS.lane_us("cohort", tenants=1, rows=lane.num_rows, units=lane.units) <= LANE_SHARE * SLO_US


def test_a_single_request_of_a_flood_has_atoms_enough_to_be_short() -> None:
    for lane in space_time(seen(flood(deadline_us=NOW_US + 40 * SLO_US), promised_us=SLO_US), COSTS).lanes:
        assert COSTS.lane_us("cohort", tenants=1, rows=lane.num_rows, units=lane.units) <= LANE_SHARE * SLO_US


def test_a_flood_does_not_sit_on_an_atom_for_long_but_waits_for_another() -> None:
    crowd = flood(deadline_us=NOW_US + 40 * SLO_US)
    running = (("victim", "victims", 15, 600),)
    plan = space_time(seen(crowd, running=running, promised_us=SLO_US), COSTS)
    assert plan.lanes == () and plan.wake_at_us == NOW_US + 400 + HOLD_GAP_US
    quiet = replace(crowd, waiting=crowd.waiting[:1])
    assert len(space_time(seen(quiet, running=running, promised_us=SLO_US), COSTS).lanes) == 1, "it floods nobody"


def test_short_lanes_start_while_somebody_waits_for_more() -> None:
    crowd = flood(deadline_us=NOW_US + SLO_US)
    small = victim("small", cohort="small", deadline_us=NOW_US + 2 * SLO_US)
    for for_us, expected in ((600, {("small",): 1}), (950, {})):  # 400 us are left, or 50
        plan = space_time(seen(crowd, small, running=(("victim", "victims", 15, for_us),)), COSTS)
        assert atoms_of(plan) == expected


# -- out of reach on what is free: both ------------------------------------------------------------------


@pytest.mark.parametrize("policy", [space_time, space_time_reserved])
def test_who_would_be_late_on_what_is_free_waits_for_the_atoms_that_it_needs(policy: Policy) -> None:
    hasty = victim(deadline_us=NOW_US + 2000)  # on three atoms it takes 2,667 us
    plan = policy(seen(hasty, running=(("small", "small", 13, 40),)), COSTS)
    assert plan.lanes == () and plan.wake_at_us == NOW_US + 60 + HOLD_GAP_US


def test_atoms_are_waited_for_until_there_are_enough_of_them() -> None:
    """On five atoms it takes 1,600 us, on seven 1,143."""
    running = (("small", "small", 2, 60), ("other", "small", 2, 50), ("third", "small", 9, 10))
    for slack_us, expected_us in ((1700, 40), (1500, 50)):
        plan = space_time(seen(victim(deadline_us=NOW_US + slack_us), running=running), COSTS)
        assert plan.lanes == () and plan.wake_at_us == NOW_US + expected_us + HOLD_GAP_US


def test_a_request_that_is_lost_waits_for_nothing() -> None:
    running = (("small", "small", 13, 40),)
    for slack_us in (900, 1050):  # the whole device takes 1,000; so much is left when the 13 atoms are free
        plan = space_time(seen(victim(deadline_us=NOW_US + slack_us), running=running), COSTS)
        assert atoms_of(plan) == {("victim",): 3}


def test_short_lanes_start_while_a_deadline_waits_for_more() -> None:
    hasty = victim(deadline_us=NOW_US + 2000)
    small, slow = [victim(name, cohort=name, deadline_us=NOW_US + 2 * SLO_US) for name in ("small", "slow")]
    running = (("running", "cohort", 13, 600),)  # 400 us are left
    plan = space_time(seen(hasty, small, slow, running=running), COSTS)
    assert atoms_of(plan).keys() == {("small",)}


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9000)), min_size=1, max_size=3),
    st.lists(st.integers(1, 9000), min_size=1, max_size=3),
)
def test_what_is_waited_for_is_within_reach_then(lanes: list[tuple[int, int]], slacks_us: list[int]) -> None:
    running = tuple((f"r{i}", "cohort", atoms, for_us) for i, (atoms, for_us) in enumerate(lanes))
    tenants = [victim(f"v{i}", deadline_us=NOW_US + slack_us) for i, slack_us in enumerate(slacks_us)]
    given = seen(*tenants, running=running)
    (cohort,) = cohorts_by_urgency(given, COSTS)
    deadlines = Deadlines(cohort, SIXTEEN, NOW_US, COSTS)
    free = given.free_atoms.bit_count()
    wait_us = in_reach_at_us(deadlines, cohort, free, given, COSTS)
    most_us = max(slacks_us) - deadlines.quickest_us(1, SIXTEEN.num_atoms)
    assert wait_us == 0 or 0 < wait_us <= most_us, "beyond its deadline nobody waits"
    if wait_us:
        assert any(deadlines.quickest_us(1, SIXTEEN.num_atoms) <= slack_us - wait_us for slack_us in slacks_us)


def test_lost_requests_do_not_take_the_others_with_them() -> None:
    """Each took one of 60 atoms for up to 200 ms, so that the next one found one as well: half of them were late."""
    models = ("resnet50", "bert", "mobilenet_v2", "gru", "resnet18", "mlp")
    load = poisson([(f"t{i}", 83.0) for i in range(12)], 0.6, seed=1, models=models, slo_us=15_000)
    report = simulate(load, "space_time", "mi50", oracle_costs=True)
    assert report.violations < 0.35 * report.completed


# -- everybody else: space_time_reserved -----------------------------------------------------------------


def test_who_is_done_sooner_on_atoms_that_are_freed_soon_waits_for_them() -> None:
    running = (("small", "small", 13, 40),)
    plan = space_time_reserved(seen(victim(), running=running, promised_us=SLO_US), COSTS)
    assert plan.lanes == () and plan.wake_at_us == NOW_US + 60 + HOLD_GAP_US
    assert atoms_of(space_time(seen(victim(), running=running), COSTS)) == {("victim",): 3}, "by default it does not"


def test_nobody_waits_longer_than_starting_at_once_would_cost() -> None:
    running = (("small", "small", 13, 40),)
    early = victim(arrival_us=NOW_US - 3000)  # on three atoms it takes 2,667 us, on eight 1,000
    assert atoms_of(space_time_reserved(seen(early, running=running), COSTS)) == {("victim",): 3}


def test_nobody_waits_on_its_share_of_the_device() -> None:
    running = (("small", "small", 9, 40), ("other", "small", 2, 40))
    plan = space_time_reserved(seen(victim(), running=running), COSTS)
    assert atoms_of(plan) == {("victim",): 5}, "a third of it"


def test_an_end_that_nobody_can_know_is_not_waited_for() -> None:
    running = (("small", "gone", 13, 40),)
    assert atoms_of(space_time_reserved(seen(victim(), running=running), COSTS)) == {("victim",): 3}


def test_a_lane_leaves_what_it_gains_nothing_from_to_those_who_may_come() -> None:
    assert atoms_of(space_time_reserved(seen(victim(), promised_us=SLO_US), COSTS)) == {("victim",): 8}
    assert atoms_of(space_time_reserved(seen(victim()), COSTS)) == {("victim",): 16}, "nobody may come"
    needy = victim(min_units=80)
    assert atoms_of(space_time_reserved(seen(needy, promised_us=SLO_US), COSTS)) == {("victim",): 10}


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9000)), min_size=1, max_size=3),
    st.integers(0, 12_000),
    st.integers(1, 4),
)
def test_waits_and_lean_lanes_keep_their_bounds(lanes: list[tuple[int, int]], waited_us: int, num_victims: int) -> None:
    running = tuple((f"r{i}", "cohort", atoms, for_us) for i, (atoms, for_us) in enumerate(lanes))
    tenants = [victim(f"v{i}", arrival_us=NOW_US - waited_us) for i in range(num_victims)]
    given = seen(*tenants, running=running, promised_us=SLO_US)
    (cohort,) = cohorts_by_urgency(given, COSTS)
    free = given.free_atoms.bit_count()
    arrangement = choose(cohort, SIXTEEN, free, 1, COSTS)
    rounds = -(-arrangement.num_lanes // arrangement.num_slots)
    wait_us = better_at_us(cohort, arrangement, free, 1, given, COSTS)
    assert wait_us == 0 or waited_us + wait_us < arrangement.lane_us * rounds
    leaner = lean(cohort, arrangement, given, COSTS)
    assert 1 <= leaner.atoms <= arrangement.atoms and leaner.lane_us <= arrangement.lane_us * (1 + LEAN)


# -- together --------------------------------------------------------------------------------------------


def test_a_flood_on_a_device_of_many_atoms_leaves_others_within_their_objective() -> None:
    """It sat on single atoms for 70 ms each; what was left of the device was too little for anybody: p99 3.3 s."""
    case = next(each for each in study.CASES if (each.device, each.victim) == ("mi50", "bert"))
    found = study.play(case, study.Lengths(0.6, 0.2), "space_time")
    assert study.worst_us(found.flooded) <= study.SLO_US
