"""The device stage that runs the suite's GEMMs: only rows of this run count, and a bad end is not a good one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.device import benches
from bench.device.findings import FAIL, INFO, PASS, Finding, Notes, read

Run = Callable[..., Any]


def found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: Path, run: Run) -> Finding:
    monkeypatch.setenv("OUT", str(out))
    monkeypatch.setattr(subprocess, "run", run)
    benches.bench(Notes("bench"))
    (finding,) = filter(None, map(read, capsys.readouterr().out.splitlines()))
    return finding


def ending(code: int | None, rows: int) -> Run:
    """A run that appends so many rows and ends with this code; None: it is cut off."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        with (Path(command[-1]) / "gemm.jsonl").open("a", encoding="utf-8") as file:
            file.write("{}\n" * rows)
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"], output=b"so far", stderr=None)
        return subprocess.CompletedProcess(command, code, "said", "and complained")

    return run


@pytest.mark.parametrize(
    ("code", "rows", "status", "told"),
    [
        (0, 3, PASS, ""),
        (0, 0, FAIL, "wrote no row"),
        (1, 3, FAIL, "exit code 1 after 3 rows"),
        (1, 0, FAIL, "complained"),
        (None, 3, INFO, "partial: 3 rows"),
        (None, 0, FAIL, "no row; cut off"),
    ],
)
def test_rows_of_an_earlier_run_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    code: int | None,
    rows: int,
    status: str,
    told: str,
) -> None:
    (tmp_path / "gemm.jsonl").write_text("{}\n" * 5, encoding="utf-8")
    finding = found(monkeypatch, capsys, tmp_path, ending(code, rows))
    assert finding.status == status and told in finding.facts
    assert finding.figures == {"rows": rows, "rows_before": 5}
    if code is None:
        assert "so far" in finding.facts


def test_the_folder_need_not_be_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert found(monkeypatch, capsys, tmp_path / "new", ending(0, 1)).status == PASS
