"""`spacetime plan` as users meet it."""

from __future__ import annotations

import re

import pytest

from spacetime.cli import main
from spacetime.trace import Trace


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(("plan", *arguments))
    found = capsys.readouterr()
    assert ended.value.code == code, found.err
    return found.out, found.err


def test_every_tenant_is_in_a_lane(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--model", "mlp", "--model", "gru", "--tenants", "6", "--rows", "2", "--json")
    trace = Trace.from_json(out)
    tenants = sorted(name for event in trace.events for name in event.lane.tenants)
    assert tenants == ["gru/0", "gru/1", "gru/2", "mlp/0", "mlp/1", "mlp/2"]
    assert sum(event.lane.num_rows for event in trace.events) == 12
    assert [event.start_us for event in trace.events] == sorted(event.start_us for event in trace.events)


def test_the_table_says_who_runs_where(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--model", "mlp", "--tenants", "5", "--policy", "time_slice", "--device", "mi50")
    first, *rest = out.splitlines()
    assert first.startswith("modelled: mi50, 60 units, policy time_slice: 5 lanes in ")
    lanes = [line.split()[:4] for line in rest if line.strip().startswith("mlp ")]
    assert lanes == [["mlp", str(index), "1", "plain"] for index in range(5)]


def test_lanes_of_many_tenants_keep_to_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--model", "mlp", "--tenants", "20", "--device", "v100")
    assert re.search(r"mlp +\d+, \d+, \.\.\. \(\d+\) ", out)


def test_what_models_could_share(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--model", "resnet18", "--model", "resnet34", "--tenants", "2", "--merge")
    assert "launches in" in out and "resnet18.fc" in out
    _, err = run(capsys, "--model", "resnet18", "--merge", code=1)
    assert "there is nothing to merge" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "none"), "policy 'none' does not exist"),
        (("--device", "none"), "none"),
        (("--model", "none"), "none"),
    ],
)
def test_what_does_not_exist_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    _, err = run(capsys, *arguments, code=1)
    assert err.startswith("error: ") and message in err
