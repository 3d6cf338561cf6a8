"""Quick looks of studies, run once for all tests of a file, and what holds for every one of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from spacetime.sim import studies
from spacetime.sim.studies.study import Study

DOCS = Path(__file__).parents[2] / "docs" / "studies"


@cache
def quick(name: str) -> Study:
    return studies.run(name, quick=True)


def check_prints(study: Study) -> None:
    """Tables have cells for every column, and the docs hold the full study.

    That is made by the command; its rows may be older than the code, what is claimed may not.
    """
    blocks = [block for block in study.to_markdown().split("\n\n") if block.startswith("|")]
    assert len(blocks) == 1 + len(study.tables)
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    text = (DOCS / f"{study.name}.md").read_text(encoding="utf-8")
    assert f"spacetime study {study.name} --markdown FILE" in text and "quick look**" not in text
    for claim in study.claims:
        assert f"| {claim.name} " in text, "make it again"
