"""The cost model: prior, learning, exploration, forgetting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program
from spacetime.scheduler.costs import (
    EXPLORE,
    EXPLORE_KIND,
    FORGET_AFTER,
    OPTIMISM,
    RECALIBRATE_EVERY,
    SAMPLES,
    OnlineCosts,
)

DEVICE = Device("model", "model", num_units=4, flops_per_unit_us=100.0, bytes_per_us=1000.0, launch_us=5.0)
KERNEL = Kernel(0, "fc", "linear", "gemm", (), (), (), (), "", 8000, 0, 50_000)
PROGRAM = Program("s", (), (), (), (KERNEL, replace(KERNEL, index=1)))


def known(program: Program | None = PROGRAM) -> OnlineCosts:
    costs = OnlineCosts()
    costs.register("c", program, DEVICE)
    return costs


def ask(costs: OnlineCosts, tenants: int = 1, rows: int = 1, units: int = 4, fused: bool = True) -> float:
    return costs.lane_us("c", tenants=tenants, rows=rows, units=units, fused=fused)


def tell(costs: OnlineCosts, duration_us: int, tenants: int = 1, rows: int = 1, units: int = 4) -> None:
    costs.observe("c", tenants=tenants, rows=rows, units=units, fused=True, duration_us=duration_us)


def test_prior_is_a_roofline() -> None:
    costs = known()
    traffic_bound = 2 * 50_000 / 1000 + 2 * 5
    assert ask(costs) == pytest.approx(EXPLORE_KIND * traffic_bound)
    compute_bound = 10 * 16_000 / (100 * 4) + 2 * 5
    assert ask(costs, rows=10) == pytest.approx(EXPLORE_KIND * compute_bound)
    assert ask(costs, rows=10, units=1) == pytest.approx(EXPLORE_KIND * (4 * (compute_bound - 10) + 10))
    assert ask(costs, fused=False) == ask(costs), "fused or plain: measuring will tell"


def test_an_opaque_prior_is_one_constant() -> None:
    costs = known(program=None)
    assert ask(costs, rows=1) == ask(costs, rows=64, units=1) > 0


def test_estimates_approach_the_median_from_below() -> None:
    costs = known()
    estimates = []
    for _ in range(SAMPLES):
        tell(costs, 1000)
        estimates.append(ask(costs))
    assert estimates[0] == pytest.approx(1000 * (1 - OPTIMISM / 2))
    assert estimates == sorted(estimates) and estimates[-1] < 1000
    tell(costs, 1_000_000)  # one disturbed lane changes nothing
    assert ask(costs) == pytest.approx(estimates[-1])


def test_what_was_measured_calibrates_what_was_not() -> None:
    costs = known()
    prior_us, prior_32_us = (ask(costs, rows=rows) / EXPLORE_KIND for rows in (1, 32))
    tell(costs, round(3 * prior_us))
    assert ask(costs, rows=32) == pytest.approx(EXPLORE * 3 * prior_32_us)


def test_a_kind_of_lane_never_tried_looks_good_beside_those_that_were() -> None:
    costs = known()
    prior_us = ask(costs) / EXPLORE_KIND
    tell(costs, round(3 * prior_us))
    tell(costs, round(2 * ask(costs, units=2) / EXPLORE_KIND / 3), units=2)
    assert ask(costs, fused=False) == pytest.approx(EXPLORE_KIND * 2 * prior_us), "at the best calibration there is"
    costs.observe("c", tenants=1, rows=1, units=4, fused=False, duration_us=round(5 * prior_us))
    assert ask(costs, rows=2, fused=False) > ask(costs, rows=2), "once tried, it is judged by what it took"


def test_large_arrangements_share_a_bucket_and_small_ones_do_not() -> None:
    costs = known()
    tell(costs, 777, rows=33)
    assert ask(costs, rows=64) == ask(costs, rows=33)
    tell(costs, 555, rows=7)
    assert ask(costs, rows=8) != ask(costs, rows=7)


def test_an_arrangement_not_seen_for_long_is_tried_again() -> None:
    costs = known()
    for _ in range(4):
        tell(costs, 10_000, units=2)
    for _ in range(FORGET_AFTER):
        tell(costs, 100, units=4)
    assert ask(costs, units=2) == pytest.approx(10_000 * (1 - OPTIMISM / 3))
    for _ in range(2 * FORGET_AFTER + RECALIBRATE_EVERY):
        tell(costs, 100, units=4)
    assert ask(costs, units=2) < 1000  # as if never measured
    tell(costs, 200, units=2)
    assert ask(costs, units=2) == pytest.approx(200 * (1 - OPTIMISM / 2))


def test_cohorts_are_learned_apart_and_registered_once() -> None:
    costs = known()
    costs.register("d", PROGRAM, DEVICE)
    before = costs.lane_us("d", tenants=1, rows=1, units=4)
    tell(costs, 5000)
    costs.register("c", PROGRAM, DEVICE)
    assert costs.lane_us("d", tenants=1, rows=1, units=4) == before
    assert ask(costs) == pytest.approx(5000 * (1 - OPTIMISM / 2))


def test_an_unknown_cohort_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"cohort 'x' has no costs(.|\n)*known: c"):
        known().lane_us("x", tenants=1, rows=1, units=1)


def test_kernel_times_sum_up_to_the_lane() -> None:
    costs = known()
    tell(costs, 300, units=2)
    times = costs.kernel_times("c", tenants=1, rows=1)
    assert (times.num_kernels, times.num_atoms) == (2, 4)
    for units in (1, 2, 3, 4):
        assert times.lane_us(units) == pytest.approx(ask(costs, units=units))
    assert times.us[0].tolist() == pytest.approx(times.us[1].tolist())
