"""Kernel times: sums, knees, and that nobody changes them; the law of latency over units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.scheduler.tables import KernelTimes, units_law

TIMES = KernelTimes.of([[8.0, 4.1, 4.0, 4.2], [3.0, 3.0, 3.0, 3.0], [12.0, 6.0, 4.0, 3.0]])


def test_a_lane_is_the_sum_of_its_kernels() -> None:
    assert (TIMES.num_kernels, TIMES.num_atoms) == (3, 4)
    assert [TIMES.lane_us(atoms) for atoms in (1, 2, 3, 4)] == pytest.approx([23.0, 13.1, 11.0, 10.2])


@pytest.mark.parametrize(
    ("tolerance", "knees", "knee"), [(0.05, [2, 1, 4], 4), (0.0, [3, 1, 4], 4), (0.4, [2, 1, 3], 2)]
)
def test_the_knee_is_the_least_size_within_the_tolerance(tolerance: float, knees: list[int], knee: int) -> None:
    assert TIMES.knees(tolerance).tolist() == knees
    assert TIMES.knee(tolerance) == knee


def test_they_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TIMES.us[0, 0] = 1.0


@given(parallel=st.floats(1.0, 1e5), serial=st.floats(0.1, 1e3))
def test_the_law_of_units_is_found_again(parallel: float, serial: float) -> None:
    units = np.array([1.0, 4.0, 32.0])
    found = units_law(units, parallel / units + serial)
    assert found[0] / units + found[1] == pytest.approx(parallel / units + serial)


@given(us=st.lists(st.floats(0.1, 1e4), min_size=3, max_size=3))
def test_neither_part_of_the_law_is_negative_whatever_was_measured(us: list[float]) -> None:
    parallel, serial = units_law(np.array([1.0, 2.0, 4.0]), np.array(us))
    assert parallel >= 0 and serial >= 0 and parallel + serial > 0


def test_latencies_that_rise_or_fall_too_fast_are_levelled_out() -> None:
    rising, steep = np.array([2.0, 3.0, 4.0]), np.array([8.0, 3.0, 1.0])
    parallel, serial = units_law(np.array([1.0, 2.0, 4.0]), rising)
    assert parallel == 0 and 2 < serial < 4
    parallel, serial = units_law(np.array([1.0, 2.0, 4.0]), steep)
    assert serial == 0 and 4 < parallel < 8


def test_what_is_derived_from_times_belongs_to_them_alone() -> None:
    one, other = KernelTimes.of([[2.0, 1.0]]), KernelTimes.of([[2.0, 1.0]])
    one.derived["size"] = 2
    assert one.derived == {"size": 2} and other.derived == {}
