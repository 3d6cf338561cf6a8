"""Layers with given sharing between slots, for the tests of kernels/."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.kernels import RowMap

SLOTS = 4
Sharing = tuple[int, ...]  # by slot, which content it has


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(sharing: Sharing, *shape: int, seed: int = 0, channels_last: bool = False) -> Layer:
    """A layer of random contents; layers made with the same `sharing` have the same sharing number."""
    made = Layer("weight", channels_last=channels_last)
    for slot, content in enumerate(sharing):
        made.put(slot, random(*shape, seed=1000 * seed + content))
    made.sharing = hash(tuple(made.entries))
    return made


sharings: st.SearchStrategy[Sharing] = st.tuples(*[st.integers(0, SLOTS - 1)] * SLOTS)


@st.composite
def row_maps(draw: st.DrawFn) -> RowMap:
    """Any subset of the slots in any order, each with one to three rows."""
    slots = draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True))
    rows = [draw(st.integers(1, 3)) for _ in slots]
    return RowMap(tuple(slots), tuple(rows))


def slot_of_row(rows: RowMap) -> list[int]:
    return [slot for slot, count in zip(rows.slots, rows.rows, strict=True) for _ in range(count)]
