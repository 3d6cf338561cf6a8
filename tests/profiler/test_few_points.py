"""The search over many sizes: few questions where the law holds, enough where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.profiler.curves import Point, find_knee
from spacetime.profiler.few_points import MANY_SIZES, first_sizes, search
from spacetime.profiler.records import Key, Measurement
from spacetime.profiler.table import MeasuredTable

HOPPER = (*range(8, 129, 8), 132)


def curve(latency_us: Callable[[int], float], sizes: Sequence[int], *, exact: bool = False) -> list[Point]:
    points: dict[int, Point] = {}
    asking = search(sizes, exact=exact)
    try:
        wanted = next(asking)
        while True:
            assert not points.keys() & set(wanted), "asked twice"
            assert set(wanted) <= set(sizes)
            points |= {units: Point(units, (latency_us(units),)) for units in wanted}
            wanted = asking.send([points[units] for units in wanted])
    except StopIteration:
        return [points[units] for units in sorted(points)]


@pytest.mark.parametrize("exact", [True, False])
def test_all_of_a_few_sizes_are_asked_for(exact: bool) -> None:
    sizes = range(1, MANY_SIZES + 1)
    assert [point.units for point in curve(lambda units: 1 / units, sizes, exact=exact)] == list(sizes)


def test_all_of_many_sizes_are_asked_for_where_the_user_named_them() -> None:
    assert len(curve(lambda units: 1 / units, HOPPER, exact=True)) == len(HOPPER)


@given(st.floats(0, 1e5), st.floats(1, 1e3))
def test_where_the_law_holds_few_points_are_enough(parallel_us: float, serial_us: float) -> None:
    def latency_us(units: int) -> float:
        return parallel_us / units + serial_us

    found = curve(latency_us, HOPPER)
    assert len(found) <= 10 < len(HOPPER)
    assert {found[0].units, found[-1].units} == {8, 132}
    everywhere = [Point(units, (latency_us(units),)) for units in HOPPER]
    assert find_knee(found).units == find_knee(everywhere).units


WAVES = [(31, 10.0), (64, 5.0), (100, 8.0), (132, 20.0), (300, 2.0)]


@pytest.mark.parametrize(("blocks", "block_us"), WAVES)
def test_where_the_law_does_not_hold_it_looks_closer(blocks: int, block_us: float) -> None:
    """Whole waves of blocks: stairs, which no law fits."""

    def latency_us(units: int) -> float:
        return ceil(blocks / units) * block_us + 2

    found = curve(latency_us, HOPPER)
    everywhere = [Point(units, (latency_us(units),)) for units in HOPPER]
    assert find_knee(found).units == find_knee(everywhere).units
    table = MeasuredTable.of(
        Measurement(Key("k", 1, p.units), "k", "", p.samples_us, 1, 0.0, 0, "measured", "2026-01-01") for p in found
    )
    off = [abs((table.kernel_us("k", 1, units) or 0) / latency_us(units) - 1) for units in HOPPER]
    assert sum(each <= 0.2 for each in off) >= 0.8 * len(off)


@given(st.sets(st.integers(1, 300), min_size=1, max_size=40), st.integers(0, 10))
def test_it_ends_on_any_device_and_any_curve(sizes: set[int], seed: int) -> None:
    found = curve(lambda units: 1 + hash((units, seed)) % 1000, sorted(sizes))
    assert {min(sizes), max(sizes)} <= {point.units for point in found} <= sizes
    assert set(first_sizes(sorted(sizes))) <= sizes
