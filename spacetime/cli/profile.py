"""`spacetime profile` and `spacetime-profile`: how long every layer of a model takes over units, and its knee."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from spacetime.api import capture
from spacetime.api import profile as profile_program
from spacetime.cli import compare as comparing
from spacetime.cli.models import KINDS, load_model, quiet_torch, read_sizes
from spacetime.errors import OptionError, SpacetimeError
from spacetime.profiler import pictures
from spacetime.profiler.campaign import Progress
from spacetime.profiler.compare import Comparison, compared
from spacetime.profiler.curves import Knee
from spacetime.profiler.figures import print_count, print_op, print_us, shorten, timeline
from spacetime.profiler.measure import half_width
from spacetime.profiler.page import page
from spacetime.profiler.profile import LayerKnee, Profile
from spacetime.profiler.records import Environment
from spacetime.profiler.run import MODEL, default_store
from spacetime.profiler.store import slug
from spacetime.scheduler.tables import TOLERANCE
from spacetime.values import Value

UNSURE = 0.1  # of the median: measurements end at 0.02, or with their budget
INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended
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
    files: tuple[str, ...]  # what was written: the profile first, then the page
    comparison: Comparison | None


OTHERS = {".html": "--html", ".png": "--picture", ".svg": "--picture", ".csv": "--csv"}  # what their names promise


@dataclass(frozen=True, slots=True)
class Files(Value):
    """Where things go besides the profile itself and its page, which are always written."""

    output: Path | None
    html: Path | None
    pictures: tuple[Path, ...]
    part: str
    csv: Path | None
    chrome: Path | None

    def check(self) -> None:
        """Before an hour of measurements, not after it."""
        for path in filter(None, (self.output, self.html, *self.pictures, self.csv, self.chrome)):
            if not path.parent.is_dir():
                facts = f"{path.parent} is not a directory"
                raise OptionError(f"{path} cannot be written", facts, "make the directory first")
            if path.is_dir():
                raise OptionError(f"{path} cannot be written", "it is a directory", "name a file in it")
            if not os.access(path if path.exists() else path.parent, os.W_OK):
                raise OptionError(f"{path} cannot be written", "its permissions forbid it", "name another place")
        for path in self.pictures:
            pictures.check(path, self.part)
        suffix = "" if self.output is None else self.output.suffix.lower()
        if suffix in OTHERS:
            raise OptionError(f"{self.output} is no profile", "profiles are JSON", f"say {OTHERS[suffix]} for it")


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=KINDS)],
    device: Annotated[str, typer.Option(help="cpu, cuda:N, or model:NAME (model:h200), which is modelled.")] = "cpu",
    rows: Annotated[str, typer.Option(help="Batch sizes; the layers are shown for the first.")] = "1",
    size: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Of a dynamic dimension (ONNX); repeat for several.")
    ] = None,
    units: Annotated[str | None, typer.Option(help="Only these numbers of units, as 1,2,4.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Of the best latency, within which a knee is.")] = TOLERANCE,
    cache: Annotated[str, typer.Option(help="run (inside the model), warm (alone), or cold.")] = "run",
    budget: Annotated[float, typer.Option(help="Seconds to measure a kernel, at most.")] = 1.0,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again what the store knows.")] = False,
    store: Annotated[Path | None, typer.Option(help="Folder of measurements. Default: in the user's cache.")] = None,
    output: Annotated[Path | None, typer.Option(help="The profile's file (JSON). Default: in the store.")] = None,
    html: Annotated[Path | None, typer.Option(help="The page. Default: beside the profile.")] = None,
    picture: Annotated[list[Path] | None, typer.Option(help="A .png or .svg; repeat for several.")] = None,
    part: Annotated[str, typer.Option(help=f"Of the pictures: {', '.join(pictures.PARTS)}.")] = "all",
    csv: Annotated[Path | None, typer.Option(help="Every layer at every number of rows.")] = None,
    chrome: Annotated[Path | None, typer.Option(help="The model in time, for ui.perfetto.dev.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another profile's file, to compare with.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare although devices or versions differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure every layer of a model over units: knees, what bounds them, and how much of the device they leave free.

    Ctrl-C keeps what was measured; the same command resumes.
    """
    files = Files(output, html, tuple(picture or ()), part, csv, chrome)
    all_rows = _numbers("--rows", rows)
    sizes = None if units is None else _numbers("--units", units)
    fixed = read_sizes(size or ())
    files.check()
    other = None if compare is None else Profile.load(compare)

    def measure(progress: Callable[[Progress], None]) -> tuple[str, Profile]:
        named = load_model(model, fixed)
        with quiet_torch():
            program = capture(named.module, named.example)
        return named.name, profile_program(
            program,
            device,
            rows=all_rows,
            units=sizes,
            tolerance=tolerance,
            store=store,
            cache=cache,
            budget_s=budget,
            refresh=refresh,
            progress=progress,
        )

    folder = store if store is not None else default_store()
    name, found = _interruptible(measure, model, device, folder)
    comparison = None if other is None else compared(other, found, force=force)
    report = _report(name, found, _write(files, folder, name, found), comparison)
    if as_json:
        print(report.to_json())
    else:
        _print(report)


