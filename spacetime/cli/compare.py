"""`spacetime compare`: two profiles side by side, kernel by kernel, or two files of bench results, figure by figure.

`spacetime profile --compare` prints the former; what is about results is in results.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from spacetime.cli.results import compared_results, is_results, print_results
from spacetime.errors import OptionError
from spacetime.profiler.curves import Knee
from spacetime.profiler.figures import print_us, shorten
from spacetime.profiler.profile import LayerKnee, Profile
from spacetime.values import Value

MOST_SHOWN = 20  # kernels in the table; --json has all
PIPED_WIDTH = 140  # columns of a table that is not printed to a terminal


@dataclass(frozen=True, slots=True)
class Change(Value):
    """The same work in two profiles: a kernel, or a whole model."""

    name: str
    op: str
    rows: int
    times: int  # how often the second model runs it
    before: Knee
    after: Knee

    @property
    def ratio(self) -> float:
        """Of the best latencies: 2 is twice as slow."""
        return self.after.best_us / self.before.best_us

    @property
    def weight_us(self) -> float:
        return abs(self.after.best_us - self.before.best_us) * self.times


@dataclass(frozen=True, slots=True)
class Comparison(Value):
    """What --json prints."""

    before: str  # device and method
    after: str
    differences: tuple[str, ...]  # of the environments
    models: tuple[Change, ...]  # one per number of rows; none if the programs differ
    kernels: tuple[Change, ...]  # those that both have, by how much time they gain or lose
    num_only_before: int
    num_only_after: int

    @property
    def num_same_knees(self) -> int:
        return sum(change.before.units == change.after.units for change in self.kernels)


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


def compared(before: Profile, after: Profile, *, force: bool) -> Comparison:
    """Two profiles, matched by kernel and rows. Unequal environments are refused unless `force`."""
    differences = before.environment.differences(after.environment)
    if before.cache != after.cache:
        differences += (f"caches: {before.cache} here, {after.cache} there",)
    if differences and not force:
        raise OptionError(
            "these profiles cannot be compared: they were made under different conditions",
            "; ".join(differences),
            "profile both under the same, or add --force to compare them all the same",
        )
    common_rows = [rows for rows in after.all_rows if rows in before.all_rows]
    mine, theirs = _kernels(before, common_rows), _kernels(after, common_rows)
    common = [key for key in theirs if key in mine]
    if not common:
        facts = f"rows {list(before.all_rows)} and {list(after.all_rows)}; {len(before.program)} and "
        facts += f"{len(after.program)} kernels, none the same at the same number of rows"
        raise OptionError("these profiles have nothing in common", facts, "profile the same model with the same rows")
    times = Counter(layer.key for layer in after.program)
    changes = [
        Change(layer.name, layer.op, rows, times[key], mine[key, rows].knee, layer.knee)
        for key, rows in common
        for layer in (theirs[key, rows],)
    ]
    same_program = before.signature == after.signature
    return Comparison(
        before=f"{before.device} ({before.method})",
        after=f"{after.device} ({after.method})",
        differences=differences,
        models=tuple(_whole(before, after, rows) for rows in common_rows) if same_program else (),
        kernels=tuple(sorted(changes, key=lambda change: -change.weight_us)),
        num_only_before=len(mine) - len(common),
        num_only_after=len(theirs) - len(common),
    )


def _kernels(profile: Profile, all_rows: Sequence[int]) -> dict[tuple[str, int], LayerKnee]:
    """The first layer of every kernel, at every number of rows."""
    found: dict[tuple[str, int], LayerKnee] = {}
    for rows in all_rows:
        for layer in profile.at(rows).layers:
            found.setdefault((layer.key, rows), layer)
    return found


def _whole(before: Profile, after: Profile, rows: int) -> Change:
    return Change("whole model", "", rows, 1, before.at(rows).total, after.at(rows).total)


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
    console.print(_table([*comparison.models, *shown]))


def _table(changes: Sequence[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("kernel", overflow="fold")
    table.add_column("op", overflow="fold")
    for heading in ("rows", "times", "best before", "after", "ratio", "knee before", "after"):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in changes:
        before, after = change.before, change.after
        table.add_row(
            shorten(change.name, 40),
            shorten(change.op, 28),
            str(change.rows),
            str(change.times),
            print_us(before.best_us),
            print_us(after.best_us),
            f"{change.ratio:.2f} x",
            f"{before.units}/{before.best_units}",
            f"{after.units}/{after.best_units}",
        )
    return table
