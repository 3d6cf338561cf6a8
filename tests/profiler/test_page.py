"""The HTML page: well formed, self-contained, everything in it, names escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from spacetime.profiler.page import COLUMNS, page
from tests.profiler.profiles import FakeProfile, layer, profile

VOID = {"meta", "input", "br"}


class Reader(HTMLParser):
    """Checks that elements nest, and keeps tags, attributes, text and the cells of the table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing that is open"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if "td" in self.open:
            self.cells[-1] += data


def test_elements_nest_and_end() -> None:
    assert Reader(page(profile(), "vgg19")).open == []


def test_it_needs_nothing_from_outside_and_forbids_it() -> None:
    html = page(profile(), "vgg19")
    found = Reader(html)
    outside = [(name, value) for name, value in found.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert outside == []
    assert not {"link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert any(name == "content" and value.startswith("default-src 'none'") for name, value in found.attributes)


def test_every_layer_has_a_row_with_every_column() -> None:
    shown = profile()
    cells = Reader(page(shown)).cells
    assert len(cells) == len(shown.layers) * len(COLUMNS)
    assert cells[1 :: len(COLUMNS)] == [each.name for each in shown.layers]
    assert cells[7 :: len(COLUMNS)] == [f"{each.knee.units} of 16" for each in shown.layers]
    assert cells[10 :: len(COLUMNS)] == ["compute", "bandwidth", "launch"]


def test_numbers_are_sorted_by_their_values_not_by_how_they_look() -> None:
    keys = [float(value) for name, value in Reader(page(profile())).attributes if name == "data-key"]
    assert len(keys) == len(profile().layers) * sum(column.is_number for column in COLUMNS)
    assert profile().layers[0].knee.best_us in keys


def test_both_pictures_are_there_with_a_text_for_those_who_do_not_see_them() -> None:
    found = Reader(page(profile()))
    labels = [value for name, value in found.attributes if name == "aria-label"]
    assert found.tags.count("svg") == len(labels) == 1 + 1 + len(profile().layers)
    assert labels[0].startswith("Units needed over time") and "knee at" in labels[1]


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</svg></table>&amp;'"]
)
def test_names_are_text_wherever_they_stand(evil: str) -> None:
    shown = profile([layer(name=evil, op=evil, shape=evil, bound="compute")])
    harmless, html = page(profile([layer()])), page(shown, evil, {evil: evil})
    found = Reader(html)
    assert found.tags[:-2] and found.open == []
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.text.count(evil) >= 4
    assert harmless.count("<table>") == html.count("<table>") == 1


def test_it_knows_light_and_dark() -> None:
    assert "prefers-color-scheme:dark" in page(profile())


def test_it_says_when_figures_are_modelled_and_lists_the_details() -> None:
    text = Reader(page(profile(method="modelled"), "vgg19", {"torch": "2.13.0"})).text
    assert "vgg19 on h200 (modelled), 1 row" in text
    assert "torch" in text and "2.13.0" in text


@pytest.mark.parametrize(
    "shown",
    [
        profile([layer(sizes=(1,))]),
        profile([layer(sizes=(8, 132), serial_us=0.0)]),
        profile([layer(parallel_us=0.0, serial_us=0.001), layer(parallel_us=1e8)]),
    ],
    ids=["one size", "no fixed part", "far apart"],
)
def test_odd_profiles_are_drawn_within_their_frames(shown: FakeProfile) -> None:
    found = Reader(page(shown))
    coordinates = [float(value) for name, value in found.attributes if name in ("x1", "x2", "y1", "y2", "cx", "cy")]
    assert coordinates
    assert all(-40 <= value <= 1160 for value in coordinates)
