"""The command line: one module per verb. The script `spacetime` calls `main`; nothing in the package imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from spacetime._version import __version__
from spacetime.cli import bench, compare, demo, doctor, plan, profile, simulate, study
from spacetime.cli.output import print_in_any_encoding
from spacetime.errors import SpacetimeError

app = typer.Typer(
    name="spacetime", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
# A line each for `spacetime --help`, which would cut the first line of the docstring off.
app.command(short_help="Serve mixed traffic here under three policies, side by side.")(demo.demo)
app.command(short_help="Say what this machine can do, and what is used instead.")(doctor.doctor)
app.command(short_help="Show which lanes there would be on a modelled device.")(plan.plan)
app.command(short_help="Say what traffic would see on a modelled device.")(simulate.simulate)
app.command(short_help="Measure every layer of a model over units: the knees.")(profile.profile)
app.command(short_help="Compare two profiles, or two files of bench results.")(compare.compare)
app.command(short_help="Play a published evaluation in the simulator.")(study.study)
app.command(short_help="Measure kernels, models and traffic on this device.")(bench.bench)


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
    """Many PyTorch models share one device: a batch whose rows belong to different models.

    A tenant is a model that shares the device, a lane one batch on its way through it. A unit is a core of a CPU or a
    multiprocessor of a GPU; the knee of a layer is the least units that serve it nearly as fast as all.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. What spacetime raises on purpose is a message, not a traceback."""
    print_in_any_encoding()
    try:
        app(args=arguments)
    except SpacetimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
