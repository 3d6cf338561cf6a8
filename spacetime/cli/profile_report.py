"""What `spacetime profile` says: the report that --json prints, and its tables. Used by profile.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from spacetime.cli import compare as comparing
from spacetime.profiler.campaign import Progress
from spacetime.profiler.compare import Comparison
from spacetime.profiler.curves import Knee
from spacetime.profiler.figures import print_count, print_op, print_us, shorten, timeline
from spacetime.profiler.measure import half_width
from spacetime.profiler.profile import LayerKnee, Profile
from spacetime.profiler.records import Environment
from spacetime.values import Value

UNSURE = 0.1  # of the median: measurements end at 0.02, or with their budget
PIPED_WIDTH = 160  # columns of a table that is not printed to a terminal


@dataclass(frozen=True, slots=True)
class Total(Value):
    """The whole model at one number of rows."""

    rows: int
    knee: Knee
    mean_units: float  # needed over time when every kernel runs at its knee
    saved_share: float  # of the unit-time on all units
    num_unsure: int  # kernels whose latency, on some size, has a 95 % interval wider than UNSURE to either side
    layers: tuple[LayerKnee, ...]


@dataclass(frozen=True, slots=True)
class ProfileReport(Value):
    """What --json prints."""

    model: str
    method: str
    environment: Environment
    cache: str
    tolerance: float
    totals: tuple[Total, ...]
    num_stale: int  # kernels that the store knew from other conditions, and that were measured again
    changes: tuple[str, ...]  # how these conditions differ
    files: tuple[str, ...]  # what was written: the profile first, then the page
    comparison: Comparison | None


def make_report(
    name: str, found: Profile, last: Progress | None, files: tuple[Path, ...], comparison: Comparison | None
) -> ProfileReport:
    """`last`: what the measuring said at its end, if anything was measured or known."""
    shown_first = (found.rows, *(rows for rows in found.all_rows if rows != found.rows))
    return ProfileReport(
        model=name,
        method=found.method,
        environment=found.environment,
        cache=found.cache,
        tolerance=found.tolerance,
        totals=tuple(total_of(found.at(rows)) for rows in shown_first),
        num_stale=last.num_stale if last is not None else 0,
        changes=last.changes if last is not None else (),
        files=tuple(map(str, files)),
        comparison=comparison,
    )


def total_of(found: Profile) -> Total:
    drawn = timeline(found)
    unsure = {
        layer.key for layer in found.layers if any(half_width(point.samples_us) > UNSURE for point in layer.points)
    }
    return Total(found.rows, found.total, drawn.mean_units, drawn.saved_share, len(unsure), found.layers)


def print_report(report: ProfileReport) -> None:
    console = comparing.make_console(PIPED_WIDTH)
    environment, first = report.environment, report.totals[0]
    how = f"{report.method}, {report.cache} caches" if report.method == "measured" else report.method
    console.print(
        f"{report.model} on {environment.device}, {environment.num_units} units "
        f"({how}) · {_rows(first.rows)} "
        f"· knees within {report.tolerance:.0%} of the best latency",
        soft_wrap=True,
    )
    if environment.unconfined:
        console.print(f"measured on the whole device only: {environment.unconfined}", soft_wrap=True)
    console.print(layer_table(first, console.width))
    console.print(total_table(report.totals, console.width))
    if any(total.num_unsure for total in report.totals):
        console.print(_unsure(report.totals), soft_wrap=True)
    if report.num_stale:
        known = "1 kernel was" if report.num_stale == 1 else f"{report.num_stale} kernels were"
        console.print(f"{known} known from other conditions, and measured again", soft_wrap=True)
        for change in report.changes:
            console.print(f"  {change}", soft_wrap=True)
    if report.comparison is not None:
        comparing.print_comparison(console, report.comparison)
    for path in report.files:
        console.print(path, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Column:
    """Of the table of layers; of a group of equal kernels it shows the first."""

    heading: str
    text: Callable[[LayerKnee, int, bool], str]  # of a kernel, so often in the model, in a narrow table or not
    fewest_columns: int = 0  # of the terminal: narrower ones leave it out, the page has it
    is_number: bool = True


COLUMNS = (
    Column("layer", lambda layer, times, narrow: shorten(layer.name, 18 if narrow else 40), is_number=False),
    Column("op", lambda layer, times, narrow: shorten(print_op(layer.op), 13 if narrow else 24), 60, is_number=False),
    Column("shape", lambda layer, times, narrow: _first_shape(layer.shape), 145, is_number=False),
    Column("times", lambda layer, times, narrow: str(times), 90),
    Column("flops", lambda layer, times, narrow: print_count(layer.flops), 115),
    Column("bytes", lambda layer, times, narrow: print_count(layer.bytes, "B"), 115),
    Column("best", lambda layer, times, narrow: print_us(layer.knee.best_us)),
    Column("knee", lambda layer, times, narrow: f"{layer.knee.units}/{layer.knee.best_units}"),
    Column("saved", lambda layer, times, narrow: f"{layer.knee.saved_units:.0%}", 72),
    Column("bound", lambda layer, times, narrow: layer.bound, 80, is_number=False),
)


def layer_table(total: Total, width: int) -> Table:
    """Every kind of work once: layers that are the same kernel were measured together."""
    alike: dict[str, list[LayerKnee]] = {}
    for layer in total.layers:
        alike.setdefault(layer.key, []).append(layer)
    shown = [column for column in COLUMNS if width >= column.fewest_columns]
    narrow = len(shown) < len(COLUMNS)
    left_out = [column.heading for column in COLUMNS if column not in shown]
    caption = f"{', '.join(left_out)}: in a wider terminal, or on the page" if left_out else None
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for column in shown:
        table.add_column(column.heading, justify="right" if column.is_number else "left", no_wrap=True)
    for group in alike.values():
        table.add_row(*(column.text(group[0], len(group), narrow) for column in shown))
    return table


def _first_shape(shapes: str) -> str:
    """Of several outputs the first is the result, the others are by-products.

    >>> _first_shape("float32[rows, 64], float32[0], float32[0]")
    'float32[rows, 64] ...'
    """
    first, more, _ = shapes.partition("], ")
    return f"{first}] ..." if more else shapes


def total_table(totals: Sequence[Total], width: int) -> Table:
    columns: tuple[tuple[str, Callable[[Total], str]], ...] = (
        ("whole model", lambda total: _rows(total.rows)),
        ("best", lambda total: print_us(total.knee.best_us)),
        ("knee", lambda total: f"{total.knee.units}/{total.knee.best_units}"),
        ("at the knee", lambda total: print_us(total.knee.latency_us)),
        ("units needed", lambda total: f"{total.mean_units:.1f}"),
        ("saved", lambda total: f"{total.saved_share:.0%}"),
    )
    shown = [column for column in columns if width >= 72 or column[0] not in ("at the knee", "units needed")]
    table = Table(box=box.SIMPLE_HEAD)
    for index, (heading, _) in enumerate(shown):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for total in totals:
        table.add_row(*(text(total) for _, text in shown))
    return table


def _unsure(totals: Sequence[Total]) -> str:
    """They are in the store all the same, so the same command would not measure them again."""
    kernels = sum(len({layer.key for layer in total.layers}) for total in totals)
    return (
        f"{sum(total.num_unsure for total in totals)} of {kernels} kernels are known to no better than {UNSURE:.0%}: "
        "the machine was busy, or --budget ended first\n  --refresh measures again, --budget 3 for longer"
    )


def _rows(count: int) -> str:
    return f"{count} row" + ("" if count == 1 else "s")
