"""The histogram's error bound, and the meter's dictionary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.scheduler.metering import RECENT_US, Histogram, Meter, Recent, value_bytes

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
