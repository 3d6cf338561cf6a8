"""The command line: one module per verb. The script `spacetime` calls `main`; nothing in the package imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from spacetime._version import __version__
from spacetime.cli import bench, compare, demo, doctor, plan, profile, simulate, study
from spacetime.errors import SpacetimeError

app = typer.Typer(
    name="spacetime", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command()(plan.plan)
app.command()(simulate.simulate)
app.command()(profile.profile)
app.command()(compare.compare)
app.command()(study.study)
app.command()(bench.bench)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"spacetime {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Many PyTorch models share one device: a batch whose rows belong to different models."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. What spacetime raises on purpose is a message, not a traceback."""
    try:
        app(args=arguments)
    except SpacetimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
