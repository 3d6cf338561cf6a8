"""`spacetime compare` on profiles: what it prints, and which calls it refuses."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from spacetime.cli.compare import MOST_SHOWN, comparison_table
from spacetime.profiler.compare import Comparison, compared
from tests.cli.commands import run
from tests.profiler.pairs import modelled, slower


def test_unequal_devices_are_refused_by_name_unless_forced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    modelled().save(before)
    modelled(device="model:mi50").save(after)
    ended = run(capsys, "compare", before, after)
    assert (ended.code, ended.out) == (1, "")
    assert "device: model:h200 here, model:mi50 there" in ended.err and "--force" in ended.err
    forced = run(capsys, "compare", before, after, "--force", "--json")
    found = Comparison.from_json(forced.out)
    assert (found.before, found.after) == ("model:h200 (modelled)", "model:mi50 (modelled)")
    assert any(line.startswith("num_units: 132 here, 60 there") for line in found.differences)


def test_the_table_shows_the_model_and_what_changed_most(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    profile = modelled("resnet18")
    profile.save(tmp_path / "before.json")
    slower(profile, 2.0).save(tmp_path / "after.json")
    ended = run(capsys, "compare", tmp_path / "before.json", tmp_path / "after.json")
    assert ended.code == 0
    assert "whole model" in ended.out and "2.00 x" in ended.out
    assert f"the {MOST_SHOWN} that changed most are shown" in ended.out
    rows = [line for line in ended.out.splitlines() if line.rstrip().endswith("/132")]
    assert len(rows) == 1 + MOST_SHOWN


@pytest.mark.parametrize("width", [60, 80, 100, 130, 160])
def test_the_comparison_fits_the_terminal(width: int) -> None:
    profile = modelled("mobilenet_v2")
    changes = compared(profile, slower(profile, 2.0), force=False).kernels
    console = Console(width=width, markup=False, record=True, file=io.StringIO())
    console.print(comparison_table(changes, width))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert sum(" x " in line for line in lines) == len(changes) > 20, "nothing is cut"


@pytest.mark.parametrize("arguments", [("a.json",), ("a.json", "b.json", "--nonesuch"), ("nonesuch.json", "b.json")])
def test_wrong_calls_are_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    ended = run(capsys, "compare", *arguments)
    assert ended.code in (1, 2) and ended.out == ""
    assert "nonesuch" in ended.err or "Missing argument" in ended.err
