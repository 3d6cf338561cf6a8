"""Profiles as values: layers, knees, predictions, files, other formats."""

from __future__ import annotations

import csv
import doctest
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from spacetime.errors import OptionError
from spacetime.profiler import profile as module
from spacetime.profiler.profile import BETWEEN, CODE, VERSION, Ceilings, Layer, Profile, whole_key
from spacetime.profiler.records import Environment, Key, Measurement
from tests.profiler.fakes import program

PROGRAM = program(8, 16, 8)
NARROW, WIDE = PROGRAM.kernels[0].key, PROGRAM.kernels[1].key
HERE = Environment("two cores", "cpu", 4, "linux 6.1", (("torch", "2.13"),))
LATENCIES_US = {
    NARROW: {1: 10.0, 2: 10.0, 4: 10.0},
    WIDE: {1: 100.0, 2: 50.0, 4: 49.0},
}


def measured(key: str, rows: int, units: int, *samples_us: float) -> Measurement:
    return Measurement(Key(key, rows, units), "linear", "float32", samples_us, 1, 0.0, 0, "measured", "2026-01-01")


def profile(all_rows: tuple[int, ...] = (1, 3), between_us: float | None = None) -> Profile:
    measurements = [
        measured(key, rows, units, us * rows, us * rows)
        for rows in all_rows
        for key, curve in LATENCIES_US.items()
        for units, us in curve.items()
    ]
    if between_us is not None:
        measurements += [
            measured(BETWEEN + PROGRAM.signature, rows, units, between_us) for rows in all_rows for units in (1, 2, 4)
        ]
    return Profile(
        version=VERSION,
        signature=PROGRAM.signature,
        environment=HERE,
        cache="run",
        rows=all_rows[0],
        tolerance=0.05,
        ceilings=Ceilings(flops_per_us=100.0, bytes_per_us=10.0, launch_us=1.0),
        program=tuple(map(Layer.of, PROGRAM.kernels)),
        measurements=tuple(measurements),
    )


def test_layers_are_the_kernels_in_order_with_their_knees() -> None:
    layers = profile().knees()
    assert [(layer.index, layer.name, layer.knee.units) for layer in layers] == [
        (0, "layer0", 1),
        (1, "layer1", 2),
        (2, "layer2", 1),
    ]
    assert [point.units for point in layers[1].points] == [1, 2, 4]
    assert (layers[1].flops, layers[1].bytes) == (2 * 16 * 16, 8 * 16 + 4 * 16 * 16)
    assert layers[1].shape == "float32[rows, 16]"


def test_the_model_has_a_knee_of_its_own() -> None:
    total = profile().total
    assert (total.units, total.best_us, total.best_units) == (2, pytest.approx(69.0), 4)
    with_between = profile(between_us=100.0).total
    assert with_between.best_us == pytest.approx(169.0)


def test_other_rows_and_tolerances_are_views_of_the_same_profile() -> None:
    made = profile()
    assert made.all_rows == (1, 3)
    assert made.at(3).layers[1].knee.best_us == pytest.approx(147.0)
    assert made.at(3).layers[1].flops == 3 * made.layers[1].flops
    assert made.at(tolerance=0.01).layers[1].knee.units == 4
    assert made.at(3).at(1) == made
    with pytest.raises(OptionError, match="no kernels for 2 rows"):
        made.at(2)


def test_predictions_add_up_the_kernels_and_what_lies_between() -> None:
    made = profile()
    assert made.predict_us() == pytest.approx(69.0)
    assert made.predict_us(1) == pytest.approx(120.0)
    assert made.predict_us(4, 3) == pytest.approx(207.0)
    assert made.predict_us(3, 2) == pytest.approx(2 * (20 + 50 - 2 / 3))  # between sizes, and between rows
    assert profile(between_us=100.0).predict_us(1) == pytest.approx(220.0)


def test_the_modules_own_code_counts_instead_of_a_straight_runs() -> None:
    made = profile(between_us=100.0)
    code = [measured(CODE + PROGRAM.signature, 1, units, 30.0) for units in (1, 2, 4)]
    both = replace(made, measurements=(*made.measurements, *code))
    assert both.predict_us(1) == pytest.approx(150.0) and both.total.best_us == pytest.approx(99.0)


