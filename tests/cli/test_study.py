"""`spacetime study` as users meet it: the list, tables, JSON, Markdown, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from spacetime.sim import studies
from spacetime.sim.studies.study import Claim, Column, Progress, Study, Table
from tests.cli.commands import run


def tiny(*, quick: bool, progress: Progress) -> Study:
    """A study that is done at once."""
    progress(0, 1)
    claims = (Claim("[gain] of it", 2.0, 3.0, "a paper"),)
    tables = (Table("Rates", (Column("way"), Column("GFLOP/s", ".1f")), (("one", 1.25), ("another", None))),)
    return Study("tiny", "A tiny study", "v100", "0", quick, "Why?", ("How.",), claims, tables, ("Because.",))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(studies._STUDIES, "tiny", tiny)


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_the_list_says_what_each_is_about(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    ended = run(capsys, "study", *arguments)
    assert ended.code == 0 and "A study that is done at once." in ended.out
    assert [line.split()[0] for line in ended.out.splitlines()] == list(studies.names())


def test_a_study_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, "study", "tiny")
    assert ended.code == 0 and ended.err == ""
    assert ended.out.startswith("modelled: A tiny study on v100\n")
    for expected in ("[gain] of it", "1.50", "- Because.", "another", "- How."):
        assert expected in ended.out


def test_json_and_markdown_hold_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ended = run(capsys, "study", "tiny", "--quick", "--json", "--markdown", tmp_path / "tiny.md")
    found = Study.from_json(ended.out)
    assert found == tiny(quick=True, progress=lambda done, total: None)
    assert (tmp_path / "tiny.md").read_text() == found.to_markdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonesuch",), "study 'nonesuch' does not exist"),
        (("tiny", "--markdown", "/nonesuch/tiny.md"), "/nonesuch is not a directory"),
        (("list", "--json"), "--json has no effect on the list"),
        (("--quick",), "--quick has no effect on the list"),
    ],
)
def test_an_error_is_a_message(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    ended = run(capsys, "study", *arguments)
    assert ended.code == 1 and ended.out == "" and message in ended.err


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "study", "tiny", "--nonesuch").code == 2
