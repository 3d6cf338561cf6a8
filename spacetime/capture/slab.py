"""Where the weights of a cohort live: one slab per layer, one entry per distinct content. Used by capture/ and above.

`adopt` copies a tensor into the slab (or finds it there: tenants with identical weights share an entry);
the tenant's own parameters then become views of the slab, so nothing is stored twice. Slabs grow by
doubling; on a CPU the reserve is untouched virtual memory until it is used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

_RESERVE = 8  # entries, where memory that is not written to is not occupied: on a CPU
_SAMPLES = 512  # bytes hashed to find candidates; equality is then checked in full


@dataclass
class _Entry:
    view: Tensor
    fingerprint: bytes
    users: int
    serial: int  # no two contents of a slab ever have the same


class Slab:
    """The weights of one layer. `stack` is [capacity, *shape]; entry i is stack[i] as the owner laid it out."""

    def __init__(self, like: Tensor, *, channels_last: bool = False) -> None:
        self._own_order = _memory_order(like)
        self._order = [0, 2, 3, 1] if channels_last else self._own_order
        self._like = like.new_empty(0)
        self._shape = tuple(like.shape)
        self._entries: list[_Entry | None] = []
        self._by_fingerprint: dict[bytes, list[int]] = {}
        self._serials = count()
        self.stack = self._reserve()

    def adopt(self, tensor: Tensor) -> int:
        """The entry that holds this content: a new one, or one that is there already."""
        fingerprint = _fingerprint(tensor)
        for index in self._by_fingerprint.get(fingerprint, ()):
            entry = self._entries[index]
            if entry is not None and torch.equal(entry.view, tensor):
                entry.users += 1
                return index
        index = self._free_index()
        self.stack[index].copy_(tensor)
        self._entries[index] = _Entry(self.stack[index], fingerprint, users=1, serial=next(self._serials))
        self._by_fingerprint.setdefault(fingerprint, []).append(index)
        return index

    def release(self, index: int) -> None:
        entry = self._entries[index]
        assert entry is not None and entry.users > 0
        entry.users -= 1
        if entry.users == 0:
            self._by_fingerprint[entry.fingerprint].remove(index)
            self._entries[index] = None

    def view(self, index: int) -> Tensor:
        entry = self._entries[index]
        assert entry is not None
        return entry.view

    def copy_out(self, index: int) -> Tensor:
        """The content of an entry in memory of its own, in the order in which it came."""
        copy = self.view(index).permute(self._own_order).clone(memory_format=torch.contiguous_format)
        return copy.permute(_inverse(self._own_order))

    def serial(self, index: int) -> int:
        """Changes when the entry gets other content; for copies that are derived from it."""
        entry = self._entries[index]
        return -1 if entry is None else entry.serial

    def users(self, index: int) -> int:
        entry = self._entries[index]
        return 0 if entry is None else entry.users

    @property
    def entry_bytes(self) -> int:
        return int(self.stack[0].numel() * self.stack.element_size())

    @property
    def num_entries(self) -> int:
        return sum(entry is not None for entry in self._entries)

    def _free_index(self) -> int:
        if None in self._entries:
            return self._entries.index(None)
        if len(self._entries) == self.stack.shape[0]:
            self._grow()
        self._entries.append(None)
        return len(self._entries) - 1

    def _grow(self) -> None:
        """Lanes that run keep the old memory alive; owners re-read their views after every adoption."""
        used = len(self._entries)
        stack = self._allocate(self._room(used))
        stack[:used].copy_(self.stack[:used])
        if stack.is_cuda:  # a lane on another stream may read as soon as it finds the new memory
            torch.cuda.current_stream(stack.device).synchronize()
        self.stack = stack
        for index, entry in enumerate(self._entries):
            if entry is not None:
                entry.view = stack[index]

    def _room(self, used: int) -> int:
        """Capacity for one more. A GPU occupies what is reserved, so its reserve is small, and copies are quick."""
        if self._like.device.type == "cpu":
            return max(_RESERVE, 2 * used)
        return used + max(1, used // _RESERVE)

    def _reserve(self) -> Tensor:
        """Room for the first tenants without moving anybody, where it costs nothing."""
        try:
            return self._allocate(self._room(0))
        except RuntimeError:  # a system that promises no more memory than it has
            return self._allocate(1)

    def _allocate(self, capacity: int) -> Tensor:
        """Entries keep the memory order of the original, or the one their kernel is fast with."""
        physical = [self._shape[dim] for dim in self._order]
        stack = self._like.new_empty([capacity, *physical])
        return stack.permute(0, *(dim + 1 for dim in _inverse(self._order)))


def _memory_order(tensor: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda dim: (-strides[dim], dim))


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _fingerprint(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().contiguous().reshape(-1)
    step = max(1, flat.numel() // _SAMPLES)
    sample = flat[::step].contiguous().view(torch.uint8)
    return hashlib.blake2b(sample.cpu().numpy().tobytes(), digest_size=16).digest()
