"""Which partitions the stages of `make device` ask for, on cards of any number of atoms."""

from __future__ import annotations

import pytest

from bench.device.gpu import at_once, grant_of, halves, scattered
from spacetime.backends.cuda.green import GreenContexts, menu
from tests.backends.cuda.fake_driver import FakeDriver

CARDS = [132, 120, 78, 16]  # of these SMs: 16, 15, 9 and 2 atoms


@pytest.mark.parametrize("num_sms", CARDS)
def test_what_is_on_no_menu_is_made_before_it_is_looked_at(num_sms: int) -> None:
    contexts = GreenContexts(FakeDriver(num_sms=num_sms), 0, at_once)
    for mask in [*scattered(contexts, 0b101), *scattered(contexts, 0b1001_0001), *menu(contexts.num_atoms)]:
        assert grant_of(contexts, mask).atoms == mask


def test_what_the_driver_refuses_is_as_much_of_it_as_there_is() -> None:
    contexts = GreenContexts(FakeDriver(most_contexts=len(menu(16))), 0, at_once)
    assert grant_of(contexts, 0b101).atoms in (0b001, 0b100)


@pytest.mark.parametrize("num_sms", CARDS)
def test_halves_are_disjoint_on_the_menu_and_everything(num_sms: int) -> None:
    contexts = GreenContexts(FakeDriver(num_sms=num_sms), 0, at_once)
    lower, upper = halves(contexts)
    assert lower & upper == 0 and lower | upper == (1 << contexts.num_atoms) - 1
    assert {lower, upper} <= set(menu(contexts.num_atoms))
    assert all(0 < mask < 1 << contexts.num_atoms for mask in scattered(contexts, 0b100101))
