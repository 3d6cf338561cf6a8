"""What is kept between two questions changes no answer; the shortcuts of the learning are what they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.ir import Kernel, Program
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.learned import (
    COLD,
    FORGET_AFTER,
    FORGET_AT_MOST_AFTER,
    MOST_MENDED,
    OPTIMISM,
    RECALIBRATE_EVERY,
    SAMPLES,
    STALE_FACTOR,
    STALE_SAMPLES,
    Arrangement,
    Drift,
    LearnedCohort,
    Measured,
    median,
)
from spacetime.scheduler.prior import MAX_LANES

DEVICE = Device("model", "model", num_units=30, units_per_atom=4, flops_per_unit_us=100.0, bytes_per_us=1000.0)
KERNEL = Kernel(0, "fc", "linear", "gemm", (), (), (), (), "", 8000, 0, 50_000)
PROGRAM = Program("s", (), (), (), (KERNEL, replace(KERNEL, index=1)))

# 17 .. 32 rows share a bucket, which has more arrangements than are mended one by one.
LANES = st.tuples(st.integers(1, 2), st.sampled_from([1, *range(17, 33)]), st.sampled_from([4, 30]), st.booleans())


def known() -> OnlineCosts:
    costs = OnlineCosts()
    costs.register("c", PROGRAM, DEVICE)
    return costs


def tell(costs: OnlineCosts, lane: Arrangement, duration_us: int) -> None:
    tenants, rows, units, fused = lane
    costs.observe("c", tenants=tenants, rows=rows, units=units, fused=fused, duration_us=duration_us)


def ask(costs: OnlineCosts, lane: Arrangement) -> float:
    tenants, rows, units, fused = lane
    return costs.lane_us("c", tenants=tenants, rows=rows, units=units, fused=fused)


@settings(deadline=None)
@given(
    runs=st.lists(st.tuples(LANES, st.integers(0, 9999), st.sampled_from([1, 3, RECALIBRATE_EVERY])), max_size=15),
    asked=st.lists(LANES, min_size=1, max_size=8),
    last=st.sampled_from([1, FORGET_AFTER, 3 * FORGET_AFTER]),
)
def test_answers_do_not_depend_on_what_was_asked_before(
    runs: list[tuple[Arrangement, int, int]], asked: list[Arrangement], last: int
) -> None:
    """Also when lanes change nothing, when a whole bucket is asked for, and when arrangements are forgotten."""
    costs, unasked = known(), known()
    for lane, duration_us, times in [*runs, ((1, 64, 30, True), 100, last)]:
        for _ in range(times):
            for each in (costs, unasked):
                tell(each, lane, duration_us)
            if duration_us % 2:
                costs.lanes_us("c", asked)
                costs.kernel_times("c", tenants=1, rows=17, fused=True)
        costs.lanes_us("c", asked)
    assert costs.lanes_us("c", asked) == [ask(costs, lane) for lane in asked] == [ask(unasked, lane) for lane in asked]
    kept, made = (each.kernel_times("c", tenants=1, rows=17, fused=True).us for each in (costs, unasked))
    assert (kept == made).all()


def test_every_estimate_of_a_bucket_follows_its_lanes() -> None:
    """Be they few, which are mended, or many."""
    for num_rows in (1, 2 * MOST_MENDED):
        costs = known()
        lanes = [(1, rows, 30, True) for rows in range(17, 17 + num_rows)]
        for _ in range(2 * SAMPLES + 3):  # from now on nothing is settled anew
            tell(costs, lanes[0], 100_000)
        for _ in range(SAMPLES // 2):
            before = costs.lanes_us("c", lanes)
            times = costs.kernel_times("c", tenants=1, rows=17, fused=True)
            tell(costs, lanes[0], 200_000)
        before_us, after = times.lane_us(DEVICE.num_atoms), costs.lanes_us("c", lanes)
        tell(costs, lanes[0], 200_000)
        assert all(
            then == soon < 1.1 * then < now
            for then, soon, now in zip(before, after, costs.lanes_us("c", lanes), strict=True)
        )
        after_us = costs.kernel_times("c", tenants=1, rows=17, fused=True).lane_us(DEVICE.num_atoms)
        assert 1.9 * before_us < after_us < 2.1 * before_us


def opaque() -> OnlineCosts:
    """A prior of 50 us, whatever the lane."""
    costs = OnlineCosts()
    costs.register("c", None, DEVICE)
    return costs


def test_an_estimate_grows_old_though_all_lanes_take_the_same() -> None:
    costs, unasked = opaque(), opaque()
    lane, other = (1, 1, 30, True), (1, 2, 30, True)
    for each in (costs, unasked):
        for _ in range(SAMPLES):
            tell(each, lane, 100)
    for _ in range(FORGET_AFTER + RECALIBRATE_EVERY):
        times = [each.kernel_times("c", tenants=1, rows=1, fused=True) for each in (costs, unasked)]
        ask(costs, lane)
        for each in (costs, unasked):
            tell(each, other, 100)
    assert ask(costs, lane) == ask(unasked, lane) < 100 * (1 - OPTIMISM / SAMPLES)
    for each, before in zip((costs, unasked), times, strict=True):
        now = each.kernel_times("c", tenants=1, rows=1, fused=True)
        assert now.lane_us(now.num_atoms) == ask(unasked, lane) <= before.lane_us(now.num_atoms)


def test_what_was_forgotten_begins_anew_also_when_that_looks_the_same() -> None:
    """By chance: a forgotten lane's last factor is that of its first one now, and it calibrates nothing."""
    costs = opaque()
    lane, other = (1, 1, 30, True), (1, 2, 30, True)
    tell(costs, lane, 150)
    for _ in range(FORGET_AFTER + RECALIBRATE_EVERY):
        tell(costs, other, 100)
    assert ask(costs, lane) == pytest.approx((1 - OPTIMISM) * 150)
    tell(costs, lane, 150)
    assert ask(costs, lane) == pytest.approx(COLD * 150)


