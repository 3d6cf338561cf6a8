"""Distributions: kept in rows, read back, left out of rows of old, and drawn as what they are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report.build import palette
from bench.report.cdf import WITHOUT, distributions, latencies
from bench.report.figures import Bars, Lines
from bench.report.rows import Rows, newest
from bench.results import PERCENTS, Distribution, Figure, Row, append, distribution, load
from spacetime.cli.results import compared_results
from spacetime.errors import OptionError
from tests.bench.report_rows import CPU

LATENCIES = {name: Figure("models", f"latency {name}", "ms", "a fixture") for name in ("p50", "p99", "max")}
QUANTILES = {figure.metric: name for name, figure in LATENCIES.items()}
WHERE = {"name": "latency", "title": "Latency", "detail": "somewhere", "x_label": "ms"}


def rows(samples: dict[str, list[float]], *, old: tuple[str, ...] = ()) -> Rows:
    """What a case makes of the latencies of its sides; `old` ones are as they were before there were distributions."""
    made = []
    for side, values in samples.items():
        of_all = None if side in old else distribution(values)
        for name, value in (("p50", 2.0), ("p99", 5.0), ("max", 6.0)):
            made.append(LATENCIES[name].of(side, [value], "", {"side": side}, of_all if name == "p50" else None))
    return newest(Row(one, CPU) for one in made)


# -- in rows ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9999), min_size=1, max_size=300))
def test_at_each_percent_stands_the_least_value_that_so_many_do_not_exceed(samples: list[int]) -> None:
    found = distribution(samples)
    assert found.n == len(samples) and len(found.values) == len(PERCENTS)
    assert found.values[0] == min(samples) and found.values[-1] == max(samples)
    for percent, value in zip(PERCENTS[1:], found.values[1:], strict=True):
        within, less = (sum(keep) for keep in ([s <= value for s in samples], [s < value for s in samples]))
        assert 100 * within >= percent * len(samples) * (1 - 1e-12)
        assert 100 * less < percent * len(samples) * (1 + 1e-12)


def test_there_are_forty_one_percents_and_they_rise() -> None:
    assert len(PERCENTS) == 41 and list(PERCENTS) == sorted(set(PERCENTS))
    assert {0.0, 50.0, 99.0, 99.9, 100.0} <= set(PERCENTS)


def test_requests_that_were_never_served_stay_in_it() -> None:
    found = distribution([1.0] * 98 + [math.inf] * 2)
    assert found.values[PERCENTS.index(98.0)] == 1.0 and found.values[PERCENTS.index(99.0)] == math.inf


def test_a_row_keeps_it_in_a_few_hundred_bytes(tmp_path: Path) -> None:
    path = tmp_path / "models.jsonl"
    with_it = rows({"eager": [1.2345678 * i for i in range(1, 500)] + [math.inf]}).rows
    append(path, with_it)
    assert load(path) == list(with_it)
    without = replace(with_it[0], measurement=replace(with_it[0].measurement, distribution=None))
    assert 100 < len(with_it[0].to_json()) - len(without.to_json()) < 500


def test_lines_of_old_are_read_and_compared(tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    append(new, rows({"eager": [1.0, 2.0]}).rows)
    lines = [json.loads(line) for line in new.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["measurement"]["distribution"]
    old.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert [row.measurement.distribution for row in load(old)] == [None] * 3
    assert len(compared_results(old, new, force=False).figures) == 3


def test_another_grid_is_refused(tmp_path: Path) -> None:
    (row, *_) = rows({"eager": [1.0]}).rows
    append(
        tmp_path / "a.jsonl", [replace(row, measurement=replace(row.measurement, distribution=Distribution(1, (1.0,))))]
    )
    with pytest.raises(OptionError, match="not at the known percents"):
        load(tmp_path / "a.jsonl")


# -- in pictures -----------------------------------------------------------------------------------------------------


def drawn(found: Rows) -> Lines | Bars | None:
    return latencies(found, QUANTILES, lambda one: str(one.axes["side"]), "side", palette(found), **WHERE)


def test_a_line_goes_through_the_values_and_the_fastest_comes_first() -> None:
    found = drawn(rows({"eager": [10.0, 20.0, 30.0], "ours": [1.0, 2.0, 3.0]}))
    assert isinstance(found, Lines) and found.is_share
    assert [series.name for series in found.series] == ["ours", "eager"]
    for series, scale in zip(found.series, (1.0, 10.0), strict=True):
        assert [point.y for point in series.points] == list(PERCENTS)
        assert {point.x for point in series.points} == {scale, 2 * scale, 3 * scale}
    assert "3 per line" in found.source and "not drawn" not in found.source


def test_a_line_ends_where_requests_were_never_served() -> None:
    found = drawn(rows({"streams": [1.0] * 95 + [math.inf] * 5, "nothing": [math.inf] * 4}))
    assert isinstance(found, Lines)
    (series,) = found.series
    assert max(point.y for point in series.points) == 95.0


def test_sides_without_one_are_named() -> None:
    found = drawn(rows({"eager": [1.0], "ours": [2.0]}, old=("eager",)))
    assert isinstance(found, Lines)
    assert [series.name for series in found.series] == ["ours"] and "not drawn: eager." in found.source


def test_rows_of_old_are_strips_that_say_so() -> None:
    found = drawn(rows({"eager": [1.0], "ours": [2.0]}, old=("eager", "ours")))
    assert isinstance(found, Bars) and WITHOUT in found.detail and "p50, p99, max" in found.detail


def test_what_differs_in_something_else_has_no_place() -> None:
    twice = rows({"eager": [1.0]})
    more = [replace(r, measurement=replace(r.measurement, axes={"side": "eager", "rate": 2})) for r in twice]
    both = newest([*twice, *more])
    assert distributions(both, "side", palette(both), **WHERE) is None
