"""`st.profile` for real, on tiny kernels: nothing is said about how long they take."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spacetime as st
from spacetime.backends.cores import available_cores, can_pin
from spacetime.errors import CaptureError, OptionError
from spacetime.ir import Program
from spacetime.profiler import site as sites
from spacetime.profiler.environment import cpu_environment, last_level_cache_bytes, modelled_environment
from spacetime.profiler.run import default_store
from spacetime.profiler.site import CpuSite
from spacetime.profiler.store import Store
from spacetime.sim.devices import find
from tests.profiler.fakes import program

SCHEMA = Path(__file__).parents[2] / "profiles" / "schema.json"
QUICK = {"budget_s": 0.02}


@pytest.fixture(scope="module")
def captured() -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    return st.capture(module, (torch.ones(2, 6),))


@pytest.mark.parametrize("cache", ["run", "warm", "cold"])
def test_a_program_is_measured_on_this_machine(
    captured: Program, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites, "last_level_cache_bytes", lambda: 1 << 16)
    reports: list[Any] = []
    affinity = os.sched_getaffinity(0) if can_pin() else None
    found = st.profile(captured, rows=(1, 3), cache=cache, store=tmp_path, progress=reports.append, **QUICK)
    assert len(found.layers) == len(captured.kernels) == 5
    cores = len(available_cores())
    assert found.total.best_units == found.environment.num_units == cores
    assert found.method == "measured" and found.all_rows == (1, 3) and found.cache == cache
    assert found.predict_us(cores, 2) > 0
    assert reports[-1].done == reports[-1].total and reports[-1].num_known == 0
    assert affinity is None or os.sched_getaffinity(0) == affinity

    again = st.profile(captured, rows=(1, 3), cache=cache, store=tmp_path, progress=reports.append, **QUICK)
    assert again == found
    assert reports[-1].num_known == reports[-1].total


def test_refreshing_measures_again(captured: Program, tmp_path: Path) -> None:
    first = st.profile(captured, store=tmp_path, **QUICK)
    second = st.profile(captured, store=tmp_path, refresh=True, **QUICK)
    assert [each.key for each in first.measurements] == [each.key for each in second.measurements]
    store = Store(tmp_path, first.device)
    measurements = [line for line in store.path.read_text().splitlines() if '"type":"measurement"' in line]
    assert len(measurements) == 2 * len(store.read().of(first.environment))


def test_measuring_needs_the_captured_operations(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be measured"):
        st.profile(program(8, 8), store=tmp_path)


def test_any_program_can_be_profiled_on_a_modelled_device(tmp_path: Path) -> None:
    found = st.profile(program(512, 64, 512), "model:h200", rows=(1, 64), store=tmp_path)
    assert (found.method, found.device, found.cache) == ("modelled", "model:h200", "model")
    assert {each.method for each in found.measurements} == {"modelled"}
    assert found.total.best_units == 132 and found.environment.kind == "model"
    assert {layer.bound for layer in found.layers} <= {"compute", "bandwidth", "launch"}
    assert list(tmp_path.iterdir()) == []
    few = st.profile(program(512, 64, 512), "model:h200", units=(8, 132))
    assert [point.units for point in few.total_points] == [8, 132]
    assert few.predict_us(8) == pytest.approx(found.predict_us(8))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rows": ()}, "rows"),
        ({"rows": (0,)}, "rows"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"cache": "hot"}, "cache='hot'"),
        ({"budget_s": 0.0}, "needs time"),
        ({"units": (999,)}, "cannot be profiled on 999 units"),
        ({"units": ()}, "on no units"),
        ({"device": "tpu"}, "cannot be measured on 'tpu'"),
        ({"device": "model:abacus"}, "'abacus'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    captured: Program, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError) as caught:
        st.profile(captured, **{"store": tmp_path, **options})
    assert problem in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_only_programs_are_profiled() -> None:
    with pytest.raises(OptionError, match="only programs"):
        st.profile(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_measurements_are_kept_in_the_users_cache_folder_when_nobody_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "spacetime" / "profiles"


# -- the machine ------------------------------------------------------------------------------------------


def test_an_environment_is_the_same_when_asked_again_and_tells_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cpu_environment()
    assert here == cpu_environment() and here.id == cpu_environment().id
    assert here.num_units == len(available_cores()) and dict(here.versions)["torch"] == torch.__version__
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert cpu_environment().differences(here) == ("MKL_CBWR: COMPATIBLE here, absent there",)


def test_a_modelled_environment_is_its_parameters() -> None:
    device = find("h200")
    assert modelled_environment(device) == modelled_environment(find("h200"))
    assert modelled_environment(device) != modelled_environment(replace(device, launch_us=9.0))


def test_sweeping_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "last_level_cache_bytes", lambda: 1 << 50)
    with CpuSite() as site, pytest.raises(OptionError, match="cannot be swept"):
        site.sweep()
    assert (last_level_cache_bytes() or 1) > 0


# -- the schema -------------------------------------------------------------------------------------------


def test_the_lines_of_a_store_follow_the_published_schema(captured: Program, tmp_path: Path) -> None:
    found = st.profile(captured, store=tmp_path, **QUICK)
    lines = [json.loads(line) for line in Store(tmp_path, found.device).path.read_text().splitlines()]
    assert {line["type"] for line in lines} == {"environment", "measurement"}
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for line in lines:
        assert [each for each in schema["oneOf"] if not problems(line, each, schema)] != [], line


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line.pop("samples_us"),
        lambda line: line.update(extra=1),
        lambda line: line.update(samples_us=[]),
        lambda line: line.update(method="guessed"),
        lambda line: line.update(calls="many"),
        lambda line: line["key"].update(units=0),
    ],
)
def test_the_schema_refuses_what_is_no_line(spoil: Callable[[dict[str, Any]], object]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    line: dict[str, Any] = {
        "schema": 1,
        "type": "measurement",
        "environment": "0" * 12,
        "key": {"kernel": "k", "rows": 1, "units": 1, "cache": "run"},
        "op": "linear",
        "dtype": "float32",
        "samples_us": [1.0],
        "calls": 1,
        "overhead_us": 0.0,
        "num_disturbed": 0,
        "method": "measured",
        "date": "2026-01-01",
    }
    measurement = schema["$defs"]["measurement"]
    assert problems(line, measurement, schema) == []
    spoil(line)
    assert problems(line, measurement, schema) != []


KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}


def problems(value: Any, rule: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What breaks a rule: as much of JSON Schema as the published one uses."""
    if "$ref" in rule:
        return problems(value, schema["$defs"][rule["$ref"].rpartition("/")[2]], schema)
    if "type" in rule and not isinstance(value, KINDS[rule["type"]]):
        return [f"{value!r} is no {rule['type']}"]
    found = [f"{value!r} is not {rule['const']!r}" for _ in [0] if value != rule.get("const", value)]
    found += [f"{value!r} is none of {rule['enum']}" for _ in [0] if value not in rule.get("enum", [value])]
    if isinstance(value, dict):
        found += [f"{name} is missing" for name in rule["required"] if name not in value]
        found += [f"{name} is unknown" for name in value if name not in rule["properties"]]
        for name in value.keys() & rule["properties"].keys():
            found += problems(value[name], rule["properties"][name], schema)
    elif isinstance(value, list):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
            found.append(f"{len(value)} items")
        for item in value:
            found += problems(item, rule["items"], schema)
    elif isinstance(value, str):
        if not rule.get("minLength", 0) <= len(value) <= rule.get("maxLength", len(value)):
            found.append(f"{value!r} is too short or too long")
    elif value < rule.get("minimum", value):
        found.append(f"{value!r} is too small")
    return found
