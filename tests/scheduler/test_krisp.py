"""Kernel-wise right-sizing: what lanes ask for, who waits, and that no plan is ever refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import PARTITIONS_ONLY, Capabilities, Device, Partition
from spacetime.plan import Lane, Placement, Plan, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler.allocation import UNLIMITED, mask
from spacetime.scheduler.krisp import MAX_LANES, krisp, krisp_overlap
from spacetime.scheduler.registry import get_policy
from spacetime.scheduler.tables import KernelTimes
from spacetime.scheduler.verify import verify
from tests.scheduler.harness import World, snapshot, tenant_view

ISOLATED = {"krisp": "conserved", "krisp_packed": "packed", "krisp_distributed": "distributed"}
OVERLAPPING = {name.replace("krisp", "krisp_overlap"): order for name, order in ISOLATED.items()}
ALL = ISOLATED | OVERLAPPING
FLOATING = Capabilities(partitions=True, segments=True, graphs=False, placement=True)
DEVICE = Device("two groups of four", "model", num_units=17, units_per_atom=2, num_groups=2)  # 1 unit in no atom


class KneeCosts:
    """Kernels whose latency is halved until they have so many atoms, and no further. Counts who asks."""

    def __init__(self, device: Device, **knees: tuple[int, ...]) -> None:
        self.device = device
        self.knees = knees
        self.asked: list[tuple[str, int, int, bool]] = []
        self.tables: dict[tuple[int, ...], KernelTimes] = {}

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        return 1.0

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        self.asked.append((cohort, tenants, rows, fused))
        knees = tuple(min(knee * rows, self.device.num_atoms) for knee in self.knees.get(cohort, (1,)))
        if knees not in self.tables:
            sizes = range(1, self.device.num_atoms + 1)
            self.tables[knees] = KernelTimes.of([[0.5 ** min(size, knee) for size in sizes] for knee in knees])
        return self.tables[knees]


def view(name: str, *rows: int, **options: int) -> TenantView:
    """Of a cohort of its own name."""
    return tenant_view(name, *(rows or (1,)), cohort=name, **options)


def on(atoms: int) -> Lane:
    units = atoms.bit_count() * DEVICE.units_per_atom
    return Lane("other", (RequestView(0, "other", 1, 0),), (Segment(Partition(atoms, units, units)),))


def atoms_of(plan: Plan) -> dict[str, int]:
    return {lane.tenants[0]: lane.atoms for lane in plan.lanes}


# -- where the device places kernels ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_lane_floats_with_the_knee_of_every_run_of_kernels(name: str) -> None:
    seen = replace(snapshot(view("a", 1, 1), device=DEVICE), capabilities=FLOATING, free_atoms=0)
    plan = get_policy(name)(seen, KneeCosts(DEVICE, a=(2, 2, 1, 8, 8)))
    sizes = [(4, 0, 2), (2, 2, 3), (17, 3, -1)]  # all atoms are the whole device
    segments = tuple(Segment(Partition.floating(units), first, last) for units, first, last in sizes)
    placement = Placement(ALL[name], 0, 16) if name in ISOLATED else Placement(ALL[name], UNLIMITED)
    lane = Lane("a", seen.tenants[0].waiting[:1], segments, fused=False, placement=placement)
    assert plan == Plan((lane,), isolated=name in ISOLATED)


def test_a_floating_lane_keeps_to_the_least_size_of_its_tenant() -> None:
    seen = replace(snapshot(view("a", min_units=5), device=DEVICE), capabilities=FLOATING)
    (lane,) = krisp(seen, KneeCosts(DEVICE, a=(1, 2, 4))).lanes
    assert [(segment.partition.granted_units, segment.last_kernel) for segment in lane.segments] == [(6, 2), (8, -1)]


def test_an_opaque_tenant_has_one_kernel() -> None:
    seen = replace(snapshot(view("a", fusible=False), device=DEVICE), capabilities=FLOATING)
    (lane,) = krisp(seen, KneeCosts(DEVICE, a=(3,))).lanes
    assert lane.segments == (Segment(Partition.floating(6)),)


@pytest.mark.parametrize(
    "capabilities", [PARTITIONS_ONLY, replace(FLOATING, segments=False), replace(FLOATING, placement=False)]
)
def test_a_device_must_do_both_for_lanes_to_float(capabilities: Capabilities) -> None:
    seen = replace(snapshot(view("a"), device=DEVICE), capabilities=capabilities)
    (lane,) = krisp(seen, KneeCosts(DEVICE, a=(1, 3, 2))).lanes
    assert lane.segments == (Segment(Partition(0b111, 6, 6)),)


# -- where it does not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_confined_lane_gets_what_its_largest_kernel_needs(name: str) -> None:
    running = (on(0b0000_0011),)
    seen = snapshot(view("a"), device=DEVICE, running=running)
    plan = get_policy(name)(seen, KneeCosts(DEVICE, a=(1, 3, 2)))
    atoms = mask(DEVICE, [0b0000_0011], 3, Placement(ALL[name]))
    lane = Lane("a", seen.tenants[0].waiting, (Segment(Partition(atoms, 6, 6)),), fused=False)
    assert plan == Plan((lane,), isolated=name in ISOLATED)


def test_isolated_lanes_shrink_to_what_is_free_then_wait() -> None:
    seen = snapshot(view("a", arrival_us=1), view("b", arrival_us=2), view("c", arrival_us=3), device=DEVICE)
    plan = krisp(seen, KneeCosts(DEVICE, a=(5,), b=(5,), c=(1,)))
    assert {name: atoms.bit_count() for name, atoms in atoms_of(plan).items()} == {"a": 5, "b": 3}


def test_isolated_lanes_wait_for_an_equal_share() -> None:
    seen = snapshot(view("a", arrival_us=1), view("b", arrival_us=2), device=DEVICE)
    plan = krisp(seen, KneeCosts(DEVICE, a=(5,), b=(5,)))
    assert [atoms.bit_count() for atoms in atoms_of(plan).values()] == [5], "of the 4 that are its share 3 are left"
    plan = krisp(seen, KneeCosts(DEVICE, a=(5,), b=(3,)))
    assert [atoms.bit_count() for atoms in atoms_of(plan).values()] == [5, 3], "it wants no more"


@pytest.mark.parametrize("name", ALL)
def test_only_isolated_lanes_that_float_have_a_least_size_and_it_is_an_equal_share(name: str) -> None:
    seen = replace(snapshot(view("a"), view("b"), device=DEVICE, running=(on(1), on(2))), capabilities=FLOATING)
    placements = {lane.placement for lane in get_policy(name)(seen, KneeCosts(DEVICE)).lanes}
    assert {placement.min_units for placement in placements if placement} == {4 if name in ISOLATED else 1}


def test_overlapping_lanes_get_what_they_need() -> None:
    seen = snapshot(view("a"), view("b"), view("c"), device=DEVICE, running=(on(DEVICE.all_atoms), on(0b1)))
    plan = krisp_overlap(seen, KneeCosts(DEVICE, a=(5,), b=(5,), c=(1,)))
    assert [atoms.bit_count() for atoms in atoms_of(plan).values()] == [5, 5, 1]
    assert not atoms_of(plan)["a"] & 0b1  # held twice already
    assert not plan.isolated


def test_the_oldest_waits_for_its_least_size_and_nobody_overtakes_it() -> None:
    wide, small = view("wide", arrival_us=1, min_units=8), view("small", arrival_us=2)
    costs = KneeCosts(DEVICE)
    assert krisp(snapshot(small, wide, device=DEVICE, running=(on(0b11111),)), costs).lanes == ()
    plan = krisp(snapshot(small, wide, device=DEVICE, running=(on(0b1111),)), costs)
    assert atoms_of(plan) == {"wide": 0b1111_0000}


def test_the_whole_device_has_the_units_that_fill_no_atom() -> None:
    (lane,) = krisp(snapshot(view("a", min_units=17), device=DEVICE), KneeCosts(DEVICE)).lanes
    assert lane.segments == (Segment(DEVICE.whole),)


# -- who runs ---------------------------------------------------------------------------------------------


def test_a_tenant_runs_one_request_at_a_time_in_order() -> None:
    busy = view("busy", 1, max_concurrency=4, running=1)
    seen = snapshot(busy, view("a", 2, 1, max_concurrency=4), device=DEVICE)
    (lane,) = krisp(seen, KneeCosts(DEVICE)).lanes
    assert lane.requests == seen.tenants[1].waiting[:1]


def test_tenants_of_a_cohort_are_looked_up_once_and_alone() -> None:
    tenants = [tenant_view(f"t{i}", 1 + i % 2, cohort="twins") for i in range(8)]
    costs = KneeCosts(DEVICE)
    krisp_overlap(snapshot(*tenants, device=DEVICE), costs)
    assert costs.asked == [("twins", 1, 1, False), ("twins", 1, 2, False)]


@pytest.mark.parametrize("capabilities", [PARTITIONS_ONLY, FLOATING])
def test_there_is_a_limit_to_what_is_on_the_device_at_once(capabilities: Capabilities) -> None:
    tenants = [view(f"t{i}", arrival_us=2 * MAX_LANES - i) for i in range(2 * MAX_LANES)]
    seen = replace(snapshot(*tenants, device=DEVICE, running=(on(1),)), capabilities=capabilities)
    plan = krisp_overlap(seen, KneeCosts(DEVICE))
    assert [lane.tenants[0] for lane in plan.lanes] == [view.name for view in tenants[:-MAX_LANES:-1]]


def test_there_are_no_more_lanes_than_hardware_queues() -> None:
    tenants = [view(f"t{i}", arrival_us=i) for i in range(5)]
    device = replace(DEVICE, hardware_queues=3)
    plan = krisp_overlap(snapshot(*tenants, device=device, running=(on(1),)), KneeCosts(device))
    assert [lane.tenants[0] for lane in plan.lanes] == ["t0", "t1"]


@pytest.mark.parametrize("name", ALL)
def test_everybody_is_served(name: str) -> None:
    world = World(name, device=DEVICE, latency_us=lambda lane: 100 * lane.num_rows)
    for index in range(12):
        world.add(f"t{index}", cohort=f"c{index % 3}", min_units=1 + index)
    futures = [world.submit(f"t{index}", rows, payload=rows) for rows in (1, 3, 2) for index in range(12)]
    world.run()
    assert [future.result(0) for future in futures] == [rows for rows in (1, 3, 2) for _ in range(12)]


# -- any snapshot -----------------------------------------------------------------------------------------

DEVICES = [
    Device("a core", "null", 1),
    DEVICE,
    Device("sixty", "model", 60, num_groups=4),
    Device("uneven", "model", 132, 8, num_groups=7),
]


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    device = draw(st.sampled_from(DEVICES))
    running = []
    for _ in range(draw(st.integers(0, 4))):  # they may overlap
        atoms = draw(st.integers(1, device.all_atoms))
        units = atoms.bit_count() * device.units_per_atom
        segments = (Segment(Partition(atoms, units, units)),)
        running.append(Lane("x", (RequestView(0, "gone", 1, 0),), segments))
    tenants = [
        tenant_view(
            f"t{index}",
            *draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)),
            cohort=draw(st.sampled_from("xyz")),
            fusible=draw(st.booleans()),
            running=draw(st.integers(0, 1)),
            max_concurrency=draw(st.integers(1, 3)),
            min_units=min(draw(st.sampled_from([1, 2, 132])), device.num_units),
            arrival_us=draw(st.integers(0, 5)),
        )
        for index in range(draw(st.integers(0, 8)))
    ]
    seen = snapshot(*tenants, device=device, running=tuple(running))
    return replace(seen, capabilities=draw(st.sampled_from([PARTITIONS_ONLY, FLOATING])))


knees = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(tuple)


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(ALL)), seen=snapshots(), x=knees, y=knees, z=knees)
def test_plans_verify_repeat_and_leave_nobody_out(
    name: str, seen: Snapshot, x: tuple[int, ...], y: tuple[int, ...], z: tuple[int, ...]
) -> None:
    policy = get_policy(name)
    plan = policy(seen, KneeCosts(seen.device, x=x, y=y, z=z))
    verify(plan, seen, seen.capabilities)
    assert policy(seen, KneeCosts(seen.device, x=x, y=y, z=z)) == plan
    ready = sorted((t for t in seen.tenants if not t.running), key=lambda t: t.waiting[0].arrival_us)
    assert [lane.requests for lane in plan.lanes] == [t.waiting[:1] for t in ready[: len(plan.lanes)]]
    floats = seen.capabilities.placement
    assert all((lane.placement is not None) == floats for lane in plan.lanes)
    if floats or name in OVERLAPPING:
        assert len(plan.lanes) == len(ready)
    elif len(plan.lanes) < len(ready):  # the next one does not fit
        free = seen.free_atoms & ~sum(lane.atoms for lane in plan.lanes)
        first_out, lanes = ready[len(plan.lanes)], min(len(ready), MAX_LANES) + len(seen.running)
        needed = min(seen.device.num_atoms, -(-first_out.min_units // seen.device.units_per_atom))
        assert free.bit_count() < max(needed, seen.device.num_atoms // lanes, 1)
