"""The pictures and the page of the report: they show the rows' numbers, escaped, and need nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report import markdown, page, svg
from bench.report.axes import spread_labels, ticks_of, x_span, y_span
from bench.report.build import file_name
from bench.report.cdf import WITHOUT
from bench.report.document import Document, document
from bench.report.figures import MARKED, Bars, Lines, Point, Series, number
from bench.report.rows import read
from tests.bench.report_rows import (
    COUNTS,
    CPU,
    GPU,
    PLAIN,
    POLICIES,
    SIDES,
    everything,
    gemm,
    rate,
    rows,
    section_of,
    write,
)

NAUGHTY = '<script>alert("1")</script>|`*'


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def made(results: Path) -> Document:
    return document(results)


@pytest.fixture(scope="module")
def html(made: Document) -> str:
    return page.html(made)


# -- pictures --------------------------------------------------------------------------------------------------------


def test_lines_have_the_rows_numbers_and_the_roofline(made: Document) -> None:
    name = file_name("gemm", "rate", "256x128x1152", "float32", GPU.device)
    chart = next(chart for chart in made.charts if chart.name == name)
    assert isinstance(chart, Lines)
    drawn = {series.name: series for series in chart.series}
    assert drawn.keys() == {*SIDES, "roofline"}
    assert drawn["roofline"].is_limit and {point.y for point in drawn["roofline"].points} == {52_000.0}
    for side in SIDES:
        assert [point.x for point in drawn[side].points] == list(COUNTS)
        expected = [rate(GPU.device, "256x128x1152", side, count) for count in COUNTS]
        assert [point.y for point in drawn[side].points] == pytest.approx(expected)
    assert "roofline is computed" in chart.source and f"driver {GPU.driver}" in chart.source


def test_speed_ups_are_ratios_to_the_fastest_path(made: Document) -> None:
    name = file_name("gemm", "speed-up", "512x1x512", "float32", GPU.device)
    chart = next(chart for chart in made.charts if chart.name == name)
    assert isinstance(chart, Lines) and chart.level == 1.0
    series = {series.name: series for series in chart.series}
    assert series.keys() == {f"over {side}" for side in SIDES if not side.startswith("ours")}
    last = series["over bmm"].points[-1]
    rates = [rate(GPU.device, "512x1x512", side, 120) for side in ("ours: Triton", "bmm")]
    assert last.y == pytest.approx(rates[0] / rates[1]) and last.low < last.y < last.high


def test_the_same_side_has_the_same_colour_on_every_device(made: Document) -> None:
    colours: dict[tuple[str, str], set[int]] = {}
    for chart in made.charts:
        for series in chart.series if isinstance(chart, Lines) else ():
            colours.setdefault((chart.name.partition("-")[0], series.name.removeprefix("over ")), set()).add(
                series.colour
            )
    assert all(len(found) == 1 for found in colours.values())


def test_devices_are_beside_each_other(made: Document) -> None:
    charts = section_of(made, "Matrix products").charts
    assert [GPU.device in chart.detail for chart in charts] == [True, False] * (len(charts) // 2)


def test_strips_go_from_the_median_to_the_slowest(made: Document) -> None:
    name = file_name("models", "latency", "resnet18", "float32", "1", CPU.device)
    chart = next(chart for chart in made.charts if chart.name == name)
    assert isinstance(chart, Bars) and chart.marks == ("p50", "p99", "max") and WITHOUT in chart.detail
    assert "64 tenants" in chart.title
    assert all(list(bar.marks) == sorted(bar.marks) for group in chart.groups for bar in group.bars)


def test_where_there_are_distributions_they_are_drawn_and_in_sight(made: Document) -> None:
    for title in ("Whole models", "Tenants under traffic"):
        section = section_of(made, title)
        lines = [chart for chart in section.charts if isinstance(chart, Lines) and chart.is_share]
        assert lines and all(
            GPU.device in chart.detail and "64 tenants" in chart.title + chart.detail for chart in lines
        )
        for chart in lines:
            for series in chart.series:
                (middle,) = [point.x for point in series.points if point.y == 50.0]
                assert series.points[0].x < middle < series.points[-1].x
    fewer = [chart for chart in section.folded_charts if isinstance(chart, Lines)]
    assert fewer and all("64 tenants" not in chart.detail for chart in fewer)


def test_a_distribution_has_dots_at_its_quantiles_and_names_without_leaders(made: Document) -> None:
    chart = next(chart for chart in made.charts if isinstance(chart, Lines) and chart.is_share)
    text = svg.draw(chart)
    assert text.count("<circle") == len(MARKED) * len(chart.series) and "leader" not in text


def test_memory_and_gaps_of_models_are_drawn_over_the_tenants(made: Document) -> None:
    folded = {chart.name for chart in section_of(made, "Whole models").folded_charts}
    for metric in ("memory", "slowest over fastest tenant"):
        assert file_name("models", metric, "mlp", "float32", "1", GPU.device) in folded


def test_overheads_stand_beside_their_goals(made: Document) -> None:
    charts = {chart.name: chart for chart in section_of(made, "Overheads").charts}
    goals = charts[file_name("overheads", "goals", CPU.device)]
    assert isinstance(goals, Bars) and goals.level == 1.0
    ((bar,),) = [group.bars for group in goals.groups]
    assert (bar.marks[0], bar.marks[-1]) == (0.6, 1.2) and bar.name == "1 of 2 miss"
    times = charts[file_name("overheads", "times", "us", CPU.device)]
    assert isinstance(times, Bars)
    assert [bar.goal for group in times.groups for bar in group.bars] == [100.0, 100.0]
    assert svg.draw(times).count('class="goal"') == 2
    assert "change of partition, gru" in times.source  # on a logarithmic axis it has no place
    decisions = charts[file_name("overheads", "snapshot and policy", CPU.device)]
    assert isinstance(decisions, Lines) and {series.name for series in decisions.series} == POLICIES.keys()


def test_ticks_on_a_narrow_axis_do_not_touch(made: Document) -> None:
    for chart in made.charts:
        if isinstance(chart, Bars):
            feet = re.findall(r'<text class="middle" x="([0-9.]+)"', svg.draw(chart))
            assert all(float(right) - float(left) >= svg.TICK_PX - 0.1 for left, right in pairwise(feet))


def test_every_picture_says_where_it_was_measured(made: Document) -> None:
    for chart in made.charts:
        assert chart.source.startswith("Measured on ") and "commit " in chart.source and "2026-01-0" in chart.source
    names = [chart.name for chart in made.charts]
    assert len(set(names)) == len(names)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_labels_keep_their_distance_and_their_order(wanted: list[float]) -> None:
    places = spread_labels(wanted, 5.0, 0.0, 100.0)
    ordered = [place for _, _, place in sorted(zip(wanted, range(len(wanted)), places, strict=True))]
    assert all(below - above >= 5.0 - 1e-6 for above, below in pairwise(ordered))


@given(st.lists(st.tuples(st.floats(1, 1e3), st.floats(1e-3, 1e6)), min_size=1, max_size=8))
def test_axes_hold_all_points_and_have_ticks(places: list[tuple[float, float]]) -> None:
    points = tuple(Point(x, y, y, y) for x, y in places)
    chart = Lines("n", "t", "d", "x", "y", (Series("s", 0, points),), "")
    for span, values in ((x_span(chart), [x for x, _ in places]), (y_span(chart), [y for _, y in places])):
        assert span.low <= min(values) and max(values) <= span.high
        assert ticks_of(span)


# -- the page --------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Counts tags, and finds those that are not closed."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    return tags


def test_the_page_is_whole_and_needs_nothing_else(html: str, made: Document) -> None:
    tags = parsed(html)
    assert tags.names.count("svg") == len(made.charts)
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.names)
    links = [value for name, value in tags.attributes if name in ("href", "src")]
    targets = {f"#{value}" for name, value in tags.attributes if name == "id"}
    assert set(links) <= targets
    assert "default-src 'none'" in html and "http://" not in html and "https://" not in html


def test_numbers_on_the_page_are_those_of_the_rows(html: str, results: Path) -> None:
    cells = set(re.findall(r"<td[^>]*>([^<]*)</td>", html))
    for row in read(results).of_case("models").of_metric("speed-up"):
        found = row.measurement
        assert found.median is not None and found.p25 is not None and found.p75 is not None
        assert f"{number(found.median)} ({number(found.p25)}-{number(found.p75)})" in cells


def test_names_from_rows_are_escaped(tmp_path: Path) -> None:
    made_up = [PLAIN.of(f"{NAUGHTY}{i}", [1.0, 2.0], NAUGHTY, {"side": NAUGHTY}) for i in range(3)]
    speeds = [
        replace(
            each,
            case="gemm",
            subject=NAUGHTY,
            unit="GFLOP/s",
            axes={**each.axes, "side": f"{NAUGHTY} {each.axes['side']}"},
        )
        for each in gemm(GPU.device)
        if each.metric == "speed"
    ]
    write(tmp_path, "core", rows(GPU, made_up))
    write(tmp_path, "gemm", rows(GPU, speeds))
    drawn = document(tmp_path)
    assert drawn.charts
    html = page.html(drawn)
    assert "<script" not in html and "&lt;script&gt;" in html
    parsed(html)
    text = markdown.text(drawn)
    assert "<script" not in text and r"\|\`\*" in text
