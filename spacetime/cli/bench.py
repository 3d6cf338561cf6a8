"""`spacetime bench`: the suite in bench/, which a checkout has and a wheel has not, and the report on its results."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import spacetime
from spacetime.errors import OptionError

REPORT = "report"
CLONE = "git clone REPOSITORY spacetime && cd spacetime && pip install -e '.[dev]' && spacetime bench"
CASES_HELP = (
    "gemm, models, tenants, overheads, interference, all, another case (a wrong name prints them), or report: make a "
    "page and pictures of what was recorded (it takes --results and --out only). Default: all."
)


def bench(
    cases: Annotated[list[str] | None, typer.Argument(metavar="[CASE...|report]", help=CASES_HELP)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, few samples; recorded only with --out.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="As little as shows that it runs; not to be judged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON instead of a table.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The file or folder to append to; the folder of the report's files.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Of the report: the folder with a folder per device. Default: bench/results.")
    ] = None,
) -> None:
    """Measure kernels, models and traffic on this device, and append to bench/results/. Needs a checkout."""
    if REPORT in (cases or ()):
        given = {"--device": device != "auto", "--quick": quick, "--smoke": smoke, "--json": as_json}
        _report(cases or [], given, results, out)
        return
    if results is not None:
        raise OptionError("--results has no effect on a measurement", f"given: {results}", "name a file with --out")
    suite = _suite("bench.__main__")
    suite.perform(suite.asked(cases, device, quick=quick, smoke=smoke, as_json=as_json, out=out))


def _report(cases: list[str], given: Mapping[str, bool], results: Path | None, out: Path | None) -> None:
    if len(cases) > 1:
        raise OptionError(f"{REPORT} is not a case", f"asked for: {', '.join(cases)}", "measure first, then report")
    for option, is_given in given.items():
        if is_given:
            raise OptionError(f"{option} has no effect on the report", "it shows all that was recorded", "leave it out")
    report = _suite("bench.report")
    for path in report.write_report(results or report.RESULTS, out or report.OUT):
        print(path)


def _suite(module: str) -> Any:
    """A module of bench/, which lies beside the package in a checkout and nowhere else."""
    root = Path(spacetime.__file__).parents[1]
    if not (root / "bench" / "__main__.py").is_file():
        raise OptionError(
            "the benchmark suite is not part of the installed package",
            f"there is no {root / 'bench'}",
            f"it runs in a checkout: {CLONE}",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))  # the processes that it starts look there too
    return importlib.import_module(module)
