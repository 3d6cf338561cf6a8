"""The profiles that come with the project: every file is readable, named for what it is, and of the zoo as it is."""

from __future__ import annotations

import doctest
import json
from functools import cache
from pathlib import Path

import pytest

import spacetime as st
from bench import shipped
from bench.shipped import FOLDER, MODELLED, SUFFIX, model_of, ship
from spacetime import zoo
from spacetime.profiler.records import Environment
from spacetime.profiler.store import slug
from spacetime.sim.devices import find
from spacetime.zoo.registry import ZOO

FILES = sorted(FOLDER.glob(f"*/*{SUFFIX}"))
CAPTURED = ("mlp", "gru_cell")  # the others take seconds


@cache
def signature(model: str) -> str:
    return st.capture(zoo.build(model), zoo.example(model)).signature


def test_the_whole_zoo_is_shipped_for_every_modelled_device() -> None:
    """`make profiles` writes them."""
    for device in MODELLED:
        models = [model_of(path) for path in FILES if path.parent.name == slug(f"model:{device}")]
        assert sorted(models) == sorted(ZOO), device


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{model_of(path)}")
def test_a_shipped_profile_is_what_its_name_says(path: Path) -> None:
    profile = st.Profile.load(path)
    assert model_of(path) in ZOO and path.name == f"{model_of(path)}-{profile.signature[:8]}{SUFFIX}"
    assert path.parent.name == slug(profile.device)
    check_device(profile)
    assert profile.layers and profile.all_rows == (1,)
    assert path.read_text(encoding="utf-8").endswith("\n")
    if model_of(path) in CAPTURED:
        assert profile.signature == signature(model_of(path)), "the model has changed: run `make profiles`"


def check_device(profile: st.Profile) -> None:
    """A modelled device is one of ours and says so everywhere; a measured one was there."""
    modelled = profile.environment.kind == "model"
    assert modelled == profile.device.startswith("model:") == (profile.method == "modelled")
    assert {each.method for each in profile.measurements} == {profile.method}
    if modelled:
        device = find(profile.device.removeprefix("model:"))
        assert profile.environment.num_units == device.num_units and profile.cache == "model"
    else:
        assert profile.environment.kind in ("cpu", "cuda", "hip") and profile.cache in ("run", "warm", "cold")


def test_nothing_else_is_shipped() -> None:
    assert {path for path in FOLDER.rglob("*") if path.is_file()} == {FOLDER / "schema.json", *FILES}


# -- writing them ------------------------------------------------------------------------------------------


def test_files_are_written_once_and_replaced_when_they_are_of_something_else(tmp_path: Path) -> None:
    ((first, what),) = ship(tmp_path, ["mlp"], ["mi50"])
    assert what == "written" and first.parent.name == slug("model:mi50")
    profile = st.Profile.load(first)
    check_device(profile)
    assert profile.signature == signature("mlp")
    assert list(ship(tmp_path, ["mlp"], ["mi50"])) == [(first, "unchanged")]
    data = json.loads(first.read_text(encoding="utf-8"))
    for line in data["measurements"]:
        line["date"] = "2020-01-01"
    first.write_text(json.dumps(data), encoding="utf-8")
    assert list(ship(tmp_path, ["mlp"], ["mi50"])) == [(first, "unchanged")]
    data["measurements"][0]["samples_us"] = [1e9]
    first.write_text(json.dumps(data), encoding="utf-8")
    old, other = first.with_name(f"mlp-00000000{SUFFIX}"), first.with_name(f"mlp-mixer-00000000{SUFFIX}")
    old.write_text("{}")
    other.write_text("{}")
    assert list(ship(tmp_path, ["mlp"], ["mi50"])) == [(first, "written"), (old, "removed")]
    assert st.Profile.load(first).measurements == profile.measurements and other.exists()


def test_a_profile_that_hides_that_it_is_modelled_is_noticed(tmp_path: Path) -> None:
    ((path, _),) = ship(tmp_path, ["mlp"], ["mi50"])
    data = json.loads(path.read_text(encoding="utf-8"))
    data["environment"] = json.loads(Environment("AMD Instinct MI50", "model", 60, "", ()).to_json())
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(AssertionError):
        check_device(st.Profile.load(path))


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(shipped).failed == 0
