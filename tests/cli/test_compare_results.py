"""`spacetime compare` of two files of bench results: ratios with their noise, and which files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.provenance import Provenance
from bench.results import Figure, Row, append
from spacetime.cli.results import FigureChange, Spread, compared_results
from spacetime.errors import OptionError
from tests.bench.report_rows import CPU, GPU
from tests.cli.commands import run

LATER = replace(CPU, commit="d" * 40, date_utc="2026-02-01T00:00:00+00:00")
SPEED = Figure("gemm", "speed", "GFLOP/s", "a fixture")


def row(subject: str, samples: list[float], provenance: Provenance = CPU, **axes: str | int | float) -> Row:
    return Row(SPEED.of(subject, samples, axes=axes), provenance)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "before.jsonl", tmp_path / "after.jsonl"


def test_quartiles_that_overlap_are_the_same(paths: tuple[Path, Path]) -> None:
    before, after = paths
    append(before, [row("a", [1, 2, 3]), row("b", [10, 11, 12]), row("c", [10, 11, 12]), row("d", [4])])
    later = [row("a", [2, 3, 4], LATER), row("b", [20, 22, 24], LATER), row("c", [5, 5.5, 6], LATER)]
    append(after, [*later, row("d", [5], LATER)])
    found = {figure.subject: figure for figure in compared_results(before, after, force=False).figures}
    assert {name: figure.verdict for name, figure in found.items()} == {
        "a": "same",
        "b": "higher",
        "c": "lower",
        "d": "one sample",
    }
    assert (found["b"].ratio, found["c"].ratio) == (2.0, 0.5)


SAMPLES = st.lists(st.floats(0.1, 100), min_size=2, max_size=6)


@given(SAMPLES, SAMPLES)
def test_swapping_the_files_turns_the_verdict_around(mine: list[float], theirs: list[float]) -> None:
    spreads = [row("a", samples).measurement for samples in (mine, theirs)]
    one, two = (Spread(each.n, each.median or 0, each.p25 or 0, each.p75 or 0) for each in spreads)
    there, back = (FigureChange("case", "a", "m", "us", "warm", *pair) for pair in ((one, two), (two, one)))
    turned = {"higher": "lower", "lower": "higher"}
    assert back.verdict == turned.get(there.verdict, there.verdict)
    assert there.ratio is not None and back.ratio is not None
    assert there.ratio * back.ratio == pytest.approx(1.0)


def test_the_newest_of_equal_figures_counts(paths: tuple[Path, Path]) -> None:
    before, after = paths
    newest = replace(CPU, date_utc="2026-03-01T00:00:00+00:00")
    # A fraction among the axes is a result, and does not make another figure of it.
    append(
        before, [row("a", [8, 9, 10], newest, tenants=2, fraction=0.5), row("a", [1, 2, 3], tenants=2, fraction=0.1)]
    )
    append(after, [row("a", [8, 9, 10], tenants=2, fraction=0.6), row("a", [8, 9, 10], tenants=4)])
    found = compared_results(before, after, force=False)
    assert [figure.ratio for figure in found.figures] == [1.0]
    assert (found.num_only_before, found.num_only_after) == (0, 1)


def test_cold_and_warm_are_not_compared(paths: tuple[Path, Path]) -> None:
    before, after = paths
    append(before, [row("a", [1, 2, 3])])
    append(after, [Row(replace(SPEED, cache="cold").of("a", [1, 2, 3]), CPU)])
    with pytest.raises(OptionError, match="nothing in common"):
        compared_results(before, after, force=False)


def test_other_devices_are_refused_unless_forced(capsys: pytest.CaptureFixture[str], paths: tuple[Path, Path]) -> None:
    before, after = paths
    append(before, [row("a", [1, 2, 3])])
    append(after, [row("a", [30, 40, 50], GPU)])
    ended = run(capsys, "compare", before, after)
    assert (ended.code, ended.out) == (1, "")
    assert f"device: {CPU.device} here, {GPU.device} there" in ended.err and "--force" in ended.err
    forced = run(capsys, "compare", before, after, "--force", "--json")
    data = json.loads(forced.out)
    assert [(line["ratio"], line["verdict"]) for line in data["figures"]] == [(20.0, "higher")]
    assert any(line.startswith("driver: none here") for line in data["differences"])


def test_a_file_of_several_devices_is_refused(paths: tuple[Path, Path]) -> None:
    both = paths[0]
    append(both, [row("a", [1, 2, 3]), row("b", [1, 2, 3], GPU)])
    with pytest.raises(OptionError, match="different devices"):
        compared_results(both, both, force=False)


def test_other_versions_are_compared_and_told(capsys: pytest.CaptureFixture[str], paths: tuple[Path, Path]) -> None:
    before, after = paths
    append(before, [row("[a]", [1, 2, 3])])
    append(after, [row("[a]", [10, 20, 30], replace(LATER, torch="9.9", versions={"numpy": "3"}))])
    ended = run(capsys, "compare", before, after)
    assert ended.code == 0
    assert "torch: 2.13.0+cpu here, 9.9 there" in ended.out and "versions.numpy: absent here, 3 there" in ended.out
    assert "10.00 x" in ended.out and "higher" in ended.out and "2 (1.5-2.5)" in ended.out
    assert "[a]" in ended.out and "commit dddddddddd, 2026-02-01" in ended.out


def test_what_was_unavailable_is_not_compared(paths: tuple[Path, Path]) -> None:
    before, after = paths
    append(before, [row("a", [1, 2, 3]), row("b", [1, 2, 3])])
    append(after, [row("a", [1, 2, 3]), Row(SPEED.unavailable("b", "there is no GPU"), CPU)])
    assert [figure.subject for figure in compared_results(before, after, force=False).figures] == ["a"]


def test_a_line_that_is_no_result_is_named(capsys: pytest.CaptureFixture[str], paths: tuple[Path, Path]) -> None:
    append(paths[0], [row("a", [1, 2, 3])])
    paths[1].write_text(f"{paths[0].read_text()}not a result\n", encoding="utf-8")
    ended = run(capsys, "compare", *paths)
    assert ended.code == 1 and "after.jsonl" in ended.err and "line 2" in ended.err


def test_results_and_profiles_are_not_mixed(capsys: pytest.CaptureFixture[str], paths: tuple[Path, Path]) -> None:
    append(paths[0], [row("a", [1, 2, 3])])
    profile = paths[0].with_name("profile.json")
    profile.write_text("{}", encoding="utf-8")
    for pair in ((paths[0], profile), (profile, paths[0])):
        ended = run(capsys, "compare", *pair)
        assert ended.code == 1 and "results and a profile" in ended.err
