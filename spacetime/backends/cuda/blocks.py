"""Where lanes are captured: few blocks of atoms, so that lanes whose partitions keep changing meet again. No torch.

A graph's kernels stay on the atoms that it was captured on, and any lane whose partition contains those may replay
it. Policies try partitions of every size, so each lane is captured on the largest block inside its own: blocks of 1,
2, 3, 4, 6, 8, 12, 16 ... atoms that are on the menu of partitions, 37 of a device of 16 atoms. A lane gives up a third
of its atoms at most; one in which no block is that large (its atoms are scattered) is captured on exactly its own.
Only graphs.py uses it.
"""

from __future__ import annotations

from functools import cache

from spacetime.backends.cuda.green import menu

_LEAST = (2, 3)  # what a lane keeps of its atoms


@cache
def blocks(num_atoms: int) -> tuple[int, ...]:
    """Masks, largest first.

    >>> [f"{mask:04b}" for mask in blocks(4)]
    ['1111', '0111', '1110', '0011', '1100', '0001', '0010', '0100', '1000']
    """
    sizes = {num_atoms, *(part << power for part in (1, 3) for power in range(num_atoms.bit_length()))}
    return tuple(
        sorted((mask for mask in menu(num_atoms) if mask.bit_count() in sizes), key=lambda m: (-m.bit_count(), m))
    )


def block_of(num_atoms: int, atoms: int) -> int:
    """The largest block inside these atoms, or the atoms themselves where it would be too small."""
    block = next(mask for mask in blocks(num_atoms) if not mask & ~atoms)
    least, of = _LEAST
    return block if of * block.bit_count() >= least * atoms.bit_count() else atoms
