"""Whole models: throughput and latency of R tenants of one architecture, ours beside every other way to serve them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.report.build import (
    SIDE,
    TENANTS,
    VERY_LONG,
    Place,
    at,
    file_name,
    grid,
    is_ours,
    over,
    palette,
    place_of,
    places,
    quantile_families,
    quotients,
    reasons,
    tables,
    told,
)
from bench.report.cdf import latencies
from bench.report.figures import NO_FIGURE, Bars, Chart, Lines, Palette, Section, Sheet, number
from bench.report.rows import Axis, Rows
from bench.report.sources import source
from bench.results import Measurement

CASES = ("models",)
OTHER_TYPES = ("bfloat16", "float16", "tf32")  # folded: float32 is what all the others were published for
THROUGHPUT, SPEED_UP = "throughput", "speed-up"
COSTS = ("memory", "slowest over fastest tenant", "time to add a tenant")
BASELINE = "baseline"  # the axis of a speed-up


def section(rows: Rows) -> Section | None:
    found = rows.of_case(*CASES)
    if not found:
        return None
    text = (
        "R tenants of one architecture, weights of their own, one request each at the same moment, served by every way "
        "that this device has. Next to a single stream, quote the way that overlaps best, too."
    )
    known = found.available.where(lambda one: {SIDE, TENANTS} <= one.axes.keys())
    charts = tuple(_charts(known))
    return Section(
        "Whole models",
        text,
        (*_summaries(found.available), *_side_by_side(known)),
        tuple(chart for chart in charts if _is_first(chart)),
        (*(chart for chart in charts if not _is_first(chart)), *_costs(known)),
        more_sheets=(*_tables(found.available), *reasons(found)),
    )


def _is_first(chart: Chart) -> bool:
    return isinstance(chart, Lines) and not any(dtype in chart.detail for dtype in OTHER_TYPES)


# -- tables ----------------------------------------------------------------------------------------------------------


def _summaries(found: Rows) -> Iterator[Sheet]:
    """Speed-ups over every baseline, at the most tenants that each model was compared with."""
    for device in found.devices:
        mine = found.on(device).of_metric(SPEED_UP).where(lambda one: BASELINE in one.axes and TENANTS in one.axes)
        most = {place: max(at(mine, place, *_ALONG).axis(TENANTS), default=0) for place in places(mine, *_ALONG)}
        last = mine.where(lambda one, most=most: one.axes[TENANTS] == most[place_of(one, *_ALONG)])  # type: ignore[misc]
        if last:
            title = f"Speed-up of ours at the most tenants compared, on {device}"
            yield grid(last, title, _subject, lambda one: f"over {one.axes[BASELINE]}", "model")


_ALONG = (SIDE, TENANTS, BASELINE)


def _side_by_side(known: Rows) -> Iterator[Sheet]:
    """All figures of every side, at the most tenants that each model was compared with."""
    for device in known.devices:
        mine = known.on(device).where(lambda one: one.metric != SPEED_UP)
        lines: list[tuple[str, ...]] = []
        heads = list(dict.fromkeys(row.measurement.metric for row in mine))
        units = {row.measurement.metric: row.measurement.unit for row in mine}
        for place in places(mine, *_ALONG):
            here = at(mine, place, *_ALONG)
            count = _most_compared(here)
            for side in sorted(here.having(TENANTS, count).texts(SIDE), key=lambda side: (not is_ours(side), side)):
                its = here.having(TENANTS, count).having(SIDE, side)
                found = {row.measurement.metric: number(row.measurement.median) for row in its}
                subject = f"{told(place)}, R = {count}"
                lines.append((subject, side, *(found.get(head, NO_FIGURE) for head in heads)))
        if lines:
            named = (f"{head}{'' if units[head] == 'ratio' else f', {units[head]}'}" for head in heads)
            title = f"Side by side, medians, on {device}"
            yield Sheet(title, ("model", "side", *named), tuple(lines), source(mine), len(lines) > VERY_LONG)


def _tables(found: Rows) -> Iterator[Sheet]:
    """Every metric in full: a row per model and number of tenants, a column per side."""
    known = found.where(lambda one: {SIDE, TENANTS} <= one.axes.keys())
    for device in known.devices:
        mine = known.on(device)
        for name in dict.fromkeys(row.measurement.metric for row in mine):
            rows = mine.of_metric(name)
            unit = rows.rows[0].measurement.unit
            along = BASELINE if name == SPEED_UP else SIDE
            title = f"{name.capitalize()}{'' if unit == 'ratio' else f', {unit}'}, on {device}"
            head = "over " if name == SPEED_UP else ""
            yield grid(rows, title, _subject, partial(_head, head, along), "model", is_folded=True)
    yield from tables(found.where(lambda one: not {SIDE, TENANTS} <= one.axes.keys()))


def _head(prefix: str, along: str, found: Measurement) -> str:
    return f"{prefix}{found.axes.get(along, '')}"


def _subject(found: Measurement) -> str:
    return f"{told(place_of(found, *_ALONG))}, R = {found.axes[TENANTS]}"


# -- pictures --------------------------------------------------------------------------------------------------------


def _charts(found: Rows) -> Iterator[Chart]:
    """Device by device beside each other: throughput, speed-up, and the latencies at the most tenants."""
    colours = palette(found)
    rates = found.where(_is_rate)
    for place in places(rates, SIDE, TENANTS):
        mine = [at(rates.on(device), place, SIDE, TENANTS) for device in rates.devices]
        drawn = [_throughput(rows, place, colours) for rows in mine if rows]
        drawn += [_speed_ups(rows, place, colours) for rows in mine if rows]
        yield from (chart for chart in drawn if chart is not None)
    yield from _latencies(found, colours)


def _is_rate(found: Measurement) -> bool:
    return found.unit.endswith("/s")


def _throughput(rows: Rows, place: Place, colours: Palette) -> Lines | None:
    (device,) = rows.devices
    unit = rows.rows[0].measurement.unit
    return over(
        rows,
        TENANTS,
        SIDE,
        colours,
        name=file_name("models", "throughput", *(value for _, value in place), device),
        title=f"Throughput of {told(place, 'model')}",
        detail=f"{told(place, without='model')} on {device}",
        x_label="R, tenants",
        y_label=unit,
    )


def _speed_ups(rows: Rows, place: Place, colours: Palette) -> Lines | None:
    (device,) = rows.devices
    ours, lines = quotients(rows, TENANTS, colours)
    if not lines:
        return None
    return Lines(
        name=file_name("models", "speed-up", *(value for _, value in place), device),
        title=f"Speed-up of {told(place, 'model')}",
        detail=f"{told(place, without='model')} on {device}, {ours}",
        x_label="R, tenants",
        y_label="ratio of throughputs",
        series=lines,
        source=f"{source(rows)} Ratios of medians; whiskers are ratios of opposite quartiles.",
        level=1.0,
    )


def _costs(found: Rows) -> Iterator[Chart]:
    """What a side takes besides time: memory, the gap between tenants, making a tenant ready."""
    colours = palette(found)
    for metric in COSTS:
        rows = found.of_metric(metric)
        for place in places(rows, SIDE, TENANTS):
            for device in at(rows, place, SIDE, TENANTS).devices:
                mine = at(rows.on(device), place, SIDE, TENANTS)
                unit = mine.rows[0].measurement.unit
                chart = over(
                    mine,
                    TENANTS,
                    SIDE,
                    colours,
                    name=file_name("models", metric, *(value for _, value in place), device),
                    title=f"{metric[:1].upper()}{metric[1:]} of {told(place, 'model')}",
                    detail=f"{told(place, without='model')} on {device}",
                    x_label="R, tenants",
                    y_label=unit,
                    level=1.0 if unit == "ratio" else None,
                )
                if chart is not None:
                    yield chart


def _latencies(found: Rows, colours: Palette) -> Iterator[Chart]:
    """Distributions at the most tenants, or strips; a picture per model and type."""
    for of, quantiles in quantile_families(found).items():
        times = found.where(lambda one, quantiles=quantiles: one.metric in quantiles)  # type: ignore[misc]
        for place in places(times, SIDE, TENANTS):
            for device in at(times, place, SIDE, TENANTS).devices:
                mine = at(times.on(device), place, SIDE, TENANTS)
                chart = _latency(mine.having(TENANTS, _most_compared(mine)), place, of, quantiles, colours)
                if chart is not None:
                    yield chart


def _latency(rows: Rows, place: Place, of: str, quantiles: dict[str, str], colours: Palette) -> Lines | Bars | None:
    (device,), (count,) = rows.devices, rows.axis(TENANTS)
    return latencies(
        rows,
        quantiles,
        lambda one: str(one.axes[SIDE]),
        SIDE,
        colours,
        name=file_name("models", of, *(value for _, value in place), device),
        title=f"{of[:1].upper()}{of[1:]} of {told(place, 'model')}, {count} tenants",
        detail=f"{told(place, without='model')} on {device}",
        x_label=rows.rows[0].measurement.unit,
    )


def _most_compared(rows: Rows) -> Axis:
    """The most tenants at which there is something to compare: few sides can do with any number."""
    return max(rows.axis(TENANTS), key=lambda count: (min(len(rows.having(TENANTS, count).axis(SIDE)), 3), count))
