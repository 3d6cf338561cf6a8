"""Equal weights of unlike programs, found by content: rows that meet them can be one product. For kernels/ and above.

Inside of a cohort a slab does this when a tenant joins (slab.py), for large weights of different cohorts a store does
(store.py). Here all layers of different slabs are compared, also the small ones: a fingerprint finds candidates,
equality is then checked in full, once for every content that an entry gets.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

import torch

from spacetime.capture.layer import Layer
from spacetime.capture.slab import Content, Slab


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a content lies, as long as the entry's serial is this one."""

    slab: Slab
    entry: int
    serial: int
    fingerprint: bytes
    number: int

    @property
    def is_current(self) -> bool:
        return self.slab.serial(self.entry) == self.serial


class Contents:
    """Numbers of contents: equal numbers, equal weights. Lanes on different threads may ask."""

    def __init__(self) -> None:
        self._homes: dict[tuple[int, int], _Home] = {}  # by slab and entry
        self._by_fingerprint: dict[bytes, list[_Home]] = {}
        self._numbers = count()
        self._lock = threading.Lock()

    def number(self, layer: Layer, slot: int) -> int:
        slab, entry = layer.slab, layer.entries[slot]
        home = self._homes.get((id(slab), entry))
        if home is not None and home.is_current:
            return home.number
        with self._lock:
            return self._find(slab, entry).number

    def warm(self, layers: Iterable[Layer]) -> None:
        """Look at all contents now, off the hot path."""
        for layer in layers:
            for slot, entry in enumerate(layer.entries):
                if entry >= 0:
                    self.number(layer, slot)

    def _find(self, slab: Slab, entry: int) -> _Home:
        content = slab.content(entry)
        fingerprint = content.fingerprint
        homes = [home for home in self._by_fingerprint.get(fingerprint, ()) if home.is_current]
        number = next((home.number for home in homes if _equal(home.slab.content(home.entry), content)), None)
        number = next(self._numbers) if number is None else number
        found = _Home(slab, entry, slab.serial(entry), fingerprint, number)
        self._by_fingerprint[fingerprint] = [*homes, found]
        before = self._homes.get((id(slab), entry))
        self._homes[id(slab), entry] = found  # the home keeps the slab, so nobody else gets its id
        if before is not None and before.fingerprint != fingerprint:
            self._forget(before)
        return found

    def _forget(self, home: _Home) -> None:
        """Another content has its place."""
        homes = [other for other in self._by_fingerprint.get(home.fingerprint, ()) if other.is_current]
        if homes:
            self._by_fingerprint[home.fingerprint] = homes
        else:
            self._by_fingerprint.pop(home.fingerprint, None)


def _equal(one: Content, other: Content) -> bool:
    if one is other:  # stored once (store.py)
        return True
    a, b = one.view, other.view
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
