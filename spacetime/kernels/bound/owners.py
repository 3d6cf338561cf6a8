"""Who the rows of a lane belong to, in device memory: made once per lane, read by all its kernels.

Three tables. *Words*: how many rows count and the slot of each; they change with the mix, and are the one small copy
of a lane or of a replay (rowmap.py). *Entries by slot*, int32[layers, slots]: which entry of its slab each tenant uses
in each layer; tenants that share weights have equal entries. It changes when a tenant joins or leaves. *Entries by
row*, int32[layers, rows]: what kernels read, made of the other two by the lane's first launch, on the device.

Where a program shares weights with another one (capture/store.py), some of them lie in the slab of that program. Its
large weights then have *places* beside their entries: addresses, int64, by slot and by row. Kernels take either.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.errors import SpacetimeError
from spacetime.kernels.bound.operation import Engine, Operand, engine_of
from spacetime.kernels.rowmap import RowMap, faults_in, slots_in
from spacetime.kernels.triton import row_entries
from spacetime.kernels.triton.launch import Slotted
from spacetime.kernels.triton.slot_linear import ARRIVALS
from spacetime.kernels.triton.ways import ByEntry

_FEWEST_SLOTS = 64


class FaultError(SpacetimeError, IndexError):
    """A row asked for an entry outside its table, as an embedding does for a token it does not know."""


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """By slot, on the device. `placed`: the layers that `places` has a row for, in order.

    `single`: layers of which several tenants, and all there are, have the same entry.
    """

    entries: Tensor
    places: Tensor | None = None
    placed: tuple[int, ...] = ()
    single: frozenset[int] = frozenset()

    @property
    def identity(self) -> tuple[int, ...]:
        """Equal as long as what was bound to these tables reads what is there."""
        places = () if self.places is None else (self.places.data_ptr(), *self.placed)
        return (self.entries.data_ptr(), *places, -1, *sorted(self.single))

    def holds(self, num_slots: int, placed: tuple[int, ...]) -> bool:
        return self.entries.shape[1] >= num_slots and self.placed == placed


class EntryTable:
    """The entries of all layers by slot, on the device. One per program.

    Lanes read it while tenants come and go: what it says of a tenant does not change as long as the tenant is there,
    but for places of weights that move; whoever replaces memory keeps the old one for the lanes that run. So it is
    rewritten in place. Tables that are too narrow are replaced; the old ones stay, a lane may be reading them.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)
        self._lock = threading.Lock()
        self._version = -1
        self._tables: list[Tables] = []

    def current(self) -> Tensor:
        """The entries of `tables`."""
        return self.tables().entries

    def tables(self) -> Tables:
        """Up to date for every tenant that has joined; a copy to the device only if one has since the last call."""
        if self._changes() != self._version and not (self._tables and _is_capturing()):
            with self._lock:
                self._refresh()
        return self._tables[-1]

    def _changes(self) -> int:
        """Of all layers: a tenant that joins changes one after another, and lanes do not wait for it."""
        return sum([layer.version for layer in self._layers])

    def _refresh(self) -> None:
        version = self._changes()  # first: what changes meanwhile shows next time
        if version == self._version:
            return
        entries = [list(layer.entries) for layer in self._layers]
        num_slots, placed = max(map(len, entries)), self._placed()
        if not self._tables or not self._tables[-1].holds(num_slots, placed):
            self._tables.append(self._empty(num_slots, placed))
        tables = self._tables[-1]
        single = frozenset([index for index, of_layer in enumerate(entries) if _is_single(of_layer)])
        if tables.single != single:
            tables = self._tables[-1] = replace(tables, single=single)
        _write(tables.entries, entries)
        if tables.places is not None:
            _write(tables.places, [self._layers[index].slab.addresses(entries[index]) for index in placed])
        self._version = version

    def _placed(self) -> tuple[int, ...]:
        """All large weights, or none: kernels of one kind then read them in one way, and can be one launch.

        Who has ever shared one keeps it so, or graphs would be captured again whenever somebody comes and goes.
        """
        if self._tables and self._tables[-1].placed:
            return self._tables[-1].placed
        if not any(layer.slab.shares for layer in self._layers):
            return ()
        return tuple([index for index, layer in enumerate(self._layers) if layer.slab.may_share])

    def _empty(self, num_slots: int, placed: tuple[int, ...]) -> Tables:
        width, device = max(_FEWEST_SLOTS, 1 << (num_slots - 1).bit_length()), self._layers[0].stack.device
        entries = torch.empty((len(self._layers), width), dtype=torch.int32, device=device)
        places = torch.empty((len(placed), width), dtype=torch.int64, device=device) if placed else None
        return Tables(entries, places, placed)


def _is_single(entries: Sequence[int]) -> bool:
    known = [entry for entry in entries if entry >= 0]
    return len(known) > 1 and len(set(known)) == 1


