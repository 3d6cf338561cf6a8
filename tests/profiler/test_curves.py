"""Curves: the monotone fit, knees under noise, the law l = m/u + b."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.errors import OptionError
from spacetime.profiler.curves import DRAWS, Point, find_knee, fit_law, monotone, weights_of

SIZES = (1, 2, 4, 8, 16)


def law_points(parallel_us: float, serial_us: float, sizes: tuple[int, ...] = SIZES, noise: float = 0.0) -> list[Point]:
    rng = np.random.default_rng(1)
    return [
        Point(units, tuple((parallel_us / units + serial_us) * (1 + noise * rng.standard_normal(9)))) for units in sizes
    ]


def flat_from(knee: int, noise: float = 0.0) -> list[Point]:
    """Falls as 1/u until the knee, then stays."""
    rng = np.random.default_rng(2)
    return [Point(u, tuple(100.0 / min(u, knee) * (1 + noise * rng.standard_normal(9)))) for u in SIZES]


@pytest.mark.parametrize("knee", SIZES)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_knee_is_found_through_noise(knee: int, noise: float) -> None:
    found = find_knee(flat_from(knee, noise))
    assert found.units == knee
    assert found.best_units == SIZES[-1]
    assert found.confidence > 0.9
    assert found.saved_units == pytest.approx(1 - knee / SIZES[-1], abs=0.05)


def test_a_rise_is_noise_and_not_a_worse_best() -> None:
    """One disturbed size: the fit levels it with its neighbours."""
    points = [Point(1, (10.0,) * 9), Point(2, (5.0,) * 9), Point(4, (5.3,) * 9), Point(8, (5.0,) * 9)]
    assert find_knee(points).units == 2


def test_doubt_shows_in_the_confidence() -> None:
    rng = np.random.default_rng(3)
    noisy = [Point(u, tuple(np.exp(rng.standard_normal(5)) * (1 + 0.2 / u))) for u in SIZES]
    assert find_knee(noisy).confidence < 0.9


@given(
    st.lists(st.lists(st.floats(1, 20), min_size=5, max_size=5), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.0, 0.3]),
)
def test_the_confidence_is_the_share_of_draws_with_the_same_knee(
    samples_us: list[list[float]], tolerance: float, least_gain_us: float
) -> None:
    """Each draw as a curve of its own, in the order that they are drawn."""
    points = [Point(units, tuple(each)) for units, each in enumerate(samples_us, 1)]
    found = find_knee(points, tolerance, least_gain_us=least_gain_us)
    rng, weights = np.random.default_rng(0), weights_of(points)
    drawn = [np.median(rng.choice(np.array(each), (DRAWS, 5)), axis=1) for each in samples_us]
    same = 0
    for medians in np.stack(drawn, axis=1):
        fitted = monotone(medians, weights)
        limit = fitted[-1] + max(fitted[-1] * tolerance, least_gain_us)
        same += next(units for units, us in enumerate(fitted, 1) if us <= limit) == found.units
    assert found.confidence == same / DRAWS


def test_a_gain_that_the_clock_cannot_tell_is_none() -> None:
    points = [Point(1, (1.3,)), Point(2, (1.1,))]
    assert find_knee(points).units == 2
    assert find_knee(points, least_gain_us=0.3).units == 1
    assert find_knee([Point(1, (13.0,)), Point(2, (11.0,))], least_gain_us=0.3).units == 2


def test_the_tolerance_moves_the_knee() -> None:
    points = law_points(100.0, 10.0)
    assert [find_knee(points, tolerance).units for tolerance in (0.0, 0.5, 2.0)] == [16, 8, 4]


def test_the_bend_is_where_the_curve_is_furthest_from_its_chord() -> None:
    assert find_knee(law_points(100.0, 1.0)).marginal_units == 4
    assert find_knee([Point(1, (5.0,)), Point(2, (5.0,)), Point(4, (5.0,))]).marginal_units == 1
    assert find_knee([Point(3, (5.0,))]).units == 3


values = st.lists(st.floats(0.1, 100.0), min_size=1, max_size=12)


@given(values)
def test_the_monotone_fit_falls_and_is_closest(given_values: list[float]) -> None:
    target = np.array(given_values)
    weights = np.ones_like(target)
    fitted = monotone(target, weights)
    assert len(fitted) == len(target)
    assert (np.diff(fitted) <= 1e-9).all()
    assert fitted.mean() == pytest.approx(target.mean())
    if (np.diff(target) <= 0).all():
        assert fitted.tolist() == pytest.approx(target.tolist())
    for other in (np.full_like(target, target.mean()), np.minimum.accumulate(target), np.sort(target)[::-1]):
        assert ((fitted - target) ** 2).sum() <= ((other - target) ** 2).sum() + 1e-6


@given(st.floats(0.0, 1e4), st.floats(0.1, 1e3))
def test_the_law_is_recovered(parallel_us: float, serial_us: float) -> None:
    law = fit_law(law_points(parallel_us, serial_us))
    for units in SIZES:
        assert law.us(units) == pytest.approx(parallel_us / units + serial_us, rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=5))
def test_neither_part_of_the_law_is_negative(latencies: list[float]) -> None:
    law = fit_law([Point(units, (us,)) for units, us in zip(SIZES, latencies, strict=False)])
    assert law.parallel_us >= 0 and law.serial_us >= 0
    assert law.us(1) > 0


@pytest.mark.parametrize("points", [[], [Point(1, (1.0,)), Point(1, (2.0,))], [Point(1, ())]])
def test_what_is_no_curve(points: list[Point]) -> None:
    with pytest.raises(OptionError, match="not a curve"):
        find_knee(points)
