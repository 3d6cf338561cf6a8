"""Which rows of a batch belong to whom. Built once per mix of tenants and row counts, used by every slot kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.errors import SpacetimeError

_MOST_WAYS = 256  # of layers to be shared, that a mix remembers
HEADER = 4  # words: how many rows count, then padding that keeps what follows at 16 bytes


Key = TypeVar("Key")
Made = TypeVar("Made")


class MixError(SpacetimeError, RuntimeError):
    """A step that must know its rows on the host, in a program that is to serve any mix of tenants."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows that use the same entry of a layer."""

    entry: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a batch use one layer. `block`: equal runs over consecutive entries, one batched launch."""

    runs: tuple[Run, ...]
    block: bool

    @property
    def first(self) -> Run:
        return self.runs[0]


class RowMap:
    """Rows in order of their slots; `layout` answers for layers, cached by the way they are shared."""

    any_mix = False  # does the host not know whose rows they are?

    def __init__(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> None:
        self.slots = slots
        self.rows = rows
        self.total = sum(rows)
        self._layouts: dict[int, Layout] = {}
        self._indices: dict[tuple[int, int], Tensor] = {}
        self._words: Tensor | None = None
        self._run_words: dict[int, Tensor] = {}

    def layout(self, layer: Layer) -> Layout:
        layout = self._layouts.get(layer.sharing)
        if layout is None:
            layout = _kept(self._layouts, layer.sharing, self._build(layer), layer)
        return layout

    def entry_per_row(self, layer: Layer, multiple: int = 1) -> Tensor:
        """int64[total * multiple]: the entry of every row; for gathers of small weights."""
        key = (layer.sharing, multiple)
        index = self._indices.get(key)
        if index is None:
            runs = self.layout(layer).runs
            entries = torch.tensor([run.entry for run in runs])
            counts = torch.tensor([run.count * multiple for run in runs])
            index = torch.repeat_interleave(entries, counts).to(layer.stack.device)
            _kept(self._indices, key, index, layer)
        return index

    def run_words(self, layer: Layer) -> Tensor:
        """int64[runs, 3], the runs of `layout` for kernels that read memory: entry, first row and number of rows."""
        words = self._run_words.get(layer.sharing)
        if words is None:
            runs = self.layout(layer).runs
            words = torch.tensor([(run.entry, run.start, run.count) for run in runs])
            _kept(self._run_words, layer.sharing, words, layer)
        return words

    def words(self, device: torch.device) -> Tensor:
        """The words of this mix in the device's memory: one small copy, on the current stream.

        They are made anew for every lane: memory of one lane's stream must not be another's. Their source stays, so
        a graph may record the copy.
        """
        if self._words is None:
            words = torch.empty(num_words(self.total), dtype=torch.int32, pin_memory=device.type == "cuda")
            fill(words, self.slots, self.rows)
            self._words = words
        return torch.empty_like(self._words, device=device).copy_(self._words, non_blocking=True)

    def _build(self, layer: Layer) -> Layout:
        runs: list[Run] = []
        start = 0
        for slot, count in zip(self.slots, self.rows, strict=True):
            entry = layer.entries[slot]
            if runs and runs[-1].entry == entry:
                runs[-1] = Run(entry, runs[-1].start, runs[-1].count + count)
            else:
                runs.append(Run(entry, start, count))
            start += count
        first = runs[0]
        block = all(run.entry == first.entry + i and run.count == first.count for i, run in enumerate(runs))
        return Layout(tuple(runs), block)


def _kept(known: dict[Key, Made], key: Key, made: Made, layer: Layer) -> Made:
    """Most ways of sharing never come again once tenants have come or gone. Graphs of GPUs may read what they met."""
    if len(known) >= _MOST_WAYS and layer.stack.device.type == "cpu":
        known.clear()
    known[key] = made
    return made


class AnyRows(RowMap):
    """A batch of `total` rows whose owners are only known on the device: what a graph for any mix is captured with.

    `words` lie in device memory, int32[num_words(total)]; before each replay one copy brings what `fill` has written
    on the host. Rows that are not in use belong to nobody: nothing is computed for them, and their outputs are
    whatever was in memory. After a replay, `faults_in(words)` tells which rows asked for what does not exist.
    """

    any_mix = True

    def __init__(self, total: int, words: Tensor) -> None:
        super().__init__((), ())
        assert words.dtype == torch.int32 and words.shape == (num_words(total),), words
        self.total = total
        self._words = words

    def words(self, device: torch.device) -> Tensor:
        assert self._words is not None
        return self._words

    def layout(self, layer: Layer) -> Layout:
        facts = f"layer {layer.name!r} has no kernel that reads the owners of rows from device memory"
        raise MixError("a step must know whose rows it has", facts, "capture a graph for this mix alone")


def capacity(num_rows: int) -> int:
    """Rows that a table has room for: so many that all its parts start at 16 bytes."""
    return -(-max(1, num_rows) // 16) * 16


def num_words(num_rows: int) -> int:
    """Of a batch with up to `num_rows` rows: how many count; the slot of each, -1 for an idle row; faults of each."""
    return HEADER + 2 * capacity(num_rows)


def fill(words: Tensor, slots: Sequence[int], rows: Sequence[int]) -> None:
    """Write a mix into words on the host: so many `rows` of each of `slots`, in this order; a slot of -1 is idle."""
    array = words.numpy()
    most, total = (array.size - HEADER) // 2, sum(rows)
    assert total <= most, f"{total} rows in words for {most}"
    array[:HEADER] = 0
    array[0] = total
    array[HEADER:] = -1
    array[HEADER : HEADER + total] = np.repeat(np.asarray(slots, dtype=np.int32), rows)
    array[HEADER + most :] = 0


def slots_in(words: Tensor) -> Tensor:
    """The slot of every row."""
    return words[HEADER : HEADER + (words.numel() - HEADER) // 2]


def faults_in(words: Tensor) -> Tensor:
    """1 for every row that has asked for something outside its tables."""
    return words[HEADER + (words.numel() - HEADER) // 2 :]
