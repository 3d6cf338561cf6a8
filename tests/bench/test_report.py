"""The report of results: which rows count, what its tables say, and what is written where."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spacetime
from bench.report import DOCS, PAGE, RESULTS, results_markdown, write_report
from bench.report.__main__ import report
from bench.report.build import goal_share, has_goal, misses
from bench.report.document import NOTHING, Document, document
from bench.report.figures import NO_FIGURE, Bars, Lines, Sheet, number
from bench.report.markdown import COMMAND
from bench.report.rows import newest, read
from bench.report.sources import source
from bench.results import Measurement, Row
from spacetime import zoo
from spacetime.errors import OptionError
from spacetime.sim.studies.space_time_table import CONV_RATES, GAINS
from tests.bench.report_rows import CPU, GPU, PLAIN, everything, rate, rows, section_of, sheets_of, tenants, write


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def made(results: Path) -> Document:
    return document(results)


def as_dicts(sheet: Sheet) -> list[dict[str, str]]:
    return [dict(zip(sheet.headings, row, strict=True)) for row in sheet.rows]


# -- which rows count ------------------------------------------------------------------------------------------------


def measured(subject: str = "a", value: float = 1.0, **axes: str | int | float) -> Measurement:
    return PLAIN.of(subject, [value], axes=axes)


def on(day: int, measurement: Measurement, provenance: object = CPU) -> Row:
    return Row(measurement, replace(CPU if provenance is CPU else GPU, date_utc=f"2026-01-{day:02}T00:00:00+00:00"))


@given(st.permutations([1, 2, 3, 4]))
def test_the_newest_of_equal_figures_counts_in_whatever_order(days: list[int]) -> None:
    found = newest(on(day, measured(value=day, tenants=2, fraction=day / 8)) for day in days)
    assert [row.measurement.median for row in found] == [4]
    assert found.num_older == 3


def test_of_equal_dates_the_later_line_counts() -> None:
    assert [row.measurement.median for row in newest([on(1, measured(value=1)), on(1, measured(value=2))])] == [2]


def test_other_devices_caches_and_axes_are_other_figures() -> None:
    cold = Row(replace(measured(), cache="cold"), CPU)
    different = [on(1, measured()), on(1, measured(), GPU), on(1, measured(tenants=2)), cold, on(1, measured("b"))]
    assert len(newest(different)) == len(different)


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "bad.jsonl").write_text('{"measurement": {}, "provenance": {}}\n', encoding="utf-8")
    with pytest.raises(OptionError, match=r"bad\.jsonl"):
        read(tmp_path)
    with pytest.raises(OptionError, match="not a directory"):
        read(tmp_path / "nonesuch")


def test_what_was_left_out_once_and_measured_later_is_not_missing() -> None:
    left_out = PLAIN.unavailable("vmap", "left out", {"side": "vmap"})
    later = on(2, measured("vmap R=2", side="vmap", tenants=2))
    assert not newest([on(1, left_out), later]).missing
    assert newest([on(3, left_out), later]).missing  # it is the newer one
    assert newest([on(1, left_out), on(2, measured(side="vmap", tenants=2), GPU)]).missing
    assert newest([on(1, left_out), on(2, replace(measured(side="vmap"), metric="another"))]).missing
    assert newest([on(1, PLAIN.unavailable("all", "none")), later]).missing  # of nothing in particular


def test_sources_name_devices_versions_commits_and_dates() -> None:
    found = newest([on(1, measured()), on(3, measured("b")), on(2, measured(), GPU)])
    told = source(found)
    assert f"{CPU.device} (torch {CPU.torch}), commit cccccccccc, 2026-01-01 to 2026-01-03" in told
    assert f"{GPU.device} (driver {GPU.driver}, torch {GPU.torch}), commit aaaaaaaaaa, 2026-01-02" in told
    dirty = newest([Row(measured(), replace(CPU, dirty=True))])
    assert "with changes" in source(dirty)


@pytest.mark.parametrize(
    ("goal", "subject", "median", "expected"),
    [
        ("<= 1.15", "a", 1.15, False),
        ("<= 1.15", "a", 1.2, True),
        (">= 1, geomean >= 1.5", "a", 1.2, False),
        (">= 1, geomean >= 1.5", "geomean", 1.2, True),
        ("= 1", "a", 0.99, True),
        ("<= 1e-5", "a", 1e-6, False),
        ("", "a", 1.0, False),
        ("as good as others", "a", 1.0, False),
        ("flood: <= 50", "space_time beside a flood", 60.0, True),
        ("flood: <= 50", "space_time beside a heavy", 60.0, False),
    ],
)
def test_goals_are_judged(goal: str, subject: str, median: float, expected: bool) -> None:
    found = replace(measured(subject, median), goal=goal)
    assert misses(found) is expected
    assert has_goal(found) is (("=" in goal or "<" in goal) and "heavy" not in subject)


# -- the table of the publication ------------------------------------------------------------------------------------


def test_the_published_table_stands_beside_every_path_on_every_device(made: Document) -> None:
    table = section_of(made, "Matrix products").sheets[0]
    heads = [f"ours: slot_linear · {GPU.device}", f"ours: Triton · {GPU.device}", f"ours: slot_linear · {CPU.device}"]
    assert list(table.headings[4:]) == heads
    lines = as_dicts(table)
    assert [float(line["published, V100"]) for line in lines] == [
        value for _, _, by_kernels, mean in GAINS for value in (*by_kernels.values(), mean)
    ]
    conv = next(line for line in lines if "conv2_2" in line["shape M x N x K"] and line["kernels"] == "R = 20")
    ratio = rate(GPU.device, "256x128x1152", "ours: Triton", 20) / rate(GPU.device, "256x128x1152", "space-only", 20)
    assert (conv["speed-up over"], conv[heads[1]]) == ("space-only", number(ratio))
    assert "Published: Space-Time, 2018, on a V100" in table.source and GPU.device in table.source


def test_rates_of_the_published_shape(made: Document) -> None:
    table = section_of(made, "Matrix products").sheets[1]
    line = next(line for line in as_dicts(table) if line["R"] == "40")
    assert line["space-only · published, V100"] == f"{CONV_RATES[40].space_only:.0f}"
    assert line[f"time-only · {CPU.device}"] == number(rate(CPU.device, "256x128x1152", "time-only", 40))


def test_highlights_are_the_best_path_of_the_first_device(made: Document, results: Path) -> None:
    medians = [
        row.measurement.median or 0
        for row in read(results).on(GPU.device).of_metric("geomean of speed-ups")
        if row.measurement.axes["shape"] == "256x128x1152" and row.measurement.axes["baseline"] == "space-only"
    ]
    big, small = made.highlights[1]
    assert big == f"{number(max(medians))}x"
    assert "conv2_2 over space-only" in small and GPU.device in small and "published: 3.23x on a V100" in small


# -- at a glance -----------------------------------------------------------------------------------------------------


def glance(found: Document) -> dict[tuple[str, str], dict[str, str]]:
    assert found.overview is not None
    return {(line["part"], line["where"]): line for line in as_dicts(found.overview)}


def test_the_first_table_says_what_was_measured_where_and_what_falls_short(made: Document, results: Path) -> None:
    lines, all_rows = glance(made), read(results)
    parts = ("Matrix products", "Whole models", "Tenants under traffic", "Interference", "Overheads")
    for part, case in zip(parts, ("gemm", "models", "tenants", "interference", "overheads"), strict=True):
        for device in (GPU.device, CPU.device):
            line = lines[part, f"measured on {device}"]
            mine = all_rows.of_case(case).on(device)
            assert line["figures"] == str(len(mine.available)) and line["not possible"] == str(len(mine.missing))
    cpu = f"measured on {CPU.device}"
    assert "published 3.23x" in lines["Matrix products", cpu]["what falls short most"]
    assert lines["Whole models", cpu]["what falls short most"].startswith("ours is slower in ")
    assert lines["Overheads", cpu]["goals missed"] == "1 of 2"
    assert "8 lanes, 120" in lines["Overheads", cpu]["what falls short most"]
    assert any(where == "modelled, none measured" for _, where in lines)
    assert ("Any of it on a GPU", "not measured") not in lines


def test_the_first_table_says_when_others_are_better_and_when_no_gpu_has_run(tmp_path: Path) -> None:
    goodput = [one for one in tenants(CPU.device) if one.metric.startswith("goodput") and one.median]
    worse = [
        replace(one, median=one.median / 9) if "space_time" in one.subject and one.median else one for one in goodput
    ]
    write(tmp_path, "tenants", rows(CPU, worse))
    lines = glance(document(tmp_path))
    told = lines["Tenants under traffic", f"measured on {CPU.device}"]["what falls short most"]
    assert told.startswith("goodput in requests/s: krisp ")
    assert lines["Any of it on a GPU", "not measured"]["figures"] == NO_FIGURE


def test_all_figures_of_a_side_are_in_one_row(made: Document) -> None:
    table = next(sheet for sheet in section_of(made, "Whole models").sheets if sheet.title.startswith("Side by side"))
    line = next(line for line in as_dicts(table) if line["side"] == "vmap" and line["model"].startswith("mlp"))
    assert line["model"] == "mlp, float32, rows: 1, R = 64"
    assert line["memory, MB"] == "32.0" and line["slowest over fastest tenant"] == "1.50"


# -- what no section knows -------------------------------------------------------------------------------------------


def test_a_case_that_nobody_knows_is_in_a_plain_table(tmp_path: Path) -> None:
    write(tmp_path, "core", rows(CPU, [measured("one", 1.25), measured("two", 3.5)]))
    found = document(tmp_path)
    (table,) = section_of(found, "Other cases").sheets
    assert [(line["subject"], line["median"]) for line in as_dicts(table)] == [("one", "1.25"), ("two", "3.50")]
    short = section_of(found, "What falls short")
    assert short.text.startswith("1 of 2 figures")
    assert "two: 3.50" in short.sheets[0].rows[0]


@pytest.mark.parametrize("case", ["gemm", "models", "tenants", "interference", "overheads"])
def test_rows_of_a_known_case_without_its_axes_still_appear(tmp_path: Path, case: str) -> None:
    write(tmp_path, case, rows(CPU, [replace(measured("bare", 0.8125), case=case)]))
    shown = [
        cell
        for section in document(tmp_path).sections
        for sheet in sheets_of(section)
        for row in sheet.rows
        for cell in row
    ]
    assert "0.812" in shown and "bare" in shown


def test_what_took_for_ever_is_in_tables_and_not_in_pictures(tmp_path: Path) -> None:
    never = [
        replace(each, median=math.inf, p75=math.inf, distribution=None)
        for each in tenants(GPU.device)
        if "streams" in each.subject
    ]
    write(tmp_path, "tenants", rows(GPU, [*never, *(m for m in tenants(GPU.device) if "streams" not in m.subject)]))
    found = document(tmp_path)
    assert any("inf" in cell for sheet in found.sections[0].more_sheets for row in sheet.rows for cell in row)
    lines = [series.name for chart in found.charts if isinstance(chart, Lines) for series in chart.series]
    bars = [
        bar.name for chart in found.charts if isinstance(chart, Bars) for group in chart.groups for bar in group.bars
    ]
    assert found.charts and "krisp" in lines and "streams" not in [*lines, *bars]
    write_report(tmp_path, tmp_path / "out")


def test_reasons_are_told_once(made: Document) -> None:
    tables = sheets_of(section_of(made, "Matrix products"))
    reasons = next(sheet for sheet in tables if sheet.title.startswith("Not measured"))
    assert (CPU.device, "chained graph", "there is no GPU", "1") in reasons.rows


def test_every_metric_of_models_and_traffic_is_in_a_table(made: Document, results: Path) -> None:
    shown = " ".join(
        sheet.title + " ".join(sheet.headings) + str(sheet.rows) for s in made.sections for sheet in sheets_of(s)
    )
    for row in read(results).of_case("models", "tenants", "interference", "overheads"):
        assert row.measurement.metric.lower() in shown.lower()


# -- what is written -------------------------------------------------------------------------------------------------


def test_files_are_written_and_repeat_themselves(results: Path, tmp_path: Path) -> None:
    smaller = tmp_path / "results"
    write(
        smaller,
        "gemm",
        [row for row in read(results).of_case("gemm").on(CPU.device) if "512x1x512" in row.measurement.subject],
    )
    before = DOCS.read_bytes()
    files = write_report(smaller, tmp_path / "a")
    assert [path.name for path in files[:2]] == ["report.html", "results.md"]
    pictures = [path for path in files if path.suffix == ".png"]
    assert len(pictures) == 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    again = write_report(smaller, tmp_path / "b")
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]
    assert DOCS.read_bytes() == before  # it is of the project's own results only


def test_the_order_of_files_does_not_matter_to_their_text(tmp_path: Path) -> None:
    lines = rows(CPU, [measured(str(i), i) for i in range(5)])
    write(tmp_path / "one", "a", lines)
    write(tmp_path / "two", "a", lines[:3])
    write(tmp_path / "two", "b", lines[3:])
    assert results_markdown(tmp_path / "one") == results_markdown(tmp_path / "two")


def test_without_results_the_report_says_so(tmp_path: Path) -> None:
    assert NOTHING in results_markdown(tmp_path).replace("\n", " ")
    write_report(tmp_path, tmp_path / "out")
    assert NOTHING in (tmp_path / "out" / PAGE).read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    write(tmp_path / "results", "core", rows(CPU, [measured()]))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OptionError, match="cannot be written") as caught:
        write_report(tmp_path / "results", tmp_path / "file")
    assert caught.value.facts and "--out" in caught.value.next_step


@pytest.mark.parametrize(
    ("goal", "median", "share"), [("<= 100", 50.0, 0.5), (">= 100", 50.0, 2.0), ("<= 1", -1.0, None)]
)
def test_shares_of_goals_are_worse_above_one(goal: str, median: float, share: float | None) -> None:
    assert goal_share(replace(measured(value=median), goal=goal)) == share


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "results", "core", rows(CPU, [measured()]))
    report(tmp_path / "results", tmp_path / "out")
    assert str(tmp_path / "out" / PAGE) in capsys.readouterr().out


def test_tables_have_no_ragged_rows(made: Document) -> None:
    for section in made.sections:
        for sheet in sheets_of(section):
            assert {len(row) for row in sheet.rows} <= {len(sheet.headings)}
            assert all(cell != NO_FIGURE for cell in sheet.headings)


# -- beside the rows -------------------------------------------------------------------------------------------------


def test_proofs_are_counted_and_failures_told(tmp_path: Path) -> None:
    folder = tmp_path / GPU.device
    folder.mkdir()
    finding = {"stage": "census", "name": "confined", "status": "FAIL", "facts": "3 SMs outside", "figures": {}}
    passed = {**finding, "status": "PASS", "name": "alone"}
    outcome = {
        "stage": "census",
        "environment": {},
        "seconds": 1.5,
        "end": "done",
        "findings": [finding, passed],
        "tail": "",
    }
    data = {"provenance": json.loads(GPU.to_json()), "outcomes": [outcome]}
    (folder / "device.json").write_text(json.dumps(data), encoding="utf-8")
    stages, failed = section_of(document(tmp_path), "What was proved on the device").sheets
    assert stages.rows == (("census", "done", "1.5", "1", "1", "0", "0"),)
    assert failed.rows == (("census", "confined", "FAIL", "3 SMs outside"),)
    (folder / "device.json").write_text("{}", encoding="utf-8")
    with pytest.raises(OptionError, match=r"device\.json"):
        document(tmp_path)


def test_profiles_are_drawn(tmp_path: Path) -> None:
    program = spacetime.capture(zoo.build("mlp"), zoo.example("mlp"))
    spacetime.profile(program, "model:h200").save(tmp_path / GPU.device / "profiles" / "mlp.json")
    section = section_of(document(tmp_path), "Knee curves")
    (drawn,) = section.drawn
    assert "<svg" in drawn and "modelled" in drawn
    assert section.more_sheets[0].rows[0][:3] == ("mlp", "model:h200", "modelled")


def test_modelled_studies_are_called_modelled(made: Document) -> None:
    for sheet in section_of(made, "Modelled").sheets:
        assert "modelled" in sheet.title and "published" in sheet.headings


def test_docs_are_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == results_markdown(RESULTS), f"{DOCS} is stale: run `{COMMAND}`"
