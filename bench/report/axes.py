"""Where the axes of a chart begin and end, and what is marked on them. `svg` and `png` draw by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.figures import Chart, Lines
from spacetime.profiler.figures import log_ticks
from spacetime.profiler.svg import round_ticks
from spacetime.values import Value

LEAST_DECADE = 3.0  # from which on a logarithmic axis shows more than one from 0
LEAST_RATIO = 1.6  # of a logarithmic axis: what differs less is no trend to look at


@dataclass(frozen=True, slots=True)
class Span(Value):
    low: float
    high: float
    is_log: bool


def x_span(chart: Chart) -> Span:
    if isinstance(chart, Lines):
        values = [point.x for series in chart.series for point in series.points]
        return _span(values, chart.is_log, below=0.06, above=0.06)
    bars = [bar for group in chart.groups for bar in group.bars]
    values = [value for bar in bars for value in (*bar.marks, bar.low, bar.high, bar.goal) if value is not None]
    values += [chart.level] if chart.level is not None else []
    if chart.marks:
        return _span(values, True, below=0.06, above=0.3)
    return Span(min(0.0, min(values) * 1.1), max(max(values) * 1.05, 1e-12), False)


def is_counted(chart: Lines) -> bool:
    return all(point.x == int(point.x) for series in chart.series for point in series.points)


def y_span(chart: Lines) -> Span:
    if chart.is_share:
        return Span(0.0, 100.0, False)
    values = [value for series in chart.series for point in series.points for value in (point.low, point.high)]
    values += [chart.level] if chart.level is not None else []
    # Ratios are read against their level; anything else that hardly differs is seen in its size.
    is_log = chart.is_log and (chart.level is not None or max(values) >= LEAST_DECADE * max(min(values), 0.0))
    return _span(values, is_log, below=0.05, above=0.07)


def _span(values: Sequence[float], is_log: bool, below: float, above: float) -> Span:
    """A little more than the values need, by shares of their range. Zero and less cannot be on a logarithmic axis."""
    low, high = min(values), max(values)
    if not is_log or low <= 0:
        least = min(0.0, low)
        return Span(least, max(high + (high - least) * above, least + 1e-12), False)
    ratio = max(high / low, LEAST_RATIO)
    return Span(low / ratio**below, low * ratio ** (1 + above), True)


def ticks_of(span: Span, whole: bool = False) -> list[float]:
    """Round numbers; `whole` ones for what is counted."""
    ticks = _ticks(span)
    return [each for each in ticks if each == int(each)] if whole else ticks


def _ticks(span: Span) -> list[float]:
    if span.is_log and (ticks := log_ticks(span.low, span.high, 7))[2:]:
        return ticks
    most = max(abs(span.low), abs(span.high))
    ticks = round_ticks(most, 12 if span.is_log else 6)  # less than a decade: as on a linear axis
    return [tick for tick in sorted({*ticks, *(-tick for tick in ticks)}) if span.low <= tick <= span.high]


def name_places(chart: Lines, ends: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Where the names of lines stand: near their ends, or from `low` on where all of these are at one height."""
    if chart.is_share:
        return [low + apart * (index + 0.5) for index in range(len(ends))]
    return spread_labels(ends, apart, low, high)


def spread_labels(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places as near as possible to the wanted ones, in their order, so far apart; inside, if all of them fit.

    >>> spread_labels([10.0, 11.0, 50.0], 10.0, 0.0, 100.0)
    [5.5, 15.5, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    clusters: list[tuple[float, list[int]]] = []  # the middle of a run of names that touch, and which they are
    for index in order:
        clusters.append((wanted[index], [index]))
        while len(clusters) > 1 and _touch(clusters[-2], clusters[-1], apart):
            (_, earlier), (_, later) = clusters[-2:]
            members = earlier + later
            clusters[-2:] = [(_middle(members, wanted, apart, low, high), members)]
    places = [0.0] * len(wanted)
    for middle, members in clusters:
        for rank, index in enumerate(members):
            places[index] = middle + (rank - (len(members) - 1) / 2) * apart
    return places


def _touch(above: tuple[float, list[int]], below: tuple[float, list[int]], apart: float) -> bool:
    halves = (len(above[1]) + len(below[1])) / 2
    return below[0] - above[0] < halves * apart - 1e-9


def _middle(members: Sequence[int], wanted: Sequence[float], apart: float, low: float, high: float) -> float:
    middle = sum(wanted[index] for index in members) / len(members)
    half = (len(members) - 1) / 2 * apart
    return min(max(middle, low + half), max(high - half, low + half))
