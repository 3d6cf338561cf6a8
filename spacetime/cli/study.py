"""`spacetime study`: published figures beside the simulator's. docs/studies/ is what --markdown wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from spacetime.cli.output import check_writable, progress_bar
from spacetime.errors import OptionError
from spacetime.sim import studies
from spacetime.sim.studies.study import Study, Table

LIST = "list"
PIPED_WIDTH = 160  # columns of a table that is not printed to a terminal


def study(
    name: Annotated[str, typer.Argument(metavar=f"[{LIST}|NAME]", help=f"{LIST}: say which there are.")] = LIST,
    quick: Annotated[bool, typer.Option("--quick", help="A part of the runs, in seconds, for a look.")] = False,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as Markdown too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Play a published evaluation in the simulator, and say where the model differs. Every figure is modelled."""
    if name == LIST:
        _print_list(quick, markdown, as_json)
        return
    studies.summary(name)  # a wrong name is an error before anything else is
    check_writable("study", markdown)
    with progress_bar() as show:
        result = studies.run(name, quick=quick, progress=partial(show, name))
    if markdown is not None:
        markdown.write_text(result.to_markdown(), encoding="utf-8")
    if as_json:
        print(result.to_json())
    else:
        _print(result)


def _print_list(quick: bool, markdown: Path | None, as_json: bool) -> None:
    for option, is_given in (("--quick", quick), ("--markdown", markdown is not None), ("--json", as_json)):
        if is_given:
            facts = f"without a name the verb lists what it knows: {', '.join(studies.names())}"
            raise OptionError(f"{option} has no effect on the list of studies", facts, "name a study, or leave it out")
    console = Console(markup=False, highlight=False)
    for name in studies.names():
        console.print(f"{name:<20} {studies.summary(name)}", soft_wrap=True)


def _print(result: Study) -> None:
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, width=PIPED_WIDTH)
    console.print(f"modelled: {result.title} on {result.device}{', a quick look' if result.is_quick else ''}")
    console.print(result.question)
    for table in (result.claims_table(), *result.tables):
        console.print()
        console.print(table.title)
        console.print(_rich(table))
    for heading, texts in (("How", result.method), ("Where the model differs, and why", result.notes)):
        console.print(f"\n{heading}")
        for text in texts:
            console.print(f"- {text}")


def _rich(table: Table) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for index, heading in enumerate(table.headings):
        is_text = all(isinstance(row[index], str) for row in table.rows)
        drawn.add_column(heading, justify="left" if is_text else "right")
    for row in table.shown():
        drawn.add_row(*row)
    return drawn
