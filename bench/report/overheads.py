"""What the runtime itself costs: decisions over the number of tenants, every other time as a dot, goals beside both."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report.build import file_name, goal_share, has_goal, limit, misses, over, palette, reasons, tables
from bench.report.figures import Bar, Bars, Chart, Group, Section, number
from bench.report.rows import Rows
from bench.report.sources import source
from bench.results import Measurement, Row

# Cases that are about the cost of the runtime itself; add, lone and decision are older than the group's name.
CASES = ("overheads", "overhead", "lone", "decision", "add", "masks")
GROUP = "overheads"
POLICY, TENANTS = "policy", "tenants"
PRODUCT = "space_time"
TIMES = ("ns", "us", "ms", "s")
MOST_DOTS = 40  # in one picture


def section(rows: Rows) -> Section | None:
    found = rows.of_case(*CASES)
    if not found:
        return None
    text = (
        "What the runtime itself takes: for a tenant that is alone, for a decision, for adding and removing tenants "
        "while others are served. Red marks are goals."
    )
    charts = tuple(chart for device in found.devices for chart in _charts(found.on(device).drawable, device))
    return Section("Overheads", text, charts=charts, more_sheets=(*tables(found), *reasons(found)))


def _charts(found: Rows, device: str) -> Iterator[Chart]:
    yield from _against_goals(found.where(has_goal), device)
    mine = found.of_case(GROUP)
    over_tenants = mine.where(_is_over_tenants)
    metrics = dict.fromkeys(row.measurement.metric for row in over_tenants)
    drawn = set()
    for metric in metrics:
        rows = over_tenants.of_metric(metric)
        unit = rows.rows[0].measurement.unit
        chart = over(
            rows,
            TENANTS,
            POLICY,
            palette(rows, POLICY, lambda name: name.startswith(PRODUCT)),
            name=file_name(GROUP, metric, device),
            title=f"{_capital(metric)} over tenants",
            detail=f"on {device}",
            x_label=TENANTS,
            y_label=unit,
        )
        if chart is not None:
            drawn.add(metric)
            yield chart
    rest = mine.where(lambda one: one.metric not in drawn)
    for unit in TIMES:
        yield from _dots(rest.where(lambda one, unit=unit: one.unit == unit), unit, device)  # type: ignore[misc]


def _is_over_tenants(found: Measurement) -> bool:
    """Decisions are taken with many numbers of tenants; what is handed over, with two, is compared as dots."""
    return {POLICY, TENANTS} <= found.axes.keys() and found.metric == "snapshot and policy"


# -- goals -----------------------------------------------------------------------------------------------------------


def _against_goals(judged: Rows, device: str) -> Iterator[Bars]:
    """From the best to the worst subject of every figure, in parts of its goal."""
    figures: dict[str, list[Row]] = {}
    for row in judged:
        found = row.measurement
        if goal_share(found) is not None:
            figures.setdefault(f"{found.metric} {_goal_of(found)}", []).append(row)
    groups = tuple(Group(name, (_strip(name, each),)) for name, each in figures.items())
    if not groups:
        return
    shown = Rows(tuple(row for each in figures.values() for row in each))
    yield Bars(
        name=file_name(GROUP, "goals", device),
        title="Overheads in parts of their goals",
        detail=f"on {device}: best, middle and worst subject; right of the line the goal is missed",
        x_label="measured over goal (for a least value: goal over measured)",
        groups=groups,
        source=source(shown),
        marks=("best", "middle", "worst"),
        level=1.0,
        is_wide=True,
    )


def _goal_of(found: Measurement) -> str:
    sign = ">=" if ">" in found.goal else "<="
    value = limit(found)
    unit = "" if found.unit == "ratio" else f" {found.unit}"
    return f"{sign} {value:g}{unit}"


def _strip(name: str, each: list[Row]) -> Bar:
    shares = sorted(share for row in each if (share := goal_share(row.measurement)) is not None)
    missed = sum(misses(row.measurement) for row in each)
    marks = (shares[0], shares[len(shares) // 2], shares[-1])
    told = f"{missed} of {len(each)} miss" if missed else f"all {len(each)} reach it"
    return Bar(told, 0, marks, marks[0], marks[0])


# -- times -----------------------------------------------------------------------------------------------------------


def _dots(rows: Rows, unit: str, device: str) -> Iterator[Bars]:
    """One axis per unit. It is logarithmic, so what is within its noise of zero is named instead."""
    shown = rows.where(_is_above_noise)
    groups: dict[str, list[Bar]] = {}
    for row in shown.rows[:MOST_DOTS]:
        found = row.measurement
        of, _, what = found.metric.partition(", ")
        assert found.median is not None
        low, high = found.p25 or found.median, found.p75 or found.median
        bar = Bar(what or found.subject, 0, (found.median,), low, high, limit(found))
        groups.setdefault(of, []).append(bar)
    if not groups:
        return
    near = [row.measurement for row in rows.where(lambda one: not _is_above_noise(one))]
    told = "; ".join(f"{one.metric}, {one.subject}: {number(one.median)} {unit}" for one in near)
    more = f" Not drawn, as their quartiles reach zero: {told}." if near else ""
    more += f" The first {MOST_DOTS} of {len(shown)} are drawn." if len(shown) > MOST_DOTS else ""
    yield Bars(
        name=file_name(GROUP, "times", unit, device),
        title=f"Times of the runtime, {unit}",
        detail=f"on {device}: medians, whiskers are quartiles",
        x_label=unit,
        groups=tuple(Group(name, tuple(each)) for name, each in groups.items()),
        source=f"{source(shown)}{more}",
        marks=("median",),
        is_wide=True,
    )


def _is_above_noise(found: Measurement) -> bool:
    return found.median is not None and min(found.median, found.median if found.p25 is None else found.p25) > 0


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