def main(arguments: Sequence[str] | None = None) -> None:
    """The script `spacetime-profile`: the verb by itself, and its help says so."""
    script = typer.Typer(
        name="spacetime-profile", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    script.command()(profile)
    try:
        script(args=arguments)
    except SpacetimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """
    >>> _numbers("--rows", "1,2, 8")
    (1, 2, 8)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise OptionError(
            f"{option} {text} is no list of numbers", "they are whole, from 1, with commas between", f"{option} 1,2,4"
        )
    return tuple(dict.fromkeys(map(int, parts)))


# -- measuring -------------------------------------------------------------------------------------------------------


def _interruptible(
    measure: Callable[[Callable[[Progress], None]], tuple[str, Profile]], model: str, device: str, folder: Path
) -> tuple[str, Profile]:
    last: Progress | None = None
    try:
        with _bar(model) as show:

            def progress(now: Progress) -> None:
                nonlocal last
                last = now
                show(now)

            return measure(progress)
    except KeyboardInterrupt:
        print("\n".join(_kept(last, device, folder)), file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _kept(last: Progress | None, device: str, folder: Path) -> Iterator[str]:
    if device.startswith(MODEL):
        yield "interrupted: nothing is kept, modelled figures are quickly made again"
    elif last is None:
        yield "interrupted before any kernel was measured"
    else:
        yield f"interrupted: {last.done} of {last.total} kernels are measured, and kept in {folder}"
        yield "  run the same command again to measure the rest"


@contextmanager
def _bar(model: str) -> Iterator[Callable[[Progress], None]]:
    """On stderr as it is now (`quiet_torch` changes it for a while), when that is a terminal; else nothing."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"capturing {shorten(model, 24)}", total=None)
        yield lambda now: bar.update(task, description=shorten(now.kernel, 34), completed=now.done, total=now.total)


# -- files -----------------------------------------------------------------------------------------------------------


def _write(files: Files, folder: Path, name: str, found: Profile) -> tuple[Path, ...]:
    """The profile, its page and what was asked for; all paths."""
    output = files.output or folder / slug(found.device) / f"{slug(name)}-{found.signature[:8]}.profile.json"
    html = files.html or output.with_name(output.name.removesuffix(".json") + ".html")
    try:
        found.save(output)
        html.write_text(page(found, name, _details(found)), encoding="utf-8")
        for path in files.pictures:
            pictures.plot(found, path, files.part, name)
        if files.csv is not None:
            files.csv.write_text(_csv(found), encoding="utf-8")
        if files.chrome is not None:
            files.chrome.write_text(found.to_chrome(), encoding="utf-8")
    except BrokenPipeError:  # it was written to a pipe that nobody reads any more, as any other output
        raise
    except OSError as error:
        next_step = "name another place: what was measured is kept, the same command is quick"
        raise OptionError(
            f"{error.filename or 'a file'} cannot be written", error.strerror or str(error), next_step
        ) from error
    return tuple(filter(None, (output, html, *files.pictures, files.csv, files.chrome)))


def _csv(found: Profile) -> str:
    """Every number of rows, under one header."""
    each = (found.at(rows).to_csv() for rows in found.all_rows)
    header, *lines = (line for part in each for line in part.splitlines(keepends=True))
    return header + "".join(line for line in lines if line != header)


def _details(found: Profile) -> dict[str, str]:
    environment = found.environment
    dates = sorted({measurement.date for measurement in found.measurements})
    return {
        "driver": environment.driver,
        **dict(environment.versions),
        "caches": found.cache,
        "program": found.signature,
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))),
    }


# -- printing --------------------------------------------------------------------------------------------------------


def _report(name: str, found: Profile, files: tuple[Path, ...], comparison: Comparison | None) -> ProfileReport:
    shown_first = (found.rows, *(rows for rows in found.all_rows if rows != found.rows))
    return ProfileReport(
        model=name,
        method=found.method,
        environment=found.environment,
        cache=found.cache,
        tolerance=found.tolerance,
        totals=tuple(_total(found.at(rows)) for rows in shown_first),
        files=tuple(map(str, files)),
        comparison=comparison,
    )


def _total(found: Profile) -> Total:
    drawn = timeline(found)
    unsure = {
        layer.key for layer in found.layers if any(half_width(point.samples_us) > UNSURE for point in layer.points)
    }
    return Total(found.rows, found.total, drawn.mean_units, drawn.saved_share, len(unsure), found.layers)


def _print(report: ProfileReport) -> None:
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
    console.print(_layer_table(first, console.width))
    console.print(_total_table(report.totals, console.width))
    if any(total.num_unsure for total in report.totals):
        console.print(_unsure(report.totals), soft_wrap=True)
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


def _layer_table(total: Total, width: int) -> Table:
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


def _total_table(totals: Sequence[Total], width: int) -> Table:
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
