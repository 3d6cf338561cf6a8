"""Lanes with tenants of several cohorts: what may be one, when one is made, what it is charged, learned, recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import PARTITIONS_ONLY, Device
from spacetime.errors import OptionError, PlanError
from spacetime.merging import align
from spacetime.plan import Lane, Load, MergedView, Plan, Segment, Snapshot, TenantView
from spacetime.scheduler.journal import Journal, replay
from spacetime.scheduler.merged_drafts import LEAST_GAIN, MOST_AREA, MOST_TRIALS
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.recorder import Recorder
from spacetime.scheduler.space_time import space_time
from spacetime.scheduler.verify import verify
from tests.merging.programs import chain
from tests.scheduler.harness import CORES, Echo, TableCosts, World, snapshot, tenant_view

WHOLE = (Segment(CORES.whole),)
AB = MergedView("merged:a+b", ("a", "b"))
ABC = MergedView("merged:a+b+c", ("a", "b", "c"))
PROGRAMS = {name: chain(name, work) for name, work in (("a", "64 r64 64"), ("b", "64 64"), ("c", "32 r32"))}
Loads = tuple[Load, ...]


def views(*names: str, **options: Any) -> list[TenantView]:
    """One tenant for each, in a cohort of its name."""
    return [tenant_view(f"t{name}", 1, cohort=name, **options) for name in names]


def merging(*tenants: TenantView, merged: tuple[MergedView, ...] = (AB,), **options: Any) -> Snapshot:
    return replace(snapshot(*tenants, **options), merged=merged)


def always_merged(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Whatever waits, in one lane if there is a merged execution of it."""
    device = snapshot.device
    if snapshot.running:
        return Plan()
    whole = (Segment(device.whole),)
    for view in snapshot.merged:
        its = [tenant for tenant in snapshot.tenants if tenant.cohort in view.cohorts]
        if len({tenant.cohort for tenant in its}) > 1:
            return Plan((Lane(view.id, tuple(tenant.waiting[0] for tenant in its), whole),))
    tenant = snapshot.tenants[0]
    return Plan((Lane(tenant.cohort, tenant.waiting[:1], whole),))


class MergingCosts(TableCosts):
    """Merged lanes by a formula too, and which of them were asked for."""

    def __init__(self, merged: Callable[[Loads, int], float], lane: Callable[[int, int, int], float]) -> None:
        super().__init__(lane)
        self.merged = merged
        self.asked: list[tuple[str, Loads, int]] = []

    def merged_us(self, merged: str, loads: Loads, *, units: int) -> float:
        self.asked.append((merged, loads, units))
        return self.merged(loads, units)

    def observe_merged(self, merged: str, loads: Loads, *, units: int, duration_us: int) -> None: ...

    def forget_merged(self, merged: str) -> None: ...


def costs(merged_us: float, lane_us: float = 1000.0) -> MergingCosts:
    return MergingCosts(lambda loads, units: merged_us, lambda tenants, rows, units: lane_us)


# -- what is verified -------------------------------------------------------------------------------------

A, B, C = views("a", "b", "c")
GOOD = Lane(AB.id, (A.waiting[0], B.waiting[0]), WHOLE)
VIOLATIONS = [
    ("'tc' is of cohort 'c'", (A, B, C), replace(GOOD, requests=(A.waiting[0], C.waiting[0]))),
    ("'ta' is of cohort 'a'", (A, B), replace(GOOD, cohort="merged:b+c")),
    ("is merged and plain", (A, B), replace(GOOD, fused=False)),
    ("is merged with a straggler", (A, replace(B, apart=True)), GOOD),
    ("is not fusible", (A, replace(B, fusible=False)), GOOD),
    ("would run in 2 lanes", (A, replace(B, running=1)), GOOD),
    ("is too small", (A, replace(B, min_units=3)), replace(GOOD, segments=(Segment(CORES.partition(2)),))),
]


