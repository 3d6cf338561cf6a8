"""The report of what bench/results/ holds: one page, its pictures, docs/results.md. The command line imports it.

rows and sources read; overview, gemm, models, traffic, overheads, core, proofs and studies say what is shown, with
build, cdf and the values of figures; svg, png, page and markdown show it.
"""

from __future__ import annotations

from pathlib import Path

from bench.provenance import REPOSITORY
from spacetime.errors import OptionError

RESULTS = REPOSITORY / "bench" / "results"
OUT = REPOSITORY / "build" / "report"
DOCS = REPOSITORY / "docs" / "results.md"
PAGE, MARKDOWN = "report.html", "results.md"


def write_report(results: Path = RESULTS, out: Path = OUT) -> tuple[Path, ...]:
    """The page, the text and a PNG per picture, in `out`. Of the project's own results docs/results.md, too."""
    from bench.report import markdown, page, png
    from bench.report.document import document

    made = document(results)
    texts = {out / PAGE: page.html(made), out / MARKDOWN: markdown.text(made)}
    if results.resolve() == RESULTS.resolve():
        texts[DOCS] = markdown.text(made)
    pictures = {out / f"{chart.name}.png": chart for chart in made.charts}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        for path, chart in pictures.items():
            png.save(chart, path)
    except OSError as error:
        facts = f"{type(error).__name__}: {error}"
        raise OptionError(
            f"the report cannot be written to {out}", facts, "name another folder: --out FOLDER"
        ) from error
    return (*texts, *pictures)


def results_markdown(results: Path = RESULTS) -> str:
    """What docs/results.md should say of these results."""
    from bench.report import markdown
    from bench.report.document import document

    return markdown.text(document(results))