def test_an_operation_that_the_module_calls_as_one_counts_as_that() -> None:
    """Kernels 1 and 2 are one there; another program's whole has nothing to do with it."""
    made = profile(between_us=100.0)
    whole = [measured(whole_key(1, 2, PROGRAM.signature), 1, units, 7.0) for units in (1, 2, 4)]
    other = [measured(whole_key(0, 2, "0123012301230123"), 1, units, 1e6) for units in (1, 2, 4)]
    found = replace(made, measurements=(*made.measurements, *whole, *other))
    assert found.predict_us(1) == pytest.approx(10 + 7 + 100) == found.total_points[0].median_us
    assert [layer.index for layer in found.layers] == [0, 1, 2]
    assert Profile.from_json(found.to_json()).predict_us(1) == found.predict_us(1)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(module).attempted and not doctest.testmod(module).failed


@pytest.mark.parametrize(("units", "rows"), [(8, 1), (1, 4)])
def test_a_prediction_beyond_what_was_profiled_is_refused(units: int, rows: int) -> None:
    with pytest.raises(OptionError, match=f"for {rows} rows on {units} units"):
        profile().predict_us(units, rows)


@pytest.mark.parametrize(
    ("flops", "moved_bytes", "us", "bound"),
    [(1000, 10, 11.0, "compute"), (10, 1000, 200.0, "bandwidth"), (10, 10, 1.5, "launch"), (10, 10, 3.0, "bandwidth")],
)
def test_what_bounds_a_kernel(flops: int, moved_bytes: int, us: float, bound: str) -> None:
    assert Ceilings(100.0, 10.0, 1.0).bound(flops, moved_bytes, us) == bound


# -- files ------------------------------------------------------------------------------------------------


def test_a_profile_is_saved_and_loaded(tmp_path: Path) -> None:
    made = profile(between_us=3.0)
    path = tmp_path / "new" / "mlp.json"
    made.save(path)
    assert Profile.load(path) == made
    assert Profile.load(path).layers == made.layers
    replace(made, tolerance=0.5).save(path)
    assert Profile.load(path).tolerance == 0.5
    assert [each.name for each in path.parent.iterdir()] == ["mlp.json"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read as a profile"),
        ("[]", "its version is 'list'"),
        ('{"version": 99}', "its version is 99"),
        ('{"version": 1, "rows": 1}', "missing"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        Profile.load(path)
    assert problem in str(caught.value) and str(path) in str(caught.value)


def test_a_link_and_a_pipe_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As root, a file in the place of /dev/stdout would be the end of it."""
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    profile().save(link)
    assert link.is_symlink() and Profile.load(target) == profile()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        profile().save(pipe)
        assert pipe.is_fifo() and os.read(reader, 1) == b"{"
    finally:
        os.close(reader)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"absent\.json cannot be read"):
        Profile.load(tmp_path / "absent.json")


def test_csv_has_a_line_per_layer() -> None:
    lines = list(csv.DictReader(io.StringIO(profile().to_csv())))
    assert [line["name"] for line in lines] == ["layer0", "layer1", "layer2"]
    assert (lines[1]["knee_units"], lines[1]["best_us"], lines[1]["device"]) == ("2", "49.0", "two cores")
    assert lines[1]["shape"] == "float32[rows, 16]" and lines[1]["method"] == "measured"


def test_chrome_shows_the_kernels_one_after_another_at_their_knees() -> None:
    events = json.loads(profile().to_chrome())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert [(event["ts"], event["dur"]) for event in slices] == [(0.0, 10.0), (10.0, 50.0), (60.0, 10.0)]
    counted = [(event["ts"], event["args"]["units"]) for event in events if event["ph"] == "C"]
    assert counted == [(0.0, 1), (10.0, 2), (60.0, 1), (70.0, 0)]


def test_it_prints_itself() -> None:
    assert "measured" in str(profile()) and "knee at 2" in str(profile())
    modelled = replace(profile(), environment=replace(HERE, kind="model"))
    assert modelled.method == "modelled"
