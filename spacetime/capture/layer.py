"""One operand of a cohort for all its tenants: which slab entry each slot uses. Used by capture/ and above."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

from torch import Tensor

from spacetime.capture.slab import Slab
from spacetime.capture.store import Store


class Layer:
    """Slot -> entry -> tensor. Slots whose content is equal share an entry, hence a launch."""

    def __init__(self, name: str, *, channels_last: bool = False, store: Store | None = None, owner: str = "") -> None:
        """`store`: where contents are shared with the layers of other programs; `owner`: of which program this is."""
        self.name = name
        self._channels_last = channels_last
        self._store = store
        self._owner = owner
        self._slab: Slab | None = None
        self.entries: list[int] = []  # by slot; -1: empty slot
        self.sharing = 0  # equal numbers: the same slots share entries; set by the cohort
        self.version = 0  # changes with the entries, and where they lie

    @property
    def slab(self) -> Slab:
        assert self._slab is not None, "a layer has content once a tenant has joined"
        return self._slab

    @property
    def stack(self) -> Tensor:
        return self.slab.stack

    def entry(self, index: int) -> Tensor:
        return self.slab.view(index)

    def of_slot(self, slot: int) -> Tensor:
        return self.slab.view(self.entries[slot])

    def copy_out(self, slot: int) -> Tensor:
        return self.slab.copy_out(self.entries[slot])

    def is_stacked(self, first: int = 0, number: int | None = None) -> bool:
        """May entries be read as `stack[first : first + number]`? Not where one lies in another layer's slab."""
        return self.slab.is_stacked(first, number)

    def put(self, slot: int, tensor: Tensor, readers: Sequence[Tensor] = ()) -> Tensor:
        """Store a tenant's tensor; answers with the view that now holds it. `readers` become views of it, and stay so
        wherever it moves.
        """
        if self._slab is None:
            self._slab = Slab(tensor, channels_last=self._channels_last, store=self._store, owner=self._owner)
            self._slab.on_change = _Told(self)
        while len(self.entries) <= slot:
            self.entries.append(-1)
        entry = self.entries[slot] = self.slab.adopt(tensor)
        self.version += 1
        if readers:
            self.slab.content(entry).read_by((self, slot), readers)
        return self.of_slot(slot)

    def hand_back(self, slot: int) -> None:
        """The readers get memory of their own, before the slot is dropped."""
        content = self.slab.content(self.entries[slot])
        content.hand_back((self, slot), self.slab.copy_out(self.entries[slot]))

    def drop(self, slot: int) -> None:
        entry, self.entries[slot] = self.entries[slot], -1
        self.slab.content(entry).readers.pop((self, slot), None)
        self.slab.release(entry)
        self.version += 1

    def is_shared(self, slot: int) -> bool:
        return self.slab.is_shared(self.entries[slot])


class _Told:
    """Tells a layer that its slab has changed. Weak: a cycle would keep the slab's memory until somebody collects."""

    def __init__(self, layer: Layer) -> None:
        self._layer = ref(layer)

    def __call__(self) -> None:
        layer = self._layer()
        if layer is not None:
            layer.version += 1
