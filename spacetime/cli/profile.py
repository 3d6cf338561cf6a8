"""`spacetime profile` and `spacetime-profile`: how long every layer of a model takes over units, and its knee."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from spacetime.cli.known import KINDS, Known, read_sizes
from spacetime.cli.output import print_in_any_encoding
from spacetime.cli.profile_files import Files, write_files
from spacetime.cli.profile_report import make_report, print_report
from spacetime.errors import OptionError, SpacetimeError
from spacetime.profiler import pictures
from spacetime.profiler.campaign import Progress
from spacetime.profiler.compare import compared
from spacetime.profiler.figures import shorten
from spacetime.profiler.profile import Profile
from spacetime.profiler.run import MODEL, Asked, default_store, known_profile, profile_program
from spacetime.scheduler.tables import TOLERANCE

ENDED_BY_SIGNAL = 128  # and the signal's number: what shells say of a program that one ended


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
    files.check(model)
    other = None if compare is None else Profile.load(compare)

    folder = store if store is not None else default_store()
    asked = Asked(device, all_rows, sizes, tolerance, folder, cache, budget, refresh)

    known = Known(model, fixed, folder)

    def measure(progress: Callable[[Progress], None]) -> tuple[str, Profile]:
        return _known_or_measured(known, model, fixed, asked, progress)

    name, found, last = _interruptible(measure, model, device, folder)
    written = write_files(files, folder, name, found)
    known.keep()
    comparison = None if other is None else compared(other, found, force=force)
    report = make_report(name, found, last, written, comparison)
    if as_json:
        print(report.to_json())
    else:
        print_report(report)


def main(arguments: Sequence[str] | None = None) -> None:
    """The script `spacetime-profile`: the verb by itself, and its help says so."""
    script = typer.Typer(
        name="spacetime-profile", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    script.command()(profile)
    print_in_any_encoding()
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


def _known_or_measured(
    known: Known, model: str, sizes: Mapping[str, int], asked: Asked, progress: Callable[[Progress], None]
) -> tuple[str, Profile]:
    """torch is imported, and the model captured, only where something is not known."""
    known.look()
    if known.origin is not None and known.kept is not None:
        kept = known.kept
        found = known_profile(kept.program, asked, kept.surroundings, known.libraries, progress)
        if found is not None:
            return known.origin.name, found
    from spacetime.api import capture
    from spacetime.cli.models import load_model, quiet_torch
    from spacetime.profiler.source import recall

    named = load_model(model, sizes)
    with quiet_torch():
        program = capture(named.module, named.example)
    found = profile_program(program, asked, progress)
    known.captured(program, recall(program).shown, named.beside)
    return named.name, found


def _interruptible(
    measure: Callable[[Callable[[Progress], None]], tuple[str, Profile]], model: str, device: str, folder: Path
) -> tuple[str, Profile, Progress | None]:
    last: Progress | None = None
    try:
        with _signals_interrupt(), _bar(model) as show:

            def progress(now: Progress) -> None:
                nonlocal last
                last = now
                show(now)

            return *measure(progress), last
    except KeyboardInterrupt as interruption:
        print("\n".join(_kept(last, device, folder)), file=sys.stderr)
        number = interruption.args[0] if interruption.args else signal.SIGINT
        raise typer.Exit(ENDED_BY_SIGNAL + number) from None


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """A machine that shuts down and a terminal that is closed end a program as Ctrl-C does, not at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in ending}
    try:
        for number in ending:
            if before[number] == signal.SIG_DFL:  # under nohup it is to be ignored, and stays so
                signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def _kept(last: Progress | None, device: str, folder: Path) -> Iterator[str]:
    if device.startswith(MODEL):
        yield "interrupted: nothing is kept, modelled figures are quickly made again"
    elif last is None or not (last.done or last.num_begun):
        yield "interrupted before any kernel was measured"
    else:
        yield f"interrupted: {last.done} of {last.total} kernels are measured, and kept in {folder}"
        if last.num_begun:
            yield f"  {last.num_begun} of the others are begun, and kept as well"
        yield "  run the same command again to measure the rest"


@contextmanager
def _bar(model: str) -> Iterator[Callable[[Progress], None]]:
    """On stderr as it is now (`quiet_torch` changes it for a while), when that is a terminal; else nothing."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"capturing {shorten(model, 24)}", total=None)
        yield lambda now: bar.update(task, description=shorten(now.kernel, 34), completed=now.done, total=now.total)
