"""`python -m bench.report`: write the report, and say where."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.report import OUT, RESULTS, write_report
from spacetime.errors import SpacetimeError


def report(
    results: Annotated[Path, typer.Option(help="The folder with a folder per device.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="Where the page and its pictures go.")] = OUT,
) -> None:
    """One HTML page and PNGs of what was measured; of the project's own results docs/results.md, too."""
    try:
        files = write_report(results, out)
    except SpacetimeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    pictures = sum(path.suffix == ".png" for path in files)
    for path in files:
        if path.suffix != ".png":
            print(path)
    print(f"{pictures} pictures in {out}")


if __name__ == "__main__":
    typer.run(report)
