"""Latency over units as a curve: the monotone fit, the law l = m/u + b, knees. Pure numpy; measures nothing.

More units never make a kernel slower by design, so a rise in the samples is noise (or a bad partition), and the
fit levels it out instead of believing it. How sure a knee is follows from the samples themselves: they are drawn
again many times, and the share of draws that give the same knee is its confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spacetime.errors import OptionError
from spacetime.scheduler.tables import TOLERANCE
from spacetime.values import Value

DRAWS = 200  # bootstrap draws behind a confidence

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point(Value):
    """What was measured at one size."""

    units: int
    samples_us: tuple[float, ...]

    @property
    def median_us(self) -> float:
        return float(np.median(self.samples_us))


@dataclass(frozen=True, slots=True)
class Knee(Value):
    """Where more units stop paying."""

    units: int  # the least within the tolerance of the best latency
    latency_us: float  # there, by the fit
    best_us: float  # with as many units as pay, by the fit
    best_units: int  # the most that were measured
    saved_units: float  # unit-time left free by running at the knee, as a share of running on all units
    confidence: float  # the share of resampled measurements with the same knee
    marginal_units: int  # where the curve bends most (Kneedle), for comparison


@dataclass(frozen=True, slots=True)
class Law(Value):
    """l(u) = parallel_us / u + serial_us."""

    parallel_us: float
    serial_us: float

    def us(self, units: float) -> float:
        return self.parallel_us / units + self.serial_us


def find_knee(
    points: Sequence[Point], tolerance: float = TOLERANCE, seed: int = 0, *, least_gain_us: float = 0.0
) -> Knee:
    """The knee of a measured curve. More units that gain no more than `least_gain_us` gain nothing.

    >>> find_knee([Point(1, (8.0,)), Point(2, (4.0,)), Point(4, (3.9,))]).units
    2
    """
    points = _checked(points)
    units = np.array([point.units for point in points], dtype=np.float64)
    fitted = monotone(_medians(points), weights_of(points))
    index = int(_first_within(fitted, tolerance, least_gain_us))
    most = units[-1]
    return Knee(
        units=points[index].units,
        latency_us=float(fitted[index]),
        best_us=float(fitted[-1]),
        best_units=points[-1].units,
        saved_units=float(1 - units[index] * fitted[index] / (most * fitted[-1])),
        confidence=_confidence(points, index, (tolerance, least_gain_us), seed),
        marginal_units=points[_bend(units, fitted)].units,
    )


def knee_units(points: Sequence[Point], tolerance: float = TOLERANCE) -> int:
    """The size of `find_knee` alone."""
    points = _checked(points)
    return points[int(_first_within(monotone(_medians(points), weights_of(points)), tolerance))].units


def fit_law(points: Sequence[Point]) -> Law:
    """The law that fits best in relative terms; neither part is negative."""
    points = _checked(points)
    inverse = np.array([1 / point.units for point in points])
    medians = _medians(points)
    weights = 1 / medians
    if len(points) == 1:
        return Law(0.0, float(medians[0]))
    rows = np.stack([inverse, np.ones_like(inverse)], axis=1) * weights[:, None]
    parallel, serial = np.linalg.lstsq(rows, medians * weights, rcond=None)[0]
    if parallel < 0:
        return Law(0.0, float(np.average(medians, weights=weights**2)))
    if serial < 0:
        return Law(float((inverse * medians * weights**2).sum() / (inverse**2 * weights**2).sum()), 0.0)
    return Law(float(parallel), float(serial))


def monotone(values: Floats, weights: Floats) -> Floats:
    """The non-increasing curve closest to the values (weighted least squares, pool adjacent violators)."""
    levels: list[list[float]] = []  # value, weight, how many points
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        levels.append([value, weight, 1.0])
        while len(levels) > 1 and levels[-2][0] < levels[-1][0]:
            value_b, weight_b, count_b = levels.pop()
            value_a, weight_a, count_a = levels.pop()
            total = weight_a + weight_b
            levels.append([(value_a * weight_a + value_b * weight_b) / total, total, count_a + count_b])
    return np.repeat([level[0] for level in levels], [int(level[2]) for level in levels])


def weights_of(points: Sequence[Point]) -> Floats:
    """A median of many samples that agree counts for more."""
    spreads = [np.median(np.abs(np.array(point.samples_us) - point.median_us)) for point in points]
    relative = [spread / point.median_us + 0.01 for spread, point in zip(spreads, points, strict=True)]
    return np.array([len(point.samples_us) / part**2 for part, point in zip(relative, points, strict=True)])


def _checked(points: Sequence[Point]) -> list[Point]:
    ordered = sorted(points, key=lambda point: point.units)
    sizes = [point.units for point in ordered]
    if not ordered or len(set(sizes)) < len(sizes) or any(not point.samples_us for point in ordered):
        facts = f"sizes: {sizes}, samples: {[len(point.samples_us) for point in ordered]}"
        raise OptionError("these points are not a curve", facts, "measure every size once, with a sample or more")
    return ordered


def _medians(points: Sequence[Point]) -> Floats:
    return np.array([point.median_us for point in points])


def _first_within(fitted: Floats, tolerance: float, least_gain_us: float = 0.0) -> NDArray[np.intp]:
    """Of a curve, or of each in a row of curves."""
    best = fitted[..., -1:]
    found: NDArray[np.intp] = (fitted <= best + np.maximum(best * tolerance, least_gain_us)).argmax(axis=-1)
    return found


def _confidence(points: Sequence[Point], index: int, within: tuple[float, float], seed: int) -> float:
    if all(len(point.samples_us) == 1 for point in points):
        return 1.0  # there is nothing to draw: every draw is what was given
    rng, weights = np.random.default_rng(seed), weights_of(points)
    drawn = [
        np.median(rng.choice(np.array(point.samples_us), (DRAWS, len(point.samples_us))), axis=1) for point in points
    ]
    fitted = np.stack(drawn, axis=1)
    for rising in np.flatnonzero((np.diff(fitted, axis=1) > 0).any(axis=1)):  # the others are their own fit
        fitted[rising] = monotone(fitted[rising], weights)
    return float(np.mean(_first_within(fitted, *within) == index))


def _bend(units: Floats, fitted: Floats) -> int:
    """Kneedle for a falling convex curve: the point furthest below the chord between the curve's ends."""
    if len(units) < 3 or fitted[0] == fitted[-1]:
        return int(_first_within(fitted, 0.0))
    x = (units - units[0]) / (units[-1] - units[0])
    y = (fitted - fitted[-1]) / (fitted[0] - fitted[-1])
    return int((1 - x - y).argmax())
