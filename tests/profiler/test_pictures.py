"""Pictures of profiles: the files, what stands in them, and what cannot be drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from spacetime.errors import OptionError
from spacetime.profiler.pictures import PARTS, check, plot
from tests.profiler.profiles import FakeProfile, layer, profile

SVG = "{http://www.w3.org/2000/svg}"


def texts(path: Path) -> str:
    return "\n".join("".join(text.itertext()) for text in ElementTree.parse(path).iter(f"{SVG}text"))


def test_a_png_has_the_size_of_a_slide(tmp_path: Path) -> None:
    plot(profile(), tmp_path / "profile.png", "timeline")
    written = (tmp_path / "profile.png").read_bytes()
    assert written[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(written[16:20], "big") == 1920


@pytest.mark.parametrize("part", PARTS)
def test_a_picture_says_what_it_shows(tmp_path: Path, part: str) -> None:
    path = tmp_path / "profile.svg"
    plot(profile(method="modelled"), path, part, "vgg19")
    found = texts(path)
    assert "vgg19 on h200 (modelled), 1 row" in found
    assert ("units needed" in found.lower()) == (part != "latency")
    assert ("knee 16 · " in found and "whole model" in found) == (part != "timeline")


def test_the_timeline_names_what_bounds_the_kernels_and_only_that(tmp_path: Path) -> None:
    plot(profile([layer(bound="compute"), layer(bound="launch")]), tmp_path / "profile.svg", "timeline")
    found = texts(tmp_path / "profile.svg")
    assert "bound by compute" in found and "bound by launch" in found
    assert "bandwidth" not in found


def test_equal_profiles_give_equal_files(tmp_path: Path) -> None:
    for name in ("one.svg", "other.svg"):
        plot(profile(), tmp_path / name, "timeline")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_names_are_text_not_formulas_and_not_markup(tmp_path: Path) -> None:
    name = "a_$x^2$<b>&amp;"
    plot(profile([layer(name=name)]), tmp_path / "profile.svg", "latency", "$\\frac{1}{$")
    assert name in texts(tmp_path / "profile.svg")


@pytest.mark.parametrize(
    "shown",
    [
        profile([layer(sizes=(1,))]),
        profile([layer(sizes=(1, 2))]),
        profile([layer(sizes=(8, 132), serial_us=0.0)]),
        profile([layer(name="x" * 300, op="y" * 100)]),
        profile([layer(parallel_us=0.0, serial_us=0.001), layer(parallel_us=1e8)]),
        profile([layer(name=f"layer{index}", parallel_us=float(index)) for index in range(150)]),
    ],
    ids=["one size", "two sizes", "no fixed part", "long names", "far apart", "many layers"],
)
def test_odd_profiles_are_drawn_too(tmp_path: Path, shown: FakeProfile) -> None:
    plot(shown, tmp_path / "profile.svg")
    assert "whole model" in texts(tmp_path / "profile.svg")


def test_nothing_of_matplotlib_is_changed(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot(profile(), tmp_path / "profile.svg", "timeline")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("profile.bmp", "all", "PNG or SVG"),
        ("profile", "all", "PNG or SVG"),
        ("nonesuch/profile.png", "all", "is not a directory"),
        ("profile.png", "nonesuch", "known: all, latency, timeline"),
    ],
)
def test_what_cannot_be_written_is_refused_with_a_way_out(tmp_path: Path, name: str, part: str, message: str) -> None:
    for attempt in (lambda: plot(profile(), tmp_path / name, part), lambda: check(tmp_path / name, part)):
        with pytest.raises(OptionError, match=message) as refused:
            attempt()
        assert refused.value.facts and refused.value.next_step


def test_a_profile_of_nothing_is_refused(tmp_path: Path) -> None:
    nothing = FakeProfile((), "h200", "measured", 1, 0.05, layer().knee, layer().points)
    with pytest.raises(OptionError, match="of nothing"):
        plot(nothing, tmp_path / "profile.png")


def test_without_matplotlib_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match="pip install matplotlib"):
        plot(profile(), tmp_path / "profile.png")
