"""Kernel times: sums, knees, and that nobody changes them."""

from __future__ import annotations

import pytest

from spacetime.scheduler.tables import KernelTimes

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
