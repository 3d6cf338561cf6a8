"""Green contexts on a recording driver: what is made when, what overlaps, and that the hot path makes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.backends.cuda import green
from spacetime.backends.cuda.driver import DriverError
from spacetime.backends.cuda.green import WHOLE_STREAMS, GreenContexts, menu
from spacetime.device import Partition
from spacetime.errors import PartitionError
from tests.backends.cuda.fake_driver import FakeDriver

ODD = 0b0101_0000_0000_0001  # on no menu


class Background:
    """Runs what was postponed when told to."""

    def __init__(self) -> None:
        self.postponed: list[Callable[[], None]] = []

    def __call__(self, function: Callable[[], None]) -> None:
        self.postponed.append(function)

    def run(self) -> None:
        while self.postponed:
            self.postponed.pop(0)()


def partition(atoms: int) -> Partition:
    return Partition(atoms, atoms.bit_count() * 8, atoms.bit_count() * 8)


def made(driver: FakeDriver | None = None) -> tuple[FakeDriver, Background, GreenContexts]:
    driver, background = driver or FakeDriver(), Background()
    return driver, background, GreenContexts(driver, 0, background)


def test_one_split_makes_all_atoms_and_the_menu_is_ready_at_start() -> None:
    driver, _, contexts = made()
    assert (contexts.num_units, contexts.num_atoms, contexts.units_per_atom) == (132, 16, 8)
    assert driver.calls[:2] == ["resource 0", "split 8"] and sum("split" in call for call in driver.calls) == 1
    assert len(driver.contexts) == len(menu(16))
    assert len(driver.streams) == len(menu(16)) - 1 + WHOLE_STREAMS
    before = list(driver.calls)
    for mask in menu(16):
        contexts.acquire(partition(mask))
    assert driver.calls == before, "nothing is created on the hot path"


def test_the_menu_holds_prefixes_suffixes_and_aligned_blocks() -> None:
    masks = menu(16)
    assert len(masks) == len(set(masks)) == 53
    for size in range(1, 16):
        prefix = (1 << size) - 1
        assert prefix in masks and 0xFFFF & ~prefix in masks
    assert all(1 << atom in masks for atom in range(16)) and 0xFFFF in masks
    assert menu(1) == (1,)


def test_the_whole_device_includes_the_remainder() -> None:
    driver, _, contexts = made()
    grant = contexts.acquire(partition(0xFFFF))
    assert grant.units == 132 and len(driver.sms_of(grant.stream)) == 132
    assert contexts.acquire(partition(0x7FFF)).units == 120


@given(st.lists(st.integers(1, 0xFFFF), min_size=2, max_size=6))
def test_partitions_overlap_exactly_where_their_masks_do(masks: list[int]) -> None:
    driver, background, contexts = made()
    for mask in masks:
        contexts.release(contexts.acquire(partition(mask)))
    background.run()
    grants = [contexts.acquire(partition(mask)) for mask in masks]
    for mask, grant in zip(masks, grants, strict=True):
        assert grant.atoms == mask
        atoms = {sm // 8 for sm in driver.sms_of(grant.stream) if sm < 128}
        assert atoms == {atom for atom in range(16) if mask >> atom & 1}


def test_another_union_is_made_in_the_background_and_stays_isolated_meanwhile() -> None:
    driver, background, contexts = made()
    before = list(driver.calls)
    first = contexts.acquire(partition(ODD))
    assert driver.calls == before
    assert first.atoms & ~ODD == 0 and first.units == 8
    contexts.acquire(partition(ODD))
    assert len(background.postponed) == 1, "asked for twice, made once"
    background.run()
    second = contexts.acquire(partition(ODD))
    assert (second.atoms, second.units) == (ODD, 24)
    assert contexts.acquire(partition(ODD)).stream == second.stream


def test_who_makes_what_is_wanted_at_once_may_do_so() -> None:
    contexts = GreenContexts(FakeDriver(), 0, lambda function: function())
    first = contexts.acquire(partition(ODD))
    assert first.atoms != ODD, "it is asked for when the lane has its part"
    assert contexts.acquire(partition(ODD)).atoms == ODD
    assert contexts.lease(ODD << 1) is None and contexts.lease(ODD << 1) is not None


def test_extra_partitions_are_bounded_and_none_goes_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(green, "MOST_EXTRA", 2)
    driver, background, contexts = made()
    unions = [0b101 << shift for shift in range(5)]
    for mask in unions:
        contexts.release(contexts.acquire(partition(mask)))
    background.run()
    assert len(driver.contexts) == len(menu(16)) + 2 and not any("destroy" in call for call in driver.calls)
    found = [contexts.acquire(partition(mask)) for mask in unions]
    assert [grant.atoms == mask for grant, mask in zip(found, unions, strict=True)] == [True, True, False, False, False]
    assert all(grant.atoms & ~mask == 0 for grant, mask in zip(found, unions, strict=True))
    assert background.postponed == [] and contexts.lease(unions[-1]) is None


def test_what_the_driver_refuses_is_remembered() -> None:
    _, background, contexts = made(FakeDriver(most_contexts=len(menu(16))))
    contexts.release(contexts.acquire(partition(ODD)))
    background.run()
    assert "OUT_OF_MEMORY" in contexts.refused[ODD]
    assert contexts.acquire(partition(ODD)).units == 8
    assert background.postponed == [], "it is not asked again"


def test_lanes_of_the_whole_device_do_not_queue_up_behind_each_other() -> None:
    _, _, contexts = made()
    streams = [contexts.acquire(partition(0xFFFF)) for _ in range(2 * WHOLE_STREAMS)]
    assert len({grant.stream for grant in streams}) == WHOLE_STREAMS
    for grant in streams:
        contexts.release(grant)
    part = [contexts.acquire(partition(0xFF)).stream for _ in range(3)]
    assert len(set(part)) == 1, "lanes of an isolated plan never share a partition"


def test_a_stream_for_a_capture_is_nobody_elses_and_serves_the_next_capture() -> None:
    driver, background, contexts = made()
    lanes = {contexts.acquire(partition(0xF)).stream for _ in range(3)}
    first, second = contexts.lease(0xF), contexts.lease(0xF)
    assert first is not None and second is not None
    assert first.stream != second.stream and not {first.stream, second.stream} & lanes
    assert driver.sms_of(first.stream) == frozenset(range(32)) and first.units == 32
    contexts.give_back(first)
    again = contexts.lease(0xF)
    assert again == first
    assert contexts.lease(ODD) is None, "its partition is still to be made"
    background.run()
    leased = contexts.lease(ODD)
    assert leased is not None and leased.atoms == ODD


def test_a_stream_that_cannot_be_created_leaves_the_partition_free(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _, contexts = made()

    def refuse(self: FakeDriver, context: int, priority: int) -> int:
        raise DriverError("cuGreenCtxStreamCreate failed", "CUDA_ERROR_OUT_OF_MEMORY (code 2)")

    with monkeypatch.context() as patch:
        patch.setattr(FakeDriver, "create_stream", refuse)
        with pytest.raises(DriverError, match="StreamCreate"):
            contexts.lease(0xF)
    leased = contexts.lease(0xF)
    assert leased is not None and leased.stream in driver.streams


def test_a_menu_that_cannot_be_made_leaves_nothing_behind() -> None:
    driver = FakeDriver(most_contexts=10)
    with pytest.raises(DriverError, match="cuGreenCtxCreate"):
        made(driver)
    assert driver.contexts == {} and driver.streams == {}


def test_a_driver_that_makes_few_contexts_gives_the_largest_part_of_what_is_missing() -> None:
    _, background, contexts = made(FakeDriver(most_contexts=20))
    assert len(contexts.refused) == len(menu(16)) - 20
    assert contexts.acquire(partition(0xFFFF)).units == 132
    assert {contexts.acquire(partition(1 << atom)).units for atom in range(16)} == {8}
    part = contexts.acquire(partition(0x7FFF))
    assert part.atoms & ~0x7FFF == 0 and part.units == 16 and contexts.lease(0x7FFF) is None
    assert background.postponed == [], "what the driver refused is not asked for again"


def test_who_opens_a_device_again_finds_the_streams_that_memory_may_still_name() -> None:
    driver = FakeDriver()
    first_background, second_background = Background(), Background()
    first = GreenContexts.opened(driver, 0, first_background)
    first.release(first.acquire(partition(ODD)))
    first_background.run()
    leased = first.lease(0xF)
    assert leased is not None
    first.give_back(leased)
    beside = GreenContexts.opened(driver, 0, Background())
    assert beside is not first, "it is somebody's"
    first.close()
    before = list(driver.calls)
    assert not any("destroy" in call for call in before)
    again = GreenContexts.opened(driver, 0, second_background)
    assert again is first and again.acquire(partition(ODD)).atoms == ODD and again.lease(0xF) == leased
    assert driver.calls == before, "all of it is there"
    again.acquire(partition(ODD << 1))
    assert len(second_background.postponed) == 1 and first_background.postponed == []
    assert GreenContexts.opened(driver, 1, Background()) is not first, "another device"


@pytest.mark.parametrize("atoms", [0, 1 << 16])
def test_atoms_off_the_device_are_refused(atoms: int) -> None:
    _, _, contexts = made()
    with pytest.raises(PartitionError, match="has 16 atoms"):
        contexts.acquire(Partition(atoms, 8, 8))


def test_asked_and_granted_differ_where_the_chip_is_coarser() -> None:
    _, _, contexts = made(FakeDriver(num_sms=108, granularity=18))
    assert (contexts.num_atoms, contexts.units_per_atom) == (6, 18)
    assert contexts.acquire(partition(0b11)).units == 36
