"""Contents that stay where they are while guests need them, as on a GPU; and who is told of moves."""

from __future__ import annotations

import pytest
import torch

from spacetime.capture.layer import Layer
from spacetime.capture.slab import Slab
from spacetime.capture.store import Store

ONE, OTHER = torch.full((32,), 1.0), torch.full((32,), 2.0)


def slab(store: Store) -> Slab:
    made = Slab(ONE, store=store)
    made.vacates = False
    return made


@pytest.fixture
def store() -> Store:
    return Store(least_bytes=1)


def test_a_content_stays_for_its_guests_and_goes_with_the_last(store: Store) -> None:
    home, guest = slab(store), slab(store)
    assert (home.adopt(ONE), guest.adopt(ONE)) == (0, 0)
    place = guest.view(0).data_ptr()
    home.release(0)
    assert home.adopt(OTHER) == 1, "its place is taken"
    assert guest.view(0).data_ptr() == place and guest.view(0).equal(ONE)
    assert home.num_stored == 2 and guest.num_stored == 0 and store.take_vacated() == []
    guest.release(0)
    assert home.num_stored == 1 and store.num_contents == 1
    assert home.adopt(torch.full((32,), 3.0)) == 0, "the place is free"


def test_who_comes_back_finds_what_has_stayed(store: Store) -> None:
    home, guest = slab(store), slab(store)
    home.adopt(ONE)
    guest.adopt(ONE)
    home.release(0)
    assert home.adopt(ONE) == 0 and home.users(0) == 1
    guest.release(0)
    assert home.num_stored == 1, "somebody has it again"
    home.release(0)
    assert home.num_entries == store.num_contents == 0


def test_layers_are_told_when_weights_are_shared_and_when_they_move(store: Store) -> None:
    one, other = Layer("one", store=store), Layer("other", store=store)
    one.put(0, ONE)
    before = one.version
    assert not one.slab.shares
    other.put(0, ONE)
    assert one.version > before and one.slab.shares and other.slab.shares
    before, (place,) = other.version, other.slab.addresses([0])
    for slot in range(1, 20):
        one.put(slot, torch.full((32,), 2.0 + slot))
    (found,) = other.slab.addresses([0])
    assert found == one.of_slot(0).data_ptr() != place and other.version > before
    assert one.slab.addresses([-1, 0, 99]) == [-1, found, -1]


def test_a_place_that_was_left_is_not_written_to_while_a_lane_reads_it(store: Store) -> None:
    """The first tenant leaves, its weights move to the guest's slab, and another one comes: all during one lane."""
    home, guest = Slab(ONE, store=store), Slab(ONE, store=store)
    assert (home.adopt(ONE), guest.adopt(ONE)) == (0, 0)
    read_by_a_lane = guest.view(0)
    home.release(0)
    held = store.take_vacated()
    assert home.adopt(OTHER) == 1 and read_by_a_lane.equal(ONE)
    del held, read_by_a_lane
    assert home.adopt(ONE + OTHER) == 0, "the lane has ended"
    assert guest.view(0).equal(ONE) and home.view(1).equal(OTHER)
