"""The command line as users meet it: exit codes, messages, JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from spacetime import __version__
from spacetime.backends.cores import available_cores
from spacetime.cli import main
from spacetime.cli.demo import POLICIES, DemoReport
from spacetime.cli.doctor import Check, Diagnosis
from spacetime.scheduler.registry import policy_names
from tests.cli.commands import run

VERBS = ["demo", "doctor", "plan", "simulate", "profile", "compare", "study", "bench"]
SMALL_DEMO = ("demo", "--tenants", "2", "--seconds", "0")  # an MLP and a GRU cell, the fewest requests


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, "--version")
    assert (ended.code, ended.out) == (0, f"spacetime {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [("--nonesuch",), ("demo", "--nonesuch"), ("doctor", "--nonesuch"), ("nonesuch",), ("demo", "--tenants", "0")],
)
def test_what_does_not_exist_is_refused_by_name(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    ended = run(capsys, *arguments)
    assert ended.code == 2
    assert "nonesuch" in ended.err or "--tenants" in ended.err
    assert ended.out == ""


def test_help_says_in_whole_lines_what_each_verb_does(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, "--help")
    verbs = ended.out.partition("Commands:")[2].splitlines()[1:]
    assert [line.split()[0] for line in verbs] == VERBS
    assert all(line.endswith(".") and not line.endswith("...") for line in verbs)


@pytest.mark.parametrize("verb", ["plan", "profile", "compare"])
def test_a_verb_that_needs_no_torch_does_not_import_it(verb: str) -> None:
    lines = f"import sys; sys.modules['torch'] = None; from spacetime.cli import main; main(['{verb}', '--help'])"
    ended = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True, timeout=60)
    assert f"{verb} [OPTIONS]" in ended.stdout


@pytest.mark.parametrize("verb", ["demo", "plan", "simulate"])
def test_help_names_the_policies(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    said = run(capsys, verb, "--help").out.replace(",", " ").replace(".", " ").replace(";", " ").split()
    assert set(policy_names()) <= set(said)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--policy", "nonesuch", "policy 'nonesuch' does not exist"),
        ("--device", "nonesuch", "device 'nonesuch' does not exist"),
        ("--trace", "/nonesuch/trace.json", "/nonesuch is not a directory"),
    ],
)
def test_an_error_of_spacetime_is_a_message_without_a_traceback(
    capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    ended = run(capsys, *SMALL_DEMO, option, value)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_old_encoding_has_question_marks_but_no_error(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--tenants", "2", "--model", "gemm_8x8x8"])
    out.flush()
    written = out.buffer.getvalue()
    assert ended.value.code == 0 and b"gemm_8x8x8" in written
    assert b"?" in written, "some of what it says has no code there"


def test_doctor_reports_every_capability_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, "doctor", "--json")
    found = Diagnosis.from_json(ended.out)
    checks = {check.name: check for check in found.checks}
    assert ended.code == (0 if found.healthy else 1)
    assert {"python", "torch", "cores", "pinning", "MKL", "oneDNN", "CUDA", "HIP", "serving"} <= checks.keys()
    assert checks["serving"].status == "PASS"
    assert f"{len(available_cores())} of" in checks["cores"].reason
    assert all(check.reason for check in found.checks)
    assert all(bool(check.instead) == (check.status == "MISSING") for check in found.checks)


def test_a_failed_check_makes_doctor_fail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.cli.doctor._checks", lambda: iter([Check("bones", "FAIL", "broken")]))
    ended = run(capsys, "doctor")
    assert ended.code == 1
    assert "bones" in ended.out and "FAIL" in ended.out and "broken" in ended.out
    assert ended.out.splitlines()[-1].startswith("Broken: bones.")


def test_doctor_ends_with_what_it_comes_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.cli.doctor.unusable", lambda: "there is none")
    monkeypatch.setattr("spacetime.cli.doctor._checks", lambda: iter([Check("CUDA", "MISSING", "why", "the CPU")]))
    ended = run(capsys, "doctor")
    assert ended.code == 0
    assert ended.out.splitlines()[-1].endswith("it serves on the CPU. No GPU can be used: there is none.")
    monkeypatch.setattr("spacetime.cli.doctor._checks", lambda: iter([Check("serving on the GPU", "PASS", "right")]))
    assert run(capsys, "doctor").out.splitlines()[-1].endswith("it serves on the GPU and on the CPU.")


def test_the_demo_serves_the_same_requests_under_every_policy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    ended = run(capsys, *SMALL_DEMO, "--json", "--trace", str(trace))
    report = DemoReport.from_json(ended.out)
    assert ended.code == 0
    assert ended.err == ""  # no progress bar: this is no terminal
    assert tuple(demo_run.policy for demo_run in report.runs) == POLICIES
    assert {demo_run.load.num_rows for demo_run in report.runs} == {report.runs[0].load.num_rows}
    assert report.architectures == ("mlp", "gru_cell")
    for demo_run in report.runs:
        assert len(demo_run.load.latencies_us) == report.num_tenants * report.requests_per_tenant
        assert (demo_run.load.errors, demo_run.num_wrong, demo_run.first_problem) == ((), 0, None)
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]


def test_the_demo_writes_a_perfetto_trace_where_the_suffix_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.pftrace"
    ended = run(capsys, *SMALL_DEMO, "--policy", "time_slice", "--trace", str(trace))
    assert ended.code == 0
    written = trace.read_bytes()
    assert written[0] == 1 << 3 | 2  # a Trace message starts with a packet
    assert b"partitions" in written and b"mlp/0" in written


def test_the_demo_prints_a_table_of_the_chosen_policies(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, *SMALL_DEMO, "--policy", "streams", "--policy", "time_slice")
    assert ended.code == 0
    assert "vs time_slice" in ended.out and "streams" in ended.out
    assert "space_time" not in ended.out


def test_a_wrong_result_is_counted_and_makes_the_demo_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spacetime.cli.traffic.problem", lambda results, references, scales: "off by one")
    ended = run(capsys, *SMALL_DEMO, "--policy", "time_slice")
    assert ended.code == 1
    assert "8 wrong, 0 failed" in ended.out
    assert "off by one" in ended.out
