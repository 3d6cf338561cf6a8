"""Priors: what a table has measured, what lies between, and that the analytic model fills the rest."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.scheduler.analytic import kernel_work
from spacetime.scheduler.prior import MAX_LANES, MAX_TABLES, Prior

DEVICE = Device("model", "model", num_units=16, units_per_atom=2, flops_per_unit_us=1e4, tiles=((16, 16),))


def kernel(index: int, wide: int) -> Kernel:
    rows, out = TensorSpec((Rows(), 64), "float32", 0), TensorSpec((Rows(), wide), "float32", 0)
    weight = TensorSpec((wide, 64), "float32")
    costs = (2 * 64 * wide, 4 * (64 + wide), 4 * 64 * wide)
    return Kernel(index, "fc", "linear", "gemm", (rows, weight), (out,), (index,), (), "", *costs)


WIDE, NARROW = kernel(0, 1024), kernel(1, 256)
PROGRAM = Program("s", (), (), (), (WIDE, NARROW, replace(WIDE, index=2)))


class Table:
    """What was measured, in a dict."""

    def __init__(self, measured: dict[tuple[str, int, int], float]) -> None:
        self.latencies = measured

    def kernel_us(self, key: str, rows: int, units: int) -> float | None:
        return self.latencies.get((key, rows, units))

    def measured(self, key: str) -> list[tuple[int, int]]:
        return [(rows, units) for known, rows, units in self.latencies if known == key]


def wide(points: dict[tuple[int, int], float]) -> Prior:
    """A prior with measurements of the wide kernel only."""
    return Prior(PROGRAM, DEVICE, Table({(WIDE.key, rows, units): us for (rows, units), us in points.items()}))


def analytic(tenants: int, rows: int, fused: bool = True) -> list[list[float]]:
    us: list[list[float]] = (
        kernel_work(PROGRAM, DEVICE, tenants=tenants, rows=rows, fused=fused).times(DEVICE).us.tolist()
    )
    return us


def test_without_a_table_it_is_the_analytic_model() -> None:
    prior = Prior(PROGRAM, DEVICE, None)
    for tenants, rows, fused in ((1, 1, True), (3, 7, True), (3, 7, False)):
        expected = analytic(tenants, rows, fused)
        assert prior.kernels_us(tenants, rows, fused).tolist() == expected
        for atoms in range(1, 9):
            lane_us = sum(row[atoms - 1] for row in expected)
            assert prior.lane_us(tenants, rows, 2 * atoms, fused) == pytest.approx(lane_us)


def test_units_that_are_no_whole_atoms_count_as_those_they_hold() -> None:
    prior = Prior(PROGRAM, replace(DEVICE, num_units=17), None)
    at = [prior.lane_us(1, 50, units, True) for units in (1, 2, 3, 4, 16, 17)]
    assert at[0] == at[1] == at[2] > at[3]
    assert at[4] == prior.lane_us(1, 50, 15, True) >= at[5], "the whole device has its remainder"


def test_measured_kernels_replace_modelled_ones() -> None:
    us = wide({(4, 2): 900.0, (4, 16): 200.0}).kernels_us(1, 4, True)
    assert us[0].tolist() == us[2].tolist()
    assert us[0, [0, 7]].tolist() == pytest.approx([900.0, 200.0])
    assert us[1].tolist() == analytic(1, 4)[1]


def test_between_measured_sizes_latency_is_a_part_over_units_and_a_rest() -> None:
    us = wide({(4, units): 1600 / units + 100 for units in (2, 8, 16)}).kernels_us(1, 4, True)[0]
    assert us.tolist() == pytest.approx([1600 / units + 100 for units in range(2, 18, 2)])


def test_a_measured_size_is_kept_where_the_law_says_otherwise() -> None:
    us = wide({(4, 2): 900.0, (4, 4): 901.0, (4, 8): 300.0, (4, 16): 200.0}).kernels_us(1, 4, True)[0]
    assert us[[0, 1, 3, 7]].tolist() == pytest.approx([900.0, 901.0, 300.0, 200.0])
    assert us[4] > us[5] > us[6]


def test_a_single_measured_size_scales_the_analytic_curve() -> None:
    us = wide({(4, 16): 500.0}).kernels_us(1, 4, True)[0]
    expected = analytic(1, 4)[0]
    assert us.tolist() == pytest.approx([500.0 * each / expected[-1] for each in expected])


def test_between_measured_rows_lies_a_line_and_beyond_them_the_analytic_proportion() -> None:
    prior = wide({(4, 16): 100.0, (8, 16): 300.0})
    at = {rows: prior.kernels_us(1, rows, True)[0, -1] for rows in (2, 4, 5, 8, 64)}
    assert [at[4], at[5], at[8]] == pytest.approx([100.0, 150.0, 300.0])
    assert at[2] == pytest.approx(100.0 * analytic(1, 2)[0][-1] / analytic(1, 4)[0][-1])
    assert at[64] == pytest.approx(300.0 * analytic(1, 64)[0][-1] / analytic(1, 8)[0][-1])


def test_several_tenants_plain_are_their_measured_launches_and_fused_follow_the_model() -> None:
    prior = wide({(2, 16): 100.0, (3, 16): 140.0})
    assert prior.kernels_us(2, 5, False)[0, -1] == pytest.approx(240.0)
    fused_us = 140.0 * analytic(3, 3)[0][-1] / analytic(1, 3)[0][-1]
    assert prior.kernels_us(3, 3, True)[0, -1] == pytest.approx(fused_us)


@pytest.mark.parametrize("us", [0.0, -1.0, inf, nan])
def test_a_latency_that_is_none_is_an_error(us: float) -> None:
    with pytest.raises(OptionError, match=r"profile of linear(.|\n)*4 rows on 16 units took(.|\n)*profile this kernel"):
        wide({(4, 16): us})


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 64), st.sampled_from((2, 4, 7, 8, 16))), st.floats(1.0, 1e4), min_size=1, max_size=12
    ),
    st.integers(1, 9),
    st.integers(1, 100),
    st.booleans(),
)
def test_whatever_was_measured_every_time_is_positive_and_kernels_add_up(
    points: dict[tuple[int, int], float], tenants: int, rows: int, fused: bool
) -> None:
    prior = wide(points)
    us = prior.kernels_us(tenants, rows, fused)
    assert us.shape == (3, 8) and (us > 0).all() and (us < inf).all()
    assert us.sum(axis=0).tolist() == pytest.approx(prior.lanes_us(tenants, rows, fused).tolist())


def test_it_remembers_a_bounded_number_of_arrangements() -> None:
    prior = Prior(PROGRAM, DEVICE, None)
    first = prior.lanes_us(1, 1, True)
    assert prior.lanes_us(1, 1, True) is first
    for rows in range(1, MAX_LANES + 2):
        prior.lanes_us(1, rows, True)
    assert len(prior._lanes) == MAX_LANES
    again = prior.lanes_us(1, 1, True)
    assert again is not first and again.tolist() == first.tolist()
    for rows in range(1, MAX_TABLES + 2):
        prior.kernels_us(1, rows, True)
    assert len(prior._tables) == MAX_TABLES
