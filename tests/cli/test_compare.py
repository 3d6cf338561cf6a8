"""`spacetime compare`: what changed between two profiles, and which are not compared."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import spacetime as st
from spacetime import zoo
from spacetime.cli.compare import MOST_SHOWN, Comparison, compared
from spacetime.errors import OptionError
from tests.cli.commands import run


@cache
def modelled(model: str = "mlp", device: str = "model:h200", rows: tuple[int, ...] = (1,)) -> st.Profile:
    return st.profile(st.capture(zoo.build(model), zoo.example(model)), device, rows=rows)


def slower(profile: st.Profile, factor: float) -> st.Profile:
    """The same with every linear layer taking so many times as long."""
    return replace(
        profile,
        measurements=tuple(
            replace(each, samples_us=tuple(us * (factor if each.op == "linear" else 1) for us in each.samples_us))
            for each in profile.measurements
        ),
    )


def test_a_profile_equals_itself() -> None:
    profile = modelled()
    found = compared(profile, profile, force=False)
    assert found.num_same_knees == len(found.kernels) == len({layer.key for layer in profile.layers})
    assert {change.ratio for change in (*found.kernels, *found.models)} == {1.0}
    assert (found.num_only_before, found.num_only_after, found.differences) == (0, 0, ())


def test_what_changed_most_comes_first() -> None:
    profile = modelled()
    found = compared(profile, slower(profile, 3.0), force=False)
    linear = [change for change in found.kernels if change.op == "linear"]
    assert found.kernels[: len(linear)] == tuple(linear)
    assert [change.ratio for change in linear] == pytest.approx([3.0] * len(linear))
    assert 1.0 < found.models[0].ratio < 3.0


def test_only_common_rows_are_compared() -> None:
    found = compared(modelled(rows=(1, 2)), modelled(rows=(2, 4)), force=False)
    assert {change.rows for change in (*found.kernels, *found.models)} == {2}


def test_different_models_share_kernels_but_are_no_whole() -> None:
    profile = modelled()
    measured = {layer.key for layer in profile.program[:2]}
    shorter = replace(
        profile,
        signature="another",
        program=profile.program[:2],
        measurements=tuple(each for each in profile.measurements if each.key.kernel in measured),
    )
    found = compared(profile, shorter, force=False)
    assert len(found.kernels) == len(measured) and found.models == ()
    assert found.num_only_before == len({layer.key for layer in profile.program}) - len(measured)
    assert found.num_only_after == 0


def test_profiles_without_anything_in_common_are_refused() -> None:
    with pytest.raises(OptionError, match="nothing in common"):
        compared(modelled(), modelled("unet"), force=False)
    with pytest.raises(OptionError, match="nothing in common"):
        compared(modelled(rows=(1,)), modelled(rows=(2,)), force=False)


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


@pytest.mark.parametrize("arguments", [("a.json",), ("a.json", "b.json", "--nonesuch"), ("nonesuch.json", "b.json")])
def test_wrong_calls_are_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    ended = run(capsys, "compare", *arguments)
    assert ended.code in (1, 2) and ended.out == ""
    assert "nonesuch" in ended.err or "Missing argument" in ended.err
