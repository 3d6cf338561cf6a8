"""`python -m bench [CASE ...]`, and what `spacetime bench` calls: measure, print, append to bench/results/<device>/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.cases import FULL, QUICK, SMOKE, Scale
from bench.provenance import Provenance, collect
from bench.results import Measurement, Row, append, default_path
from bench.sides import started_afresh
from spacetime.errors import OptionError

Run = Callable[[Scale], Iterator[Measurement]]


def _case(module: str) -> Run:
    """The case of a module, which is imported when it runs: nobody waits for the imports of the others."""

    def run(scale: Scale) -> Iterator[Measurement]:
        measurements: Iterator[Measurement] = import_module(f"bench.{module}").run(scale)
        return measurements

    return run


GROUPS = ("gemm", "models", "tenants", "overheads", "interference")  # each with a results file of its own
CORE = (
    "numerics",
    "add",
    "lone",
    "decision",
    "masks",
    "merging",
    "intercept",
    "profile_accuracy",
    "simulator",
    "throughput",
)
CASES: dict[str, Run] = {name: _case(name) for name in (*GROUPS, *CORE)}
ALL, SUITE, REST = "all", "suite", "core"
SETS = {ALL: (*GROUPS, *CORE), SUITE: GROUPS, REST: CORE}
ONLY_ON_CPU = CORE  # what they measure is the CPU backend, the host, or the simulator
KNOWN = f"any of {', '.join((*GROUPS, *CORE))}; {ALL}, or {SUITE}: the first five, or {REST}: the others"


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure, and where the rows go."""

    cases: tuple[str, ...]
    scale: Scale
    out: Path | None  # a file, or a folder for a file per group; None: the results of this device
    recorded: bool
    as_json: bool


def bench(
    cases: Annotated[list[str] | None, typer.Argument(help=f"{KNOWN}. Default: {ALL}.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, few samples; recorded only with --out.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="As little as shows that it runs; not to be judged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file or the existing folder to append to.")] = None,
) -> None:
    """Measure, print, and append to the results of this device."""
    try:
        request = asked(cases, device, quick=quick, smoke=smoke, as_json=as_json, out=out)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error
    perform(request)


def asked(
    cases: Sequence[str] | None, device: str, *, quick: bool, smoke: bool = False, as_json: bool, out: Path | None
) -> Request:
    """The checked request; `OptionError` where there is no such case or device."""
    known = {
        **{name: (name,) for name in CASES},
        **{name: some for name, some in SETS.items() if set(some) <= CASES.keys()},
    }
    unknown = sorted(set(cases or ()) - known.keys())
    if unknown:
        raise OptionError(f"no such case: {', '.join(unknown)}", f"known: {', '.join(known)}", "name one of these")
    found = device_of(device)
    names = tuple(dict.fromkeys(name for word in cases or (ALL,) for name in known.get(word, tuple(CASES))))
    if found != "cpu":
        named = [name for name in names if name in ONLY_ON_CPU and name in (cases or ())]
        if named:
            raise OptionError(f"{', '.join(named)} cannot run on {found}", "it measures the CPU", "add --device cpu")
        names = tuple(name for name in names if name not in ONLY_ON_CPU)
    scale = replace(SMOKE if smoke else QUICK if quick else FULL, device=found)
    return Request(names, scale, out, recorded=out is not None or not scale.quick, as_json=as_json)


def device_of(name: str) -> str:
    """The device that a name means: "cpu" or "cuda:N"."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    number = torch.cuda.device_count()
    if kind != "cuda" or not (index or "0").isdecimal():
        raise OptionError(f"device {name!r} does not exist", "known: auto, cpu, cuda:N", "name one of these")
    if int(index or 0) >= number:
        raise OptionError(
            f"device {name!r} is not here", f"torch {torch.__version__} sees {number} CUDA devices", "name one, or cpu"
        )
    return f"cuda:{index or 0}"


def perform(request: Request) -> None:
    provenance = collect(request.scale.device)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not request.as_json:
        console.print(_heading(provenance))
    with _progress() as show, started_afresh(request.recorded):
        for index, name in enumerate(request.cases):
            show(f"{name} ({index + 1} of {len(request.cases)})")
            for number, measurement in enumerate(CASES[name](request.scale)):
                show(f"{name} ({index + 1} of {len(request.cases)}): {number + 1} figures, {measurement.subject}")
                row = Row(measurement, provenance)
                print(row.to_json(), flush=True) if request.as_json else console.print(_line(measurement))
                path = _path(request, name, provenance)
                if path is not None:
                    append(path, [row])


def _path(request: Request, case: str, provenance: Provenance) -> Path | None:
    group = case if case in GROUPS else "core"
    if not request.recorded:
        return None
    if request.out is None:
        return default_path(provenance, group)
    return request.out / f"{group}.jsonl" if request.out.is_dir() else request.out


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says where it is, when that is a terminal. How many figures a case has, nobody knows."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda text: progress.update(task, description=text)


def _heading(provenance: Provenance) -> str:
    dirty = " and changes" if provenance.dirty else ""
    on = f"{provenance.cpu}, {provenance.num_cores} cores"
    if provenance.gpu != "none":
        on = f"{provenance.gpu}, driver {provenance.driver}, {on}"
    return (
        f"{on} · torch {provenance.torch} · spacetime {provenance.spacetime} (commit {provenance.commit[:12]}{dirty})\n"
        f"{'case':<10} {'subject':<46} {'metric':<34} {'median':>10} {'p25':>10} {'p75':>10} {'noise':>6} {'n':>5}  "
        f"{'goal':<18} unit; note"
    )


def _line(found: Measurement) -> str:
    figures = " ".join(f"{_short(value):>10}" for value in (found.median, found.p25, found.p75))
    return (
        f"{found.case:<10} {found.subject:<46} {found.metric:<34} {figures} {_noise(found):>6} {found.n:>5}  "
        f"{found.goal:<18} {'; '.join(filter(None, (found.unit, found.note)))}"
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _noise(found: Measurement) -> str:
    """The distance of the quartiles, as a share of the median."""
    if found.n < 2 or not found.median or found.p25 is None or found.p75 is None:
        return "-"
    return f"{abs((found.p75 - found.p25) / found.median):.0%}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(bench)
    app()
