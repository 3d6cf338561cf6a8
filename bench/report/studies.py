"""The studies in docs/studies: what the simulator gives for published evaluations. Modelled, every figure of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.provenance import REPOSITORY
from bench.report.figures import Section, Sheet
from spacetime.values import Value

FOLDER = REPOSITORY / "docs" / "studies"
CLAIMS = "## Published and modelled"  # the heading of the table that every study has


@dataclass(frozen=True, slots=True)
class Claims(Value):
    """The table of one study's file."""

    title: str
    file: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def section(folder: Path = FOLDER) -> Section | None:
    found = tuple(_claims(folder))
    if not found:
        return None
    text = (
        "Published evaluations, played again in the simulator. Every figure here is modelled or published; none was "
        "measured. The studies say where the model differs, and why."
    )
    sheets = tuple(
        Sheet(f"{claims.title} (modelled)", claims.headings, claims.rows, f"Modelled; docs/studies/{claims.file}.")
        for claims in found
    )
    return Section("Modelled", text, tuple(_fold(sheet) for sheet in sheets))


def _fold(sheet: Sheet) -> Sheet:
    return Sheet(sheet.title, sheet.headings, sheet.rows, sheet.source, is_folded=True)


def _claims(folder: Path) -> Iterator[Claims]:
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        table = [line for line in _after(text, CLAIMS) if line.startswith("|")]
        if len(table) > 2:
            heads, _, *rows = (tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table)
            yield Claims(title, path.name, heads, tuple(rows))


def _after(text: str, heading: str) -> list[str]:
    """The lines of one part of a text."""
    _, _, rest = text.partition(f"{heading}\n")
    return rest.partition("\n## ")[0].splitlines()
