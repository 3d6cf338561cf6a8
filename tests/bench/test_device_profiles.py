"""The stage that profiles the zoo on a real device, on a fake one: what it finds, and the files that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

import spacetime as st
from bench.device import profiles
from bench.device.findings import FAIL, INFO, PASS, Finding, Notes, read
from spacetime.profiler import run as running
from tests.profiler.fake_clock import OLD, ClockedSite


def findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *, partitions: bool
) -> list[Finding]:
    monkeypatch.setenv("OUT", str(folder))
    monkeypatch.setattr(profiles, "MODELS", ("mlp",))
    monkeypatch.setattr(profiles, "BUDGET_S", 1e-4)
    monkeypatch.setattr(profiles, "_graph_us", lambda module, example: 100.0)
    monkeypatch.setattr(running, "make_site", lambda device: ClockedSite(partitions=partitions))
    profiles.profile(Notes("profile"))
    return [finding for line in capsys.readouterr().out.splitlines() if (finding := read(line)) is not None]


def test_it_leaves_a_profile_and_says_what_is_in_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = findings(monkeypatch, capsys, tmp_path, partitions=True)
    assert [finding.status for finding in found] == [PASS, INFO, INFO]
    (file,) = tmp_path.rglob("*.profile.json")
    profile = st.Profile.load(file)
    assert file.name == f"mlp-{profile.signature[:8]}.profile.json" and profile.environment.kind == "cuda"
    assert found[1].figures["knees"].keys() == {layer.name for layer in profile.layers}
    assert found[2].figures["predicted_us"] == round(profile.predict_us(), 1)


def test_a_device_without_partitions_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = findings(monkeypatch, capsys, tmp_path, partitions=False)
    assert found[0].status == FAIL and OLD in found[0].facts
    assert [point["units"] for point in _points(tmp_path)] == [132]


def _points(folder: Path) -> list[dict[str, int]]:
    (file,) = folder.rglob("*.profile.json")
    return [{"units": point.units} for point in st.Profile.load(file).total_points]