def test_a_lane_of_several_cohorts_is_accepted_where_it_has_a_merged_execution() -> None:
    verify(Plan((GOOD,)), merging(A, B, C), PARTITIONS_ONLY)
    verify(Plan((replace(GOOD, requests=A.waiting),)), merging(A, B, C), PARTITIONS_ONLY)
    with pytest.raises(PlanError, match="is of cohort"):
        verify(Plan((GOOD,)), snapshot(A, B, C), PARTITIONS_ONLY)


@pytest.mark.parametrize(("message", "tenants", "lane"), VIOLATIONS, ids=[each[0] for each in VIOLATIONS])
def test_what_no_merged_lane_may_be(message: str, tenants: tuple[TenantView, ...], lane: Lane) -> None:
    with pytest.raises(PlanError, match=message):
        verify(Plan((lane,)), merging(*tenants), PARTITIONS_ONLY)


# -- when space_time makes one ----------------------------------------------------------------------------


def test_lanes_that_start_together_become_one_when_it_pays() -> None:
    priced = costs(1000 * (1 - LEAST_GAIN) - 1)
    plan = space_time(merging(*views("a", "b")), priced)
    assert [(lane.cohort, lane.tenants, lane.units, lane.fused) for lane in plan.lanes] == [
        (AB.id, ("ta", "tb"), 4, True)
    ]
    assert priced.asked == [(AB.id, (Load(1, 1), Load(1, 1)), 4)], "for their very loads, on all their units"
    verify(plan, merging(*views("a", "b")), PARTITIONS_ONLY)


def test_ties_go_to_separate_lanes() -> None:
    plan = space_time(merging(*views("a", "b")), costs(1000 * (1 - LEAST_GAIN)))
    assert [lane.cohort for lane in plan.lanes] == ["a", "b"]


def test_a_short_lane_is_not_held_up_by_a_long_one() -> None:
    """It would end before the longer one, and yet take more of the device than both."""
    uneven = TableCosts(lambda tenants, rows, units: 100.0 if rows == 1 else 1000.0)
    priced = MergingCosts(lambda loads, units: 900.0, uneven.formula)
    short, long = tenant_view("ta", 1, cohort="a"), tenant_view("tb", 9, cohort="b")
    assert len(space_time(merging(short, long), priced).lanes) == 2
    priced.merged = lambda loads, units: 550.0 * MOST_AREA
    assert len(space_time(merging(short, long), priced).lanes) == 1


def test_no_deadline_is_lost_by_merging() -> None:
    def lanes(a_us: int, b_us: int) -> int:
        """Lanes of 500 us and 1500 us, both 800 us when merged, and when their requests are due."""
        priced = MergingCosts(lambda loads, units: 800.0, lambda tenants, rows, units: 500.0 if rows == 1 else 1500.0)
        due = [
            tenant_view("ta", 1, cohort="a", deadline_us=1000 + a_us),
            tenant_view("tb", 2, cohort="b", deadline_us=1000 + b_us),
        ]
        return len(space_time(merging(*due), priced).lanes)

    assert lanes(800, 9000) == 1
    assert lanes(799, 9000) == 2
    assert lanes(499, 9000) == 1, "it is lost in any case"


def test_only_those_who_gain_by_each_other_are_merged() -> None:
    """Three drafts, of which two fit together."""
    device = Device("eight", "null", num_units=8)

    def merged_us(loads: Loads, units: int) -> float:
        return 500.0 if [load.rows for load in loads] == [1, 0, 1] else 5000.0

    priced = MergingCosts(merged_us, lambda tenants, rows, units: 1000.0)
    plan = space_time(merging(*views("a", "b", "c"), merged=(ABC,), device=device), priced)
    assert sorted((lane.cohort, lane.tenants) for lane in plan.lanes) == [("b", ("tb",)), (ABC.id, ("ta", "tc"))]


