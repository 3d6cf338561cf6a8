"""The histogram's error bound, and the meter's dictionary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.scheduler.metering import RECENT_US, Histogram, Meter, Recent, value_bytes
from tests.scheduler.harness import World

values = st.lists(st.integers(0, 10**9), min_size=1, max_size=200)


def histogram_of(numbers: list[int]) -> Histogram:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    return histogram


@given(values, st.floats(0, 1))
def test_quantiles_are_within_one_percent(numbers: list[int], fraction: float) -> None:
    exact = sorted(numbers)[max(1, math.ceil(fraction * len(numbers))) - 1]
    estimate = histogram_of(numbers).quantile(fraction)
    assert abs(estimate - exact) <= 0.01 * exact + 1e-6 * exact


@given(values, values)
def test_a_merged_histogram_is_that_of_all_values(left: list[int], right: list[int]) -> None:
    merged = histogram_of(left)
    merged.merge(histogram_of(right))
    both = histogram_of(left + right)
    assert [merged.quantile(q / 10) for q in range(11)] == [both.quantile(q / 10) for q in range(11)]
    assert (merged.max, merged.total) == (max(left + right), len(left + right))


def test_an_empty_histogram_has_quantile_zero() -> None:
    assert Histogram().quantile(0.99) == 0


def test_meter_counts_what_ran() -> None:
    meter = Meter(submitted=2)
    meter.record(3, 30.0, 100, ok=True)
    meter.record(1, 10.0, 200, ok=False)
    figures = meter.as_dict()
    assert (figures["completed"], figures["failed"], figures["rows"], figures["device_us"]) == (1, 1, 4, 40.0)
    assert figures["max_us"] == 200
    assert abs(figures["p50_us"] - 100) <= 1


@given(st.integers(100, 100_000), st.integers(0, 10**12))
def test_a_steady_rate_is_found_within_a_few_time_constants(gap_us: int, start_us: int) -> None:
    recent = Recent()
    now_us = start_us
    for _ in range(4 * RECENT_US // gap_us):
        now_us += gap_us
        recent.add(now_us, 7.0)
    assert recent.per_s(now_us) == pytest.approx(1e6 / gap_us, rel=0.02 + gap_us / RECENT_US)
    assert recent.mean == pytest.approx(7.0)
    assert recent.per_s(now_us + RECENT_US) == pytest.approx(recent.per_s(now_us) / math.e)


def test_the_mean_follows_what_is_recent_and_the_clock_may_step_back() -> None:
    recent = Recent()
    assert (recent.per_s(5), recent.mean) == (0.0, 0.0)
    for _ in range(100):
        recent.add(0, 100.0)
    recent.add(20 * RECENT_US, 10.0)
    recent.add(20 * RECENT_US - 5, 20.0)
    assert recent.mean == pytest.approx(15.0, rel=1e-3)
    assert recent.per_s(0) == recent.per_s(20 * RECENT_US) == pytest.approx(2.0, rel=1e-3)
    recent.add(10**15, 3.0)
    assert recent.mean == 3.0, "what is so old that it counts nothing does not divide by nothing"


def test_load_is_arrivals_times_device_time() -> None:
    meter = Meter()
    for second in range(10):
        for _ in range(10):
            meter.arrived(second * RECENT_US)
            meter.record(1, 25_000.0, 30_000, ok=True, at_us=second * RECENT_US)
    now_us = 9 * RECENT_US
    assert meter.load(now_us) == pytest.approx(0.25 / (1 - 1 / math.e), rel=0.01)  # ten at once are the newest second
    assert meter.load(now_us + 20 * RECENT_US) < 1e-6, "who stopped asking is no load"
    assert Meter().load(0) == 0
    meter = Meter()
    meter.arrived(0)
    meter.record(1, 25_000.0, 30_000, ok=True, exclusive=False)
    assert meter.load(0) == 0 < meter.device_us, "time on a device that others used as well does not add up"


class Unwilling:
    @property
    def nbytes(self) -> int:
        raise NotImplementedError


def test_bytes_are_those_of_tensors_wherever_they_are() -> None:
    array = np.zeros((2, 3), dtype=np.float32)
    assert value_bytes(array) == 24
    assert value_bytes({"logits": array, "extra": (array, [array, None, "text", 5])}) == 72
    assert value_bytes(None) == value_bytes(object()) == 0
    endless: list[object] = [array]
    endless.append(endless)
    assert value_bytes(endless) == value_bytes(Unwilling()) == 0
    meter = Meter()
    meter.record(1, 1.0, 1, ok=True, num_bytes=72)
    meter.record(1, 1.0, 1, ok=False, num_bytes=8)
    assert meter.as_dict()["bytes"] == 80


@given(st.lists(st.integers(0, 10**7), max_size=300), st.integers(1, 100))
def test_the_sum_is_exact_whenever_it_is_asked_for(values: list[int], every: int) -> None:
    histogram, plain = Histogram(), 0
    for index, value in enumerate(values):
        histogram.add(value)
        plain += value
        if index % every == 0:
            assert histogram.sum == plain
            histogram.quantile(0.5)
    assert (histogram.sum, histogram.total, histogram.max) == (plain, len(values), max(values, default=0))


def test_failures_count_in_the_sum_as_in_the_quantiles() -> None:
    meter = Meter()
    meter.record(1, 5.0, latency_us=70, ok=True)
    meter.record(1, 5.0, latency_us=30, ok=False)
    figures = meter.as_dict()
    assert (figures["latency_sum_us"], figures["completed"] + figures["failed"], figures["max_us"]) == (100, 2, 70)


# -- in the loop -------------------------------------------------------------------------------------------


def open_requests(world: World, tenant: str) -> tuple[int, int]:
    figures = world.scheduler.stats()[tenant]
    return int(figures["waiting"]), int(figures["running"])


def test_what_waits_and_what_runs_is_counted_at_every_step() -> None:
    world = World("streams", latency_us=100)
    world.add("a", max_concurrency=1, max_queue=5)
    futures = [world.submit("a") for _ in range(5)]
    futures.append(world.submit("a"))  # the queue is full
    assert open_requests(world, "a") == (5, 0)
    futures[4].cancel()
    assert open_requests(world, "a") == (5, 0), "it is in the queue until somebody looks"
    world.step()
    waiting, running = open_requests(world, "a")
    assert running >= 1 and waiting + running + sum(future.cancelled() for future in futures) >= 5
    world.run()
    assert open_requests(world, "a") == (0, 0)
    figures = world.scheduler.stats()["a"]
    assert figures["submitted"] == 6 == sum(figures[end] for end in ("completed", "rejected", "cancelled"))


def test_what_was_cleared_away_neither_waits_nor_runs() -> None:
    """The same queue is looked at whatever became of it."""
    world = World("streams", latency_us=100)
    world.add("a", max_concurrency=1)
    for _ in range(3):
        world.submit("a")
    world.step()
    world.scheduler.abandon(ValueError("interrupted"))  # type: ignore[arg-type]
    assert open_requests(world, "a") == (0, 0)
