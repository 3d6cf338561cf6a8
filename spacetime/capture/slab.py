"""Where the weights of a cohort live: one slab per layer, one entry per distinct content. Used by capture/ and above.

`adopt` copies a tensor into the slab (or finds it there: tenants with identical weights share an entry);
the tenant's own parameters then become views of the slab, so nothing is stored twice. Slabs grow by
doubling; on a CPU the reserve is untouched virtual memory until it is used, and a slab that most have left moves into
fresh memory (`compact`), or what they wrote to would stay occupied.

Slabs of one `Store` (store.py) also share contents with each other: an entry may be a *guest*, whose content lies in
another slab. Its place in `stack` stays unwritten, so numbers of entries mean what they always do, and never change;
only what reads `stack` itself has to ask `is_stacked`. When the last user of a content leaves the slab that it lies
in, it moves to the place that a guest has kept for it; on a GPU, where kernels under way have its address and nothing
waits for them, it stays for its guests instead. Layers are told of every change of addresses (`on_change`).
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

if TYPE_CHECKING:
    from spacetime.capture.store import Store

_RESERVE = 8  # entries, where memory that is not written to is not occupied: on a CPU
_SPARSE = 4  # a slab is compacted when of so many places that were written to one is in use
_SAMPLES = 512  # bytes hashed to find candidates; equality is then checked in full

Readers = dict[Hashable, tuple[Tensor, ...]]


@dataclass(eq=False)
class Content:
    """One content, stored once. `readers`: modules' tensors that are views of it, by whoever brought them."""

    view: Tensor
    fingerprint: bytes
    home: Slab  # where it lies
    places: dict[Slab, int] = field(default_factory=dict)  # entries that are this content
    readers: Readers = field(default_factory=dict)

    def move(self, view: Tensor) -> None:
        """Its bytes have been copied there."""
        self.view = view
        for tensors in self.readers.values():
            point(tensors, view)
        self.tell()

    def tell(self) -> None:
        """Who keeps its address, or knows whether it is shared, has to look again."""
        for slab in self.places:
            slab.on_change()

    def read_by(self, reader: Hashable, tensors: Sequence[Tensor]) -> None:
        self.readers[reader] = tuple(tensors)
        point(tensors, self.view)

    def hand_back(self, reader: Hashable, copy: Tensor) -> None:
        """The reader's tensors get this memory; not those that somebody else has brought as well."""
        tensors = self.readers.pop(reader, ())
        others = {id(tensor) for found in self.readers.values() for tensor in found}
        point([tensor for tensor in tensors if id(tensor) not in others], copy)


@dataclass
class _Entry:
    content: Content
    users: int
    serial: int  # no two contents of a slab ever have the same


