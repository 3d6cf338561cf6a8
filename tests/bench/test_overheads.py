"""Case `overheads`: the instruments do what they are told, and what is made of what they saw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from bench import overheads
from bench.cases import FULL, QUICK, SMOKE
from bench.overheads import CASE, Sizes, gaps_us
from bench.overheads_sides import (
    ADDING_KIN,
    BEFORE,
    BETWEEN,
    NEWCOMERS,
    REMOVING,
    STAYS,
    WINDOW_US,
    WITHIN,
    Changes,
    Changing,
    Handing,
    Mover,
    Sizer,
    Swaps,
    half,
)
from spacetime.backends.null import NULL_DEVICE
from spacetime.device import Capabilities, Device
from spacetime.plan import Plan, RequestView, Resize, Segment, Snapshot, TenantView
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.registry import policy_names
from spacetime.scheduler.verify import verify

TENANT = TenantView("a", "c", True, 1.0, 0, None, 0, 8, 0, (RequestView(4, "a", 1, 0),))
CAPABILITIES = Capabilities(partitions=True, segments=True, graphs=False)


@pytest.fixture
def costs() -> OnlineCosts:
    costs = OnlineCosts()
    costs.register("c", None, NULL_DEVICE)
    return costs


def seen(now_us: int = 0, *, request: int = 4, share_units: int | None = None, running: bool = False) -> Snapshot:
    tenant = replace(TENANT, waiting=(RequestView(request, "a", 1, 0),), share_units=share_units)
    snapshot = Snapshot(now_us, NULL_DEVICE, NULL_DEVICE.all_atoms, (tenant,), capabilities=CAPABILITIES)
    if not running:
        return snapshot
    (lane,) = Sizer()(snapshot, OnlineCosts()).lanes
    return replace(snapshot, running=(lane,), free_atoms=0)


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_a_sizer_asks_until_it_has_what_is_wanted(costs: OnlineCosts) -> None:
    sizer = Sizer()
    assert sizer(seen(1), costs).lanes[0].units == 8 and sizer(seen(1), costs).resizes == ()
    sizer.want(4)
    assert sizer(seen(10), costs).resizes == (Resize("a", 4),)
    running = sizer(seen(20, running=True), costs)  # what runs is not waited for
    assert running == Plan(resizes=(Resize("a", 4),))
    assert sizer.asked_us == 10 and not sizer.in_force.is_set()
    plan = sizer(seen(35, share_units=4), costs)
    assert plan.lanes[0].units == 4 and plan.resizes == ()
    assert sizer.in_force_us == 35 and sizer.in_force.is_set()
    verify(plan, seen(35, share_units=4), CAPABILITIES)


def test_gaps_are_looked_for_after_a_resize_and_before_it() -> None:
    step = WINDOW_US // 50
    ends_us = [*range(0, 100 * step, step), *range(120 * step, 200 * step, step), 900 * step]
    usual, around = gaps_us(Swaps([100 * step, 160 * step, 850 * step], [1.0] * 3, ends_us, 1, 2))
    assert usual == [step, 21 * step, step]  # of what ended; in the last window nothing did
    assert around == [21 * step, 701 * step, 701 * step]  # in full, beyond the window


# -- places ----------------------------------------------------------------------------------------------------------


def test_halves_do_not_overlap() -> None:
    device = Device("d", "null", num_units=132, units_per_atom=8)
    lower, upper = half(device), half(device, upper=True)
    assert lower.granted_units == upper.granted_units == 64
    assert not lower.overlaps(upper) and not (lower.atoms | upper.atoms) & ~device.all_atoms


class Kernels(OnlineCosts):
    """Of a cohort with six kernels."""

    def kernel_times(self, cohort: str, **_: Any) -> Any:
        return SimpleNamespace(num_kernels=6)


def test_a_mover_goes_where_it_is_told() -> None:
    kernels = Kernels()
    mover, lower, upper = Mover(), half(NULL_DEVICE), half(NULL_DEVICE, upper=True)
    places = {}
    for moves in (STAYS, BETWEEN, WITHIN):
        mover.moves = moves
        plans = [mover(seen(request=request), kernels) for request in (4, 5)]
        for request, plan in zip((4, 5), plans, strict=True):
            verify(plan, seen(request=request), CAPABILITIES)
        places[moves] = [plan.lanes[0].segments for plan in plans]
    assert places[STAYS] == [(Segment(lower),)] * 2
    assert places[BETWEEN] == [(Segment(lower),), (Segment(upper),)]
    for first, second in places[WITHIN]:
        assert (first.partition, second.partition) == (lower, upper)
        assert (first.last_kernel, second.first_kernel, second.last_kernel) == (3, 3, -1)
    assert mover(seen(running=True), kernels) == Plan()


# -- hand-over, coming and going ---------------------------------------------------------------------------------------


def test_rounds_are_handed_over() -> None:
    handing = Handing("time_slice", 2)
    try:
        submits_us, rounds_us, plain_us = handing.rounds_us(3)
    finally:
        handing.close()
    assert len(submits_us) == len(rounds_us) == 3 and plain_us > 0
    assert all(submit <= whole for submit, whole in zip(submits_us, rounds_us, strict=True))


@pytest.fixture(scope="module")
def found() -> Iterator[Changes]:
    changing = Changing("cpu", "mlp", 2, "recommender")
    try:
        yield changing.changes(200.0, 0.05)
    finally:
        changing.close()


def test_a_runtime_changes_while_it_serves(found: Changes) -> None:
    assert [len(its) for its in found.changes_ms.values()] == [1, NEWCOMERS, 1, NEWCOMERS + 1]
    spans = list(found.spans_us.values())
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert found.seconds(BEFORE) >= 0.05
    assert all(latency_us > 0 for _, latency_us in found.requests)


def test_requests_belong_to_what_went_on_when_they_were_due() -> None:
    spans = {BEFORE: (0, 100), ADDING_KIN: (100, 200), REMOVING: (200, 200)}
    changes = Changes([(50, 7), (100, 8), (199, 9), (300, 10)], spans, {})
    assert changes.during(BEFORE) == [7.0]
    assert changes.during(ADDING_KIN) == [8.0, 9.0]
    assert changes.during(REMOVING) == []


# -- the case --------------------------------------------------------------------------------------------------------


def test_decisions_are_measured_for_every_policy_and_count() -> None:
    sizes = replace(Sizes.of(SMOKE), policies=("time_slice", "krisp"), counts=(1, 4, 1000), num_decisions=2)
    rows = list(overheads._decisions(sizes))
    assert {(row.axes["policy"], row.axes["tenants"]) for row in rows} == {
        (policy, count) for policy in ("time_slice", "krisp") for count in (1, 4, 1000)
    }
    assert all(row.case == CASE and row.median is not None and row.median > 0 for row in rows)


def test_a_device_of_one_atom_has_no_other_size_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overheads, "_num_atoms", lambda device: 1)
    monkeypatch.setattr(overheads, "_changes", lambda device, sizes: iter(()))
    monkeypatch.setattr(overheads, "_handing", lambda sizes: iter(()))
    monkeypatch.setattr(overheads, "_decisions", lambda sizes: iter(()))
    rows = {row.metric: row for row in overheads.run(SMOKE)}
    assert rows.keys() == {overheads.SWAP.metric, overheads.MOVE.metric}
    assert all(row.n == 0 and "the device has one atom" in row.note for row in rows.values())


def test_lone_tenants_on_a_gpu_are_measured_elsewhere() -> None:
    (row,) = overheads._lone(replace(QUICK, device="cuda:0"), Sizes.of(QUICK))
    assert (row.case, row.n) == (CASE, 0) and "case models" in row.note


def test_what_comes_and_goes_is_told(monkeypatch: pytest.MonkeyPatch, found: Changes) -> None:
    class There:
        def __init__(self, *arguments: object) -> None:
            pass

        def require(self) -> None:
            pass

        def call(self, method: str, *arguments: float) -> Changes | None:
            return found if method == "changes" else None

        def __enter__(self) -> There:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(overheads, "Remote", There)
    monkeypatch.setattr(overheads, "lone_latencies_us", lambda *_: {overheads.SMALL: 100.0})
    rows = list(overheads._changes("cpu", Sizes.of(SMOKE)))
    assert [row.metric for row in rows if row.metric.startswith("time")] == [
        figure.metric for figure in overheads.CHANGE_TIME.values()
    ]
    assert {row.metric for row in rows} >= {figure.metric for figure in overheads.CHANGING.values()}
    assert not any(row.median is not None and math.isinf(row.median) for row in rows)


def test_sizes_grow_with_the_scale() -> None:
    smoke, quick, full = map(Sizes.of, (SMOKE, QUICK, FULL))
    assert smoke.num_decisions < quick.num_decisions < full.num_decisions
    assert full.policies == policy_names() and set(smoke.counts) < set(full.counts)