def test_plain_lanes_and_stragglers_stay_by_themselves() -> None:
    free = costs(1.0)
    apart = tenant_view("ta", 1, cohort="a", apart=True)
    assert [lane.cohort for lane in space_time(merging(apart, B), free).lanes] == ["a", "b"]
    opaque = tenant_view("ta", 1, cohort="a", fusible=False)
    assert [lane.cohort for lane in space_time(merging(opaque, B), free).lanes] == ["a", "b"]
    assert free.asked == []


def test_a_decision_prices_so_many_merged_lanes_and_no_more() -> None:
    names = [f"c{i}" for i in range(16)]
    device, priced = Device("many", "null", num_units=16), costs(5000.0)
    everybody = MergedView("merged:all", tuple(names))
    plan = space_time(merging(*views(*names), merged=(everybody,), device=device), priced)
    assert len(plan.lanes) == 16 and len(priced.asked) == MOST_TRIALS


def test_without_merged_executions_nothing_is_asked() -> None:
    priced = costs(1.0)
    plan = space_time(snapshot(*views("a", "b")), priced)
    assert plan == space_time(snapshot(*views("a", "b")), TableCosts()) and priced.asked == []


def test_a_cost_model_that_knows_no_merged_lanes_is_an_error() -> None:
    with pytest.raises(OptionError, match="merged lanes have no costs"):
        space_time(merging(*views("a", "b")), TableCosts())


@settings(max_examples=100)
@given(st.data())
def test_whatever_is_merged_the_plan_is_valid_and_takes_the_same_requests(data: st.DataObject) -> None:
    cohorts = data.draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=8))
    tenants = [
        tenant_view(
            f"t{index}",
            *data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=2)),
            cohort=cohort,
            max_concurrency=data.draw(st.integers(1, 2)),
            apart=data.draw(st.booleans()),
            min_units=data.draw(st.sampled_from([1, 1, 2])),
        )
        for index, cohort in enumerate(cohorts)
    ]
    device = Device("eight", "null", num_units=8)
    seen = merging(*tenants, merged=data.draw(st.sampled_from([(AB,), (ABC,), (AB, ABC)])), device=device)
    times = data.draw(st.lists(st.integers(1, 2000), min_size=16, max_size=16))
    priced = MergingCosts(
        lambda loads, units: float(times[sum(load.rows for load in loads) % 16]),
        lambda tenants, rows, units: float(times[rows % 16]),
    )
    plan = space_time(seen, priced)
    verify(plan, seen, PARTITIONS_ONLY)
    apart = space_time(replace(seen, merged=()), priced)
    assert sorted(r.id for lane in plan.lanes for r in lane.requests) == sorted(
        r.id for lane in apart.lanes for r in lane.requests
    )
    assert space_time(seen, priced) == plan


# -- what the loop does with one --------------------------------------------------------------------------


