"""The matrix products: Space-Time's table beside the published one, rates under their roofline, speed-ups over R."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.report.build import SIDE, TENANTS, cell, file_name, grid, is_ours, over, palette, plain, quotients, reasons
from bench.report.figures import NEUTRAL, NO_FIGURE, Chart, Lines, Palette, Point, Section, Series, Sheet, number
from bench.report.rows import Rows, newest, of_any_cache
from bench.report.sources import source
from bench.results import Measurement, Row
from spacetime.sim.studies.space_time_table import CONV, CONV_RATES, GAINS, MATVEC, PAPER, SQUARE, Shape
from spacetime.values import Value

CASES = ("gemm",)
SPEED = "GFLOP/s"
ROOFLINE = "roofline"
GEOMEAN, FRACTION = "geomean of speed-ups", "geomean of fractions of the roofline"
SHAPES = {f"{shape.m}x{shape.n}x{shape.k}": shape for shape in (MATVEC, CONV, SQUARE)}
BASELINES = {"time_only": "time-only", "space_only": "space-only"}  # the study's names: the bench's
PUBLISHED = f"published, V100 ({PAPER})"
FIRST_TYPE = "float32"  # that of the publication
LISTED = (1, 2, 4, 8, 10, 16, 18, 20, 32, 40, 64, 80, 100, 118, 120)


def section(rows: Rows) -> Section | None:
    found = newest(rows.of_case(*CASES), of_any_cache)
    if not found:
        return None
    speeds = _speeds(found)
    text = (
        "R products of one shape, each with weights of its own, as R tenants of one architecture have them. Published "
        "figures were taken in fp32 on a V100 with 16 GB; a CPU's are shown as they can be taken anywhere, and say "
        "nothing about a GPU. Weights take turns, so that they come from memory, unless a table says otherwise."
    )
    charts = tuple(_charts(speeds, found.available.of_metric(ROOFLINE)))
    first = f"{FIRST_TYPE} "
    return Section(
        "Matrix products",
        text,
        tuple(sheet for sheet in (_published_table(found), _conv_table(speeds)) if sheet is not None),
        tuple(chart for chart in charts if chart.detail.startswith(first)),
        tuple(chart for chart in charts if not chart.detail.startswith(first)),
        more_sheets=tuple(_more(found)),
    )


@dataclass(frozen=True, slots=True)
class Reached(Value):
    """The best of ours where a geomean of speed-ups was published."""

    what: str
    device: str
    best: Measurement
    published: float

    @property
    def tile(self) -> tuple[str, str]:
        told = f"{self.what} on {self.device}, by {self.best.axes[SIDE]}; published: {self.published}x on a V100"
        return f"{number(self.best.median)}x", told


def reached(rows: Rows) -> tuple[Reached, ...]:
    """On the first device."""
    found = _geomeans(newest(rows.of_case(*CASES), of_any_cache))
    made = []
    for shape, against, _, mean in GAINS if found else ():
        device = found.devices[0]
        best = _best(found.on(device), str_of(shape), BASELINES[against])
        if best is not None:
            made.append(Reached(f"{shape.name} over {BASELINES[against]}", device, best.measurement, mean))
    return tuple(made)


def str_of(shape: Shape) -> str:
    return f"{shape.m}x{shape.n}x{shape.k}"


# -- tables ----------------------------------------------------------------------------------------------------------


def _published_table(found: Rows) -> Sheet | None:
    """Published speed-ups, and every path of ours over the same baseline, for the R that were published."""
    speeds, means = _speeds(found), _geomeans(found)
    sides = [(device, side) for device in found.devices for side in _ours(speeds.on(device))]
    if not sides:
        return None
    lines, used = [], []
    for shape, against, by_kernels, mean in GAINS:
        baseline = BASELINES[against]
        for kernels, published in by_kernels.items():
            cells = [_ratio(speeds.on(device), str_of(shape), kernels, side, baseline) for device, side in sides]
            lines.append((_name(shape), baseline, f"R = {kernels}", f"{published:.2f}", *cells))
        rows = [_geomean(means.on(device), str_of(shape), side, baseline) for device, side in sides]
        used += [row for row in rows if row is not None]
        cells = [NO_FIGURE if row is None else cell(row.measurement) for row in rows]
        lines.append((_name(shape), baseline, "geomean, published of R = 2..120", f"{mean:.2f}", *cells))
    headings = ("shape M x N x K", "speed-up over", "kernels", "published, V100", *(f"{s} · {d}" for d, s in sides))
    ranges = dict.fromkeys(f"on {row.provenance.device} {row.measurement.method.partition(';')[0]}" for row in used)
    told = f"Published: {PAPER}, on a V100. {source(Rows(tuple(used)))} Geomeans are {'; '.join(ranges) or 'missing'}."
    return Sheet(f"Space-Time's table, {FIRST_TYPE}", headings, tuple(lines), told)


def _conv_table(speeds: Rows) -> Sheet | None:
    """GFLOP/s of conv2_2, the shape whose rates were published."""
    mine = _of(speeds, str_of(CONV), FIRST_TYPE)
    if not mine:
        return None
    columns = [
        (device, side)
        for device in mine.devices
        for side in (
            *_ours(mine.on(device)),
            *(name for name in BASELINES.values() if name in mine.on(device).texts(SIDE)),
        )
    ]
    lines = tuple(
        (
            str(kernels),
            *(f"{rate:.0f}" for rate in (rates.space_time, rates.space_only, rates.time_only)),
            *(number(_rate(mine.on(device), str_of(CONV), kernels, side)) for device, side in columns),
        )
        for kernels, rates in CONV_RATES.items()
    )
    heads = ("R", *(f"{name} · published, V100" for name in ("space-time", "space-only", "time-only")))
    told = f"Published: {PAPER}, on a V100. {source(mine)}"
    return Sheet(f"{_name(CONV)} in GFLOP/s, {FIRST_TYPE}", (*heads, *(f"{s} · {d}" for d, s in columns)), lines, told)


def _more(found: Rows) -> Iterator[Sheet]:
    for device in found.devices:
        mine = found.on(device)
        means = mine.where(lambda one: one.metric == GEOMEAN and "baseline" in one.axes)
        if means:
            title = f"Geomeans of speed-ups over every baseline, on {device}"
            yield grid(means, title, _shape_and_side, lambda one: f"over {one.axes['baseline']}", "shape, type, ours")
        parts = mine.where(lambda one: one.metric == FRACTION and SIDE in one.axes)
        if parts:
            title = f"Geomeans of fractions of the roofline, on {device}"
            yield grid(parts, title, lambda one: str(one.axes[SIDE]), _shape_and_type, "side", is_folded=True)
        speeds = mine.available.where(_is_speed)
        for dtype, shape, weights in _tables(speeds):
            part = _of(speeds, shape, dtype, weights)
            part = part.where(lambda one: one.axes[TENANTS] in LISTED)
            if part:
                how = "" if weights == "rotated" else f", {weights} weights every round"
                title = f"GFLOP/s of {_name(SHAPES.get(shape, shape))}, {dtype}{how}, on {device}"
                yield grid(
                    part,
                    title,
                    lambda one: str(one.axes[TENANTS]),
                    lambda one: str(one.axes[SIDE]),
                    "R",
                    is_folded=True,
                )
    rest = found.available.where(lambda one: not _is_speed(one) and one.metric not in (GEOMEAN, FRACTION))
    for device in rest.devices:
        yield plain(rest.on(device), f"What the device reaches, {device}")
    yield from reasons(found)


def _tables(speeds: Rows) -> list[tuple[str, str, str]]:
    return list(
        dict.fromkeys(
            (str(one.axes.get("dtype", "")), str(one.axes["shape"]), _weights(one))
            for one in (row.measurement for row in speeds)
        )
    )


# -- pictures --------------------------------------------------------------------------------------------------------


def _charts(speeds: Rows, roofs: Rows) -> Iterator[Chart]:
    """By type and shape; devices beside each other."""
    colours = palette(speeds)
    for dtype in sorted(speeds.texts("dtype"), key=lambda name: name != FIRST_TYPE):
        for shape in speeds.texts("shape"):
            mine = {device: _of(speeds.on(device), shape, dtype) for device in speeds.devices}
            drawn = [_rates(rows, roofs.on(device), shape, dtype, colours) for device, rows in mine.items() if rows]
            drawn += [_speed_ups(rows, shape, dtype, colours) for rows in mine.values() if rows]
            yield from (chart for chart in drawn if chart is not None)


def _rates(rows: Rows, roofs: Rows, shape: str, dtype: str, colours: Palette) -> Lines | None:
    (device,) = rows.devices
    limits, more = [], "No roofline was measured."
    roof = next((row.measurement.median for row in roofs.having("shape", shape).having("dtype", dtype)), None)
    if roof is not None:
        ends = [float(count) for count in (min(rows.axis(TENANTS)), max(rows.axis(TENANTS)))]
        limits = [Series(ROOFLINE, NEUTRAL, tuple(Point(x, roof, roof, roof) for x in ends), is_limit=True)]
        more = "The roofline is computed from the peak and the bandwidth that the device reached in the same run."
    return over(
        rows,
        TENANTS,
        SIDE,
        colours,
        name=file_name("gemm", "rate", shape, dtype, device),
        title=f"GFLOP/s of {_name(SHAPES.get(shape, shape))}",
        detail=f"{dtype} on {device}",
        x_label="R, products with weights of their own",
        y_label="GFLOP/s",
        extra=limits,
        extra_source=more,
    )


def _speed_ups(rows: Rows, shape: str, dtype: str, colours: Palette) -> Lines | None:
    """Of the fastest path of ours over every baseline: ratios of medians."""
    (device,) = rows.devices
    ours, lines = quotients(rows, TENANTS, colours)
    if not lines:
        return None
    return Lines(
        name=file_name("gemm", "speed-up", shape, dtype, device),
        title=f"Speed-up of ours, {_name(SHAPES.get(shape, shape))}",
        detail=f"{dtype} on {device}, {ours}",
        x_label="R, products with weights of their own",
        y_label="ratio of GFLOP/s",
        series=lines,
        source=f"{source(rows)} Ratios of medians; whiskers are ratios of opposite quartiles.",
        level=1.0,
    )


# -- which rows ------------------------------------------------------------------------------------------------------


def _speeds(found: Rows) -> Rows:
    """Rates over the number of products, weights taking turns."""
    return found.available.where(lambda one: _is_speed(one) and _weights(one) == "rotated")


def _is_speed(found: Measurement) -> bool:
    known = {"shape", SIDE} <= found.axes.keys() and isinstance(found.axes.get(TENANTS), int)
    return known and found.unit == SPEED


def _weights(found: Measurement) -> str:
    return str(found.axes.get("weights", "rotated"))


def _geomeans(found: Rows) -> Rows:
    return found.available.where(
        lambda one: (
            one.metric == GEOMEAN
            and {"shape", SIDE, "baseline"} <= one.axes.keys()
            and one.axes.get("dtype") == FIRST_TYPE
        )
    )


def _of(speeds: Rows, shape: str, dtype: str, weights: str = "rotated") -> Rows:
    wanted = (shape, dtype, weights)
    return speeds.where(lambda one: (one.axes["shape"], one.axes.get("dtype", ""), _weights(one)) == wanted)


def _ours(rows: Rows) -> list[str]:
    return [side for side in rows.texts(SIDE) if is_ours(side)]


def _geomean(means: Rows, shape: str, side: str, baseline: str) -> Row | None:
    wanted = (shape, side, baseline)
    return next(
        (row for row in means if tuple(row.measurement.axes[name] for name in ("shape", SIDE, "baseline")) == wanted),
        None,
    )


def _best(means: Rows, shape: str, baseline: str) -> Row | None:
    mine = [
        row for row in means if (row.measurement.axes["shape"], row.measurement.axes["baseline"]) == (shape, baseline)
    ]
    return max(mine, key=lambda row: row.measurement.median or 0.0, default=None)


def _rate(rows: Rows, shape: str, kernels: int, side: str) -> float | None:
    found = _of(rows, shape, FIRST_TYPE).having(SIDE, side).having(TENANTS, kernels)
    return next((row.measurement.median for row in found), None)


def _ratio(rows: Rows, shape: str, kernels: int, side: str, baseline: str) -> str:
    ours, theirs = _rate(rows, shape, kernels, side), _rate(rows, shape, kernels, baseline)
    return number(ours / theirs) if ours and theirs else NO_FIGURE


def _name(shape: Shape | str) -> str:
    return shape if isinstance(shape, str) else f"{shape.name} {str_of(shape)}"


def _shape_and_type(found: Measurement) -> str:
    return " ".join(str(found.axes[name]) for name in ("shape", "dtype") if name in found.axes)


def _shape_and_side(found: Measurement) -> str:
    return f"{_shape_and_type(found)} {found.axes.get(SIDE, '')}"
