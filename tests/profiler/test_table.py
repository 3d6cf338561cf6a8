"""The table: exact where measured, by the law between neighbours, silent beyond; what the cost model makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.profiler.records import Key, Measurement
from spacetime.profiler.table import MeasuredTable
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.tables import LatencyTable
from tests.profiler.fakes import program

KERNEL = "linear(float32[rows, 8])"


def table(latencies_us: dict[tuple[int, int], float], kernel: str = KERNEL) -> MeasuredTable:
    return MeasuredTable.of(
        Measurement(Key(kernel, rows, units), "linear", "float32", (us, us), 1, 0.0, 0, "measured", "2026-01-01")
        for (rows, units), us in latencies_us.items()
    )


def test_measured_points_are_answered_as_measured() -> None:
    made: LatencyTable = table({(1, 1): 9.0, (1, 4): 3.0, (8, 1): 20.0})
    assert [made.kernel_us(KERNEL, 1, 1), made.kernel_us(KERNEL, 8, 1)] == [9.0, 20.0]
    assert sorted(made.measured(KERNEL)) == [(1, 1), (1, 4), (8, 1)]


@given(st.floats(0.1, 1e4), st.floats(0.1, 1e3), st.integers(2, 63))
def test_the_law_holds_between_sizes(parallel_us: float, serial_us: float, units: int) -> None:
    made = table({(1, size): parallel_us / size + serial_us for size in (1, 4, 16, 64)})
    assert made.kernel_us(KERNEL, 1, units) == pytest.approx(parallel_us / units + serial_us)
    assert made.error(KERNEL) == pytest.approx(0.0, abs=1e-9)


def test_lines_are_straight_between_row_counts() -> None:
    made = table({(rows, units): 2.0 * rows / units + 1 for rows in (1, 8) for units in (1, 4)})
    assert made.kernel_us(KERNEL, 4, 1) == pytest.approx(9.0)
    assert made.kernel_us(KERNEL, 4, 2) == pytest.approx(5.0)


@pytest.mark.parametrize(("rows", "units"), [(1, 8), (16, 1), (4, 3), (0, 1)])
def test_beyond_what_was_measured_there_is_no_answer(rows: int, units: int) -> None:
    assert table({(1, 1): 9.0, (1, 4): 3.0, (8, 1): 20.0}).kernel_us(KERNEL, rows, units) is None


def test_an_unknown_kernel_has_no_answer() -> None:
    made = table({(1, 1): 9.0})
    assert (made.kernel_us("conv", 1, 1), made.error("conv"), list(made.measured("conv"))) == (None, None, [])


def test_the_error_is_the_worst_miss_of_what_was_left_out() -> None:
    assert table({(1, 1): 9.0, (1, 4): 3.0}).error(KERNEL) is None
    # The law through 1 and 4 says 5 at 2: half of the 10 that was measured.
    assert table({(1, 1): 9.0, (1, 2): 10.0, (1, 4): 3.0}).error(KERNEL) == pytest.approx(0.5)
    assert table({(1, 1): 1.0, (2, 1): 4.0, (3, 1): 3.0}).error(KERNEL) == pytest.approx(0.5)


def test_the_cost_model_takes_it() -> None:
    described = program(8, 16)
    device = Device("fake", "cpu", 4)
    first, second = (kernel.key for kernel in described.kernels)
    points = {first: {(1, 1): 700.0, (1, 4): 250.0}, second: {(1, 1): 300.0, (1, 4): 150.0}}
    made = MeasuredTable({key: {1: {units: us for (_, units), us in found.items()}} for key, found in points.items()})
    costs = OnlineCosts()
    costs.register("fresh", described, device)
    costs.register("profiled", described, device, table=made)
    times = costs.kernel_times("profiled", tenants=1, rows=1)
    share = times.us[0, 0] / times.us[1, 0]
    assert share == pytest.approx(7 / 3)
    assert times.lane_us(1) / times.lane_us(4) == pytest.approx(1000 / 400)
