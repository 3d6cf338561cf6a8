"""The report's first table: ratios on the right side of one, nothing claimed that quartiles do not tell apart."""

from __future__ import annotations

from bench.provenance import Provenance
from bench.report.answers import GOODPUT, LONE, ONNX, PLAIN, answers, tiles
from bench.report.figures import NO_FIGURE
from bench.report.rows import Rows
from bench.results import Figure, Measurement, Row
from tests.bench.report_rows import CPU, GPU


def rows(*found: Measurement, provenance: Provenance = CPU) -> Rows:
    return Rows(tuple(Row(one, provenance) for one in found))


def ratio(metric: str, subject: str, *samples: float, **axes: str | int) -> Measurement:
    return Figure("throughput", metric, "ratio", "a fixture").of(subject, list(samples), "", axes)


def speed_up(model: str, baseline: str, tenants: int, value: float) -> Measurement:
    axes: dict[str, str | int | float] = {"model": model, "dtype": "float32", "rows": "1", "tenants": tenants}
    figure = Figure("models", "speed-up", "ratio", "a fixture")
    return figure.of(f"{model} R={tenants}", [value], "", {**axes, "side": "ours", "baseline": baseline})


def goodput(policy: str, rate: float) -> Measurement:
    figure = Figure("tenants", f"{GOODPUT}: highest rate", "requests/s", "a fixture")
    return figure.of(policy, [rate], "", {"policy": policy, "tenants": 8})


def cells(found: Rows) -> dict[str, tuple[str, ...]]:
    sheet = answers(found)
    assert sheet is not None
    return {row[0]: row[1:] for row in sheet.rows}


def test_a_model_is_faster_slower_or_not_told_apart() -> None:
    found = rows(
        ratio(PLAIN, "gru", 2.0, 2.0, 2.0),
        ratio(PLAIN, "cell", 0.5, 0.5, 0.5),
        ratio(PLAIN, "noisy", 0.8, 1.0, 1.2),
        ratio(PLAIN, "geomean", 7.0),
        ratio(PLAIN, "minimum", 0.5),
    )
    assert cells(found)["the same modules, one after another"] == ("1.00x", "gru 2.00x", "cell 0.500x", "noisy 1.00x")
    [(big, small)] = tiles(found)
    assert big == "1.00x" and "3 models: 0.500x to 2.00x" in small


def test_baselines_count_at_the_most_tenants_and_once() -> None:
    found = rows(
        ratio(ONNX, "mlp", 0.5),
        speed_up("mlp", "onnxruntime", 8, 3.0),
        speed_up("mlp", "vmap", 1, 0.1),
        speed_up("mlp", "vmap", 8, 4.0),
    )
    table = cells(found)
    assert table["vmap"] == ("4.00x", "8 mlp 4.00x", NO_FIGURE, NO_FIGURE)
    assert "onnxruntime" not in table, "the zoo has answered it"
    assert table["onnxruntime, a thread per core"][2] == "mlp 0.500x"


def test_a_policy_that_serves_as_much_is_not_beaten() -> None:
    found = rows(
        goodput("space_time", 100.0), goodput("gslice", 100.0), goodput("static", 50.0), goodput("krisp", 180.0)
    )
    overall, faster, slower, even = cells(found)["other policies: requests in time"]
    assert (overall, faster, slower, even) == ("space_time 100/s", "static 50.0/s", "krisp 180/s", "gslice 100/s")


def test_a_lone_tenant_only_loses() -> None:
    figure = Figure("lone", LONE, "us", "a fixture")
    found = rows(figure.of("mlp", [66.0]), figure.of("cell", [90.0]))
    assert cells(found)["a lone tenant's plain call"][:3] == (
        "+66.0 to 90.0 us",
        NO_FIGURE,
        "mlp +66.0 us, cell +90.0 us",
    )


def test_it_says_whether_a_gpu_has_run_anything_and_answers_for_the_gpu() -> None:
    cpu = rows(ratio(PLAIN, "gru", 2.0))
    assert cells(cpu)["anything on a GPU"][0] == "not measured"
    both = Rows((*cpu, *rows(ratio(PLAIN, "gru", 9.0), provenance=GPU)))
    assert cells(both)["the same modules, one after another"][0] == "9.00x"
    assert "anything on a GPU" not in cells(both)


def test_long_lists_are_cut_and_counted() -> None:
    found = rows(*[ratio(PLAIN, f"m{index}", 2.0 + index) for index in range(9)])
    assert cells(found)["the same modules, one after another"][1] == "m8 10.0x, m7 9.00x, m6 8.00x, m5 7.00x, 5 more"


def test_without_rows_there_is_no_answer() -> None:
    assert answers(rows()) is None and tiles(rows()) == ()
