"""A report as Markdown: docs/results.md. Equal rows give an equal text. Nothing else imports it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bench.report.document import Document
from bench.report.figures import Sheet

WIDTH = 120
COMMAND = "python -m bench.report"


def text(document: Document) -> str:
    parts = [
        f"# {document.title}",
        f"<!-- Written by `{COMMAND}` from bench/results/: change the results, not this file. -->",
        _wrap(document.text),
    ]
    if document.highlights:
        parts.append("\n".join(_wrap(f"**{_plain(big)}** {_plain(small)}", "- ") for big, small in document.highlights))
    for sheet in (document.answers, document.overview):
        parts += [] if sheet is None else _sheet(sheet)
    for section in document.sections:
        parts += [f"## {section.title}", _wrap(_plain(section.text))]
        parts += [part for sheet in (*section.sheets, *section.more_sheets) for part in _sheet(sheet)]
    parts.append("## Measured on, and with")
    for facts in document.environments:
        parts.append(_grid(("fact", "value"), [*facts.items()], (False, False)))
    if document.methods:
        parts.append("## How each figure was measured")
        parts.append("\n".join(_wrap(_plain(method), "- ") for method in document.methods))
    return "\n\n".join(parts) + "\n"


def _sheet(sheet: Sheet) -> list[str]:
    grid = _grid(sheet.headings, sheet.rows, sheet.is_number)
    source = [_wrap(_plain(sheet.source))] if sheet.source else []
    if sheet.is_folded:
        return [f"<details><summary>{_plain(sheet.title)}</summary>", grid, *source, "</details>"]
    return [f"### {_plain(sheet.title)}", grid, *source]


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool]) -> str:
    """As wide as needed, up to where alignment would only be padding."""
    shown = [[_plain(cell) for cell in row] for row in (headings, *rows)]
    widths = [min(60, max(3, *(len(row[index]) for row in shown))) for index in range(len(headings))]
    lines = ["| " + " | ".join(map(_padded, row, widths, is_number)) + " |" for row in shown]
    rule = " | ".join("-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, is_number, strict=True))
    return "\n".join([lines[0], f"| {rule} |", *lines[1:]])


def _padded(cell: str, width: int, is_number: bool) -> str:
    return cell.rjust(width) if is_number else cell.ljust(width)


def _plain(cell: str) -> str:
    """Nothing in it is taken for Markdown or HTML."""
    for letter, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("`", "\\`"), ("\n", " ")):
        cell = cell.replace(letter, escaped)
    return cell


def _wrap(paragraph: str, bullet: str = "") -> str:
    return textwrap.fill(
        paragraph,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_on_hyphens=False,
        break_long_words=False,
    )
