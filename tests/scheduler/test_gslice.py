"""Shares that start at the knee and follow what is observed; max-min where they do not fit; batches within the SLO."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.plan import Lane, Plan, RequestView, Resize, Segment, Snapshot, TenantView
from spacetime.scheduler.gslice import gslice
from spacetime.scheduler.gslice_sizes import GROW_AFTER_US, MAX_ROWS, SHRINK_AFTER_US, water_level
from spacetime.scheduler.metering import RECENT_US
from spacetime.scheduler.verify import verify
from tests.scheduler.harness import TableCosts, World, snapshot, tenant_view
from tests.scheduler.snapshots import snapshots

ATOMS = Device("16 atoms", "null", 16)
LONG_AGO_US = 10 * SHRINK_AFTER_US  # what `now` is, when a share has been in force since 0
COSTS = TableCosts(lambda tenants, rows, units: rows * (800.0 / units + 100.0), device=ATOMS)


def seen(*tenants: TenantView, running: tuple[Lane, ...] = (), now_us: int = LONG_AGO_US) -> Snapshot:
    return snapshot(*tenants, device=ATOMS, now_us=now_us, running=running)


def running(units: int, name: str = "other") -> Lane:
    return Lane("cohort", (RequestView(99, name, 1, 0),), (Segment(ATOMS.partition(units)),))


def sizes(plan: Plan) -> dict[str, int]:
    return {lane.tenants[0]: lane.units for lane in plan.lanes}


def rows(plan: Plan) -> int:
    (lane,) = plan.lanes
    return lane.num_rows


def tuned(
    share_units: int = 8, *, latency_us: float, costs: TableCosts = COSTS, now_us: int = LONG_AGO_US, **options: object
) -> int | None:
    """The share that a tenant with an objective of 1000 us is to have next; None: no change."""
    observed = {"slo_us": 1000, "arrivals_per_s": 100.0, "completions_per_s": 100.0, "latency_us": latency_us}
    requests = [1] * int(str(options.pop("waits", 1)))
    tenant = tenant_view("a", *requests, share_units=share_units, **(observed | options))
    resizes = gslice(seen(tenant, now_us=now_us), costs).resizes
    assert all(resize.tenant == "a" for resize in resizes)
    return resizes[0].units if resizes else None


# -- where a share starts, and what it means -------------------------------------------------------------------


def test_a_tenant_starts_at_its_knee_and_asks_for_it() -> None:
    knee = COSTS.kernel_times("cohort", tenants=1, rows=1).knee()
    plan = gslice(seen(tenant_view("a", 1)), COSTS)
    assert 1 < knee < 16
    assert sizes(plan) == {"a": knee} and plan.resizes == (Resize("a", knee),)
    assert gslice(seen(tenant_view("a", 1, resizing=True)), COSTS) == replace(plan, resizes=())


def test_lanes_have_the_share_that_is_in_force_while_another_is_prepared() -> None:
    plan = gslice(seen(tenant_view("a", 1, share_units=3, resizing=True, latency_us=9e9, slo_us=1)), COSTS)
    assert sizes(plan) == {"a": 3} and not plan.resizes


def test_a_lane_holds_one_tenant_and_a_tenant_has_one_lane() -> None:
    plan = gslice(seen(tenant_view("a", 1, 1, share_units=3), tenant_view("b", 1, share_units=4)), COSTS)
    assert [(lane.tenants, lane.num_rows, lane.fused) for lane in plan.lanes] == [(("a",), 2, True), (("b",), 1, True)]
    stubborn = tenant_view("a", 1, 1, share_units=3, fusible=False)
    (lane,) = gslice(seen(stubborn), COSTS).lanes
    assert not lane.fused and lane.requests == stubborn.waiting[:1]
    assert gslice(seen(tenant_view("a", 1, running=1, max_concurrency=4)), COSTS) == Plan()


def test_a_share_of_the_whole_device_includes_the_units_that_fill_no_atom() -> None:
    device = Device("132 units by 8", "null", 132, 8)
    (lane,) = gslice(snapshot(tenant_view("a", 1, share_units=132), device=device), COSTS).lanes
    assert lane.segments == (Segment(device.whole),)


# -- self-tuning -----------------------------------------------------------------------------------------------


def test_a_missed_objective_grows_the_share_by_what_is_missing() -> None:
    assert tuned(latency_us=1010) == 9, "at least an atom"
    assert tuned(latency_us=1200) == 10
    assert tuned(latency_us=9000) == 10, "at most by a quarter"
    assert tuned(16, latency_us=9000) is None, "there is no more"


def test_a_throughput_behind_its_arrivals_grows_the_share() -> None:
    assert tuned(latency_us=500, arrivals_per_s=9000.0) == 10, "the costs say that it cannot keep up"
    assert tuned(latency_us=500, waits=99, completions_per_s=95.0) == 9, "a backlog says that it does not"
    assert tuned(latency_us=900, waits=99, completions_per_s=103.0) is None
    assert tuned(latency_us=900, slo_us=None, waits=99, completions_per_s=95.0) == 9, "also without an objective"


def test_a_share_does_not_grow_when_that_gains_nothing() -> None:
    flat = TableCosts(lambda tenants, rows, units: 900.0, device=ATOMS)
    assert tuned(latency_us=1200, costs=flat) is None


def test_a_surplus_of_both_shrinks_the_share() -> None:
    assert tuned(16, latency_us=500) == 14, "by an eighth"
    assert tuned(8, latency_us=500) == 7
    assert tuned(1, latency_us=500) is None
    assert tuned(8, latency_us=500, min_units=8) is None
    assert tuned(8, latency_us=960) is None, "4 % is no surplus"
    assert tuned(8, latency_us=500, arrivals_per_s=4900.0, completions_per_s=4900.0) is None, "nor is this throughput"


def test_a_share_shrinks_only_to_where_it_can_stay() -> None:
    steep = TableCosts(lambda tenants, rows, units: 8000.0 / units, device=ATOMS)
    assert tuned(16, latency_us=900, costs=steep) == 15, "an eighth would be too much, an atom is not"
    assert tuned(8, latency_us=900, costs=steep) is None
    guess = TableCosts(lambda tenants, rows, units: 1.0 if units < 8 else 1000.0, device=ATOMS)
    assert tuned(8, latency_us=960 * 7 / 8, costs=guess) == 7
    unlikely = TableCosts(lambda tenants, rows, units: 1e6 if units < 8 else 1000.0, device=ATOMS)
    assert tuned(8, latency_us=990 * 7 / 8, costs=unlikely, arrivals_per_s=0.0) is None
    assert tuned(8, latency_us=960 * 7 / 8, costs=unlikely, arrivals_per_s=0.0) == 7, "eight sevenths at most"


def test_without_an_objective_a_share_shrinks_to_the_knee() -> None:
    knee = COSTS.kernel_times("cohort", tenants=1, rows=1).knee()
    assert tuned(16, latency_us=500, slo_us=None) == 14
    assert tuned(knee, latency_us=500, slo_us=None) is None


def test_a_share_is_left_alone_until_the_averages_speak_of_it() -> None:
    assert tuned(latency_us=1200, now_us=GROW_AFTER_US - 1) is None
    assert tuned(latency_us=1200, now_us=GROW_AFTER_US) == 10
    assert tuned(latency_us=500, now_us=SHRINK_AFTER_US - 1) is None
    assert tuned(latency_us=500, now_us=SHRINK_AFTER_US) == 7
    slow = TableCosts(lambda tenants, rows, units: GROW_AFTER_US / units, device=ATOMS)
    assert tuned(latency_us=GROW_AFTER_US, costs=slow, now_us=2 * GROW_AFTER_US) is None, "it ran only a few times"
    assert tuned(latency_us=0.0) is None, "it never ran"
    assert tuned(latency_us=1200, resizing=True) is None, "one thing at a time"


# -- max-min ---------------------------------------------------------------------------------------------------


def test_where_shares_do_not_fit_the_highest_give_way() -> None:
    tenants = [tenant_view(name, 1, share_units=units) for name, units in (("a", 12), ("b", 2), ("c", 16))]
    plan = gslice(seen(*tenants), COSTS)
    assert sizes(plan) == {"a": 7, "b": 2, "c": 7} and not plan.resizes, "lanes are cut, not shares"
    assert sizes(gslice(seen(*tenants[:2]), COSTS)) == {"a": 12, "b": 2}, "an idle tenant holds nothing"


def test_what_cannot_be_dealt_evenly_is_dealt_nevertheless() -> None:
    tenants = [tenant_view(f"t{index}", 1, share_units=16) for index in range(6)]
    assert sorted(sizes(gslice(seen(*tenants), COSTS)).values()) == [2, 2, 3, 3, 3, 3]


def test_lanes_that_run_count_with_what_they_hold() -> None:
    other = tenant_view("a", 1, share_units=12)
    assert sizes(gslice(seen(other, running=(running(4),)), COSTS)) == {"a": 12}
    assert sizes(gslice(seen(other, running=(running(8),)), COSTS)) == {"a": 8}
    assert gslice(seen(other, running=(running(12),)), COSTS) == Plan(), "its half is not free yet: it waits for it"


def test_a_share_that_max_min_cuts_does_not_grow() -> None:
    late = {"slo_us": 1000, "latency_us": 2000.0, "arrivals_per_s": 100.0, "completions_per_s": 100.0}
    high = tenant_view("high", 1, share_units=12, **late)
    low = tenant_view("low", 1, share_units=6, **late)
    assert gslice(seen(high, low), COSTS).resizes == (Resize("low", 8),), "the lowest share grows first"


def test_who_needs_more_than_there_is_beside_the_others_takes_turns_with_them() -> None:
    wide, narrow = tenant_view("wide", 1, min_units=16), tenant_view("narrow", 1, share_units=12)
    assert sizes(gslice(seen(replace(wide, served_us=1), narrow), COSTS)) == {"narrow": 12}
    assert sizes(gslice(seen(wide, replace(narrow, served_us=1)), COSTS)) == {"wide": 16}


def test_who_needs_more_than_is_free_is_not_overtaken_meanwhile() -> None:
    wide, narrow = tenant_view("wide", 1, min_units=16), tenant_view("narrow", 1, share_units=2, served_us=1)
    assert gslice(seen(wide, narrow, running=(running(4),)), COSTS) == Plan(), "or it would wait for ever"
    assert sizes(gslice(seen(narrow, running=(running(4),)), COSTS)) == {"narrow": 2}


def test_more_tenants_than_atoms_have_an_atom_each_in_turn() -> None:
    tenants = [tenant_view(f"t{index}", 1, share_units=16, served_us=-index) for index in range(40)]
    assert sizes(gslice(seen(*tenants), COSTS)) == {f"t{index}": 1 for index in range(24, 40)}


@given(
    parts=st.lists(st.integers(1, 16).flatmap(lambda want: st.tuples(st.just(want), st.integers(1, want))), max_size=15)
)
def test_the_level_is_the_highest_that_fits(parts: list[tuple[int, int]]) -> None:
    wants, floors = [want for want, _ in parts], [floor for _, floor in parts]
    level = water_level(wants, floors, 16)

    def taken(level: int) -> int:
        return sum(min(want, max(floor, level)) for want, floor in parts)

    assert 1 <= level <= 16
    if sum(floors) <= 16:
        assert taken(level) <= 16
        assert level == 16 or taken(level + 1) > 16


# -- batches ---------------------------------------------------------------------------------------------------


def test_a_batch_takes_half_of_the_objective() -> None:
    tenant = tenant_view("a", *[1] * 40, share_units=8, slo_us=4100)  # a row takes 200 us on 8 units
    assert rows(gslice(seen(tenant), COSTS)) == 10
    assert rows(gslice(seen(replace(tenant, waiting=tenant.waiting[:7])), COSTS)) == 7
    assert rows(gslice(seen(replace(tenant, slo_us=1)), COSTS)) == 1, "one at least"
    assert rows(gslice(seen(replace(tenant, share_units=16)), COSTS)) == 13, "on what it is given"


def test_a_batch_keeps_to_the_row_cap_and_a_large_request_goes_alone() -> None:
    assert rows(gslice(seen(tenant_view("a", *[10] * 9)), COSTS)) == 60
    assert rows(gslice(seen(tenant_view("a", 3 * MAX_ROWS, 1)), COSTS)) == 3 * MAX_ROWS


# -- whatever waits --------------------------------------------------------------------------------------------


def costs_for(device: Device) -> TableCosts:
    return TableCosts(lambda tenants, rows, units: rows * (800.0 / units + 100.0), device=device)


@given(now=snapshots())
def test_plans_verify_and_repeat(now: Snapshot) -> None:
    plan, costs = gslice(now, costs_for(now.device)), costs_for(now.device)
    verify(plan, now, now.capabilities)
    assert gslice(now, costs) == plan
    started = {lane.tenants[0]: lane for lane in plan.lanes}
    known = {tenant.name: tenant for tenant in now.tenants}
    assert len(started) == len(plan.lanes)
    for resize in plan.resizes:
        tenant = known[resize.tenant]
        assert not tenant.resizing
        assert tenant.min_units <= resize.units <= now.device.num_units
        per_atom = now.device.units_per_atom
        assert tenant.share_units is None or -(-resize.units // per_atom) != -(-tenant.share_units // per_atom)


@given(now=snapshots(idle=True))
def test_an_idle_device_is_used(now: Snapshot) -> None:
    assert gslice(now, costs_for(now.device)).lanes


def test_nobody_starves() -> None:
    world = World("gslice")
    world.add("wide", "wide", min_units=4, fusible=False)
    for index in range(9):
        world.add(f"t{index}", fusible=index % 2 == 0)
    flood = [world.submit(f"t{index % 3}", rows=40) for index in range(300)]
    others = [world.submit(name) for name in ("wide", "t3", "t4", "t5", "t6", "t7", "t8")]
    while not all(future.done() for future in others):
        world.step()
        world.backend.advance(50)
    assert sum(future.done() for future in flood) < 60, "the flood is not served first"
    world.run()
    assert all(future.done() for future in flood)


# -- convergence -----------------------------------------------------------------------------------------------


@dataclass
class ClosedForm:
    """A tenant in a world of formulas: a lane takes rows * m / u + b. Averages follow as those of the meter do."""

    parallel_us: float
    serial_us: float
    slo_us: int
    arrivals_per_s: float
    share_units: int | None = None
    latency_us: float = 0.0
    share_since_us: int = 0
    now_us: int = 0
    num_resizes: int = 0

    def lane_us(self, tenants: int, rows: int, units: int) -> float:
        return rows * self.parallel_us / units + self.serial_us

    @property
    def costs(self) -> TableCosts:
        return TableCosts(self.lane_us, device=ATOMS)

    def capacity_per_s(self, units: int) -> float:
        counts = [count for count in range(1, MAX_ROWS + 1) if self.lane_us(1, count, units) <= self.slo_us / 2] or [1]
        return max(count / self.lane_us(1, count, units) * 1e6 for count in counts)

    def meets(self, units: int) -> bool:
        return self.lane_us(1, 1, units) <= self.slo_us and self.capacity_per_s(units) >= self.arrivals_per_s

    @property
    def least_units(self) -> int:
        return next(units for units in range(1, 17) if self.meets(units))

    def advance(self, us: int) -> None:
        """A decision, and some time on what it gave."""
        keeps_up = self.share_units is None or self.capacity_per_s(self.share_units) >= self.arrivals_per_s
        completions_per_s = self.arrivals_per_s
        if self.share_units is not None and not keeps_up:
            completions_per_s = self.capacity_per_s(self.share_units)
        tenant = tenant_view(
            "a",
            *[1] * (1 if keeps_up else 2 * MAX_ROWS),
            slo_us=self.slo_us,
            share_units=self.share_units,
            share_since_us=self.share_since_us,
            arrivals_per_s=self.arrivals_per_s,
            completions_per_s=completions_per_s,
            latency_us=self.latency_us,
        )
        plan = gslice(seen(tenant, now_us=self.now_us), self.costs)
        (lane,) = plan.lanes
        latency_us = self.lane_us(1, 1, lane.units) if keeps_up else 3.0 * self.slo_us  # a queue: far too late
        kept = exp(-us / RECENT_US) if self.latency_us else 0.0
        self.latency_us = kept * self.latency_us + (1 - kept) * latency_us
        self.now_us += us
        for resize in plan.resizes:
            self.share_units, self.share_since_us = resize.units, self.now_us
            self.num_resizes += 1

    def settle(self) -> None:
        for _ in range(600):
            self.advance(100_000)


WORLDS = [
    ClosedForm(parallel_us=40_000, serial_us=500, slo_us=6_500, arrivals_per_s=20),  # latency decides
    ClosedForm(parallel_us=16_000, serial_us=1_000, slo_us=50_000, arrivals_per_s=150),  # throughput decides
    ClosedForm(parallel_us=1_000, serial_us=4_000, slo_us=20_000, arrivals_per_s=400),  # hardly anything to gain
]


@pytest.mark.parametrize("start", [None, 1, 16])
@pytest.mark.parametrize("world", WORLDS, ids=["latency", "throughput", "flat"])
def test_a_share_converges_to_the_least_that_meets_the_objective(world: ClosedForm, start: int | None) -> None:
    world = replace(world, share_units=start)
    world.settle()
    assert world.share_units == world.least_units
    so_far = world.num_resizes
    world.settle()
    assert world.num_resizes == so_far, "and stays there"


def test_a_share_follows_the_load() -> None:
    world = replace(WORLDS[1])
    world.settle()
    quiet, least = world.share_units, world.least_units
    world.arrivals_per_s *= 2
    assert not world.meets(quiet or 0)
    world.settle()
    assert world.share_units == world.least_units and world.least_units > least
    assert world.latency_us <= world.slo_us, "it has recovered"
    world.arrivals_per_s /= 2
    world.settle()
    assert world.share_units == quiet
    assert world.num_resizes < 40, "it goes there, not to and fro"


def test_the_loop_resizes_while_it_serves() -> None:
    """The same under the real loop, with costs that are learned: lanes of 40 ms / units + 0.5 ms."""
    world = World("gslice", device=ATOMS, latency_us=lambda lane: lane.num_rows * 40_000 // lane.units + 500)
    world.add("a", slo_us=7_000)  # met by 7 units and by no fewer
    tick_us, futures, lanes = 500, [], []
    for tick in range(80_000):
        if tick % 100 == 0:  # 20 per second
            futures.append(world.submit("a"))
        world.step()
        if tick % 20_000 == 19_999:
            lanes.append(world.backend.lanes[-1])
        world.backend.advance(tick_us)
    world.run()
    assert all(future.done() for future in futures)
    assert [lane.units for lane in lanes[1:]] == [7, 7, 7]
