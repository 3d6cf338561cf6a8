"""The pure predicate: what figures forbid, and that what is not known forbids nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.errors import OptionError
from spacetime.scheduler.admission import (
    OVERLOAD,
    LoadNeed,
    MemoryNeed,
    check_option,
    load_problem,
    memory_problem,
)

FITS = MemoryNeed("a", weight_bytes=40_000_000, resident_bytes=50_000_000, limit_bytes=100_000_000)
FAST = LoadNeed("a", slo_us=20_000, rows=4, best_us=8000.0, num_tenants=3, load=0.5)


def test_what_fits_comes_in() -> None:
    assert memory_problem(FITS, "gpu") is None
    assert load_problem(FAST, "gpu") is None


def test_too_little_memory_says_how_much_there_is() -> None:
    problem = memory_problem(replace(FITS, resident_bytes=60_000_001), "gpu")
    assert problem is not None
    assert "tenant 'a' does not fit into the memory of gpu" in problem.what
    assert problem.facts == "it needs 40.0 MB beside 60.0 MB of other tenants, there are 100.0 MB"
    assert "remove a tenant" in problem.next_step


def test_a_slo_below_the_lane_alone_cannot_be_met() -> None:
    problem = load_problem(replace(FAST, slo_us=7999), "gpu")
    assert problem is not None
    assert "cannot make its SLO" in problem.what
    assert problem.facts == "its example of 4 rows takes 8000 us alone on the whole device, the SLO is 7999 us"
    assert "raise slo_ms" in problem.next_step


def test_an_overloaded_device_has_no_room() -> None:
    problem = load_problem(replace(FAST, load=1.3), "gpu")
    assert problem is not None
    assert "its 3 tenants ask for 130% of the device's time" in problem.facts


@given(st.floats(0, OVERLOAD), st.one_of(st.none(), st.integers(1, 10**6)))
def test_what_is_not_known_forbids_nothing(load: float, slo_us: int | None) -> None:
    assert load_problem(replace(FAST, slo_us=slo_us, best_us=None, load=load), "gpu") is None
    assert load_problem(replace(FAST, slo_us=None, best_us=1e9, load=load), "gpu") is None
    assert memory_problem(replace(FITS, limit_bytes=None, weight_bytes=10**15), "gpu") is None


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_memory_is_a_sum(weights: int, residents: int, limit: int) -> None:
    problem = memory_problem(MemoryNeed("a", weights, residents, limit), "gpu")
    assert (problem is None) is (weights + residents <= limit)


def test_unknown_modes_are_refused() -> None:
    for mode in ("off", "warn", "reject"):
        check_option(mode)
    with pytest.raises(
        OptionError, match=r"admission='maybe' does not exist(.|\n)*known: off, warn, reject\n.*name one"
    ):
        check_option("maybe")
