"""Distributions as pictures: which share of the requests ended within what. models and traffic draw them.

Rows from before there were distributions, and those of harnesses that give quantiles only, have none: `latencies` shows
them as strips, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

from bench.report.build import strips
from bench.report.figures import MARKED, Bars, Lines, Palette, Point, Series
from bench.report.rows import Rows
from bench.report.sources import source
from bench.results import PERCENTS, Distribution, Measurement

WITHOUT = "only quantiles, as these rows carry no distribution"
RANKED = PERCENTS.index(MARKED[-1])


def latencies(
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
) -> Lines | Bars | None:
    """A line per value of `by`, or else strips of the metrics that `quantiles` names."""
    drawn = distributions(rows, by, colours, name=name, title=title, detail=detail, x_label=x_label)
    if drawn is not None:
        return drawn
    told = f"{detail}: {', '.join(quantiles.values())}; {WITHOUT}"
    return strips(rows, quantiles, label, by, colours, name=name, title=title, detail=told, x_label=x_label)


def distributions(
    rows: Rows, by: str, colours: Palette, *, name: str, title: str, detail: str, x_label: str
) -> Lines | None:
    """Cumulative, the fastest first by what 99 % ended within; None where no row has a distribution."""
    known = rows.available.where(lambda one: by in one.axes and one.distribution is not None)
    found = {str(row.measurement.axes[by]): row.measurement.distribution for row in known}
    if not known or len(found) < len(known):
        return None  # none, or something else differs between them, which a line has no place for
    ordered = sorted(found.items(), key=lambda item: item[1].values[RANKED] if item[1] else 0.0)
    lines = tuple(Series(each, colours.colour(each), _points(of_all)) for each, of_all in ordered if of_all is not None)
    drawn = tuple(line for line in lines if line.points)
    if not drawn:
        return None
    most, fewest = (pick(of_all.n for of_all in found.values() if of_all) for pick in (max, min))
    counted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    missing = sorted(rows.available.where(lambda one: by in one.axes).axis(by), key=str)
    left_out = [str(each) for each in missing if str(each) not in found]
    told = f" Without a distribution, so not drawn: {', '.join(left_out)}." if left_out else ""
    return Lines(
        name=name,
        title=title,
        detail=f"{detail}; dots: p50 and p99, names by p99",
        x_label=x_label,
        y_label="% of requests that ended within",
        series=drawn,
        source=f"{source(known)} Distributions are of all requests, {counted} per line.{told}",
        is_share=True,
    )


def _points(of_all: Distribution) -> tuple[Point, ...]:
    """Those that are finite: a line that ends below 100 % has requests that were never served."""
    places = zip(PERCENTS, of_all.values, strict=True)
    return tuple(Point(value, share, share, share) for share, value in places if isfinite(value) and value > 0)