def _write(table: Tensor, rows: Sequence[Sequence[int]]) -> None:
    array = np.full(tuple(table.shape), -1, dtype=np.int32 if table.dtype == torch.int32 else np.int64)
    for row, values in zip(array, rows, strict=True):
        row[: len(values)] = values
    table.copy_(torch.from_numpy(array))  # waits: other streams read it from now on


class Owners:
    """The tables of one lane, for its stream. Without an engine there are none, and `reason` says why."""

    def __init__(self, engine: Engine | str, total: int, words: Tensor | None, tables: Tables | None) -> None:
        self.engine = engine
        self.total = total
        self.has_lookups = False
        self._workspace: Tensor | None = None
        if isinstance(engine, str):
            return
        assert words is not None and tables is not None
        self.num_active = words[:1]
        self.faults = faults_in(words)
        self._by_row = _by_row(engine, tables.entries, words)
        self._entries = self._by_row.unbind(0)
        self._single = tables.single
        self._places: dict[int, Tensor] = {}
        if tables.places is not None:
            places = _by_row(engine, tables.places, words).unbind(0)
            self._places = dict(zip(tables.placed, places, strict=True))
        self._known: Tensor | None = None
        self._by_entry: ByEntry | None = None

    @property
    def reason(self) -> str | None:
        """Why there are no kernels here."""
        return self.engine if isinstance(self.engine, str) else None

    def entries(self, operand: Operand) -> Tensor:
        """int32[rows or more]: the entry of every row, -1 for idle rows."""
        return self._entries[operand.index]

    def slotted(self, operand: Operand) -> Slotted:
        return Slotted(operand.layer.stack, self._entries[operand.index], self._places.get(operand.index))

    def are_single(self, *operands: Operand | None) -> bool:
        """Do all tenants have the same entry of each of these? Then any mix of them does."""
        return all(operand is None or operand.index in self._single for operand in operands)

    def index(self, operand: Operand) -> Tensor:
        """int32[rows]: entries to gather by; idle rows get some tenant's, which nobody sees."""
        if self._known is None:
            self._known = self._by_row.clamp_min(0)
        return self._known[operand.index, : self.total]

    @property
    def by_entry(self) -> ByEntry:
        """The rows in the order of their entries, layer by layer."""
        if self._by_entry is None:
            self._by_entry = ByEntry.of(self._by_row[:, : self.total], self.num_active)
        return self._by_entry

    def workspace(self, words: int, arrivals: int) -> Tensor:
        """For one launch at a time: those of a lane follow each other, and leave the arrivals at zero."""
        assert isinstance(self.engine, Engine)
        if arrivals > ARRIVALS:
            return self.num_active.new_zeros(words)
        if self._workspace is None or self._workspace.numel() < words:
            most = self.engine.workspace_words = max(words, self.engine.workspace_words)
            self._workspace = self.num_active.new_empty(most)
            self._workspace[:ARRIVALS].zero_()
        return self._workspace


def _by_row(engine: Engine, table: Tensor, words: Tensor) -> Tensor:
    """[layers, rows]: what the table says of each row's slot, -1 for idle rows."""
    slots = slots_in(words)
    out = table.new_empty(table.shape[0], slots.shape[0])
    operands = row_entries.Operands(table, slots, words[:1], out)
    shape = row_entries.Shape(slots.shape[0], *table.shape)
    row_entries.launch(shape, row_entries.default(shape, engine.target), operands, engine.target).run()
    return out


class MakeOwners:
    """The first step of a program: (rows) -> the owners of the lane."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)
        self.table = EntryTable(layers)

    def __call__(self, rows: RowMap) -> Owners:
        device = self._layers[0].stack.device
        engine = engine_of(device)
        if isinstance(engine, str):
            return Owners(engine, rows.total, None, None)
        tables = self.table.tables()
        if _is_capturing():
            self._show(tables)
        return Owners(engine, rows.total, rows.words(device), tables)

    def _show(self, tables: Tables) -> None:
        """Who records a graph sees what torch operations read, and keeps it; of Triton launches it sees nothing.

        Slabs of other programs are not kept: the graph reads where they are, and that may change.
        """
        places = () if tables.places is None else (tables.places,)
        for tensor in (tables.entries, *places, *(layer.stack for layer in self._layers)):
            tensor.detach()


class CheckFaults:
    """The last step of a program with embeddings: raises where a row asked for what does not exist.

    It waits for the lane, whose thread has nothing else to do. While a graph is recorded nothing can be asked: then
    whoever replays it looks at `faults_in` its words.
    """

    def __call__(self, rows: RowMap, owners: Owners) -> None:
        if not owners.has_lookups or _is_capturing():
            return
        faulty = owners.faults[: rows.total].nonzero().flatten().tolist()
        if faulty:
            facts = f"rows {faulty[:8]} of {rows.total}"
            raise FaultError("an index is outside the table of its embedding", facts, "check the inputs' range")


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
