"""Who the rows of a lane belong to, in device memory: made once per lane, read by all its kernels.

Three tables. *Words*: how many rows count and the slot of each; they change with the mix, and are the one small copy
of a lane or of a replay (rowmap.py). *Entries by slot*, int32[layers, slots]: which entry of its slab each tenant uses
in each layer; tenants that share weights have equal entries. It changes when a tenant joins or leaves. *Entries by
row*, int32[layers, rows]: what kernels read, made of the other two by the lane's first launch, on the device.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

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


class EntryTable:
    """The entries of all layers by slot, on the device. One per program.

    Lanes read it while tenants come and go: what it says of a tenant does not change as long as the tenant is there,
    so it is rewritten in place. A table that is too narrow is replaced; the old one stays, a lane may be reading it.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)
        self._lock = threading.Lock()
        self._version = -1
        self._tables: list[Tensor] = []

    def current(self) -> Tensor:
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
        num_slots = max(map(len, entries))
        if not self._tables or self._tables[-1].shape[1] < num_slots:
            width = max(_FEWEST_SLOTS, 1 << (num_slots - 1).bit_length())
            device = self._layers[0].stack.device
            self._tables.append(torch.empty((len(entries), width), dtype=torch.int32, device=device))
        table = self._tables[-1]
        array = np.full(tuple(table.shape), -1, dtype=np.int32)
        for row, of_layer in zip(array, entries, strict=True):
            row[: len(of_layer)] = of_layer
        table.copy_(torch.from_numpy(array))  # waits: other streams read it from now on
        self._version = version


class Owners:
    """The tables of one lane, for its stream. Without an engine there are none, and `reason` says why."""

    def __init__(self, engine: Engine | str, total: int, words: Tensor | None, table: Tensor | None) -> None:
        self.engine = engine
        self.total = total
        self.has_lookups = False
        self._workspace: Tensor | None = None
        if isinstance(engine, str):
            return
        assert words is not None and table is not None
        slots, num_active = slots_in(words), words[:1]
        out = table.new_empty(table.shape[0], slots.shape[0])
        operands = row_entries.Operands(table, slots, num_active, out)
        shape = row_entries.Shape(slots.shape[0], *table.shape)
        row_entries.launch(shape, row_entries.default(shape, engine.target), operands, engine.target).run()
        self.num_active = num_active
        self.faults = faults_in(words)
        self._by_row = out
        self._entries = out.unbind(0)
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
        return Slotted(operand.layer.stack, self._entries[operand.index])

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
        table = self.table.current()
        if _is_capturing():
            self._show(table)
        return Owners(engine, rows.total, rows.words(device), table)

    def _show(self, table: Tensor) -> None:
        """Who records a graph sees what torch operations read, and keeps it; of Triton launches it sees nothing."""
        for tensor in (table, *(layer.stack for layer in self._layers)):
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