class Slab:
    """The weights of one layer. `stack` is [capacity, *shape]; entry i is stack[i] as the owner laid it out."""

    def __init__(
        self, like: Tensor, *, channels_last: bool = False, store: Store | None = None, owner: str = ""
    ) -> None:
        self.owner = owner  # a cohort's signature, for explain()
        self._own_order = _memory_order(like)
        self._order = [0, 2, 3, 1] if channels_last else self._own_order
        self._like = like.new_empty(0)
        self._shape = tuple(like.shape)
        # Slabs of one kind may share contents: equal in all that a kernel is bound to.
        self.kind: Hashable = (self._shape, like.dtype, str(like.device), tuple(self._order))
        self._store = store if store is not None and store.is_for(like) else None
        self._entries: list[_Entry | None] = []
        self._by_fingerprint: dict[bytes, list[int]] = {}
        self._serials = count()
        self._num_guests = 0
        self._written: set[int] = set()  # places of `stack` that are occupied, by whoever
        self._resting: dict[int, weakref.ref[Tensor]] = {}  # places not to be written to yet
        self.vacates = like.device.type == "cpu"  # do contents move out with their last user?
        self.on_change: Callable[[], None] = _nobody
        self.stack = self._reserve()

    def adopt(self, tensor: Tensor) -> int:
        """The entry that holds this content: a new one, or one that is there already."""
        fingerprint = _fingerprint(tensor)
        for index in self._by_fingerprint.get(fingerprint, ()):
            entry = self._entries[index]
            if entry is not None and torch.equal(entry.content.view, tensor):
                entry.users += 1
                return index
        index = self._free_index()
        content = None if self._store is None else self._store.find(self.kind, fingerprint, tensor)
        if content is None:
            self.stack[index].copy_(tensor)
            self._written.add(index)
            content = Content(self.stack[index], fingerprint, home=self)
            if self._store is not None:
                self._store.enter(self.kind, content)
        else:
            self._num_guests += 1
        content.places[self] = index
        self._entries[index] = _Entry(content, users=1, serial=next(self._serials))
        self._by_fingerprint.setdefault(fingerprint, []).append(index)
        if content.home is not self:
            content.tell()
        return index

    def release(self, index: int) -> None:
        entry = self._entries[index]
        assert entry is not None and entry.users > 0
        entry.users -= 1
        stays = entry.content.home is self and len(entry.content.places) > 1 and not self.vacates
        if entry.users == 0 and not stays:
            self._free(index, entry.content)

    def content(self, index: int) -> Content:
        entry = self._entries[index]
        assert entry is not None
        return entry.content

    def view(self, index: int) -> Tensor:
        entry = self._entries[index]
        assert entry is not None
        return entry.content.view

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

    def is_shared(self, index: int) -> bool:
        """Has anybody else this content, here or in another slab?"""
        entry = self._entries[index]
        return entry is not None and (entry.users > 1 or len(entry.content.places) > 1)

    def is_stacked(self, first: int = 0, number: int | None = None) -> bool:
        """Are these entries, or all, what `stack` holds at their places?"""
        if not self._num_guests:
            return True
        entries = self._entries[first:] if number is None else self._entries[first : first + number]
        return all(entry is not None and entry.content.home is self for entry in entries)

    @property
    def may_share(self) -> bool:
        """Might a content lie in another slab, or another slab's in this one?"""
        return self._store is not None

    @property
    def shares(self) -> bool:
        """Does one?"""
        entries = tuple(self._entries) if self._store is not None else ()
        return any(entry is not None and len(entry.content.places) > 1 for entry in entries)

    def addresses(self, entries: Sequence[int]) -> list[int]:
        """Where these lie; -1 for those that are -1 or gone. Any thread may ask: what changes meanwhile is told."""
        known = tuple(self._entries)
        found = [known[index] if 0 <= index < len(known) else None for index in entries]
        return [-1 if entry is None else entry.content.view.data_ptr() for entry in found]

    @property
    def entry_bytes(self) -> int:
        return int(self.stack[0].numel() * self.stack.element_size())

    @property
    def num_entries(self) -> int:
        return sum(entry is not None for entry in self._entries)

    @property
    def num_stored(self) -> int:
        """Entries whose content lies here."""
        return self.num_entries - self._num_guests

    def guests(self) -> list[Content]:
        """Contents of its entries that lie in other slabs."""
        found = [entry.content for entry in self._entries if entry is not None] if self._num_guests else []
        return [content for content in found if content.home is not self]

    def _free(self, index: int, content: Content) -> None:
        alike = self._by_fingerprint[content.fingerprint]
        alike.remove(index)
        if not alike:
            del self._by_fingerprint[content.fingerprint]
        del content.places[self]
        if content.home is not self:
            self._num_guests -= 1
            content.home._guest_left(content)
        elif content.places:
            self._resting[index] = weakref.ref(content.view)  # a guest's lane that runs may be reading it
            next(iter(content.places))._take_in(content)
        elif self._store is not None:
            self._store.forget(self.kind, content)
        self._entries[index] = None

    def _guest_left(self, content: Content) -> None:
        """A content that only guests have had goes with the last of them."""
        index = content.places[self]
        if len(content.places) == 1 and self.users(index) == 0:
            self._free(index, content)

    def _take_in(self, content: Content) -> None:
        """Where it lay, nobody needs it any more. Lanes that run keep that memory, or are given it by the store."""
        assert self._store is not None
        place = self.stack[content.places[self]]
        place.copy_(content.view)
        self._written.add(content.places[self])
        self._store.vacated.append(content.view)
        self._num_guests -= 1
        content.home = self
        content.move(place)

    def _free_index(self) -> int:
        free = (index for index, entry in enumerate(self._entries) if entry is None and not self._rests(index))
        index = next(free, len(self._entries))
        if index >= self.stack.shape[0]:
            self._move(self._room(index))
        if index == len(self._entries):
            self._entries.append(None)
        return index

    def _rests(self, index: int) -> bool:
        """Has a content moved out of this place that somebody still has by name?"""
        known = self._resting.get(index)
        if known is not None and known() is None:
            del self._resting[index]
        return index in self._resting

    def compact(self) -> Tensor | None:
        """Into fresh memory, if most of what is occupied belongs to tenants that have left: the memory that it was in,
        which lanes may still read. Numbers of entries stay.

        Only on a CPU. A GPU has little reserve, and its graphs have addresses.
        """
        occupied = len(self._written)
        if self._like.device.type != "cpu" or occupied <= _RESERVE or occupied <= _SPARSE * self.num_stored:
            return None
        used = [index for index, entry in enumerate(self._entries) if entry is not None]
        before = self.stack
        try:
            self._move(self._room(max(used, default=-1) + 1))
        except RuntimeError:  # there is no memory for a moment of both
            return None
        return before

    def _move(self, capacity: int) -> None:
        """Lanes that run keep the old memory alive, or are given it by whoever has called adopt() or compact()."""
        stack = self._allocate(capacity)
        stored = [
            (index, entry.content)
            for index, entry in enumerate(self._entries)
            if entry is not None and entry.content.home is self
        ]
        used = len(stored)
        if stored and stored[-1][0] == used - 1:
            stack[:used].copy_(self.stack[:used])
        else:  # places of guests, and free ones, stay unwritten
            for index, content in stored:
                stack[index].copy_(content.view)
        if stack.is_cuda:  # a lane on another stream may read as soon as it finds the new memory
            torch.cuda.current_stream(stack.device).synchronize()
        self.stack = stack
        self._resting.clear()
        self._written = {index for index, _ in stored}
        for index, content in stored:
            content.move(stack[index])

    def _room(self, used: int) -> int:
        """Capacity for so many and more. A GPU occupies what is reserved, so its reserve is small, and copies quick."""
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


def _nobody() -> None:
    pass


def point(tensors: Iterable[Tensor], view: Tensor) -> None:
    """Let parameters look at other memory with the same content. Inference tensors cannot; they keep theirs."""
    readers = [tensor for tensor in tensors if not tensor.is_inference()]
    seen = by_itself(view) if readers else view
    for tensor in readers:
        tensor.data = seen


def by_itself(view: Tensor) -> Tensor:
    """The same memory as a storage of its own, which keeps the whole alive: who saves or pickles a tenant's module

    would else write the whole slab, with the weights of all tenants. On a GPU it stays a view of the slab's storage.
    """
    if view.device.type != "cpu":
        return view
    alone = from_dlpack(view)
    return alone.as_strided(view.shape, view.stride())  # of dimensions of one entry DLPack may say something else


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
