"""What the pictures show: which layers, in which order, how much is saved."""

from __future__ import annotations

import doctest
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.profiler import figures, svg
from spacetime.profiler.figures import heading, log_ticks, panels, print_count, print_us, shorten, timeline
from tests.profiler.profiles import layer, profile


@pytest.mark.parametrize("module", [figures, svg])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_the_whole_model_comes_first_then_the_layers_by_their_time() -> None:
    slow, quick = layer(name="slow", parallel_us=900.0), layer(name="quick", op="linear", parallel_us=9.0)
    assert [panel.name for panel in panels(profile([quick, slow]))] == ["whole model", "slow", "quick"]


def test_layers_that_are_the_same_work_share_a_panel_and_count_together() -> None:
    small = [layer(name=f"block{index}", op="linear", parallel_us=50.0) for index in range(10)]
    large = layer(name="large", parallel_us=100.0)
    whole, first, second = panels(profile([large, *small]))
    assert (whole.detail, first.name, second.name) == ("11 layers", "block0", "large")
    assert "10 layers" in first.detail and "layer" not in second.detail


def test_no_more_panels_than_asked_for() -> None:
    many = profile([layer(parallel_us=float(index + 1)) for index in range(40)])
    assert len(panels(many)) == figures.NUM_PANELS
    assert len(panels(many, most=3)) == 3


def test_a_panel_draws_the_curve_that_the_knee_was_read_from() -> None:
    noisy = layer()
    panel = panels(profile([noisy]))[1]
    assert panel.knee == noisy.knee
    assert panel.fitted_us[panel.units.index(noisy.knee.units)] == pytest.approx(noisy.knee.latency_us)
    spreads = zip(panel.low_us, panel.median_us, panel.high_us, strict=True)
    assert all(low <= median <= high for low, median, high in spreads)


def test_the_timeline_is_every_kernel_at_its_knee_one_after_another() -> None:
    shown = profile()
    drawn = timeline(shown)
    assert [step.name for step in drawn.steps] == [each.name for each in shown.layers]
    assert [step.units for step in drawn.steps] == [each.knee.units for each in shown.layers]
    assert drawn.steps[0].start_us == 0
    for before, after in pairwise(drawn.steps):
        assert after.start_us == pytest.approx(before.start_us + before.duration_us)
    assert drawn.duration_us == pytest.approx(sum(each.knee.latency_us for each in shown.layers))
    assert drawn.num_units == 16


def test_saved_is_the_unit_time_that_the_knees_leave_of_all_units_at_the_best_latency() -> None:
    half = layer(parallel_us=80.0, serial_us=0.0, most_useful=8)  # needs 8 of 16, at the same latency
    drawn = timeline(profile([half, half]))
    assert drawn.mean_units == 8
    assert drawn.saved_share == pytest.approx(0.5)
    assert "frees 50%" in drawn.summary and "8.0 of 16" in drawn.summary


def test_the_heading_says_when_figures_are_modelled() -> None:
    assert heading(profile(method="modelled"), "vgg19") == "vgg19 on h200 (modelled), 1 row"
    assert heading(replace(profile(), rows=4)) == "model on h200 (measured), 4 rows"


@given(st.floats(1e-3, 1e9))
def test_a_printed_time_is_within_half_a_percent(us: float) -> None:
    number, unit = print_us(us).split()
    assert float(number) * {"µs": 1.0, "ms": 1e3, "s": 1e6}[unit] == pytest.approx(us, rel=0.006, abs=6e-4)
    assert len(number) <= 5 or unit == "s"


@given(st.integers(0, 10**14))
def test_a_printed_count_is_within_half_a_percent(count: int) -> None:
    number, _, prefix = print_count(count).partition(" ")
    assert float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix] == pytest.approx(count, rel=0.006)


@given(st.floats(1e-2, 1e6), st.floats(1.5, 1e7), st.integers(1, 8))
def test_ticks_are_few_rising_and_inside(low: float, factor: float, most: int) -> None:
    ticks = log_ticks(low, low * factor, most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * factor for tick in ticks)


@given(st.text(max_size=60), st.integers(4, 40))
def test_a_shortened_name_keeps_both_ends(name: str, most: int) -> None:
    short = shorten(name, most)
    assert len(short) <= most
    assert short == name or (name.startswith(short.split("…")[0]) and name.endswith(short.rpartition("…")[2]))
