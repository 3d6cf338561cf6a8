"""Random snapshots: plans are sound, work conserving, in time where they can be, and always the same."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import PARTITIONS_ONLY, Capabilities, Device
from spacetime.plan import Lane, Plan, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler import space_time as policies
from spacetime.scheduler.registry import get_policy
from spacetime.scheduler.segments import SEGMENTS_FROM_US
from spacetime.scheduler.tables import KernelTimes
from spacetime.scheduler.verify import verify
from tests.scheduler.harness import TableCosts

NOW_US = 2_000_000
SEGMENTS = Capabilities(partitions=True, segments=True, graphs=False)
PLACEMENT = Capabilities(partitions=True, segments=True, graphs=False, placement=True)


class RandomCosts(TableCosts):
    """No two arrangements cost the same, larger ones may be slower, and kernels disagree about sizes."""

    def __init__(self, seed: int, device: Device) -> None:
        super().__init__(device=device)
        self.seed = seed

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        us = self.kernel_times(cohort, tenants=tenants, rows=rows, fused=fused).us
        return float(us[:, max(1, units // self.device.units_per_atom) - 1].sum())

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        mixed = (self.seed + 31 * len(cohort) + 7 * tenants + 3 * rows + fused) % 1013
        base = 1 + mixed * SEGMENTS_FROM_US / 1013
        sizes = range(1, self.device.num_atoms + 1)
        kernels = [[base * (1 + (mixed * size + kernel) % 5) for size in sizes] for kernel in range(4)]
        return KernelTimes.of(kernels)


class SmoothCosts(TableCosts):
    """More rows take longer, more units less."""

    def __init__(self, seed: int, device: Device) -> None:
        per_row, parallel = 1 + seed % 400, 1 + seed % 7
        super().__init__(lambda tenants, rows, units: 20.0 * tenants + per_row * rows / min(units, parallel), device)


@st.composite
def tenants(draw: st.DrawFn, index: int, device: Device, *, simple: bool = False) -> TenantView:
    name = f"t{index}"
    waiting = []
    for request in range(1 if simple else draw(st.integers(1, 4))):
        arrival_us = NOW_US - draw(st.sampled_from([0, 30, 400, 5000, 1_500_000]))
        slack_us = draw(st.sampled_from([None, -100, 100, 1000, 3000, 10_000, 50_000]))
        deadline_us = None if slack_us is None else NOW_US + slack_us
        waiting.append(RequestView(request, name, draw(st.sampled_from([1, 2, 5, 33, 70])), arrival_us, deadline_us))
    max_concurrency = 1 if simple else draw(st.integers(1, 2))
    fusible = simple or draw(st.booleans())
    return TenantView(
        name,
        "a" if simple else draw(st.sampled_from(["a", "bb", "ccc"])) + ("" if fusible else name),
        fusible=fusible,
        weight=draw(st.sampled_from([0.5, 1.0, 4.0])),
        priority=draw(st.integers(0, 1)),
        slo_us=None,
        served_us=0 if simple else draw(st.sampled_from([0, 1000, 900_000])),
        max_concurrency=max_concurrency,
        running=0 if simple else draw(st.integers(0, max_concurrency)),
        waiting=tuple(waiting),
        active_peers=0 if simple else draw(st.sampled_from([0, 0, 3, 20])),
        min_units=1 if simple else draw(st.sampled_from([1, 1, 1, (device.num_units + 1) // 2, device.num_units])),
        apart=not simple and draw(st.integers(0, 4)) == 0,
    )


@st.composite
def snapshots(draw: st.DrawFn, capabilities: Capabilities = PARTITIONS_ONLY, *, simple: bool = False) -> Snapshot:
    units_per_atom = draw(st.integers(1, 3))
    num_units = draw(st.integers(1, 12)) * units_per_atom + draw(st.integers(0, units_per_atom - 1))
    device = Device("random", "null", num_units=num_units, units_per_atom=units_per_atom, switch_us=1.0)
    free = device.all_atoms if simple else draw(st.integers(0, device.all_atoms))
    views = tuple(draw(tenants(index, device, simple=simple)) for index in range(draw(st.integers(1, 9))))
    running: tuple[Lane, ...] = ()
    if busy := device.all_atoms & ~free:
        partition = device.partition(busy.bit_count() * units_per_atom, busy)
        running = (Lane("a", (RequestView(99, "someone", 1, 0),), (Segment(partition),)),)
    return Snapshot(NOW_US, device, free, views, running, capabilities)


seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("name", ["space_time", "space_time_reserved", "space_time_floating"])
@pytest.mark.parametrize("capabilities", [PARTITIONS_ONLY, SEGMENTS, PLACEMENT])
@settings(deadline=None, max_examples=60)
@given(st.data(), seeds)
def test_plans_are_sound_and_the_same_each_time(
    name: str, capabilities: Capabilities, data: st.DataObject, seed: int
) -> None:
    snapshot = data.draw(snapshots(capabilities))
    costs = RandomCosts(seed, snapshot.device)
    plan = get_policy(name)(snapshot, costs)
    verify(plan, snapshot, capabilities)
    assert plan == get_policy(name)(snapshot, RandomCosts(seed, snapshot.device))
    if not snapshot.running and snapshot.free_atoms and any(t.running < t.max_concurrency for t in snapshot.tenants):
        assert plan.lanes or plan.wake_at_us is not None, "or nobody would ever start"


@settings(deadline=None, max_examples=200)
@given(snapshots(), seeds)
def test_nothing_is_idle_while_something_waits_that_may_start(snapshot: Snapshot, seed: int) -> None:
    plan = policies.space_time(snapshot, RandomCosts(seed, snapshot.device))
    free = snapshot.free_atoms
    for lane in plan.lanes:
        free &= ~lane.atoms
    if not free or plan.wake_at_us is not None:
        return
    num_units = free.bit_count() * snapshot.device.units_per_atom
    planned = {(view.tenant, view.id) for lane in plan.lanes for view in lane.requests}
    num_lanes = Counter(name for lane in plan.lanes for name in lane.tenants)
    left = [t for t in snapshot.tenants if any((t.name, view.id) not in planned for view in t.waiting)]
    may_start = [t for t in left if t.running + num_lanes[t.name] < t.max_concurrency]
    if not any(t.min_units > num_units for t in may_start):
        assert not may_start


@settings(deadline=None, max_examples=200)
@given(snapshots(), seeds, st.booleans())
def test_who_would_be_in_time_alone_is_in_time_in_company(snapshot: Snapshot, seed: int, smooth: bool) -> None:
    costs = (SmoothCosts if smooth else RandomCosts)(seed, snapshot.device)
    with patch.object(policies, "widen"):  # it makes lanes quicker than they had to be
        plan = policies.space_time(snapshot, costs)
    by_name = {tenant.name: tenant for tenant in snapshot.tenants}
    for lane in plan.lanes:
        if not any(by_name[name].waiting[0].deadline_us is not None for name in lane.tenants):
            continue
        shape = {"units": lane.units, "fused": lane.fused}
        lane_us = costs.lane_us(lane.cohort, tenants=len(lane.tenants), rows=lane.num_rows, **shape)
        for view in lane.requests:
            alone_us = costs.lane_us(lane.cohort, tenants=1, rows=view.rows, **shape)
            if view.deadline_us is not None and NOW_US + alone_us <= view.deadline_us:
                assert NOW_US + lane_us <= view.deadline_us


@settings(deadline=None, max_examples=200)
@given(snapshots(simple=True), seeds)
def test_the_tightest_deadline_that_can_be_met_is_met(snapshot: Snapshot, seed: int) -> None:
    """Of one cohort, equally served, that has the device to itself."""
    costs, device = SmoothCosts(seed, snapshot.device), snapshot.device
    plan: Plan = policies.space_time(snapshot, costs)
    feasible = [
        view
        for tenant in snapshot.tenants
        for view in tenant.waiting
        if view.deadline_us is not None
        and NOW_US + costs.lane_us("a", tenants=1, rows=view.rows, units=device.num_units) <= view.deadline_us
    ]
    if not feasible or any(tenant.waiting[0].arrival_us <= NOW_US - 1_000_000 for tenant in snapshot.tenants):
        return  # who has run out of patience goes first
    due_us = min(view.deadline_us or 0 for view in feasible)
    ends_us = [
        NOW_US + costs.lane_us("a", tenants=len(lane.tenants), rows=lane.num_rows, units=lane.units)
        for lane in plan.lanes
        if any(view in feasible and view.deadline_us == due_us for view in lane.requests)
    ]
    assert ends_us and min(ends_us) <= due_us
