"""The driver of `make device`, without a device: time-outs, crashes, budgets, resuming. The stages need a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench.device import __main__ as driver
from bench.device.__main__ import STAGES, Outcome, Stage, joined, key, load, run_all, run_apart, table, went_well
from bench.device.findings import FAIL, INFO, MARK, Finding, Notes, read
from bench.device.shards import in_shards, is_shard, own_part

TRYING = Stage("trying", "nowhere", 20, {"COLOUR": "blue"})

FOUND = f'print({MARK!r} + \'{{"stage": "trying", "name": "a", "status": "INFO"}}\', flush=True);'


def script(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(driver, "command_of", lambda name: [sys.executable, "-c", FOUND + code])


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


def test_a_daemon_that_a_stage_leaves_behind_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left the process group, so it is not killed; it holds the stage's output open."""
    daemon = (
        "import subprocess; p = subprocess.Popen(['sleep', '30'], start_new_session=True); print(p.pid, flush=True);"
    )
    script(monkeypatch, daemon + "import time; time.sleep(60)")
    outcome = run_apart(TRYING, 3)
    os.kill(int(outcome.tail), signal.SIGKILL)
    assert outcome.end == "timed out" and outcome.seconds < 20 and len(outcome.findings) == 1


def test_a_stage_that_prints_without_end_or_no_text_or_half_a_line_loses_only_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flood = f"import os; line = {FOUND!r}; [exec(line) for _ in range(1000)]; print('x' * 10_000_000, flush=True);"
    cut = f'os.write(1, bytes([255, 254, 10])); os.write(1, {MARK!r}.encode() + b\'{{"stage": "tr\'); os.abort()'
    script(monkeypatch, flood + cut)
    outcome = run_apart(TRYING, 30)
    assert outcome.end == "exit code -6" and len(outcome.tail) <= driver.TAIL_CHARS
    assert len(outcome.findings) == driver.MOST_FINDINGS + 1
    assert outcome.findings[-1].facts == f"{1001 - driver.MOST_FINDINGS} more findings were left out"


def test_a_process_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits inside the driver for a GPU that hangs."""

    class Hung:
        pid = 1234567890

        def wait(self, timeout: float) -> int:
            raise subprocess.TimeoutExpired("stage", timeout)

    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *call: killed.append(call))
    hung: Any = Hung()
    assert "cannot be killed" in driver.ended(hung, 1) and killed == [(Hung.pid, signal.SIGKILL)]


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
    (known,) = load(file)
    assert known == outcomes[0] and went_well(known) and key(TRYING.name, TRYING.environment) == "trying COLOUR=blue"
    assert "trying COLOUR=blue" in table(outcomes)


def test_a_resumed_run_keeps_what_was_known_and_puts_what_is_new_in_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, "")
    failed = Finding("census", "confined", FAIL)
    known = [
        Outcome("census", {}, 1.0, "done", [failed], ""),
        Outcome("numerics", {}, 1.0, "done", [], ""),
        Outcome(TRYING.name, TRYING.environment, 0.0, "left out: no time", [], ""),
    ]
    assert [went_well(each) for each in known] == [False, True, False], "what failed is tried again"
    run_all([TRYING], tmp_path, known)
    after = load(tmp_path / "device.json")
    assert after[:2] == known[:2] and went_well(after[2])
    late = [Outcome("numerics", {}, 0.0, "left out: no time", [], ""), Outcome("mps", {}, 0.0, "left out", [], "")]
    assert joined(after, late) == [*after, late[1]], "no time now takes nothing away"


def test_a_file_that_cannot_be_resumed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "no_device", lambda: None)
    (tmp_path / "device.json").write_text('{"outcomes": [{"stage"')
    for name in ("device.json", "nothing.json"):
        with pytest.raises(SystemExit):
            driver.main(["--resume", str(tmp_path / name)])
        assert name in capsys.readouterr().err


def test_what_no_time_is_left_for_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "BUDGET_S", 5)
    (outcome,) = run_all([TRYING], tmp_path)
    assert outcome.end == "left out: no time"
    assert not any(map(went_well, load(tmp_path / "device.json")))


def test_a_machine_that_tells_nothing_of_itself_runs_its_stages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(device: str) -> None:
        raise RuntimeError("no driver answers")

    monkeypatch.setattr(driver, "collect", fails)
    script(monkeypatch, "")
    (outcome,) = run_all([TRYING], tmp_path)
    assert outcome.end == "done"
    written = json.loads((tmp_path / "device.json").read_text())
    assert written["provenance"] == {"error": "RuntimeError: no driver answers"} and len(written["outcomes"]) == 1


def test_the_table_shows_what_failed() -> None:
    bad = Outcome("census", {}, 1.0, "exit code 1", [Finding("census", "confined", FAIL, "3 outside")], "Segmentation")
    assert "FAIL census: confined: 3 outside" in table([bad]) and "Segmentation" in table([bad])


def test_all_stages_are_at_the_end_however_much_failed() -> None:
    """Whoever runs it may see no more than the last 12,000 characters."""
    many = [Finding("census", f"case {index}", FAIL, "wrong " * 100) for index in range(200)]
    outcomes = [Outcome(f"stage {index}", {}, 1.0, "timed out", many, "word " * 2000) for index in range(30)]
    found = table(outcomes)
    assert len(found) < 12_000 and "more of stage 0: see device.json" in found and "more is in device.json" in found
    assert all(f"stage {index} " in found[-4000:] for index in range(30))
    missing = Finding("mps", "a", "MISSING", "no daemon")
    mixed = Outcome("mps", {}, 1.0, "done", [missing, *many[:1]], "")
    assert table([mixed]).index("FAIL census") < table([mixed]).index("MISSING mps"), "what failed comes first"


def test_a_stage_that_hangs_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import faulthandler, signal, time; faulthandler.register(signal.SIGUSR1)\ndef stuck(): time.sleep(60)\nstuck()"
    )
    script(monkeypatch, code)
    outcome = run_apart(TRYING, 2)
    assert outcome.end == "timed out" and "in stuck" in outcome.tail and "in stuck" in table([outcome])


def test_parts_of_a_stage_run_side_by_side(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_shard() and own_part([1, 2, 3]) == [1, 2, 3]
    code = (
        "import os, sys; from bench.device.findings import Notes; from bench.device.shards import own_part;"
        "[Notes('stage').check(str(case), True, 'x' * 5000) for case in own_part(range(40))];"
        "sys.exit(os.environ['SPACETIME_DEVICE_SHARD'] == '1/3')"
    )
    monkeypatch.setenv("PYTHONPATH", str(driver.REPOSITORY))
    in_shards(Notes("stage"), [sys.executable, "-u", "-c", code], 3)
    found = [read(line) for line in capfd.readouterr().out.splitlines()]
    assert all(found), "no two of them are mixed up"
    names = [finding.name for finding in found if finding is not None]
    assert sorted(names) == sorted([*map(str, range(40)), "part 1 of 3"])


def test_every_stage_names_a_function() -> None:
    for stage in STAGES:
        assert callable(getattr(import_module(f"bench.device.{stage.module}"), stage.name))
    assert sum(stage.limit_s for stage in STAGES) < 3.8 * driver.BUDGET_S


@pytest.mark.skipif(driver.no_device() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main([]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().out


def test_unknown_stages_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        driver.main(["--only", "nonsense"])
    assert "invalid choice" in capsys.readouterr().err
