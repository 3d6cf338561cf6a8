"""Each planted violation is found, and named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Capabilities, Device, Partition
from spacetime.errors import PlanError
from spacetime.plan import Lane, Placement, Plan, RequestView, Segment, Snapshot
from spacetime.scheduler.verify import verify
from tests.scheduler.harness import snapshot, tenant_view

DEVICE = Device("sixteen", "null", num_units=17, units_per_atom=4)  # 4 atoms and a remainder of 1 unit
A = tenant_view("a", 1, 2, max_concurrency=2)
B = tenant_view("b", 1)
OPAQUE = tenant_view("opaque", 1, 1, fusible=False)
OTHER = tenant_view("other", 1, cohort="elsewhere", running=1)
FAR = tenant_view("far", 1, cohort="elsewhere")
WIDE = tenant_view("wide", 1, min_units=5)
SNAPSHOT = snapshot(A, B, OPAQUE, OTHER, FAR, WIDE, device=DEVICE)
ONE = (Segment(Partition(1, 4, 4)),)
TWO = (Segment(Partition(2, 3, 4)),)
GOOD = Lane("cohort", (A.waiting[0], B.waiting[0]), ONE)
CAPABLE = Capabilities(partitions=True, segments=True, graphs=True)


def segments(*kernels: tuple[int, int]) -> tuple[Segment, ...]:
    return tuple(Segment(Partition(1, 4, 4), first, last) for first, last in kernels)


def on(partition: Partition) -> Lane:
    return replace(GOOD, segments=(Segment(partition),))


VIOLATIONS = [
    ("is empty", [replace(GOOD, requests=())]),
    ("tenant 'c' has nothing waiting", [replace(GOOD, requests=(RequestView(0, "c", 1, 0),))]),
    ("request 9 of tenant 'a' does not wait", [replace(GOOD, requests=(RequestView(9, "a", 1, 0),))]),
    ("request 0 of tenant 'a' does not wait", [replace(GOOD, requests=(replace(A.waiting[0], rows=5),))]),
    ("is in the plan twice", [replace(GOOD, requests=(B.waiting[0], B.waiting[0]))]),
    ("is in the plan twice", [GOOD, Lane("cohort", A.waiting[:1], TWO)]),
    ("lane 0 is of cohort 'cohort'", [replace(GOOD, requests=(A.waiting[0], FAR.waiting[0]))]),
    ("'opaque' is not fusible", [replace(GOOD, requests=OPAQUE.waiting[:1])]),
    ("'opaque' is not fusible", [replace(GOOD, requests=(OPAQUE.waiting[0], A.waiting[0]), fused=False)]),
    ("floats in part", [on(Partition(0, 4, 4))]),
    ("not on the device", [on(Partition(16, 4, 4))]),
    ("8 units were granted", [on(Partition(1, 4, 8))]),
    ("5 units were asked", [on(Partition(1, 5, 4))]),
    ("0 units were asked", [on(Partition(1, 0, 4))]),
    ("overlaps", [GOOD, Lane("cohort", A.waiting[1:], ONE)]),
    ("'opaque' would run in 2 lanes", [Lane("cohort", (view,), ONE, False) for view in OPAQUE.waiting]),
    ("'other' would run in 2 lanes", [Lane("elsewhere", OTHER.waiting, ONE)]),
    ("lane 0 is too small for tenant 'wide'", [Lane("cohort", WIDE.waiting, TWO)]),
    ("gap or overlap", [replace(GOOD, segments=segments((0, 2), (3, -1)))]),
    ("gap or overlap", [replace(GOOD, segments=segments((0, 2), (1, -1)))]),
    ("gap or overlap", [replace(GOOD, segments=segments((1, -1)))]),
    ("gap or overlap", [replace(GOOD, segments=segments((0, 0), (0, -1)))]),
    ("gap or overlap", [replace(GOOD, segments=segments((0, -1), (0, -1)))]),
    ("segments end at kernel 3", [replace(GOOD, segments=segments((0, 3)))]),
    ("segments end at kernel 0", [replace(GOOD, segments=())]),
]


@pytest.mark.parametrize(("problem", "lanes"), VIOLATIONS)
def test_violations_are_found(problem: str, lanes: list[Lane]) -> None:
    with pytest.raises(PlanError, match=problem) as caught:
        verify(Plan(tuple(lanes)), SNAPSHOT, CAPABLE)
    assert caught.value.facts and caught.value.next_step, "whoever writes a policy wants to know what to do"


def check(*lanes: Lane, on: Snapshot = SNAPSHOT, isolated: bool = True) -> None:
    verify(Plan(lanes, isolated=isolated), on, CAPABLE)


def test_good_plans_pass() -> None:
    check()
    check(GOOD, Lane("cohort", A.waiting[1:], TWO))
    check(Lane("cohort", OPAQUE.waiting, ONE, fused=False))
    check(replace(GOOD, segments=segments((0, 2), (2, 5), (5, -1))))
    check(on(DEVICE.whole))
    check(on(Partition(15, 16, 16)))  # every atom, without the remainder


QUEUE = tenant_view("queue", *[1] * 6, max_concurrency=6)


@given(st.permutations(QUEUE.waiting), st.integers(1, 6), st.booleans())
def test_requests_may_be_taken_in_any_order_but_once(order: list[RequestView], per_lane: int, copied: bool) -> None:
    """Equal views are as good as those of the snapshot: a plan may come from a file."""
    requests = [replace(request) for request in order] if copied else order
    parts = [tuple(requests[first : first + per_lane]) for first in range(0, len(requests), per_lane)]
    lanes = [Lane("cohort", part, ONE) for part in parts]
    seen = snapshot(QUEUE, device=DEVICE)
    verify(Plan(tuple(lanes), isolated=False), seen, CAPABLE)
    for again in requests[:-per_lane]:
        twice = [*lanes[:-1], replace(lanes[-1], requests=(*lanes[-1].requests, again))]
        with pytest.raises(PlanError, match=f"request {again.id} of tenant 'queue' is in the plan twice"):
            verify(Plan(tuple(twice), isolated=False), seen, CAPABLE)


def test_busy_atoms_are_taken_for_isolated_plans_only() -> None:
    busy = snapshot(A, B, device=DEVICE, running=(Lane("x", (), ONE),))
    with pytest.raises(PlanError, match="overlaps another lane"):
        check(GOOD, on=busy)
    check(GOOD, on=busy, isolated=False)


def test_segments_need_a_capable_backend() -> None:
    lane = replace(GOOD, segments=segments((0, 2), (2, -1)))
    with pytest.raises(PlanError, match="2 segments"):
        verify(Plan((lane,)), SNAPSHOT, Capabilities(partitions=True, segments=False, graphs=False))


def test_a_plan_wakes_in_the_future() -> None:
    with pytest.raises(PlanError, match="wake_at_us is 1000"):
        verify(Plan(wake_at_us=1000), SNAPSHOT, CAPABLE)
    verify(Plan(wake_at_us=1001), SNAPSHOT, CAPABLE)


ANYWHERE = Partition.floating(3)
FLOATING = replace(GOOD, segments=(Segment(ANYWHERE),), placement=Placement())
PLACING = replace(CAPABLE, placement=True)


def test_floating_lanes_overlap_nothing_and_need_a_device_that_places_them() -> None:
    verify(Plan((FLOATING,)), replace(SNAPSHOT, free_atoms=0), PLACING)
    with pytest.raises(PlanError, match="cannot place"):
        verify(Plan((FLOATING,)), SNAPSHOT, CAPABLE)


@pytest.mark.parametrize(
    ("problem", "lane"),
    [
        ("floats in part", replace(FLOATING, placement=None)),
        (
            "floats in part",
            replace(FLOATING, segments=(Segment(ANYWHERE, 0, 1), Segment(DEVICE.whole, 1))),
        ),
        ("999 floating units", replace(FLOATING, segments=(Segment(Partition.floating(999)),))),
    ],
)
def test_bad_floating_lanes_are_found(problem: str, lane: Lane) -> None:
    with pytest.raises(PlanError, match=problem):
        verify(Plan((lane,)), SNAPSHOT, PLACING)


def test_segments_that_lanes_share_are_looked_at_for_each_kind_of_lane() -> None:
    other = Lane("cohort", A.waiting[1:], FLOATING.segments)
    verify(Plan((FLOATING, replace(other, placement=Placement()))), SNAPSHOT, PLACING)
    with pytest.raises(PlanError, match="lane 1 floats in part"):
        verify(Plan((FLOATING, other)), SNAPSHOT, PLACING)
