"""The histogram's error bound, and the meter's dictionary."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from spacetime.scheduler.metering import Histogram, Meter

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
