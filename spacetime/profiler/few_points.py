"""A curve over many sizes from few measurements: fit l = m/u + b, test it on a held-out size, refine where it misses.

Pure: a search asks for sizes, is told what was measured there, and decides which to ask for next. Used by the profiler
where a device has many sizes. The knee itself is always between two neighbouring sizes that were both measured.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from math import sqrt

from spacetime.profiler.curves import Law, Point, fit_law, knee_units
from spacetime.scheduler.tables import TOLERANCE

NUM_FIRST = 4
MANY_SIZES = 8

Search = Generator[Sequence[int], Sequence[Point], None]  # asks for sizes, gets a point for each


def search(sizes: Sequence[int], tolerance: float = TOLERANCE, *, exact: bool = False) -> Search:
    """What to measure on a device of these sizes: all, if `exact` or if they are not many."""
    if exact or len(sizes) <= MANY_SIZES:
        yield sorted(sizes)
    else:
        yield from _Search(sizes, tolerance).run()


def first_sizes(sizes: Sequence[int]) -> list[int]:
    """The ends, and what divides the way between them geometrically.

    >>> first_sizes([8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 132])
    [8, 24, 48, 132]
    """
    low, high = min(sizes), max(sizes)
    wanted = [low * (high / low) ** (step / (NUM_FIRST - 1)) for step in range(NUM_FIRST)]
    return sorted({min(sizes, key=lambda size: abs(size - each)) for each in wanted})


class _Search:
    def __init__(self, sizes: Sequence[int], tolerance: float) -> None:
        self.sizes = sorted(sizes)
        self.tolerance = tolerance
        self.points: dict[int, Point] = {}

    def run(self) -> Search:
        yield from self._ask(first_sizes(self.sizes))
        law = fit_law(self._curve())
        held_out = self._held_out()
        if held_out is not None:
            yield from self._ask([held_out])
            if any(self._misses(law, point) for point in self.points.values()):
                for low, high in list(pairwise(sorted(self.points))):
                    yield from self._bisect(low, high)
        yield from self._close_in_on_the_knee()

    def _held_out(self) -> int | None:
        """In the widest gap, by the ratio of its ends, that has sizes between."""
        gaps = sorted(pairwise(sorted(self.points)), key=lambda ends: ends[0] / ends[1])
        return next((middle for low, high in gaps if (middle := self._middle(low, high)) is not None), None)

    def _bisect(self, low: int, high: int) -> Search:
        """Until the law through two neighbours tells what lies between them."""
        middle = self._middle(low, high)
        if middle is None:
            return
        law = fit_law([self.points[low], self.points[high]])
        yield from self._ask([middle])
        if self._misses(law, self.points[middle]):
            yield from self._bisect(low, middle)
            yield from self._bisect(middle, high)

    def _close_in_on_the_knee(self) -> Search:
        while True:
            knee = knee_units(self._curve(), self.tolerance)
            smaller = max((size for size in self.points if size < knee), default=None)
            middle = None if smaller is None else self._middle(smaller, knee)
            if middle is None:
                return
            yield from self._ask([middle])

    def _middle(self, low: int, high: int) -> int | None:
        between = [size for size in self.sizes if low < size < high]
        return min(between, key=lambda size: abs(size - sqrt(low * high)), default=None)

    def _misses(self, law: Law, point: Point) -> bool:
        return abs(law.us(point.units) / point.median_us - 1) > self.tolerance

    def _ask(self, sizes: Sequence[int]) -> Search:
        points = yield sizes
        self.points |= {point.units: point for point in points}

    def _curve(self) -> list[Point]:
        return [self.points[size] for size in sorted(self.points)]
