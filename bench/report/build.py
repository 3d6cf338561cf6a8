"""From rows to charts and sheets, whatever the case: what is on the axis, what makes a line, what makes a bar. The
sections import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from operator import eq, ge, gt, le, lt

from bench.report.figures import NO_FIGURE, Bar, Bars, Group, Lines, Palette, Point, Series, Sheet, number, spread
from bench.report.rows import Axis, Rows
from bench.report.sources import source
from bench.results import Measurement
from spacetime.sim.studies.study import geomean

SIDE = "side"
TENANTS = "tenants"
QUANTILES = ("p50", "p99", "max")
Place = tuple[tuple[str, Axis], ...]
TELLING = ("model", "dtype", "shape", "traffic", "mix", "aggressor", "policy", "side")
LEAST_POINTS = 2  # of a line
LONG, VERY_LONG = 16, 40  # rows; a longer table is folded


def is_ours(side: str) -> bool:
    """Sides of this project are called ours, or ours with the way the kernel is run."""
    return side == "ours" or side.startswith(("ours,", "ours:", "ours ", "ours/", "ours-", "ours_", "ours ("))


def palette(rows: Rows, axis: str = SIDE, first: Callable[[str], bool] = is_ours) -> Palette:
    names = sorted(rows.texts(axis), key=str.lower)
    return Palette(tuple(filter(first, names)), tuple(name for name in names if not first(name)))


def over(
    rows: Rows,
    axis: str,
    by: str,
    colours: Palette,
    *,
    name: str,
    title: str,
    detail: str,
    x_label: str,
    y_label: str,
    level: float | None = None,
    extra: Sequence[Series] = (),
    extra_source: str = "",
) -> Lines | None:
    """One line per value of `by`, over the numbers of `axis`; None where there is nothing to draw a line through."""
    found = rows.drawable.where(lambda one: by in one.axes and isinstance(one.axes.get(axis), int | float))
    if len(found.axis(axis)) < LEAST_POINTS:
        return None
    lines = [
        Series(str(each), colours.colour(str(each)), _points(found.having(by, each), axis)) for each in found.axis(by)
    ]
    if not lines:
        return None
    ordered = sorted(lines, key=_place)
    told = " ".join(filter(None, (source(found), extra_source)))
    return Lines(name, title, detail, x_label, y_label, (*ordered, *extra), told, level=level)


def _points(rows: Rows, axis: str) -> tuple[Point, ...]:
    points = {}
    for row in rows:
        found = row.measurement
        assert found.median is not None
        x = float(found.axes[axis])
        points[x] = Point(x, found.median, _or(found.p25, found.median), _or(found.p75, found.median))
    return tuple(points[x] for x in sorted(points))


def bars(
    rows: Rows,
    label: Callable[[Measurement], str],
    by: str,
    colours: Palette,
    *,
    name: str,
    title: str,
    detail: str,
    x_label: str,
    level: float | None = None,
) -> Bars | None:
    """A group per label, a bar per value of `by`."""
    found = rows.drawable.where(lambda one: by in one.axes)
    if not found:
        return None
    groups: dict[str, list[Bar]] = {}
    for row in found:
        one = row.measurement
        assert one.median is not None
        text = str(one.axes[by])
        quarters = _or(one.p25, one.median), _or(one.p75, one.median)
        bar = Bar(text, colours.colour(text), (one.median,), *quarters, limit(one))
        groups.setdefault(label(one), []).append(bar)
    return Bars(name, title, detail, x_label, _grouped(groups), source(found), level=level)


def strips(
    rows: Rows,
    quantiles: Mapping[str, str],
    label: Callable[[Measurement], str],
    by: str,
    colours: Palette,
    *,
    name: str,
    title: str,
    detail: str,
    x_label: str,
) -> Bars | None:
    """From the median to the slowest: `quantiles` names the metrics, in order: {"p50 latency": "p50", ...}."""
    found = rows.drawable.where(lambda one: by in one.axes and one.metric in quantiles)
    marks: dict[tuple[str, str], dict[str, float]] = {}
    each = {(label(row.measurement), str(row.measurement.axes[by]), row.measurement.metric) for row in found}
    if len(each) < len(found):
        return None  # something else differs between them, which a strip has no place for
    for row in found:
        one = row.measurement
        assert one.median is not None
        marks.setdefault((label(one), str(one.axes[by])), {})[one.metric] = one.median
    groups: dict[str, list[Bar]] = {}
    for (group, text), known in marks.items():
        if known.keys() >= quantiles.keys():
            ends = tuple(known[metric] for metric in quantiles)
            groups.setdefault(group, []).append(Bar(text, colours.colour(text), ends, ends[0], ends[0]))
    if not groups:
        return None
    return Bars(name, title, detail, x_label, _grouped(groups), source(found), marks=tuple(quantiles.values()))


def _grouped(groups: Mapping[str, list[Bar]]) -> tuple[Group, ...]:
    """Bars in the order of their colours, and groups of a single bar too."""
    made = [Group(text, tuple(sorted(each, key=_place))) for text, each in groups.items()]
    return tuple(sorted(made, key=lambda group: _place(group.bars[0]) if len(group.bars) == 1 else (False, 0)))


def _place(drawn: Bar | Series) -> tuple[bool, int]:
    """Ours first, then in the order of the names; what has no colour comes last."""
    return drawn.colour < 0, drawn.colour


def quotients(rows: Rows, axis: str, colours: Palette) -> tuple[str, tuple[Series, ...]]:
    """The fastest path of ours, and its ratio to every other side over `axis`: of medians, with the least and the most
    that the quartiles allow. Rows are rates: more is better.
    """
    by_side = {side: _by_axis(rows, side, axis) for side in rows.texts(SIDE)}
    paths = sorted((side for side in by_side if is_ours(side)), key=lambda side: -_mean_rate(by_side[side]))
    if not paths:
        return "", ()
    ours, lines = by_side[paths[0]], []
    for side, theirs in by_side.items():
        common = sorted(x for x in ours.keys() & theirs.keys() if min(_quarters(theirs[x])) > 0)
        if not is_ours(side) and len(common) >= LEAST_POINTS:
            points = tuple(_quotient(x, ours[x], theirs[x]) for x in common)
            lines.append(Series(f"over {side}", colours.colour(side), points))
    return paths[0], tuple(sorted(lines, key=_place))


def _by_axis(rows: Rows, side: str, axis: str) -> dict[float, Measurement]:
    found = (row.measurement for row in rows.drawable if str(row.measurement.axes[SIDE]) == side)
    return {float(one.axes[axis]): one for one in found if isinstance(one.axes.get(axis), int | float)}


def _mean_rate(found: Mapping[float, Measurement]) -> float:
    """Geometric."""
    rates = [one.median for one in found.values() if one.median]
    return geomean(rates) if rates else 0.0


def _quotient(x: float, ours: Measurement, theirs: Measurement) -> Point:
    our, their = _quarters(ours), _quarters(theirs)
    return Point(x, our[1] / their[1], our[0] / their[2], our[2] / their[0])


def _quarters(found: Measurement) -> tuple[float, float, float]:
    assert found.median is not None
    return _or(found.p25, found.median), found.median, _or(found.p75, found.median)


# -- which rows a picture is about -----------------------------------------------------------------------------------


def place_of(found: Measurement, *along: str) -> Place:
    """The axes besides those that lie along a picture or make its lines; fractions are results, not places."""
    return tuple(
        (name, value) for name, value in found.axes.items() if name not in along and not isinstance(value, float)
    )


def places(rows: Rows, *along: str) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(place_of(row.measurement, *along) for row in rows))


def at(rows: Rows, place: Place, *along: str) -> Rows:
    return rows.where(lambda found: place_of(found, *along) == place)


def told(place: Place, *only: str, without: str = "") -> str:
    """A place in words: names go without saying where the values are telling.

    >>> told((("model", "bert"), ("tenants", 8), ("rows", "1..4"))), told((("model", "bert"), ("rate", 8)), "model")
    ('bert, 8 tenants, rows: 1..4', 'bert')
    """
    chosen = [(name, value) for name, value in place if (not only or name in only) and name != without]
    return ", ".join(_fact(name.replace("_", " "), value) for name, value in chosen)


def _fact(name: str, value: Axis) -> str:
    if isinstance(value, str):
        return value if name in TELLING else f"{name}: {value}"
    return f"{value} {name}"


def quantile_families(rows: Rows) -> dict[str, dict[str, str]]:
    """Metrics that are quantiles of one thing, in order: {"latency": {"latency p50": "p50", "latency p99": "p99"}}."""
    names = dict.fromkeys(row.measurement.metric for row in rows)
    families: dict[str, dict[str, str]] = {}
    for quantile in QUANTILES:
        for name in names:
            of, _, last = name.rpartition(" ")
            if last == quantile:
                families.setdefault(of, {})[name] = quantile
    return {of: metrics for of, metrics in families.items() if len(metrics) > 1}


# -- tables ----------------------------------------------------------------------------------------------------------


def grid(
    rows: Rows,
    title: str,
    down: Callable[[Measurement], str],
    along: Callable[[Measurement], str],
    corner: str,
    *,
    is_folded: bool = False,
) -> Sheet:
    """A row per `down`, a column per `along`; what was not measured is a dash, what could not be, says so."""
    heads = list(dict.fromkeys(along(row.measurement) for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(down(row.measurement), {})[along(row.measurement)] = cell(row.measurement)
    cells = tuple((first, *(line.get(head, NO_FIGURE) for head in heads)) for first, line in lines.items())
    return Sheet(title, (corner, *heads), cells, source(rows), is_folded)


def plain(rows: Rows, title: str, *, is_folded: bool = False) -> Sheet:
    """Rows as they are: for cases that nothing is known of."""
    headings = ("subject", "metric", "median", "quartiles", "n", "unit", "goal", "note")
    lines = tuple(
        (
            found.subject,
            found.metric,
            number(found.median),
            spread(found.median, found.p25, found.p75),
            str(found.n),
            found.unit,
            found.goal,
            found.note,
        )
        for found in (row.measurement for row in rows)
    )
    used = [index for index in range(len(headings)) if any(line[index] for line in lines)]
    kept = tuple(tuple(line[index] for index in used) for line in lines)
    return Sheet(title, tuple(headings[index] for index in used), kept, source(rows), is_folded)


def tables(rows: Rows) -> tuple[Sheet, ...]:
    """A table per case and device, for what no picture shows."""
    return tuple(
        table(rows.of_case(case).on(device), f"{case}, on {device}")
        for case in rows.cases
        for device in rows.of_case(case).devices
    )


def table(rows: Rows, title: str) -> Sheet:
    """Subjects by metrics where that is a full table, else row by row. What is long is folded."""
    subjects = {row.measurement.subject for row in rows}
    metrics = {metric(row.measurement) for row in rows}
    pairs = {(row.measurement.subject, metric(row.measurement)) for row in rows}
    is_full = len(metrics) > 1 and len(subjects) > 2 and len(pairs) == len(rows) >= 0.6 * len(subjects) * len(metrics)
    if not is_full:
        return plain(rows, title, is_folded=len(rows) > VERY_LONG)
    return grid(rows, title, lambda one: one.subject, metric, "", is_folded=len(subjects) > LONG)


def metric(found: Measurement) -> str:
    unit = "" if found.unit == "ratio" else f", {found.unit}"
    return f"{found.metric}{unit}" + (f" (goal {found.goal})" if found.goal else "")


def reasons(rows: Rows, title: str = "Not measured, and why") -> tuple[Sheet, ...]:
    """What is unavailable, each reason once; nothing where all could be measured."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    for row in rows.missing:
        found = row.measurement
        what = str(found.axes.get(SIDE, found.axes.get("policy", found.subject)))
        why = found.note.removeprefix("unavailable: ")
        missing.setdefault((row.provenance.device, what, why), []).append(found.subject)
    if not missing:
        return ()
    lines = tuple((device, what, why, str(len(all_))) for (device, what, why), all_ in missing.items())
    return (Sheet(title, ("device", "side", "reason", "figures"), lines, "", is_folded=len(lines) > LONG),)


