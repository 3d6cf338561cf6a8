"""Stages that run other programs: what these leave unanswered is missing, and no verdict."""

from __future__ import annotations

import sys

import pytest

from bench.device import host
from bench.device.findings import FAIL, MISSING, PASS, Finding, Notes, read


def finding(capsys: pytest.CaptureFixture[str]) -> Finding:
    (found,) = [finding for line in capsys.readouterr().out.splitlines() if (finding := read(line)) is not None]
    return found


def answers(monkeypatch: pytest.MonkeyPatch, code: int | None, output: str) -> None:
    monkeypatch.setattr(host, "_ended", lambda command, limit_s: (code, output))
    monkeypatch.setattr(host.shutil, "which", lambda *_, **__: "/usr/local/cuda/bin/compute-sanitizer")


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", PASS),
        (9, "========= Invalid __global__ write\n========= ERROR SUMMARY: 1 error", FAIL),
        (1, "========= Error: Device not supported. Please refer to the documentation", MISSING),
        (None, "========= COMPUTE-SANITIZER", MISSING),
    ],
)
def test_a_sanitizer_that_cannot_look_has_found_nothing(
    code: int | None,
    output: str,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers(monkeypatch, code, output)
    host.sanitizer(Notes("sanitizer"))
    assert finding(capsys).status == status


@pytest.mark.parametrize(("code", "status"), [(0, PASS), (1, FAIL), (None, MISSING)])
def test_a_suite_that_runs_out_of_time_tells_how_far_it_came(
    code: int | None, status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, code, "....F...\nFAILED tests/a.py::test_b\n120 passed")
    host.suite(Notes("suite"))
    found = finding(capsys)
    assert found.status == status and "120 passed" in found.facts


def test_output_is_kept_of_what_is_cut_off() -> None:
    code, output = host._ended([sys.executable, "-c", "print('said', flush=True); input()"], limit_s=60)
    assert code == 1 and output.startswith("said"), "there is no input to wait for"
    waits = "import threading; print('said', flush=True); threading.Event().wait()"
    code, _ = host._ended([sys.executable, "-c", waits], limit_s=0.5)
    assert code is None
