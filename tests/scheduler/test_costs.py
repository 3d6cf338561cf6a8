"""The cost model: prior, learning, exploration, forgetting, staleness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program
from spacetime.scheduler.costs import MOST_RETIRED, OnlineCosts, Staleness
from spacetime.scheduler.learned import (
    EXPLORE,
    EXPLORE_FORM,
    EXPLORE_SIZE,
    FORGET_AFTER,
    OPTIMISM,
    RECALIBRATE_EVERY,
    SAMPLES,
    STALE_FACTOR,
    STALE_SAMPLES,
    TABLE_SLACK,
)
from spacetime.scheduler.tables import KernelTimes

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
    assert ask(costs) == pytest.approx(EXPLORE_FORM * traffic_bound)
    compute_bound = 10 * 16_000 / (100 * 4) + 2 * 5
    assert ask(costs, rows=10) == pytest.approx(EXPLORE_FORM * compute_bound)
    assert ask(costs, rows=10, units=1) == pytest.approx(EXPLORE_FORM * (4 * (compute_bound - 10) + 10))
    assert ask(costs, fused=False) == ask(costs), "fused or plain: measuring will tell"


def test_an_opaque_prior_is_one_constant() -> None:
    costs = known(program=None)
    assert ask(costs, rows=1) == ask(costs, rows=64, units=1) > 0


def test_estimates_approach_the_median_from_below() -> None:
    costs = known()
    estimates = []
    tell(costs, 1000)  # the first lane is forgotten with the second
    for _ in range(SAMPLES):
        tell(costs, 1000)
        estimates.append(ask(costs))
    assert estimates[0] == pytest.approx(1000 * (1 - OPTIMISM / 2))
    assert estimates == sorted(estimates) and estimates[-1] < 1000
    tell(costs, 1_000_000)  # one disturbed lane changes nothing
    assert ask(costs) == pytest.approx(estimates[-1])


def test_the_first_lane_of_an_arrangement_is_forgotten_with_the_second() -> None:
    costs, always_quick = known(), known()
    tell(costs, 50_000)  # it has loaded and allocated what the later ones find
    for _ in range(3):
        tell(costs, 1000)
        tell(always_quick, 1000)
    tell(always_quick, 1000)
    assert ask(costs) == pytest.approx(ask(always_quick))


def test_what_was_measured_calibrates_what_was_not() -> None:
    costs = known()
    prior_us, prior_32_us = (ask(costs, rows=rows) / EXPLORE_FORM for rows in (1, 32))
    tell(costs, round(3 * prior_us))
    assert ask(costs, rows=32) == pytest.approx(EXPLORE * 3 * prior_32_us)


def test_a_kind_of_lane_never_tried_looks_good_beside_those_that_were() -> None:
    costs = known()
    prior_us, small_us = (ask(costs, units=units) / EXPLORE_FORM for units in (4, 1))
    tell(costs, round(3 * prior_us))
    assert ask(costs, units=1) == pytest.approx(EXPLORE_SIZE * 3 * small_us), "as on the nearest size"
    tell(costs, round(2 * small_us), units=1)
    assert ask(costs, fused=False) == pytest.approx(EXPLORE_FORM * 2 * prior_us, rel=0.01), "at the best there is"
    costs.observe("c", tenants=1, rows=1, units=4, fused=False, duration_us=round(5 * prior_us))
    assert ask(costs, rows=2, fused=False) > ask(costs, rows=2), "once tried, it is judged by what it took"


def test_a_size_never_tried_learns_from_the_nearest_that_was() -> None:
    costs = OnlineCosts()
    costs.register("c", PROGRAM, replace(DEVICE, num_units=64))
    prior_us = {units: ask(costs, units=units) / EXPLORE_FORM for units in (1, 3, 5, 8, 64)}
    for units, factor in ((1, 100), (8, 3)):
        tell(costs, round(factor * prior_us[units]), units=units)
    for units, factor in ((3, 3), (5, 3), (64, 3)):  # 3 is nearer to 8 than to 1
        assert ask(costs, units=units) == pytest.approx(EXPLORE_SIZE * factor * prior_us[units], rel=0.01)


def test_a_size_is_tried_though_its_neighbour_disappoints_where_the_other_form_does_well() -> None:
    """Fused lanes were slow on one core; on all of them, where only plain ones were seen, they may be best."""
    costs = known()
    prior_us = {units: ask(costs, units=units) / EXPLORE_FORM for units in (1, 4)}
    costs.observe("c", tenants=1, rows=1, units=4, fused=False, duration_us=round(prior_us[4]))
    tell(costs, round(20 * prior_us[1]), units=1)
    assert ask(costs) == pytest.approx(EXPLORE_FORM * prior_us[4], rel=0.01)


def test_large_arrangements_share_what_they_learn_and_small_ones_do_not() -> None:
    costs = known()
    prior_33_us, prior_64_us = (ask(costs, rows=rows) / EXPLORE_FORM for rows in (33, 64))
    for _ in range(2):
        tell(costs, round(2 * prior_33_us), rows=33)
    assert ask(costs, rows=33) == pytest.approx(2 * prior_33_us * (1 - OPTIMISM / 2), rel=1e-3)
    assert ask(costs, rows=64) / ask(costs, rows=33) == pytest.approx(prior_64_us / prior_33_us)
    prior_7_us, prior_8_us = (ask(costs, rows=rows) for rows in (7, 8))
    for _ in range(2):
        tell(costs, round(100 * prior_7_us), rows=7)
    assert ask(costs, rows=7) > 20 * prior_7_us and ask(costs, rows=8) == prior_8_us


def test_an_arrangement_not_seen_for_long_is_tried_again() -> None:
    costs = known()
    for _ in range(1 + 4):
        tell(costs, 10_000, units=2)
    for _ in range(FORGET_AFTER + RECALIBRATE_EVERY):
        tell(costs, 100, units=4)
    assert ask(costs, units=2) == pytest.approx(10_000 * (1 - OPTIMISM / 3))
    for _ in range(2 * FORGET_AFTER + RECALIBRATE_EVERY):
        tell(costs, 100, units=4)
    assert ask(costs, units=2) < 1000  # as if never measured
    for _ in range(2):
        tell(costs, 200, units=2)
    assert ask(costs, units=2) == pytest.approx(200 * (1 - OPTIMISM / 2))


def test_cohorts_are_learned_apart_and_registered_once() -> None:
    costs = known()
    costs.register("d", PROGRAM, DEVICE)
    before = costs.lane_us("d", tenants=1, rows=1, units=4)
    for _ in range(2):
        tell(costs, 5000)
    costs.register("c", PROGRAM, DEVICE)
    assert costs.lane_us("d", tenants=1, rows=1, units=4) == before
    assert ask(costs) == pytest.approx(5000 * (1 - OPTIMISM / 2))


def test_an_unknown_cohort_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"cohort 'x' has no costs(.|\n)*known: c"):
        known().lane_us("x", tenants=1, rows=1, units=1)


# -- kernel times -------------------------------------------------------------------------------------------


def times(costs: OnlineCosts, tenants: int = 1, rows: int = 1) -> KernelTimes:
    return costs.kernel_times("c", tenants=tenants, rows=rows)


def test_kernel_times_sum_up_to_the_lane() -> None:
    costs = known()
    tell(costs, 300, units=2)
    found = times(costs)
    assert (found.num_kernels, found.num_atoms) == (2, 4)
    for units in (1, 2, 3, 4):
        assert found.lane_us(units) == pytest.approx(ask(costs, units=units))
    assert found.us[0].tolist() == pytest.approx(found.us[1].tolist())


# Few enough that lanes meet in a bucket again and again: 9 and 16 rows share one, 28 and 30 units as well.
TENANTS, ROWS, UNITS = st.integers(1, 2), st.sampled_from((1, 9, 16)), st.sampled_from((4, 28, 30))


@given(
    lanes=st.lists(st.tuples(TENANTS, ROWS, UNITS, st.booleans(), st.integers(1, 10_000)), max_size=40),
    tenants=TENANTS,
    rows=ROWS,
    fused=st.booleans(),
)
def test_after_any_observations_kernel_times_are_those_of_lanes(
    lanes: list[tuple[int, int, int, bool, int]], tenants: int, rows: int, fused: bool
) -> None:
    device = replace(DEVICE, num_units=30, units_per_atom=4)
    costs, unasked = OnlineCosts(), OnlineCosts()
    for each in (costs, unasked):
        each.register("c", PROGRAM, device)
    for index, (lane_tenants, lane_rows, units, form, duration_us) in enumerate(lanes):
        for each in (costs, unasked):
            each.observe("c", tenants=lane_tenants, rows=lane_rows, units=units, fused=form, duration_us=duration_us)
        for asked in (4, 12, 30, units):  # what is remembered from here must not outlive what it rests on
            costs.lane_us("c", tenants=tenants, rows=rows, units=asked, fused=fused)
            costs.lane_us("c", tenants=lane_tenants, rows=lane_rows, units=asked, fused=form)
        if index % 3 == 0:
            costs.kernel_times("c", tenants=tenants, rows=rows, fused=fused)
    found = costs.kernel_times("c", tenants=tenants, rows=rows, fused=fused)
    for atoms in range(1, device.num_atoms + 1):
        units = device.num_units if atoms == device.num_atoms else 4 * atoms
        lane_us = costs.lane_us("c", tenants=tenants, rows=rows, units=units, fused=fused)
        assert lane_us == unasked.lane_us("c", tenants=tenants, rows=rows, units=units, fused=fused)
        assert found.lane_us(atoms) == pytest.approx(lane_us)
    assert (found.us > 0).all()


def test_kernel_times_are_kept_until_an_observation_changes_them() -> None:
    costs = known()
    tell(costs, 300)
    found = times(costs, rows=2)
    assert times(costs, rows=2) is found
    tell(costs, 300)
    assert times(costs, rows=2) is found, "nothing was learned about two rows"
    tell(costs, 400, rows=2)
    assert times(costs, rows=2) is not found
    assert times(costs, rows=2).lane_us(4) == pytest.approx(ask(costs, rows=2))


def test_an_opaque_cohort_is_one_kernel() -> None:
    for program in (None, replace(PROGRAM, kernels=())):
        costs = known(program)
        tell(costs, 300)
        assert ask(costs) > 0
        assert times(costs).num_kernels == 1 and times(costs).lane_us(4) == pytest.approx(ask(costs))


def test_a_lane_larger_than_the_device_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"5 units(.|\n)*model has 4"):
        ask(known(), units=5)


# -- staleness ----------------------------------------------------------------------------------------------


def settled(**options: Any) -> OnlineCosts:
    """A cohort that has taken 1000 us so long that this is what is expected."""
    costs = known(**options)
    for _ in range(SAMPLES + STALE_SAMPLES):
        tell(costs, 1000)
    assert costs.staleness("c") is None
    return costs


def test_lanes_that_keep_taking_longer_make_the_cohort_stale_until_they_fit_again() -> None:
    costs = settled()
    for _ in range(STALE_SAMPLES // 2):
        tell(costs, 2000)
    assert costs.staleness("c") is None, "half of the lanes may be disturbed"
    for _ in range(2):
        tell(costs, 2000)
    first = costs.staleness("c")
    assert first == Staleness("c", pytest.approx(2.0), STALE_SAMPLES, SAMPLES + STALE_SAMPLES + STALE_SAMPLES // 2 + 1)
    assert "2.00x" in str(first) and "profile it again" in str(first)
    for _ in range(10 * STALE_SAMPLES):
        tell(costs, 2000)
    assert ask(costs) == pytest.approx(2000, rel=0.05), "estimates have long adapted"
    lasting = costs.staleness("c")
    assert lasting is not None and lasting.since == first.since, "and yet the prior does not fit"
    for _ in range(STALE_SAMPLES):
        tell(costs, 1100)
    assert costs.staleness("c") is None


def test_lanes_that_become_faster_are_noticed_and_small_changes_are_not() -> None:
    costs = settled()
    for _ in range(STALE_SAMPLES):
        tell(costs, round(1000 * (STALE_FACTOR - 0.1)))
    assert costs.staleness("c") is None
    for _ in range(STALE_SAMPLES):
        tell(costs, round(1000 / (STALE_FACTOR + 0.1)))
    found = costs.staleness("c")
    assert found is not None and found.ratio < 1 / STALE_FACTOR


def test_a_prior_that_misjudges_sizes_is_no_news() -> None:
    costs = settled()
    for _ in range(4 * STALE_SAMPLES):
        tell(costs, 50_000, rows=8)  # far from its prior, but always so
    assert costs.staleness("c") is None
    for _ in range(STALE_SAMPLES):
        tell(costs, 100_000, rows=8)
    assert costs.staleness("c") is not None


# -- tables -------------------------------------------------------------------------------------------------


class Table:
    """The same latency for every kernel on the whole device, one row."""

    def __init__(self, us: float) -> None:
        self.us = us

    def kernel_us(self, key: str, rows: int, units: int) -> float | None:
        return self.us if (rows, units) == (1, 4) else None

    def measured(self, key: str) -> list[tuple[int, int]]:
        return [(1, 4)]


def test_a_table_is_the_prior() -> None:
    costs = OnlineCosts()
    costs.register("c", PROGRAM, DEVICE, Table(200.0))
    assert ask(costs) == pytest.approx(EXPLORE_FORM * 400)
    assert times(costs).us[:, -1].tolist() == pytest.approx([EXPLORE_FORM * 200] * 2)


def test_a_new_table_begins_anew_and_none_keeps_what_was_learned() -> None:
    costs, table = known(), Table(200.0)
    tell(costs, 5000)
    costs.register("c", PROGRAM, DEVICE, table)
    assert ask(costs) == pytest.approx(EXPLORE_FORM * 400)
    for _ in range(2):
        tell(costs, 5000)
    for again in (None, table):
        costs.register("c", PROGRAM, DEVICE, again)
        assert ask(costs) == pytest.approx(5000 * (1 - OPTIMISM / 2))


def test_a_table_that_never_fitted_is_stale_though_an_analytic_prior_would_not_be() -> None:
    costs, unmeasured = OnlineCosts(), known()
    costs.register("c", PROGRAM, DEVICE, Table(50.0))
    for _ in range(1 + SAMPLES + STALE_SAMPLES):
        tell(costs, 600)
        tell(unmeasured, 600)
    found = costs.staleness("c")
    assert found is not None and found.ratio == pytest.approx(6.0 / TABLE_SLACK)
    assert unmeasured.staleness("c") is None


def test_staleness_of_an_unknown_cohort_is_an_error() -> None:
    with pytest.raises(OptionError, match="cohort 'x' has no costs"):
        known().staleness("x")


# -- cohorts that come and go ---------------------------------------------------------------------------


def test_a_cohort_that_comes_back_finds_what_was_learned_of_it() -> None:
    costs = known()
    for _ in range(SAMPLES):
        tell(costs, 7_000)
    learned_us = ask(costs)
    costs.retire("c")
    costs.retire("never known")
    tell(costs, 7_000)  # a lane that was running when the last tenant left
    costs.register("c", PROGRAM, DEVICE)
    assert ask(costs) == pytest.approx(learned_us, rel=0.05)


def test_of_many_cohorts_that_have_left_only_the_last_ones_are_kept() -> None:
    costs = known()
    for number in range(3 * MOST_RETIRED):
        costs.register(f"opaque:{number}", None, DEVICE)
        costs.retire(f"opaque:{number}")
    assert len(costs._cohorts) == MOST_RETIRED + 1
    assert ask(costs) > 0, "one that has tenants is never forgotten, however long ago it came"
    with pytest.raises(OptionError, match="has no costs"):
        costs.lane_us("opaque:0", tenants=1, rows=1, units=1)
