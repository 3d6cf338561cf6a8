"""A report as a value: its sections in order, and where its figures come from. `page` and `markdown` print it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.report import core, gemm, models, overheads, proofs, sources, studies, traffic
from bench.report.answers import answers, tiles
from bench.report.figures import Chart, Section, Sheet
from bench.report.overview import overview
from bench.report.rows import Rows, read
from spacetime.values import Value

TITLE = "Results"
NOTHING = "Nothing has been measured yet: spacetime bench measures, and appends to bench/results/."
# In the order of the page. Each takes the rows of its cases; what no section knows is in the last of them.
SECTIONS: tuple[Callable[[Rows], Section | None], ...] = (
    gemm.section,
    models.section,
    traffic.tenants_section,
    traffic.interference_section,
    core.shortfalls_section,
    overheads.section,
    core.other_section,
)


@dataclass(frozen=True, slots=True)
class Document(Value):
    title: str
    text: str
    highlights: tuple[tuple[str, str], ...]
    answers: Sheet | None
    overview: Sheet | None
    sections: tuple[Section, ...]
    environments: tuple[dict[str, str], ...]
    methods: tuple[str, ...]

    @property
    def charts(self) -> tuple[Chart, ...]:
        return tuple(chart for section in self.sections for chart in (*section.charts, *section.folded_charts))


def document(results: Path) -> Document:
    """Everything below `results`: rows, and what a device's folder has besides."""
    rows = read(results)
    made = [make(rows) for make in SECTIONS]
    modelled = studies.section()
    made += [proofs.knees_section(results), proofs.device_section(results), modelled]
    num_studies = 0 if modelled is None else len(modelled.sheets)
    proved = [path.parent.name for path in proofs.proved(results)]
    return Document(
        title=TITLE,
        text=_text(rows),
        highlights=tiles(rows),
        answers=answers(rows),
        overview=overview(rows, num_studies, len(proofs.profiles(results)), proved),
        sections=tuple(section for section in made if section is not None),
        environments=sources.environments(rows),
        methods=sources.methods(rows),
    )


def _text(rows: Rows) -> str:
    if not rows:
        return NOTHING
    figures = f"{len(rows)} figures, measured on {', '.join(rows.devices)}"
    older = f"; {rows.num_older} older measurements of the same figures stay in the files" if rows.num_older else ""
    return (
        f"{figures}{older}. The newest measurement counts. Cells are medians, with quartiles in brackets where there "
        "is more than one sample. Every figure is measured unless it is called modelled or published."
    )
