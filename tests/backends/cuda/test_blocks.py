"""Blocks of atoms that lanes are captured on: inside the lane's own, nearly as large, and few."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.backends.cuda.blocks import block_of, blocks
from spacetime.backends.cuda.green import menu


@given(st.integers(1, 20), st.data())
def test_a_block_is_inside_and_keeps_two_thirds(num_atoms: int, data: st.DataObject) -> None:
    atoms = data.draw(st.integers(1, (1 << num_atoms) - 1))
    block = block_of(num_atoms, atoms)
    assert block & ~atoms == 0 and 3 * block.bit_count() >= 2 * atoms.bit_count()
    assert block == atoms or block in menu(num_atoms), "made at start"
    larger = [mask for mask in blocks(num_atoms) if not mask & ~atoms and mask.bit_count() > block.bit_count()]
    assert not larger


@pytest.mark.parametrize("num_atoms", [1, 7, 16, 18])
def test_prefixes_of_every_size_share_few_blocks(num_atoms: int) -> None:
    found = {block_of(num_atoms, (1 << size) - 1) for size in range(1, num_atoms + 1)}
    assert len(found) <= 2 * num_atoms.bit_length()
    assert (1 << num_atoms) - 1 in found, "the whole device stays the whole"


def test_sixteen_atoms_have_37_blocks() -> None:
    assert len(blocks(16)) == 37 and blocks(1) == (1,)


def test_scattered_atoms_are_captured_as_they_are() -> None:
    assert block_of(16, 0b1010_0001) == 0b1010_0001
