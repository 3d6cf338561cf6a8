"""Equal partitions that depend on who exists, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.plan import Lane, Plan, RequestView, Segment, Snapshot
from spacetime.scheduler.static import static
from spacetime.scheduler.verify import verify
from tests.scheduler.harness import CORES, TableCosts, World, snapshot, tenant_view
from tests.scheduler.snapshots import snapshots

ATOMS = Device("132 units by 8", "null", 132, 8)
COSTS = TableCosts()


def placed(seen: Snapshot) -> dict[str, int]:
    """Tenant -> atoms of its lane."""
    return {lane.tenants[0]: lane.atoms for lane in static(seen, COSTS).lanes}


def everybody(count: int, device: Device, *waiting: int) -> Snapshot:
    """So many tenants, of whom these wait, or all."""
    tenants = [tenant_view(f"t{index}", 1, 1) for index in waiting or range(count)]
    return replace(snapshot(*tenants, device=device), roster=tuple(f"t{index}" for index in range(count)))


def test_a_lone_tenant_has_the_whole_device() -> None:
    seen = everybody(1, ATOMS)
    (lane,) = static(seen, COSTS).lanes
    assert lane == Lane("cohort", seen.tenants[0].waiting[:1], (Segment(ATOMS.whole),), fused=False)


@pytest.mark.parametrize(("count", "atoms_each"), [(2, 8), (3, 5), (5, 3), (7, 2), (9, 1), (16, 1)])
def test_partitions_are_equal_disjoint_and_in_order(count: int, atoms_each: int) -> None:
    lanes = static(everybody(count, ATOMS), COSTS).lanes
    assert [lane.tenants for lane in lanes] == [(f"t{index}",) for index in range(count)]
    assert all(lane.atoms.bit_count() == atoms_each and lane.units == 8 * atoms_each for lane in lanes)
    assert all(first.atoms < second.atoms and not first.atoms & second.atoms for first, second in pairwise(lanes))


@given(count=st.integers(1, 40), data=st.data())
def test_a_partition_does_not_depend_on_who_waits(count: int, data: st.DataObject) -> None:
    some = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    for index in some:
        alone = placed(everybody(count, ATOMS, index))
        assert placed(everybody(count, ATOMS, *some)).get(f"t{index}") in (alone[f"t{index}"], None)
        size = 16 // min(count, 16)
        assert alone[f"t{index}"] == ((1 << size) - 1) << (index % 16 * size)


def test_the_partition_of_an_idle_tenant_stays_idle() -> None:
    assert placed(everybody(4, CORES, 1, 3)) == {"t1": 0b0010, "t3": 0b1000}


def test_without_a_roster_those_that_wait_are_all() -> None:
    assert placed(snapshot(tenant_view("a", 1), tenant_view("b", 1))) == {"a": 0b0011, "b": 0b1100}


def test_more_tenants_than_atoms_take_turns() -> None:
    seen = everybody(8, CORES)
    fresh = replace(seen, tenants=tuple(replace(t, served_us=0 if t.name > "t3" else 5) for t in seen.tenants))
    assert placed(seen) == {f"t{index}": 1 << index for index in range(4)}
    assert placed(fresh) == {f"t{index + 4}": 1 << index for index in range(4)}, "the least served first"


def test_a_tenant_runs_one_request_at_a_time() -> None:
    running = Lane("cohort", (RequestView(9, "t0", 1, 0),), (Segment(CORES.partition(2)),))
    busy = replace(
        snapshot(tenant_view("t0", 1, running=1, max_concurrency=4), running=(running,)), roster=("t0", "t1")
    )
    assert static(busy, COSTS) == Plan()


def test_after_a_new_cut_a_partition_waits_until_older_lanes_have_left_it() -> None:
    old = Lane(
        "cohort", (RequestView(9, "t0", 1, 0),), (Segment(CORES.partition(2)),)
    )  # cut for two, now they are four
    seen = everybody(4, CORES, 1, 2)
    assert placed(replace(seen, free_atoms=0b1100, running=(old,))) == {"t2": 0b0100}


def test_one_that_needs_more_borrows_its_neighbours() -> None:
    wide = tenant_view("t3", 1, min_units=24, served_us=3)
    seen = replace(everybody(16, ATOMS, 0, 12, 14), device=ATOMS)
    seen = replace(seen, tenants=(*seen.tenants, wide))
    assert placed(seen) == {"t0": 1 << 0, "t12": 1 << 12, "t14": 1 << 14, "t3": 0b111 << 3}
    whole = replace(wide, min_units=132)
    assert "t3" not in placed(replace(seen, tenants=(*seen.tenants[:3], whole))), "others were served less"
    assert placed(replace(seen, tenants=(*seen.tenants[:3], replace(whole, served_us=-1)))) == {"t3": ATOMS.all_atoms}
    lane = Lane("cohort", (RequestView(9, "t0", 1, 0),), (Segment(ATOMS.partition(8)),))
    held = replace(seen, free_atoms=ATOMS.all_atoms & ~1, running=(lane,))
    blocked = replace(held, tenants=(*seen.tenants[1:3], replace(whole, served_us=-1)))
    assert placed(blocked) == {}, "it is next, and nobody prolongs its waiting"


@given(seen=snapshots())
def test_plans_verify_and_repeat(seen: Snapshot) -> None:
    plan = static(seen, COSTS)
    verify(plan, seen, seen.capabilities)
    assert static(seen, COSTS) == plan


@given(seen=snapshots(idle=True))
def test_an_idle_device_is_used(seen: Snapshot) -> None:
    assert static(seen, COSTS).lanes


def test_nobody_starves() -> None:
    world = World("static")
    world.add("wide", "wide", min_units=4, fusible=False)
    for index in range(9):
        world.add(f"t{index}")
    flood = [world.submit(f"t{index % 3}") for index in range(300)]
    others = [world.submit(name) for name in ("wide", "t3", "t4", "t5", "t6", "t7", "t8")]
    while not all(future.done() for future in others):
        world.step()
        world.backend.advance(50)
    assert sum(future.done() for future in flood) < 60, "the flood is not served first"
    world.run()
    assert all(future.done() for future in flood)


def test_a_new_tenant_takes_its_partition_while_the_others_run() -> None:
    world = World("static")
    for name in "ab":
        world.add(name)
        world.submit(name)
    world.step()
    assert [lane.atoms for lane in world.scheduler.snapshot().running] == [0b0011, 0b1100]
    world.add("c")
    world.add("d")
    later = [world.submit(name) for name in "abcd"]
    world.run()
    assert all(future.done() for future in later)
    assert {event.lane.tenants[0]: event.lane.atoms for event in world.scheduler.trace().events[2:]} == {
        name: 1 << index for index, name in enumerate("abcd")
    }
    world.scheduler.remove_tenant("a")
    assert world.scheduler.snapshot().roster == ("b", "c", "d")
