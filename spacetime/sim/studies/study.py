"""A study's result as a value that prints as Markdown: figures of the model beside published ones. Studies and the
command line import it; no torch.

Text in it is Markdown of one line. A cell is a number, or a text; None is a figure that nobody has.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, log

from spacetime.values import Value

Cell = str | int | float | None
Progress = Callable[[int, int], None]  # steps done, steps in all

NO_FIGURE = "-"
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Claim(Value):
    """A figure that was published, and what the model gives for it."""

    name: str
    published: float
    modelled: float
    source: str

    @property
    def ratio(self) -> float:
        """1 when the model agrees."""
        return self.modelled / self.published


@dataclass(frozen=True, slots=True)
class Column(Value):
    heading: str
    format: str = ""  # of its numbers, as in format()

    def show(self, cell: Cell) -> str:
        if cell is None:
            return NO_FIGURE
        return cell if isinstance(cell, str) else format(cell, self.format)


@dataclass(frozen=True, slots=True)
class Table(Value):
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(column.heading for column in self.columns)

    def shown(self) -> list[tuple[str, ...]]:
        """The rows as texts."""
        return [tuple(column.show(cell) for column, cell in zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass(frozen=True, slots=True)
class Study(Value):
    """Every figure is modelled unless it is called published."""

    name: str
    title: str
    device: str
    version: str
    is_quick: bool  # fewer runs than the study needs: for a look
    question: str
    method: tuple[str, ...]
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]  # where the model differs, and why

    @property
    def command(self) -> str:
        """What makes it again."""
        return f"spacetime study {self.name}{' --quick' if self.is_quick else ''}"

    def claims_table(self) -> Table:
        columns = (
            Column("claim"),
            Column("published", ".2f"),
            Column("modelled", ".2f"),
            Column("modelled / published", ".2f"),
            Column("published in"),
        )
        rows = tuple((claim.name, claim.published, claim.modelled, claim.ratio, claim.source) for claim in self.claims)
        return Table("Published and modelled", columns, rows)

    def __str__(self) -> str:
        return self.to_markdown()

    def to_markdown(self) -> str:
        facts = f"Every figure is **modelled** unless its heading says published. Device: {self.device}. "
        facts += f"spacetime {self.version}."
        facts += (
            " **A quick look**: only a part of the runs, and the notes are on all of them." if self.is_quick else ""
        )
        parts = [f"# {self.title}", _wrap(facts), f"```\n{self.command} --markdown FILE\n```", _wrap(self.question)]
        parts += ["## How", _list(self.method), "## Published and modelled", _grid(self.claims_table())]
        parts += ["## Where the model differs, and why", _list(self.notes)]
        for table in self.tables:
            parts += [f"## {table.title}", _grid(table)]
        return "\n\n".join(parts) + "\n"


def geomean(values: Iterable[float]) -> float:
    """
    >>> round(geomean([1.0, 4.0]), 9)
    2.0
    """
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )


def _list(texts: tuple[str, ...]) -> str:
    return "\n".join(_wrap(text, "- ") for text in texts)


def _grid(table: Table) -> str:
    """Texts to the left, numbers to the right, as wide as they need to be."""
    shown = [table.headings, *table.shown()]
    widths = [max(3, *(len(row[index]) for row in shown)) for index in range(len(table.columns))]
    is_text = [all(isinstance(row[index], str) for row in table.rows) for index in range(len(table.columns))]
    lines = [_line(row, widths, is_text) for row in shown]
    rule = [f":{'-' * (w - 1)}" if text else f"{'-' * (w - 1)}:" for w, text in zip(widths, is_text, strict=True)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _line(row: tuple[str, ...], widths: list[int], is_text: list[bool]) -> str:
    cells = [c.ljust(w) if text else c.rjust(w) for c, w, text in zip(row, widths, is_text, strict=True)]
    return f"| {' | '.join(cells)} |"
