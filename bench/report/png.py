"""The charts of a report as PNG, by matplotlib: for slides and for where no page can be shown. Nothing else imports it.

Drawn on a `Figure` of its own, never through pyplot: no window, and nobody's settings change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report.axes import Span, is_counted, name_places, ticks_of, x_span, y_span
from bench.report.figures import (
    MARKED,
    NUM_COLOURS,
    Bar,
    Bars,
    Chart,
    Group,
    Lines,
    Series,
    is_emphasised,
    tick,
    values,
)
from spacetime.profiler.pictures import DOTS_PER_IN, SETTINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the order of figures.Palette: ours in blues, then the others. The page has the same.
COLOURS = (
    "#2459a9",
    "#5b9bd5",
    "#16325c",
    "#7a86d6",
    "#d9822b",
    "#2b8a3e",
    "#8e4ec6",
    "#c8352b",
    "#0f8b8d",
    "#a0522d",
    "#d6409f",
    "#8a8000",
    "#5b6f8f",
    "#b5838d",
)
assert len(COLOURS) == NUM_COLOURS
GREY = "#858c96"
_SETTINGS: Any = SETTINGS  # matplotlib's types name every key
WIDTH_IN, LINES_IN = 9.0, 5.0
BAR_IN = 0.24
LETTER_SHARE = 0.0078  # of the width, about, that a letter beside a bar takes
NOTE_COLOUR = "#5a616b"
GOAL_COLOUR = "#c8352b"


def save(chart: Chart, path: Path) -> None:
    import matplotlib
    import matplotlib.figure  # not loaded by the line above

    with matplotlib.rc_context(_SETTINGS):
        figure = _lines(chart) if isinstance(chart, Lines) else _bars(chart)
        figure.savefig(path, dpi=DOTS_PER_IN, facecolor="white", metadata={"Software": None})


def _figure(chart: Chart, height_in: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in))
    figure.text(0.012, 1 - 0.16 / height_in, chart.title, size=13, weight="bold", va="top")
    figure.text(0.012, 1 - 0.44 / height_in, chart.detail, size=9.5, color=NOTE_COLOUR, va="top")
    figure.text(0.012, 0.09 / height_in, _folded(chart.source), size=7.5, color=NOTE_COLOUR, va="bottom")
    # To the right of lines stand their names, of bars their values.
    left, right, bottom, top = (0.085, 0.7, 0.95, 0.92) if isinstance(chart, Lines) else (*_sides(chart), 0.95, 0.75)
    box = (left, bottom / height_in, right - left, 1 - (bottom + top) / height_in)
    return figure, figure.add_axes(box)


def _sides(chart: Bars) -> tuple[float, float]:
    """Shares of the width: room for the longest label, and for the longest text beside a bar."""
    label = max(len(group.label) for group in chart.groups)
    beside = max(len(_told(group, bar)) for group in chart.groups for bar in group.bars)
    return min(0.08 + LETTER_SHARE * label, 0.45), max(0.97 - LETTER_SHARE * beside, 0.55)


def _folded(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 140, max_lines=3, placeholder=" ..."))


# -- lines -----------------------------------------------------------------------------------------------------------


def _lines(chart: Lines) -> Figure:
    figure, axes = _figure(chart, LINES_IN)
    across, up = x_span(chart), y_span(chart)
    axes.grid(True, axis="y")
    _ticks(axes, "x", across, is_counted(chart))
    _ticks(axes, "y", up)
    if chart.level is not None:
        axes.axhline(chart.level, color=GREY, linewidth=1)
    for series in chart.series:
        _series(axes, series, dotted=MARKED if chart.is_share else ())
    axes.set_xlabel(chart.x_label)
    axes.text(0, 1.02, chart.y_label, transform=axes.transAxes, size=9, color=NOTE_COLOUR, ha="left", va="bottom")
    _names(axes, chart)
    return figure


def _series(axes: Axes, series: Series, dotted: tuple[float, ...] = ()) -> None:
    """With a dot at every point, or at those of these heights."""
    colour = _colour(series.colour)
    x, y = [point.x for point in series.points], [point.y for point in series.points]
    if series.is_limit:
        axes.plot(x, y, color=colour, linewidth=1.4, linestyle=(0, (5, 3)))
        return
    spreads = [[p.y - p.low for p in series.points], [p.high - p.y for p in series.points]]
    is_ours = is_emphasised(series.colour)
    if dotted:
        axes.plot(x, y, color=colour, linewidth=2.2 if is_ours else 1.3, zorder=4 if is_ours else 3)
        dots = [(point.x, point.y) for point in series.points if point.y in dotted]
        axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4, zorder=5) if dots else None
        return
    style: dict[str, Any] = {"fmt": "o-", "markersize": 3.6 if len(x) <= 24 else 2, "elinewidth": 0.9}
    axes.errorbar(
        x, y, yerr=spreads, color=colour, linewidth=2.2 if is_ours else 1.3, zorder=4 if is_ours else 3, **style
    )


def _names(axes: Axes, chart: Lines) -> None:
    """At the ends of their lines, in shares of the axis, as far apart as type needs."""
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((series.points[-1].x, series.points[-1].y))[1]) for series in chart.series]
    places = name_places(chart, wanted, 0.052, 0.0, 1.0)
    for series, place, end in zip(chart.series, places, wanted, strict=True):
        colour = _colour(series.colour)
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            series.name,
            (1.0, end),
            xycoords="axes fraction",
            xytext=(1.03, 1 - place if chart.is_share else place),  # from the top
            textcoords="axes fraction",
            va="center",
            size=9,
            weight="bold" if is_emphasised(series.colour) else "normal",
            color=colour,
            arrowprops=None if chart.is_share else leader,
        )


# -- bars and strips -------------------------------------------------------------------------------------------------


def _bars(chart: Bars) -> Figure:
    num_bars = sum(len(group.bars) for group in chart.groups)
    slots = num_bars + 0.7 * (len(chart.groups) - 1)
    figure, axes = _figure(chart, slots * BAR_IN + 1.9)
    span = x_span(chart)
    _ticks(axes, "x", span)
    axes.grid(True, axis="x")
    place, middles = 0.0, []
    for group in chart.groups:
        first = place
        for bar in group.bars:
            _bar(axes, chart, bar, place)
            end = (max(*bar.marks, bar.high, bar.goal or 0, span.low if chart.marks else 0), place)
            axes.annotate(_told(group, bar), end, xytext=(6, 0), textcoords="offset points", va="center", size=8.5)
            place += 1
        middles.append((first + place - 1) / 2)
        place += 0.7
    if chart.level is not None:
        axes.axvline(chart.level, color=GREY, linewidth=1)
    axes.set_ylim(place - 0.9, -0.8)
    axes.set_yticks(middles, labels=[group.label for group in chart.groups])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(chart.x_label)
    return figure


def _bar(axes: Axes, chart: Bars, bar: Bar, place: float) -> None:
    colour = _colour(bar.colour)
    if chart.marks:
        axes.plot([bar.marks[0], bar.marks[-1]], [place, place], color=colour, linewidth=2.2)
        for index, mark in enumerate(bar.marks):
            fill = "white" if index and index == len(bar.marks) - 1 else colour
            axes.plot([mark], [place], "o", color=fill, markeredgecolor=colour, markersize=6 - index * 0.7)
    else:
        axes.barh(place, bar.marks[0], 0.8, color=colour, alpha=1 if is_emphasised(bar.colour) else 0.55)
    if bar.low != bar.high:
        axes.plot([bar.low, bar.high], [place, place], color="#20242a", linewidth=1)
    if bar.goal is not None:
        axes.plot([bar.goal, bar.goal], [place - 0.4, place + 0.4], color=GOAL_COLOUR, linewidth=2)


def _told(group: Group, bar: Bar) -> str:
    told = values(bar) if bar.goal is None else f"{values(bar)} (goal {bar.goal:g})"
    return told if bar.name == group.label else f"{told}  {bar.name}"


def _ticks(axes: Axes, which: str, span: Span, whole: bool = False) -> None:
    from matplotlib.ticker import NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log" if span.is_log else "linear")
    (axes.set_xlim if which == "x" else axes.set_ylim)(span.low, span.high)
    ticks = ticks_of(span, whole)
    axis.set_ticks(ticks, labels=[tick(each) for each in ticks])
    axis.set_minor_locator(NullLocator())


def _colour(index: int) -> str:
    return GREY if index < 0 else COLOURS[index]
