"""Which rows of a batch belong to whom. Built once per mix of tenants and row counts, used by every slot kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spacetime.capture.layer import Layer


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

    def __init__(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> None:
        self.slots = slots
        self.rows = rows
        self.total = sum(rows)
        self._layouts: dict[int, Layout] = {}
        self._indices: dict[tuple[int, int], Tensor] = {}

    def layout(self, layer: Layer) -> Layout:
        layout = self._layouts.get(layer.sharing)
        if layout is None:
            layout = self._layouts[layer.sharing] = self._build(layer)
        return layout

    def entry_per_row(self, layer: Layer, multiple: int = 1) -> Tensor:
        """int64[total * multiple]: the entry of every row; for gathers of small weights."""
        key = (layer.sharing, multiple)
        index = self._indices.get(key)
        if index is None:
            runs = self.layout(layer).runs
            entries = torch.tensor([run.entry for run in runs])
            counts = torch.tensor([run.count * multiple for run in runs])
            index = self._indices[key] = torch.repeat_interleave(entries, counts)
        return index

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
