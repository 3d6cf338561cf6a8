"""The driver of `make device`, without a device: time-outs, crashes, budgets, resuming. The stages need a GPU."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bench.device import __main__ as driver
from bench.device.__main__ import STAGES, Outcome, Stage, ended_well, key, run_all, run_apart, table
from bench.device.findings import FAIL, INFO, MARK, Finding, Notes, read

TRYING = Stage("trying", "nowhere", 20, {"COLOUR": "blue"})

FOUND = f'print({MARK!r} + \'{{"stage": "trying", "name": "a", "status": "INFO"}}\', flush=True);'


def script(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(driver, "command_of", lambda stage: [sys.executable, "-c", FOUND + code])


def test_findings_go_through_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes("census")
    notes.check("confined", False, "3 SMs outside", wrong=3)
    with notes.trying("later"):
        raise ValueError("no such thing")
    first, second = [read(line) for line in capsys.readouterr().out.splitlines()]
    assert first == Finding("census", "confined", FAIL, "3 SMs outside", {"wrong": 3})
    assert second is not None and second.facts == "ValueError: no such thing"
    assert read("what a library prints") is None


def test_a_stage_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import os; print('chatter', os.environ['COLOUR'])")
    outcome = run_apart(TRYING, 20)
    assert (outcome.end, outcome.tail) == ("done", "")
    assert outcome.findings == [Finding("trying", "a", INFO)]


def test_a_stage_that_hangs_is_killed_and_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import subprocess; print('stuck', flush=True); subprocess.run(['sleep', '600'])")
    outcome = run_apart(TRYING, 2)
    assert outcome.end == "timed out" and outcome.tail == "stuck"
    assert [finding.name for finding in outcome.findings] == ["a"]


def test_a_stage_that_dies_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import os; print('last words', flush=True); os.abort()")
    outcome = run_apart(TRYING, 20)
    assert outcome.end == "exit code -6" and "last words" in outcome.tail
    assert len(outcome.findings) == 1


def test_results_are_on_disk_after_every_stage_and_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, "")
    outcomes = run_all([TRYING], tmp_path)
    file = tmp_path / "device.json"
    data = json.loads(file.read_text())
    assert data["provenance"]["torch"] and data["outcomes"][0]["findings"][0]["name"] == "a"
    assert ended_well(file) == {"trying COLOUR=blue"} == {key(TRYING.name, TRYING.environment)}
    assert "trying COLOUR=blue" in table(outcomes)


def test_what_no_time_is_left_for_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "BUDGET_S", 5)
    (outcome,) = run_all([TRYING], tmp_path)
    assert outcome.end == "left out: no time"
    assert ended_well(tmp_path / "device.json") == set()


def test_the_table_shows_what_failed() -> None:
    bad = Outcome("census", {}, 1.0, "exit code 1", [Finding("census", "confined", FAIL, "3 outside")], "Segmentation")
    assert "FAIL census: confined: 3 outside" in table([bad]) and "Segmentation" in table([bad])


def test_every_stage_names_a_function() -> None:
    for stage in STAGES:
        assert callable(getattr(import_module(f"bench.device.{stage.module}"), stage.name))
    assert sum(stage.limit_s for stage in STAGES) < 3.5 * driver.BUDGET_S


@pytest.mark.skipif(driver.no_device() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main([]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().out


def test_unknown_stages_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        driver.main(["--only", "nonsense"])
    assert "invalid choice" in capsys.readouterr().err