class Named(Echo):
    """Remembers the lanes that it ran."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []

    def run(self, lane: Lane, payloads: Any) -> Any:
        self.lanes.append(lane)
        return super().run(lane, payloads)


def merged_world(policy: Any = always_merged, *, recorder: Recorder | None = None, latency_us: int = 100) -> World:
    """A tenant each in cohorts a and b, not yet merged."""
    world = World(policy, latency_us=latency_us)
    if recorder is not None:
        world.costs = recorder.costs
        world.scheduler = recorder.scheduler(world.backend, policy, world.posted.append)
    for name in "ab":
        world.costs.register(name, PROGRAMS[name], CORES)
        world.add(f"t{name}", cohort=name)
    return world


def merge(world: World, executable: Any = None) -> Any:
    executable = executable or Named()
    world.costs.register_merged(AB.id, align([PROGRAMS[name] for name in "ab"]), AB.cohorts, CORES)
    world.scheduler.add_merged(AB, executable)
    return executable


def test_a_merged_lane_runs_the_merged_executable_and_results_find_their_requests() -> None:
    world = merged_world()
    executable = merge(world)
    good, bad = world.submit("ta", payload=1), world.submit("tb", payload=ValueError("nan"))
    world.run()
    assert [lane.cohort for lane in executable.lanes] == [AB.id]
    assert good.result(0) == 1 and isinstance(bad.exception(0), ValueError)
    assert [event.lane.cohort for event in world.scheduler.trace().events] == [AB.id]


def test_its_time_is_charged_by_what_each_cohort_takes_by_itself() -> None:
    world = merged_world(latency_us=1200)
    merge(world)
    alone_us = {name: world.costs.lane_us(name, tenants=1, rows=1, units=4) for name in "ab"}
    for name in ("ta", "tb"):
        world.submit(name)
    world.run()
    stats = world.scheduler.stats()
    charged_us = {name: stats[f"t{name}"]["device_us"] for name in "ab"}
    assert sum(charged_us.values()) == pytest.approx(1200)
    assert charged_us["a"] / charged_us["b"] == pytest.approx(alone_us["a"] / alone_us["b"])


def test_it_says_nothing_of_its_cohorts_and_everything_of_merged_lanes() -> None:
    world = merged_world(latency_us=7000)
    merge(world)
    before = [world.costs.lane_us(name, tenants=1, rows=1, units=4) for name in "ab"]
    loads = (Load(1, 1), Load(1, 1))
    assert world.costs.merged_us(AB.id, loads, units=4) < 1000
    for _ in range(20):
        for name in ("ta", "tb"):
            world.submit(name)
        world.run()
    assert [world.costs.lane_us(name, tenants=1, rows=1, units=4) for name in "ab"] == before
    assert world.costs.merged_us(AB.id, loads, units=4) == pytest.approx(7000, rel=0.05)
    assert world.costs.merged_us(AB.id, (Load(1, 1), Load(0, 0)), units=4) < 1000, "that is another lane"


def test_a_cohort_that_disbands_takes_its_merged_executions_with_it() -> None:
    world = merged_world()
    merge(world)
    running = [world.submit("ta", payload=1), world.submit("tb", payload=2)]
    world.step()
    left = world.scheduler.remove_tenant("tb")
    assert not left.done() and world.scheduler.snapshot().merged == ()
    world.run()
    assert left.done() and [future.result(0) for future in running] == [1, 2], "what runs ends as it began"
    later = world.submit("ta", payload=3)
    world.run()
    assert later.result(0) == 3


def test_a_cohort_that_keeps_a_tenant_stays_merged() -> None:
    world = merged_world()
    world.add("tb2", cohort="b")
    merge(world)
    world.scheduler.remove_tenant("tb")
    assert world.scheduler.snapshot().merged == (AB,)
    world.scheduler.remove_merged(AB.id)
    assert world.scheduler.snapshot().merged == ()


@pytest.mark.parametrize("view", [MergedView("one", ("a",)), MergedView("gone", ("a", "z")), ABC])
def test_only_cohorts_with_tenants_are_merged(view: MergedView) -> None:
    with pytest.raises(OptionError, match="cannot be merged"):
        merged_world().scheduler.add_merged(view, Echo())


def test_a_policy_that_names_what_was_removed_fails_and_is_named() -> None:
    world = merged_world(lambda snapshot, costs: Plan((replace(GOOD, requests=(snapshot.tenants[0].waiting[0],)),)))
    future = world.submit("ta")
    world.step()
    assert isinstance(future.exception(0), PlanError)


def test_a_run_with_merged_lanes_replays_identically() -> None:
    recorder = Recorder()
    world = merged_world(recorder=recorder)
    merge(world)
    for round_ in range(6):
        for name in ("ta", "tb"):
            world.submit(name, rows=1 + round_ % 2)
        world.run()
    world.scheduler.remove_merged(AB.id)
    world.submit("ta")
    world.run()
    journal = recorder.journal()
    assert Journal.from_json(journal.to_json()) == journal
    assert any(lane.cohort == AB.id for plan in journal.plans for lane in plan.lanes)
    again = replay(journal, always_merged)
    assert again.difference is None and again.plans == journal.plans, str(again.difference)
    assert replay(journal, space_time).difference is not None, "space_time would not have merged"
