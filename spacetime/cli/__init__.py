"""The command line: one module per verb. The script `spacetime` calls `main`; nothing in the package imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from spacetime._version import __version__
from spacetime.cli.output import print_in_any_encoding
from spacetime.errors import SpacetimeError

# Each in a module of its name. A line each for `spacetime --help`, which would cut the first line of the docstring off.
VERBS = {
    "demo": "Serve mixed traffic here under three policies, side by side.",
    "doctor": "Say what this machine can do, and what is used instead.",
    "plan": "Show which lanes there would be on a modelled device.",
    "simulate": "Say what traffic would see on a modelled device.",
    "profile": "Measure every layer of a model over units: the knees.",
    "compare": "Compare two profiles, or two files of bench results.",
    "study": "Play a published evaluation in the simulator.",
    "bench": "Measure kernels, models and traffic on this device.",
}


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """The command line. Of verbs it has the one that comes first, else all: most of them import torch."""
    app = typer.Typer(
        name="spacetime",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        callback=_root,
    )
    for verb in arguments[:1] if set(arguments[:1]) & VERBS.keys() else VERBS:
        function = getattr(import_module(f"{__name__}.{verb}"), verb)
        app.command(short_help=VERBS[verb])(function)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(f"spacetime {__version__}")
        raise typer.Exit()


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
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        make_app(arguments)(args=arguments)
    except SpacetimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