def test_what_is_only_slow_the_first_time_is_tried_a_second_time() -> None:
    """Or it would not be, for 200 lanes: the first lane of a form loads what later ones find."""
    costs = opaque()
    slow, lane = (1, 1, 4, True), (1, 1, 30, True)
    for duration_us in (300, 120):
        tell(costs, slow, duration_us)
    before = ask(costs, lane)
    tell(costs, lane, 5000)
    assert ask(costs, lane) <= before < ask(costs, slow)
    tell(costs, lane, 70)
    assert ask(costs, lane) == pytest.approx((1 - OPTIMISM / 2) * 70), "the first one is forgotten"


def test_what_was_good_once_is_tried_again_though_its_like_disappoint() -> None:
    costs = opaque()
    lane, other, alike = (2, 2, 30, True), (2, 2, 30, False), (1, 1, 30, True)
    for _ in range(SAMPLES):
        tell(costs, lane, 100)
    for _ in range(SAMPLES + 4 * FORGET_AFTER + RECALIBRATE_EVERY):
        tell(costs, alike, 1000)
        tell(costs, other, 110)
    assert ask(costs, lane) == pytest.approx(50), "the half of what it took; by its like it would be 800"


def lanes_until_forgotten(costs: OnlineCosts, lane: Arrangement, other: Arrangement) -> int:
    """The lane takes 900, twice; how many others of 100 there are until it looks better than these."""
    tell(costs, lane, 900)
    tell(costs, lane, 900)
    count = 0
    while ask(costs, lane) > ask(costs, other):
        tell(costs, other, 100)
        count += 1
    return count


def test_what_is_given_up_again_and_again_is_tried_less_and_less() -> None:
    costs = opaque()
    lane, other = (1, 1, 4, True), (1, 1, 30, True)
    for _ in range(SAMPLES):
        tell(costs, other, 100)
    counts = [lanes_until_forgotten(costs, lane, other) for _ in range(9)]
    for index, count in enumerate(counts):
        least = min(FORGET_AFTER << index, FORGET_AT_MOST_AFTER)
        assert least <= count <= least + RECALIBRATE_EVERY
    for _ in range(SAMPLES + 1):
        tell(costs, lane, 50)  # it is what serves now
    assert ask(costs, lane) < ask(costs, other)
    for _ in range(4 * FORGET_AFTER + RECALIBRATE_EVERY):
        tell(costs, other, 100)
    assert ask(costs, lane) == ask(costs, (1, 2, 4, True)), "forgotten as fast as at first"


def test_no_more_than_so_many_arrangements_are_kept() -> None:
    cohort = LearnedCohort(PROGRAM, DEVICE, None)
    lanes = [(1 + index % 8, 1 + index, 30, True) for index in range(MAX_LANES + 10)]
    first = [cohort.estimate_us(lane) for lane in lanes]
    assert len(cohort.estimates) <= MAX_LANES
    assert [cohort.estimate_us(lane) for lane in lanes] == first


@given(
    st.lists(
        st.sampled_from([0.5, 1.0, 2.0]) | st.floats(0.1, 10.0), min_size=STALE_SAMPLES, max_size=2 * STALE_SAMPLES
    )
)
def test_drift_is_told_as_by_the_median(ratios: list[float]) -> None:
    drift = Drift()
    for count, ratio in enumerate(ratios, 1):
        drift.add(ratio)
        recent = ratios[max(0, count - STALE_SAMPLES) : count]
        assert list(drift.ratios) == recent
        is_off = not 1 / STALE_FACTOR <= median(recent) <= STALE_FACTOR
        assert drift.is_off == (len(recent) == STALE_SAMPLES and is_off)


def test_drift_is_off_from_one_lane_more_than_half_on() -> None:
    for num_quick in range(STALE_SAMPLES + 1):
        for num_slow in range(STALE_SAMPLES - num_quick + 1):
            ratios = [0.5] * num_quick + [2.0] * num_slow + [1.0] * (STALE_SAMPLES - num_quick - num_slow)
            drift = Drift()
            for ratio in ratios:
                drift.add(ratio)
            assert drift.is_off == (median(ratios) != 1.0), (num_quick, num_slow)


@given(st.lists(st.floats(0.1, 10.0) | st.sampled_from([1.0, 2.0]), min_size=2, max_size=4 * SAMPLES))
def test_the_median_of_samples_is_read_off(ratios: list[float]) -> None:
    measured = Measured()
    for count, ratio in enumerate(ratios, 1):
        measured.add(ratio, count)
        recent = ratios[max(min(1, count - 1), count - SAMPLES) : count]  # the first goes when the second comes
        assert list(measured.samples) == recent
        assert measured.ordered == sorted(recent)
        assert measured.over_prior == median(recent)
