"""Tenants under traffic: the rate that each policy serves in time, and what an aggressor does to a victim."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.report.build import (
    LEAST_POINTS,
    SIDE,
    Place,
    at,
    bars,
    file_name,
    grid,
    is_ours,
    over,
    palette,
    places,
    quantile_families,
    reasons,
    tables,
    told,
)
from bench.report.cdf import latencies
from bench.report.figures import Bars, Chart, Lines, Palette, Section, Sheet
from bench.report.rows import Rows
from bench.results import Measurement

TENANTS, INTERFERENCE = ("tenants",), ("interference",)
POLICY = "policy"
ALONG = ("rate", "rate_per_s", "offered_per_s", "load", "tenants")  # axes that a line can go along, the first that vary
PRODUCT = "space_time"  # it and its variants have the first colours
COUNT = "tenants"
MIX = "mix"  # of models, which all columns of a table share


def tenants_section(rows: Rows) -> Section | None:
    text = (
        "Open-loop traffic: requests arrive whether or not earlier ones are done. Goodput is the highest rate at which "
        "99% of the requests meet their objective. Figures of mlcommons-loadgen were taken with its scenarios; they "
        "are not MLPerf results."
    )
    return _section(rows.of_case(*TENANTS), "Tenants under traffic", text, ("goodput", "violation", "fairness"))


def interference_section(rows: Rows) -> Section | None:
    text = "What a victim's requests take beside an aggressor, under each policy."
    return _section(rows.of_case(*INTERFERENCE), "Interference", text, ("p99, beside", "p99 beside"))


def _section(found: Rows, title: str, text: str, drawn: tuple[str, ...]) -> Section | None:
    if not found:
        return None
    charts = tuple(_charts(found.available, drawn))
    most = f"{max(found.axis(COUNT), default=0)} {COUNT}"
    return Section(
        title,
        text,
        charts=tuple(chart for chart in charts if _is_first(chart, most)),
        folded_charts=tuple(chart for chart in charts if not _is_first(chart, most)),
        more_sheets=(*_tables(found.available, drawn), *reasons(found)),
    )


def _is_first(chart: Chart, most: str) -> bool:
    """Main figures, and the distributions with the most tenants."""
    if isinstance(chart, Lines):
        return not chart.is_share or most in chart.detail
    return not chart.marks


def _is_by(axis: str, found: Measurement) -> bool:
    """A row of a policy, or else of a side."""
    return axis in found.axes and (axis == POLICY or POLICY not in found.axes)


def _charts(found: Rows, drawn: tuple[str, ...]) -> Iterator[Chart]:
    """A picture per metric, devices beside each other."""
    for by in (POLICY, SIDE):
        mine = found.where(partial(_is_by, by))
        colours = palette(mine, by, lambda name: name.startswith(PRODUCT) or is_ours(name))
        for metric in dict.fromkeys(row.measurement.metric for row in mine):
            if any(word in metric.lower() for word in drawn):
                yield from _metric(mine.of_metric(metric), by, colours)
        yield from _latencies(mine, by, colours)


def _metric(rows: Rows, by: str, colours: Palette) -> Iterator[Chart]:
    """Lines over the load or the number of tenants where several were tried, else bars; one picture per place."""
    along = next((axis for axis in ALONG if len(rows.axis(axis)) >= LEAST_POINTS), "")
    for place in places(rows, by, along):
        mine = at(rows, place, by, along)
        for device in mine.devices:
            chart = _drawn(mine.on(device), place, along, by, colours)
            if chart is not None:
                yield chart


def _drawn(rows: Rows, place: Place, along: str, by: str, colours: Palette) -> Chart | None:
    first, (device,) = rows.rows[0].measurement, rows.devices
    short, _, rest = first.metric.partition(": ")
    name = file_name(first.case, short, *(value for axis, value in place if axis != MIX), device)
    title = f"{_capital(short)} by {by}"
    detail = f"{'; '.join(filter(None, (rest, told(place))))} on {device}"
    if along:
        return over(rows, along, by, colours, name=name, title=title, detail=detail, x_label=along, y_label=first.unit)
    return bars(rows, partial(_axis, by), by, colours, name=name, title=title, detail=detail, x_label=first.unit)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _latencies(rows: Rows, by: str, colours: Palette) -> Iterator[Lines | Bars]:
    """Distributions, or strips; where requests came at several rates neither has a place, and the tables have them."""
    for of, quantiles in quantile_families(rows).items():
        times = rows.where(lambda one, quantiles=quantiles: one.metric in quantiles)  # type: ignore[misc]
        for place in places(times, by):
            for device in at(times, place, by).devices:
                mine = at(times.on(device), place, by)
                first = mine.rows[0].measurement
                made = latencies(
                    mine,
                    quantiles,
                    partial(_axis, by),
                    by,
                    colours,
                    name=file_name(first.case, of, *(value for axis, value in place if axis != MIX), device),
                    title=f"{_capital(of)} by {by}",
                    detail=f"{told(place)} on {device}",
                    x_label=first.unit,
                )
                if made is not None:
                    yield made


# -- tables ----------------------------------------------------------------------------------------------------------


def _tables(found: Rows, drawn: tuple[str, ...]) -> Iterator[Sheet]:
    """A table per metric and device: a row per policy, a column per traffic. The main one of them is open."""
    known = found.where(lambda one: _by(one) is not None)
    for device in known.devices:
        mine = known.on(device)
        for name in dict.fromkeys(row.measurement.metric for row in mine):
            rows = mine.of_metric(name)
            first = rows.rows[0].measurement
            title = f"{_capital(first.metric)}{'' if first.unit == 'ratio' else f', {first.unit}'}, on {device}"
            yield grid(rows, title, _who, _where, _by(first) or "", is_folded=drawn[0] not in name)
    yield from tables(found.where(lambda one: _by(one) is None))


def _by(found: Measurement) -> str | None:
    return next((axis for axis in (POLICY, SIDE) if axis in found.axes), None)


def _who(found: Measurement) -> str:
    return _axis(_by(found) or "", found)


def _axis(name: str, found: Measurement) -> str:
    return str(found.axes[name])


def _where(found: Measurement) -> str:
    """Everything else, the rates too."""
    return told(tuple((name, value) for name, value in found.axes.items() if name not in (POLICY, SIDE, MIX))) or "-"
