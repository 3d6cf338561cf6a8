"""One operand of a cohort for all its tenants: which slab entry each slot uses. Used by capture/ and above."""

from __future__ import annotations

from torch import Tensor

from spacetime.capture.slab import Slab


class Layer:
    """Slot -> entry -> tensor. Slots whose content is equal share an entry, hence a launch."""

    def __init__(self, name: str, *, channels_last: bool = False) -> None:
        self.name = name
        self._channels_last = channels_last
        self._slab: Slab | None = None
        self.entries: list[int] = []  # by slot; -1: empty slot
        self.sharing = 0  # equal numbers: the same slots share entries; set by the cohort
        self.version = 0  # changes with the entries

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

    def put(self, slot: int, tensor: Tensor) -> Tensor:
        """Store a tenant's tensor; answers with the view that now holds it."""
        if self._slab is None:
            self._slab = Slab(tensor, channels_last=self._channels_last)
        while len(self.entries) <= slot:
            self.entries.append(-1)
        self.entries[slot] = self.slab.adopt(tensor)
        self.version += 1
        return self.of_slot(slot)

    def drop(self, slot: int) -> None:
        self.slab.release(self.entries[slot])
        self.entries[slot] = -1
        self.version += 1

    def is_shared(self, slot: int) -> bool:
        return self.slab.users(self.entries[slot]) > 1
