"""What was measured, as the cost model asks for it: a scheduler's LatencyTable. Profiles and the runtime import it.

Between measured sizes l(u) = m / u + b holds from one neighbour to the next; between measured row counts lines are
straight. Beyond what was measured there is no answer: the cost model has the analytic one (scheduler/prior.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from spacetime.profiler.records import Measurement

Curve = Mapping[int, float]  # latency by units, or by rows


class MeasuredTable:
    """Latencies by kernel, rows and units."""

    def __init__(self, medians_us: Mapping[str, Mapping[int, Curve]]) -> None:
        self._curves = medians_us

    @classmethod
    def of(cls, measurements: Iterable[Measurement]) -> Self:
        """The caller says which: of one environment, and one state of the caches."""
        medians_us: dict[str, dict[int, dict[int, float]]] = {}
        for measurement in measurements:
            key = measurement.key
            medians_us.setdefault(key.kernel, {}).setdefault(key.rows, {})[key.units] = measurement.point.median_us
        return cls(medians_us)

    def kernel_us(self, key: str, rows: int, units: int) -> float | None:
        """As measured, or between measurements; None: beyond them."""
        curves = self._curves.get(key, {})
        if rows in curves:
            return _between_units(curves[rows], units)
        by_rows = {count: us for count, curve in curves.items() if (us := _between_units(curve, units)) is not None}
        return _between_rows(by_rows, rows)

    def measured(self, key: str) -> Sequence[tuple[int, int]]:
        """The (rows, units) that were measured."""
        return [(rows, units) for rows, curve in self._curves.get(key, {}).items() for units in curve]

    def error(self, key: str) -> float | None:
        """By how much, relatively, an answer between measurements may be off.

        The worst miss when each inner measurement is left out and asked for. None: there are none to leave out.
        """
        curves = self._curves.get(key, {})
        misses = [miss for curve in curves.values() for miss in _misses(curve, _between_units)]
        for units in {units for curve in curves.values() for units in curve}:
            by_rows = {rows: curve[units] for rows, curve in curves.items() if units in curve}
            misses += _misses(by_rows, _between_rows)
        return max(misses, default=None)


def _between_units(curve: Curve, units: int) -> float | None:
    """A line in 1 / units through the two neighbours, which is the law that fits them."""
    return _interpolate(curve, units, lambda size: 1 / size)


def _between_rows(curve: Curve, rows: int) -> float | None:
    return _interpolate(curve, rows, float)


def _interpolate(curve: Curve, at: int, scale: Callable[[int], float]) -> float | None:
    if at in curve:
        return curve[at]
    known = sorted(curve)
    above = bisect_left(known, at)
    if above in (0, len(known)):
        return None
    low, high = known[above - 1], known[above]
    weight = (scale(at) - scale(low)) / (scale(high) - scale(low))
    return (1 - weight) * curve[low] + weight * curve[high]


def _misses(curve: Curve, ask: Callable[[Curve, int], float | None]) -> list[float]:
    inner = sorted(curve)[1:-1]
    answers = ((left_out, ask({k: us for k, us in curve.items() if k != left_out}, left_out)) for left_out in inner)
    return [abs(us / curve[left_out] - 1) for left_out, us in answers if us is not None]
