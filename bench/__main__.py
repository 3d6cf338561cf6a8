"""`python -m bench [CASE ...]`: measure, print as it comes, append to bench/results/<device>/core.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import add, decision, lone, masks, numerics, profile_accuracy, simulator, throughput
from bench.cases import FULL, QUICK, Scale
from bench.provenance import Provenance, collect
from bench.results import Measurement, Row, append, default_path

CASES: dict[str, Callable[[Scale], Iterator[Measurement]]] = {
    "numerics": numerics.run,
    "add": add.run,
    "lone": lone.run,
    "decision": decision.run,
    "masks": masks.run,
    "profile_accuracy": profile_accuracy.run,
    "simulator": simulator.run,
    "throughput": throughput.run,
}


def bench(
    cases: Annotated[list[str] | None, typer.Argument(help=f"Any of: {', '.join(CASES)}. Default: all.")] = None,
    quick: Annotated[bool, typer.Option(help="Few models, few samples; recorded only with --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to append to.")] = None,
) -> None:
    """Measure, print, and append to the results of this device."""
    unknown = sorted(set(cases or ()) - CASES.keys())
    if unknown:
        raise typer.BadParameter(f"no such case: {', '.join(unknown)}; known: {', '.join(CASES)}")
    provenance = collect()
    path = out or (None if quick else default_path(provenance))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not as_json:
        console.print(_heading(provenance))
    for name in cases or CASES:
        for measurement in CASES[name](QUICK if quick else FULL):
            row = Row(measurement, provenance)
            print(row.to_json(), flush=True) if as_json else console.print(_line(measurement))
            if path is not None:
                append(path, [row])


def _heading(provenance: Provenance) -> str:
    dirty = " and changes" if provenance.dirty else ""
    return (
        f"{provenance.cpu}, {provenance.num_cores} cores · torch {provenance.torch} · spacetime {provenance.spacetime} "
        f"(commit {provenance.commit[:12]}{dirty})\n"
        f"{'case':<10} {'subject':<26} {'metric':<38} {'median':>10} {'p25':>10} {'p75':>10} {'n':>5}  {'goal':<22} "
        "unit; note"
    )


def _line(found: Measurement) -> str:
    figures = " ".join(f"{_short(value):>10}" for value in (found.median, found.p25, found.p75))
    return (
        f"{found.case:<10} {found.subject:<26} {found.metric:<38} {figures} {found.n:>5}  {found.goal:<22} "
        f"{'; '.join(filter(None, (found.unit, found.note)))}"
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    typer.run(bench)
