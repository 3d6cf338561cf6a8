"""One launch for calls of several programs: the reference in plain torch of shared and grouped slot launches.

The table of such a launch is a list of *groups*: rows, wherever they lie, that meet the same weights, wherever those
lie. Weights are never copied; rows are only where rows of several programs meet equal weights and become one product.
A device's kernel reads the same table as offsets. together_table.py is the entrance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.capture.merge_contents import Contents
from spacetime.kernels.rowmap import RowMap

_SOURCES = 256  # tables of one mix whose content is kept, of all its launches

Parts = dict[int, RowMap]  # the calls of a launch that have rows in this lane
Call = Callable[["Group", Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one call."""

    part: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that meet equal weights; those of `slot` in the layers of call `owner` stand for all of them."""

    owner: int
    slot: int
    pieces: tuple[Piece, ...]


class Spans:
    """Who has how many rows in a lane, by member; None for a member without rows. Remembers the tables of launches."""

    is_late = False  # is the lane being captured?

    def __init__(self, rows: tuple[RowMap | None, ...]) -> None:
        self.rows = rows
        self._tables: dict[object, tuple[tuple[int, ...], tuple[Group, ...]]] = {}
        self._sources: dict[bytes, Tensor] = {}

    def upload(self, table: Tensor, device: torch.device) -> Tensor:
        """A small table of the host's in device memory, on the current stream and for this lane alone.

        What is copied is kept, for the copy takes place later; addresses tend to come again. A host that has seen too
        many waits instead.
        """
        content = table.numpy().tobytes()
        source = self._sources.get(content)
        if source is None and len(self._sources) < _SOURCES:
            source = self._sources[content] = table.pin_memory() if device.type == "cuda" else table
        on_device = torch.empty_like(table, device=device)
        return on_device.copy_(table) if source is None else on_device.copy_(source, non_blocking=True)

    def hold(self, table: Tensor) -> None:
        """A launch reads this table, which others read as well. Who captures the launch has to keep it."""

    def table(self, launch: Weighted, parts: Parts) -> tuple[Group, ...]:
        # Versions first: what changes meanwhile shows next time. A lane's own tenants keep their weights.
        versions = tuple([layer.version for layer in launch.watched])
        known = self._tables.get(launch)
        if known is None or known[0] != versions:
            known = self._tables[launch] = (versions, launch.groups(parts))
        return known[1]


class LateSpans(Spans):
    """Of a capture, in which nothing can be copied from the host: tables are written behind it, by `write`.

    What launches read is only known while they are captured. It is held, so that the graph's other values, which are
    allocated from the same pool, cannot come to lie in its place.
    """

    is_late = True

    def __init__(self, rows: tuple[RowMap | None, ...]) -> None:
        super().__init__(rows)
        self.held: list[Tensor] = []
        self._unwritten: list[tuple[Tensor, Tensor]] = []

    def upload(self, table: Tensor, device: torch.device) -> Tensor:
        on_device = torch.empty_like(table, device=device)
        self._unwritten.append((on_device, table))
        self.hold(on_device)
        return on_device

    def hold(self, table: Tensor) -> None:
        self.held.append(table)

    def write(self) -> None:
        """On the current stream, after the capture and before the first replay. Waits: replays come on any stream."""
        for on_device, table in self._unwritten:
            on_device.copy_(table)
        self._unwritten.clear()


class Weighted:
    """What launches with weights share: `operands[part]` are the layers whose contents tell groups apart."""

    def __init__(self, operands: Sequence[Sequence[Layer | None]], alike: Sequence[int], contents: Contents) -> None:
        self.operands = operands
        self.alike = alike
        self.contents = contents
        self.watched = [layer for layers in operands for layer in layers if layer is not None]

    def groups(self, parts: Parts) -> tuple[Group, ...]:
        found: dict[tuple[int | None, ...], tuple[int, int, list[Piece]]] = {}
        for part, rows in parts.items():
            start = 0
            for slot, count in zip(rows.slots, rows.rows, strict=True):
                layers = self.operands[part]
                numbers = [None if layer is None else self.contents.number(layer, slot) for layer in layers]
                pieces = found.setdefault((self.alike[part], *numbers), (part, slot, []))[2]
                if pieces and pieces[-1].part == part and pieces[-1].start + pieces[-1].count == start:
                    pieces[-1] = Piece(part, pieces[-1].start, pieces[-1].count + count)
                else:
                    pieces.append(Piece(part, start, count))
                start += count
        return tuple([Group(part, slot, tuple(pieces)) for part, slot, pieces in found.values()])

    def weights(self, group: Group) -> list[Tensor | None]:
        """Looked up at every launch: a slab may have grown."""
        return [None if layer is None else layer.of_slot(group.slot) for layer in self.operands[group.owner]]


def by_group(
    groups: Sequence[Group], parts: Parts, values: dict[int, Tensor], row_dim: int, call: Call
) -> dict[int, Tensor]:
    """Call once per group on its rows; every part gets its results in the order of its rows."""
    found: dict[int, list[tuple[int, Tensor]]] = {part: [] for part in parts}
    for group in groups:
        pieces = [_rows(values[piece.part], piece, row_dim, parts[piece.part]) for piece in group.pieces]
        result = call(group, pieces[0] if len(pieces) == 1 else torch.cat(pieces, row_dim))
        per_row = result.shape[row_dim] // sum(piece.count for piece in group.pieces)
        results = result.split([piece.count * per_row for piece in group.pieces], row_dim)
        for piece, own in zip(group.pieces, results, strict=True):
            found[piece.part].append((piece.start, own))
    return {part: _joined(results, row_dim) for part, results in found.items()}


def _rows(value: Tensor, piece: Piece, row_dim: int, rows: RowMap) -> Tensor:
    if piece.count == rows.total:
        return value
    per_row = value.shape[row_dim] // rows.total
    return value.narrow(row_dim, piece.start * per_row, piece.count * per_row)


def _joined(results: list[tuple[int, Tensor]], row_dim: int) -> Tensor:
    ordered = [result for _, result in sorted(results, key=_start)]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered, row_dim)


def _start(result: tuple[int, Any]) -> int:
    return result[0]
