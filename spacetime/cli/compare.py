"""`spacetime compare`: two profiles side by side, kernel by kernel, or two files of bench results, figure by figure.

`spacetime profile --compare` prints the former, which profiler/compare.py computes; results.py has the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from spacetime.cli.results import compared_results, is_results, print_results
from spacetime.errors import OptionError
from spacetime.profiler.compare import Change, Comparison, compared
from spacetime.profiler.figures import print_op, print_us, shorten
from spacetime.profiler.profile import Profile

MOST_SHOWN = 20  # kernels in the table; --json has all
PIPED_WIDTH = 140  # columns of a table that is not printed to a terminal


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A profile, or a .jsonl of bench results.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    force: Annotated[
        bool, typer.Option("--force", help="Compare although they were made on different devices.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what changed between two profiles, or two files of bench results, in what both have."""
    if is_results(before) and is_results(after):
        figures = compared_results(before, after, force=force)
        if as_json:
            print(figures.to_json())
            return
        print_results(make_console(PIPED_WIDTH), figures)
        return
    for path, other in ((before, after), (after, before)):
        if is_results(path):
            facts = f"{path} holds bench results, {other} does not"
            raise OptionError("results and a profile cannot be compared", facts, "name two of a kind")
    comparison = compared(Profile.load(before), Profile.load(after), force=force)
    if as_json:
        print(comparison.to_json())
        return
    print_comparison(make_console(PIPED_WIDTH), comparison)


def make_console(piped_width: int) -> Console:
    """Names and shapes are printed as they are: brackets are no markup. A pipe gets whole lines."""
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=piped_width)


def print_comparison(console: Console, comparison: Comparison) -> None:
    lines = [f"before: {comparison.before}", f"after:  {comparison.after}"]
    lines += [f"  {difference}" for difference in comparison.differences]
    shown = comparison.kernels[:MOST_SHOWN]
    summary = f"{len(comparison.kernels)} kernels in both, {comparison.num_same_knees} with the same knee"
    if comparison.num_only_before or comparison.num_only_after:
        summary += f"; {comparison.num_only_before} only before, {comparison.num_only_after} only after"
    if len(shown) < len(comparison.kernels):
        summary += f"; the {len(shown)} that changed most are shown"
    for line in (*lines, summary):
        console.print(line, soft_wrap=True)
    console.print(comparison_table([*comparison.models, *shown], console.width))


@dataclass(frozen=True, slots=True)
class Column:
    heading: str
    text: Callable[[Change, bool], str]  # in a narrow table or not
    fewest_columns: int = 0  # of the terminal: narrower ones leave it out, --json has it
    is_number: bool = True


COLUMNS = (
    Column("kernel", lambda change, narrow: shorten(change.name, 18 if narrow else 40), is_number=False),
    Column("op", lambda change, narrow: shorten(print_op(change.op), 13 if narrow else 28), 105, is_number=False),
    Column("rows", lambda change, narrow: str(change.rows), 95),
    Column("times", lambda change, narrow: str(change.times), 120),
    Column("best before", lambda change, narrow: print_us(change.before.best_us)),
    Column("after", lambda change, narrow: print_us(change.after.best_us)),
    Column("ratio", lambda change, narrow: f"{change.ratio:.2f} x"),
    Column("knee before", lambda change, narrow: f"{change.before.units}/{change.before.best_units}", 85),
    Column("after", lambda change, narrow: f"{change.after.units}/{change.after.best_units}", 85),
)


def comparison_table(changes: Sequence[Change], width: int) -> Table:
    shown = [column for column in COLUMNS if width >= column.fewest_columns]
    narrow = len(shown) < len(COLUMNS)
    table = Table(box=box.SIMPLE_HEAD)
    for column in shown:
        table.add_column(column.heading, justify="right" if column.is_number else "left", no_wrap=True)
    for change in changes:
        table.add_row(*(column.text(change, narrow) for column in shown))
    return table
