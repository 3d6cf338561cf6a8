"""Runs of kernels by dynamic programming, against every way to cut and size a short lane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.scheduler.segments import LEAST_GAIN, SWITCH_BUDGET, Run, fastest_runs, leanest_runs
from spacetime.scheduler.tables import TOLERANCE, KernelTimes

ATOMS = 3
SWITCH_US = 2.0


def tables(min_kernels: int = 1, max_kernels: int = 6) -> st.SearchStrategy[KernelTimes]:
    row = st.lists(st.floats(1, 100), min_size=ATOMS, max_size=ATOMS)
    return st.lists(row, min_size=min_kernels, max_size=max_kernels).map(KernelTimes.of)


def sizes_of(runs: Sequence[Run], num_kernels: int) -> list[int]:
    """Atoms by kernel, and that the runs are one after another."""
    sizes: list[int] = []
    for run in runs:
        assert run.first_kernel == len(sizes)
        last = num_kernels if run.last_kernel == -1 else run.last_kernel
        sizes.extend([run.atoms] * (last - run.first_kernel))
    assert runs[-1].last_kernel == -1 and len(sizes) == num_kernels
    return sizes


def totals(times: KernelTimes, sizes: Sequence[int]) -> tuple[float, float]:
    """Latency and unit-time."""
    us = [float(times.us[kernel, size - 1]) for kernel, size in enumerate(sizes)]
    for kernel, (before, size) in enumerate(pairwise(sizes), start=1):
        us[kernel] += SWITCH_US * (before != size)
    return sum(us), sum(duration * size for duration, size in zip(us, sizes, strict=True))


def all_sizes(num_kernels: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    for sizes in product(range(least, ATOMS + 1), repeat=num_kernels):
        if sum(before != size for before, size in pairwise(sizes)) <= SWITCH_BUDGET:
            yield sizes


@settings(deadline=None)
@given(tables())
def test_the_fastest_runs_are_as_fast_as_any(times: KernelTimes) -> None:
    best_us = min(totals(times, sizes)[0] for sizes in all_sizes(times.num_kernels))
    one_us = times.lane_us(ATOMS)
    runs = fastest_runs(times, ATOMS, SWITCH_US)
    found_us, _ = totals(times, sizes_of(runs, times.num_kernels))
    if best_us <= one_us * (1 - LEAST_GAIN) * 0.999:
        assert found_us == pytest.approx(best_us)
    else:
        assert runs == (Run(ATOMS, 0, -1),) or found_us == pytest.approx(best_us)


@settings(deadline=None)
@given(tables(), st.integers(1, ATOMS))
def test_the_leanest_runs_keep_to_the_bound_and_beat_one_run(times: KernelTimes, least: int) -> None:
    lanes_us = times.us.sum(axis=0)[least - 1 :]
    bound_us = lanes_us.min() * (1 + TOLERANCE)
    one_area = min(us * atoms for atoms, us in enumerate(lanes_us, start=least) if us <= bound_us)
    runs = leanest_runs(times, least, SWITCH_US)
    sizes = sizes_of(runs, times.num_kernels)
    found_us, area = totals(times, sizes)
    assert min(sizes) >= least and len(runs) - 1 <= SWITCH_BUDGET
    assert found_us <= bound_us * 1.000001
    assert area <= one_area * 1.000001
    if len(runs) > 1:
        assert area <= one_area * (1 - LEAST_GAIN) * 1.000001, "switching for less is noise"


def test_kernels_that_cannot_use_the_units_leave_them_to_others() -> None:
    wide, narrow = [90.0, 45.0, 30.0], [30.0, 30.0, 30.0]
    times = KernelTimes.of([wide] * 10 + [narrow] * 10)
    assert leanest_runs(times, 1, SWITCH_US) == (Run(3, 0, 10), Run(1, 10, -1))
    assert leanest_runs(times, 2, SWITCH_US) == (Run(3, 0, 10), Run(2, 10, -1))
    assert fastest_runs(times, 3, SWITCH_US) == (Run(3, 0, -1),), "it would save nobody any time"


def test_kernels_that_are_faster_on_fewer_units_get_fewer() -> None:
    times = KernelTimes.of([[90.0, 45.0, 30.0]] * 10 + [[20.0, 30.0, 40.0]] * 10)
    assert fastest_runs(times, 3, SWITCH_US) == (Run(3, 0, 10), Run(1, 10, -1))
    assert fastest_runs(times, 2, SWITCH_US) == (Run(2, 0, 10), Run(1, 10, -1))
    assert fastest_runs(times, 3, switch_us=1000.0) == (Run(3, 0, -1),), "a switch costs more than it gains"


def test_switches_are_few_however_many_kernels_would_like_one() -> None:
    times = KernelTimes.of([[900.0, 450.0, 300.0], [10.0, 20.0, 900.0]] * 30)
    runs = fastest_runs(times, 3, switch_us=0.0)
    assert 1 < len(runs) <= SWITCH_BUDGET + 1


def test_long_programs_on_large_devices_are_cut_too() -> None:
    atoms = np.arange(1, 301)
    us = np.concatenate([np.repeat([9000.0 / atoms], 400, axis=0), np.repeat([np.full(300, 30.0)], 400, axis=0)])
    first, *_, last = runs = leanest_runs(KernelTimes(us), 1, SWITCH_US)
    assert len(sizes_of(runs, 800)) == 800
    assert first.atoms > 250 and last.atoms == 1
    assert 350 <= last.first_kernel <= 450


def test_the_same_table_has_the_same_runs() -> None:
    rows = np.random.default_rng(0).uniform(1, 100, (100, 16))
    assert leanest_runs(KernelTimes(rows.copy()), 1, 1.0) == leanest_runs(KernelTimes(rows.copy()), 1, 1.0)
    assert fastest_runs(KernelTimes(rows.copy()), 9, 1.0) == fastest_runs(KernelTimes(rows.copy()), 9, 1.0)
