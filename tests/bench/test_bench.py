"""The benches' own machinery: seeded generators, every case's rows with their provenance, the results file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import add, decision, lone, numerics, throughput
from bench.__main__ import bench
from bench.cases import FULL, QUICK, Part, Scale, modules, random_rounds, share_backbone
from bench.provenance import REPOSITORY, Provenance, collect, device_id
from bench.results import Figure, Measurement, Row, append, load, quartiles
from bench.timing import block_median_us, interleaved_us
from spacetime import zoo
from spacetime.scheduler.registry import policy_names

TINY = Scale(
    models=("mlp",),
    tenant_counts=(2, 3),
    num_subsets=2,
    num_tenants=2,
    num_repeats=1,
    num_calls=3,
    num_blocks=2,
    rounds_per_block=2,
    warm_up_rounds=2,
)
PROVENANCE = Provenance(
    device="cpu-2core-x",
    cpu="X",
    num_cores=2,
    driver="none",
    system="Linux",
    python="3.11.0",
    torch="2.13.0",
    spacetime="0.1.0",
    commit="0" * 40,
    dirty=False,
    date_utc="2026-01-01T00:00:00+00:00",
)
FIGURE = Figure("case", "metric", "us", "how", goal="<= 1")


# -- generators -------------------------------------------------------------------------------------------


@given(st.integers(1, 16), st.integers(0, 5), st.integers(1, 5), st.integers(0, 9))
def test_random_rounds_are_subsets_with_ragged_rows_and_repeat_with_their_seed(
    num_tenants: int, num_rounds: int, max_rows: int, seed: int
) -> None:
    rounds = random_rounds(num_tenants, num_rounds, max_rows, seed)
    assert len(rounds) == num_rounds
    for parts in rounds:
        tenants = [part.tenant for part in parts]
        assert 1 <= len(set(tenants)) == len(tenants)
        assert set(tenants) <= set(range(num_tenants))
        assert {part.rows for part in parts} <= set(range(1, max_rows + 1))
    assert random_rounds(num_tenants, num_rounds, max_rows, seed) == rounds


def test_random_rounds_reach_every_tenant_and_every_row_count() -> None:
    parts = [part for parts in random_rounds(4, 200) for part in parts]
    assert {(part.tenant, part.rows) for part in parts} == {(i, rows) for i in range(4) for rows in range(1, 6)}


def test_a_shared_backbone_leaves_only_the_heads_different() -> None:
    members = list(modules("mlp", 3))
    share_backbone(members)
    first, second = (dict(member.named_parameters()) for member in members[:2])
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == list(first)[-2:]  # the last layer's weight and bias


def test_scales_name_models_of_the_zoo() -> None:
    for scale in (FULL, QUICK):
        assert {*scale.models, *scale.memory_models} <= zoo.ZOO.keys()


# -- timing -----------------------------------------------------------------------------------------------


def test_sides_take_turns_and_keep_their_measurements() -> None:
    order: list[str] = []

    def side(name: str, us: float) -> float:
        order.append(name)
        return us

    measured = interleaved_us([partial(side, "a", 1.0), partial(side, "b", 2.0)], 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert measured == [[1.0] * 3, [2.0] * 3]


def test_the_first_round_of_a_block_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    durations_us = iter([1000.0, 3.0, 1.0, 2.0])
    monkeypatch.setattr("bench.timing.duration_us", lambda action: next(durations_us))
    assert block_median_us(lambda: None, 4) == 2.0


def test_a_block_lasts_as_long_as_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    durations_us = iter([1000.0, 3.0, 5.0, 4.0, 9.0])
    monkeypatch.setattr("bench.timing.duration_us", lambda action: next(durations_us))
    assert block_median_us(lambda: None, 2, least_us=1010.0) == 4.0
    assert next(durations_us) == 9.0


# -- results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "expected"), [([7.0], (7.0, 7.0, 7.0)), ([5.0, 1.0, 3.0, 2.0, 4.0], (2.0, 3.0, 4.0))]
)
def test_quartiles(samples: list[float], expected: tuple[float, float, float]) -> None:
    assert quartiles(samples) == expected


def test_results_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results" / "device" / "core.jsonl"
    rows = [
        Row(FIGURE.of("subject", [1.0, 2.0, 3.0], "note"), PROVENANCE),
        Row(FIGURE.unavailable("subject", "not installed"), PROVENANCE),
    ]
    for row in rows:
        append(path, [row])
    assert load(path) == rows
    assert (rows[0].measurement.n, rows[0].measurement.median) == (3, 2.0)
    assert (rows[1].measurement.n, rows[1].measurement.median) == (0, None)
    assert rows[1].measurement.note == "unavailable: not installed"


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("Intel(R) Xeon(R) Platinum 8480+", "cpu-2core-intel-xeon-platinum-8480"),
        ("Intel(R) Core(TM) i7-9700 CPU @ 3.00GHz", "cpu-2core-intel-core-i7-9700"),
        ("AMD EPYC 9B14", "cpu-2core-amd-epyc-9b14"),
    ],
)
def test_a_device_id_is_a_plain_folder_name(cpu: str, expected: str) -> None:
    assert device_id(cpu, 2) == expected


def test_provenance_is_complete_and_round_trips() -> None:
    found = collect()
    assert Provenance.from_json(found.to_json()) == found
    assert [field.name for field in fields(found) if getattr(found, field.name) == ""] == []


# -- cases ------------------------------------------------------------------------------------------------


def check(measurements: list[Measurement], case: str) -> None:
    """Each line holds its figure, and what it was measured on."""
    assert measurements
    for measurement in measurements:
        line = json.loads(Row(measurement, PROVENANCE).to_json())
        assert line["measurement"]["case"] == case
        assert line["provenance"].keys() == {field.name for field in fields(Provenance)}
        assert measurement.method and measurement.unit
        assert (measurement.median is None) == (measurement.n == 0)
        if measurement.median is not None and measurement.p25 is not None and measurement.p75 is not None:
            assert measurement.p25 <= measurement.median <= measurement.p75


def test_numerics_keeps_the_contract() -> None:
    found = list(numerics.run(TINY))
    check(found, "numerics")
    share, worst = found
    assert share.median == 1.0
    assert worst.median is not None and worst.median <= 1e-5


def test_numerics_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """References of other inputs than the tenants got."""
    given_inputs = numerics._inputs
    seeds = iter(range(10_000))
    monkeypatch.setattr(
        numerics, "_inputs", lambda model, part: given_inputs(model, Part(part.tenant, part.rows, next(seeds)))
    )
    kept, deviations = numerics.check("mlp", (2,), 2)
    assert not any(kept)
    assert min(deviations) > 1e-5


def test_decision_measures_every_policy() -> None:
    found = list(decision.run(TINY))
    check(found, "decision")
    assert {measurement.subject for measurement in found} == set(policy_names())
    assert {measurement.n for measurement in found} == {TINY.num_calls}


def test_lone_measures_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone, "SMALL_MODELS", ("mlp",))
    found = list(lone.run(TINY))
    check(found, "lone")
    assert [measurement.n for measurement in found] == [1]  # a block holds all the calls


def test_add_measures_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add, "WARM_UP_MODEL", "mlp")
    found = list(add.run(TINY))
    check(found, "add")
    assert [measurement.metric for measurement in found] == ["first tenant", "later over first tenant"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_add_measures_memory_in_another_process() -> None:
    found = list(add.memory("mlp", 2, shared=True))
    check(found, "add")
    slabs = found[-1]
    assert slabs.median is not None and 0.9 <= slabs.median <= 1.1  # the backbone once, two heads


def test_throughput_compares_with_plain_modules_and_says_why_onnxruntime_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Called in the other process with a model's name, it raises: a stand-in for a missing package.
    monkeypatch.setattr(throughput, "sessions", import_module)
    found = list(throughput.run(TINY))
    check(found, "throughput")
    plain, onnx, *summary = found
    assert (plain.subject, plain.n) == ("mlp", TINY.num_blocks)
    assert onnx.n == 0 and onnx.note.startswith("unavailable: ") and "No module named" in onnx.note
    assert [(line.subject, line.median) for line in summary] == [
        ("geomean", pytest.approx(plain.median)),
        ("minimum", plain.median),
    ]


def test_throughput_compares_with_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, onnx = throughput.compare("mlp", TINY)
    assert onnx.n == TINY.num_blocks


# -- the command ------------------------------------------------------------------------------------------


def test_an_unknown_case_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "nonesuch"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nonesuch" in done.stderr


def test_the_command_records_each_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(scale: Scale) -> Iterator[Measurement]:
        yield FIGURE.of("subject", [1.0])

    cases: dict[str, Callable[[Scale], Iterator[Measurement]]] = {"one": one, "two": one}
    monkeypatch.setattr("bench.__main__.CASES", cases)
    out = tmp_path / "core.jsonl"
    bench(cases=["one"], quick=True, as_json=True, out=out)
    bench(cases=None, quick=True, as_json=True, out=out)
    printed = [Row.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert load(out) == printed
    assert len(printed) == 3
