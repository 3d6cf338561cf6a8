"""Contents of all slabs of a runtime: what unlike programs have in common is stored once. For capture/ and above.

A frozen backbone under different heads is the case: the programs differ, their layers' slabs differ, the contents are
equal. A slab that adopts a content asks the store first, and makes a guest of what lies in another slab (slab.py).

Only where it pays and nothing loses: large weights that kernels read entry by entry. Kernels of a GPU find those of a
program that shares some by address (kernels/bound/owners.py).
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from spacetime.capture.fuse import FusedProgram
from spacetime.capture.slab import Content

# Guests are multiplied one by one, not in one batched call: about 13 us more for four products, which below this
# size is more than the products themselves take.
LEAST_BYTES = 1 << 16

# They read their first operand entry by entry.
_BY_ENTRY = ("linear", "conv", "embedding", "gpu_linear", "gpu_conv", "gpu_embedding")
_DEVICES = ("cpu", "cuda")  # torch says "cuda" for AMD's, too
_WIDTH_BYTES = 16  # of loads on a GPU: what an address has to be a multiple of


class Store:
    """Its owner serialises the changes, as it does those of the slabs."""

    def __init__(self, least_bytes: int = LEAST_BYTES) -> None:
        self.least_bytes = least_bytes
        self.vacated: list[Tensor] = []  # memory that contents have moved out of; lanes may still read it
        self._contents: dict[tuple[Hashable, bytes], list[Content]] = {}

    def is_for(self, like: Tensor) -> bool:
        """Are contents of this size and place shared?"""
        is_aligned = like.device.type == "cpu" or like.nbytes % _WIDTH_BYTES == 0
        return is_aligned and like.device.type in _DEVICES and like.nbytes >= self.least_bytes

    def find(self, kind: Hashable, fingerprint: bytes, tensor: Tensor) -> Content | None:
        """An equal content, in whichever slab it lies."""
        found = self._contents.get((kind, fingerprint), ())
        return next((content for content in found if torch.equal(content.view, tensor)), None)

    def enter(self, kind: Hashable, content: Content) -> None:
        self._contents.setdefault((kind, content.fingerprint), []).append(content)

    def forget(self, kind: Hashable, content: Content) -> None:
        key = (kind, content.fingerprint)
        self._contents[key].remove(content)
        if not self._contents[key]:
            del self._contents[key]

    def take_vacated(self) -> list[Tensor]:
        """To be held until the lanes that run now have ended."""
        vacated, self.vacated = self.vacated, []
        return vacated

    @property
    def num_contents(self) -> int:
        return sum(map(len, self._contents.values()))


def read_by_entry(program: FusedProgram) -> set[int]:
    """Operands that no step reads in any other way: these may be guests."""
    entries, other = set[int](), set[int]()
    for step in program.steps:
        for position, operand in enumerate(step.operands):
            if operand is not None:
                by_entry = position == 0 and step.target in _BY_ENTRY
                (entries if by_entry else other).add(operand.index)
    return entries - other
