"""`spacetime simulate` as users meet it: tables, JSON, files in and out, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spacetime import workload as workloads
from spacetime.cli import main
from spacetime.cli.simulate import Simulations
from spacetime.scheduler.registry import policy_names
from spacetime.sim.devices import find

SMALL = ("simulate", "--tenants", "2", "--model", "mlp", "--seconds", "0.01")


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """What it printed, on both channels."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    found = capsys.readouterr()
    assert ended.value.code == code, found.err
    return found.out, found.err


def test_one_policy_prints_its_report(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, *SMALL, "--rate", "1000", "--policy", "time_slice", "--slo-ms", "5")
    assert out.startswith("modelled: h200, 132 units, policy time_slice")
    assert "mlp/0" in out and "mlp/1" in out


def test_all_policies_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, *SMALL, "--policy", "all", "--device", "mi50")
    assert out.startswith("modelled: mi50")
    assert all(f"{name} " in out for name in policy_names())


def test_json_is_the_reports(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*SMALL, "--policy", "streams", "--policy", "time_slice", "--requests", "5", "--json")
    out, _ = run(capsys, *arguments)
    first, second = Simulations.from_json(out).reports
    assert (first.policy, second.policy, first.completed) == ("streams", "time_slice", 10)
    assert run(capsys, *arguments)[0] == out, "the same seed, the same report"


def test_a_workload_and_a_device_come_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    played = workloads.closed_loop(["one"], 3, models=["mlp"])
    (tmp_path / "workload.json").write_text(played.to_json())
    (tmp_path / "device.json").write_text(find("v100").to_json())
    files = (str(tmp_path / "workload.json"), "--device", str(tmp_path / "device.json"))
    out, _ = run(capsys, "simulate", *files, "--json")
    (report,) = Simulations.from_json(out).reports
    assert (report.completed, report.device, report.tenants[0].name) == (3, find("v100"), "one")
    _, err = run(capsys, "simulate", *files, "--slo-ms", "3", code=1)
    assert "--slo-ms has no effect" in err


@pytest.mark.parametrize("name", ["lanes.json", "lanes.pftrace"])
def test_the_lanes_are_written_as_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    run(capsys, *SMALL, "--requests", "3", "--trace", str(tmp_path / name))
    written = (tmp_path / name).read_bytes()
    if name.endswith(".json"):
        assert json.loads(written)["traceEvents"]
    else:
        assert b"mlp/0" in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "nonesuch"), "policy 'nonesuch' does not exist"),
        (("--device", "nonesuch"), "device 'nonesuch' cannot be simulated"),
        (("--model", "nonesuch"), "no architecture is called 'nonesuch'"),
        (("--rate", "0"), "has a rate of 0"),
        (("--trace", "/nonesuch/trace.json"), "/nonesuch is not a directory"),
    ],
)
def test_an_error_is_a_message(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    out, err = run(capsys, *SMALL, *arguments, code=1)
    assert err.startswith("error: ") and message in err and out == ""


def test_an_unreadable_workload_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    assert "is no workload" in run(capsys, "simulate", str(tmp_path / "bad.json"), code=1)[1]
    assert "cannot be read as a workload" in run(capsys, "simulate", str(tmp_path / "none.json"), code=1)[1]


@pytest.mark.parametrize("arguments", [("--nonesuch",), ("--tenants", "0"), ("--requests", "0")])
def test_unknown_options_and_values_are_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert arguments[0] in run(capsys, "simulate", *arguments, code=2)[1]
