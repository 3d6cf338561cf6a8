"""Devices as data: what ships is consistent, and what a file describes is taken or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.sim.devices import find, load, names


def test_the_devices_of_the_studies_ship() -> None:
    assert {"h200", "a100", "v100", "mi50", "mi300x"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_a_device_is_complete(name: str) -> None:
    device = find(name)
    assert (device.name, device.kind) == (name, "model")
    assert device.num_groups <= device.num_atoms and device.tiles
    assert 0 < device.idle_watts < device.busy_watts
    assert device.memory_bytes is not None and 0 < device.cache_bytes < device.memory_bytes
    assert Device.from_json(device.to_json()) == device


@pytest.mark.parametrize(("name", "atoms", "remainder"), [("h200", 16, 4), ("mi50", 60, 0), ("mi300x", 304, 0)])
def test_atoms_are_those_of_the_hardware(name: str, atoms: int, remainder: int) -> None:
    device = find(name)
    assert (device.num_atoms, device.num_units - device.num_atoms * device.units_per_atom) == (atoms, remainder)


def test_peaks_are_the_data_sheets() -> None:
    v100 = find("v100")
    assert v100.flops_per_unit_us * v100.num_units * 1e6 == pytest.approx(15.7e12)
    assert (v100.bytes_per_us * 1e6, v100.memory_bytes) == (900e9, 16_000_000_000)


def test_a_device_comes_from_a_file_and_a_device_is_taken_as_it_is(tmp_path: Path) -> None:
    device = Device("mine", "model", num_units=12, units_per_atom=4)
    path = tmp_path / "mine.json"
    path.write_text(device.to_json())
    assert find(str(path)) == load(path) == find(device) == device


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"(?s)'h100' cannot be simulated.*h200.*\.json"):
        find("h100")


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "No such file"), ("{", "this is no JSON"), ('{"name": "x"}', "missing"), ("[]", "expected an object")],
)
def test_a_file_that_describes_no_device_is_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "device.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=reason):
        load(path)
