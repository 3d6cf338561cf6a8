"""The census of SMs: what a survey of partitions finds, on partitions that hold and on partitions that do not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable

import pytest

from spacetime.backends.cuda import census
from spacetime.backends.cuda.census import Survey, survey
from spacetime.backends.cuda.green import GreenContexts, menu
from spacetime.device import Partition
from tests.backends.cuda.fake_driver import FakeDriver

ATOMS = 16


def where(driver: FakeDriver | None = None) -> Callable[[int], set[int]]:
    """What the census would see on this driver."""
    driver = driver or FakeDriver()
    contexts = GreenContexts(driver, 0, lambda function: function())
    return lambda mask: set(driver.sms_of(contexts.acquire(Partition(mask, 8, 8)).stream))


def test_partitions_that_hold() -> None:
    asked: list[int] = []
    see = where()

    def sms_of(mask: int) -> set[int]:
        asked.append(mask)
        return see(mask)

    found = survey(ATOMS, 8, sms_of)
    assert found == Survey(16, 8, len(menu(16)), 132, ())
    assert sorted(asked) == sorted(menu(16)), "each of the menu, once"
    assert Survey.from_json(found.to_json()) == found


def test_two_sms_more_are_tolerated_and_three_are_not() -> None:
    see = where()
    for extra, wrong in ((2, 0), (3, 1)):
        stray = set(range(100, 100 + extra))
        found = survey(ATOMS, 8, lambda mask, stray=stray: see(mask) | (stray if mask == 0b11 else set()))  # type: ignore[misc]
        assert len(found.problems) == wrong
    assert found.problems == ("partition 0x3 ran on 3 SMs outside of it",)


def test_a_partition_that_confines_nothing() -> None:
    see = where()
    found = survey(ATOMS, 8, lambda mask: see(0xFFFF) if mask == 0xF0 else see(mask))
    assert found.problems == ("partition 0xf0 ran on 100 SMs outside of it",)


def test_atoms_that_overlap_or_are_short() -> None:
    see = where()
    found = survey(ATOMS, 8, lambda mask: see(1) if mask == 2 else see(mask))
    assert "atoms 0 and 1 share SMs [0, 1, 2, 3, 4, 5, 6, 7]" in found.problems
    found = survey(ATOMS, 8, lambda mask: see(mask) - {3})
    assert "atom 0 has 7 SMs, 8 were granted" in found.problems


def test_a_union_that_does_not_use_what_it_has() -> None:
    see = where()
    found = survey(ATOMS, 8, lambda mask: see(0xF) if mask == 0xFF else see(mask))
    assert found.problems == ("partition 0xff left 32 of its 64 SMs unused",)


@pytest.mark.parametrize("arguments", [[], ["1"]])
def test_as_a_program_it_prints_json(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(census, "take", lambda device: Survey(16, 8, 53, 132 + device, ()))
    census.main(arguments)
    assert json.loads(capsys.readouterr().out)["whole_sms"] == 132 + len(arguments)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="cupy is installed")
def test_without_a_compiler_it_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(census, "take", census.Census)
    with pytest.raises(SystemExit) as ended:
        census.main([])
    assert ended.value.code == 2
    assert "the census needs cupy" in capsys.readouterr().err
