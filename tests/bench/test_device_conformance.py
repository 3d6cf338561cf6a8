"""The stages of `make device` that serve models, on a fake GPU: what they find is right, and they see what is wrong."""

from __future__ import annotations

import pytest

from bench.device import conformance
from bench.device.findings import FAIL, Finding, Notes, read
from tests.backends.cuda.fake_gpu import with_gpu


@pytest.fixture(autouse=True)
def no_kernels_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake GPU captures calls of torch; those that go past it would be missing in a replay."""
    monkeypatch.setattr("spacetime.backends.executables.host", lambda: None)


def found(capsys: pytest.CaptureFixture[str]) -> list[Finding]:
    return [finding for line in capsys.readouterr().out.splitlines() if (finding := read(line)) is not None]


def test_models_are_served_and_every_answer_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    backend, gpu = with_gpu(partitions=False)
    conformance.serve(Notes("serving"), "mlp", backend)
    findings = {finding.name: finding for finding in found(capsys)}
    assert not [finding for finding in findings.values() if finding.status == FAIL], findings
    assert findings["mlp: repeated mixes are replayed"].figures["replays"] > 0
    assert findings["mlp: times"].figures["lone_us"] > 0
    assert gpu.problems == []


def test_a_wrong_answer_is_a_finding(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "ROUNDS", 2)
    monkeypatch.setattr(conformance, "problem", lambda *_: "output 0 deviates")
    backend, _ = with_gpu(partitions=False)
    conformance.serve(Notes("serving"), "mlp", backend)
    findings = {finding.name: finding for finding in found(capsys)}
    wrong = findings["mlp: answers are those of the plain modules"]
    assert wrong.status == FAIL and "deviates" in wrong.facts and wrong.figures["wrong"] == 9


def test_the_suite_that_selects_nothing_is_not_a_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "REAL", "no such")
    conformance.conformance(Notes("conformance"))
    (finding,) = found(capsys)
    assert finding.status == FAIL


def test_failures_of_the_suite_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    class Report:
        nodeid, when, outcome, longrepr = "tests/x.py::test_y[cuda]", "call", "failed", "AssertionError: no"

    listener = conformance._Listener(Notes("conformance"))
    listener.pytest_runtest_logreport(Report())
    (finding,) = found(capsys)
    assert (finding.name, finding.status) == ("test_y[cuda] (call)", FAIL) and listener.counts == {"failed": 1}