def cell(found: Measurement) -> str:
    if found.median is None:
        return "unavailable"
    told = spread(found.median, found.p25, found.p75)
    return f"{number(found.median)} ({told})" if told else number(found.median)


COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<=": le, ">=": ge, "<": lt, ">": gt, "=": eq}


def has_goal(found: Measurement) -> bool:
    return _goal(found) is not None


def misses(found: Measurement) -> bool:
    """Whether its median does not reach the goal that it has."""
    goal = _goal(found)
    return goal is not None and found.median is not None and not COMPARISONS[goal[0]](found.median, goal[1])


def shortfall(found: Measurement) -> float:
    """By which factor it misses the goal; the larger the worse."""
    goal = _goal(found)
    assert goal is not None and found.median is not None
    limit, value = abs(goal[1]) or 1e-9, abs(found.median) or 1e-9
    return max(limit / value, value / limit)


def limit(found: Measurement) -> float | None:
    """The number of its goal."""
    goal = _goal(found)
    return None if goal is None else goal[1]


def goal_share(found: Measurement) -> float | None:
    """How much of its goal a figure takes: 1 reaches it just so, more misses it, whichever way the goal points."""
    goal = _goal(found)
    if goal is None or found.median is None or min(goal[1], found.median) <= 0:
        return None
    return goal[1] / found.median if goal[0] in (">=", ">") else found.median / goal[1]


def _goal(found: Measurement) -> tuple[str, float] | None:
    """Goals are comparisons, some for certain subjects only: ">= 1, geomean >= 1.5", "flood: <= 50". Others are for
    people.
    """
    parts = [part.strip() for part in found.goal.split(",")]
    own = [part.removeprefix(found.subject).strip() for part in parts if part.startswith(f"{found.subject} ")]
    word, colon, rest = (own or parts)[0].rpartition(":")
    matched = re.fullmatch(r"(<=|>=|<|>|=)\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)", rest.strip())
    if matched is None or (colon and word not in found.subject):
        return None
    return matched[1], float(matched[2])


def file_name(*parts: object) -> str:
    """
    >>> file_name("gemm", "256x128x1152", "GFLOP/s", "cpu-2core")
    'gemm-256x128x1152-gflop-s-cpu-2core'
    """
    return "-".join(re.findall(r"[a-z0-9]+", " ".join(map(str, parts)).lower()))


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or not isfinite(value) else value
