"""The charts of a report as inline SVG, for its page. Nothing else imports it.

Sizes are in pixels, colours are classes of the page's style, which knows light and dark. Names from rows are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from bench.report.axes import Span, is_counted, name_places, ticks_of, x_span, y_span
from bench.report.figures import MARKED, Bar, Bars, Chart, Group, Lines, Series, is_emphasised, number, tick, values
from spacetime.profiler.svg import Frame, Scale, linear, logarithmic

WIDTH, WIDE, HEIGHT = 560, 1120, 320
LEFT, TOP, BOTTOM = 52.0, 26.0, 274.0  # of lines; where they end depends on their names, which stand to the right
MOST_LETTERS, MOST_TOLD = 34, 48  # of a name, or of two on a wide picture; of what stands beside a bar
LABEL_PX, TICK_PX = 14.0, 30.0  # from one name, or tick, to the next
LETTER_PX, BOLD_PX = 5.9, 6.8  # of the type, about
BAR_PX, BAR_GAP_PX, GROUP_GAP_PX = 13.0, 3.0, 13.0


def draw(chart: Chart) -> str:
    return _lines(chart) if isinstance(chart, Lines) else _bars(chart)


# -- lines -----------------------------------------------------------------------------------------------------------


def _lines(chart: Lines) -> str:
    across_span, up_span = x_span(chart), y_span(chart)
    frame = _frame(chart)
    across, up = _scale(across_span, frame.left, frame.right), _scale(up_span, frame.bottom, frame.top)
    parts = [*_up_axis(chart, frame, up_span, up), *_across_axis(chart, frame, across_span, across)]
    if chart.level is not None:
        parts.append(_line("level", frame.left, up(chart.level), frame.right, up(chart.level)))
    for series in sorted(chart.series, key=lambda series: is_emphasised(series.colour)):  # ours on top
        parts += _series(chart, series, across, up)
    parts += _names(chart, frame, up)
    return _svg(HEIGHT, f"{chart.title}: {chart.y_label} over {chart.x_label}", parts)


def _series(chart: Lines, series: Series, across: Scale, up: Scale) -> Iterator[str]:
    kind = f"series {_colour(series.colour)}" + (
        " limit" if series.is_limit else " ours" if is_emphasised(series.colour) else ""
    )
    places = [(across(point.x), up(point.y)) for point in series.points]
    if len(places) > 1:
        yield f'<path class="{kind}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + '"/>'
    if series.is_limit:
        return
    for point, (x, y) in zip(series.points, places, strict=True):
        if chart.is_share and point.y not in MARKED:
            continue
        if point.low != point.high:
            yield _line(f"spread {_colour(series.colour)}", x, up(point.low), x, up(point.high))
        tip = f"{series.name}, {number(point.x)}: {number(point.y)}"
        radius = 2.6 if chart.is_share or len(places) <= 24 else 1.7
        yield (
            f'<circle class="mark {_colour(series.colour)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{escape(tip)}</title></circle>"
        )


def _frame(chart: Lines) -> Frame:
    longest = max(len(series.name) for series in chart.series)
    return Frame(LEFT, TOP, WIDTH - 18 - BOLD_PX * min(max(longest, 8), MOST_LETTERS), BOTTOM)


def _names(chart: Lines, frame: Frame, up: Scale) -> Iterator[str]:
    """At the ends of their lines, as far apart as type needs."""
    wanted = [up(series.points[-1].y) for series in chart.series]
    for series, end, place in zip(
        chart.series, wanted, name_places(chart, wanted, LABEL_PX, frame.top, frame.bottom), strict=True
    ):
        colour = _colour(series.colour)
        if not chart.is_share:
            yield f'<path class="leader {colour}" d="M{frame.right + 2} {end:.1f}L{frame.right + 10} {place:.1f}"/>'
        weight = " strong" if is_emphasised(series.colour) else ""
        yield _text(frame.right + 13, place + 4, _cut(series.name, MOST_LETTERS), f"name {colour}{weight}")


def _up_axis(chart: Lines, frame: Frame, span: Span, up: Scale) -> Iterator[str]:
    for each in ticks_of(span):
        yield _line("grid", frame.left, up(each), frame.right, up(each))
        yield _text(frame.left - 6, up(each) + 4, tick(each), "end")
    yield _text(4, frame.top - 13, chart.y_label, "unit")


def _across_axis(chart: Lines, frame: Frame, span: Span, across: Scale) -> Iterator[str]:
    yield _line("axis", frame.left, frame.bottom, frame.right, frame.bottom)
    for each in ticks_of(span, is_counted(chart)):
        yield _line("axis", across(each), frame.bottom, across(each), frame.bottom + 4)
        yield _text(across(each), frame.bottom + 17, tick(each), "middle")
    yield _text((frame.left + frame.right) / 2, frame.bottom + 34, chart.x_label, "middle unit")


# -- bars and strips -------------------------------------------------------------------------------------------------


def _bars(chart: Bars) -> str:
    span, width = x_span(chart), WIDE if chart.is_wide else WIDTH
    most_letters = MOST_LETTERS * width // WIDTH
    left = 14 + LETTER_PX * min(max(len(group.label) for group in chart.groups), most_letters)
    right = width - 14 - LETTER_PX * max(len(_told(group, bar)) for group in chart.groups for bar in group.bars)
    across = _scale(span, left, right)
    parts: list[str] = []
    bottom = 10.0
    for group in chart.groups:
        top = bottom
        for bar in group.bars:
            parts += _bar(chart, group, bar, across, bottom)
            bottom += BAR_PX + BAR_GAP_PX
        parts.append(_text(4, (top + bottom - BAR_GAP_PX) / 2 + 4, _cut(group.label, most_letters), "label"))
        bottom += GROUP_GAP_PX
    bottom -= GROUP_GAP_PX / 2
    ticks = _apart(ticks_of(span), across)
    back = [_line("grid", across(each), 4, across(each), bottom) for each in ticks]
    if chart.level is not None:
        back.append(_line("level", across(chart.level), 4, across(chart.level), bottom))
    feet = [_text(across(each), bottom + 15, tick(each), "middle") for each in ticks]
    feet.append(_text((left + right) / 2, bottom + 33, chart.x_label, "middle unit"))
    return _svg(round(bottom + 40), f"{chart.title}: {chart.x_label}", [*back, *parts, *feet], width)


def _apart(ticks: Sequence[float], across: Scale) -> list[float]:
    """Those whose labels do not touch."""
    kept: list[float] = []
    for each in ticks:
        if not kept or across(each) - across(kept[-1]) >= TICK_PX:
            kept.append(each)
    return kept


def _bar(chart: Bars, group: Group, bar: Bar, across: Scale, top: float) -> Iterator[str]:
    colour, middle = _colour(bar.colour), top + BAR_PX / 2
    tip = f"<title>{escape(f'{bar.name}: {values(bar)}')}</title>"
    last = across(bar.marks[-1])
    furthest = max(last, across(bar.high))
    if chart.marks:
        yield _line(f"strip {colour}", across(bar.marks[0]), middle, last, middle)
        for place, mark in enumerate(bar.marks):
            kind = "hollow" if place == len(bar.marks) - 1 and place else "mark"
            where = f'cx="{across(mark):.1f}" cy="{middle:.1f}" r="{4.2 - place * 0.5:.1f}"'
            yield f'<circle class="{kind} {colour}" {where}>{tip}</circle>'
        if bar.low != bar.high:
            yield _line("whisker", across(bar.low), middle, across(bar.high), middle)
            furthest = max(furthest, across(bar.high))
    else:
        start, ours = across(0), " ours" if is_emphasised(bar.colour) else ""
        furthest = max(start, furthest)
        left, width = min(start, last), abs(last - start)
        where = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BAR_PX}"'
        yield f'<rect class="bar{ours} {colour}" {where}>{tip}</rect>'
        if bar.low != bar.high:
            yield _line("whisker", across(bar.low), middle, across(bar.high), middle)
    if bar.goal is not None:
        yield _line("goal", across(bar.goal), top, across(bar.goal), top + BAR_PX)
        furthest = max(furthest, across(bar.goal))
    yield _text(furthest + 9, middle + 4, _told(group, bar), "value")


def _told(group: Group, bar: Bar) -> str:
    """Beside the bar: its values, and its name where the group has another."""
    told = values(bar) if bar.goal is None else f"{values(bar)} (goal {bar.goal:g})"
    return _cut(told if bar.name == group.label else f"{told}  {bar.name}", MOST_TOLD)


# -- elements --------------------------------------------------------------------------------------------------------


def _scale(span: Span, start: float, end: float) -> Scale:
    return (logarithmic if span.is_log else linear)(span.low, span.high, start, end)


def _colour(index: int) -> str:
    return "neutral" if index < 0 else f"c{index}"


def _svg(height: float, label: str, parts: Sequence[str], width: int = WIDTH) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
