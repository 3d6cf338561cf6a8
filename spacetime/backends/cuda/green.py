"""Partitions of an NVIDIA GPU as green contexts: a menu made at start, the rest made in the background. No torch.

The SMs are split once into atoms; a partition is a union of atoms, so any two of them overlap exactly where their
masks do. The menu holds what policies ask for most: prefixes, their complementary suffixes, aligned blocks, and the
whole. Another union is made when it is first wanted, off the hot path; until it is ready its lanes run on the largest
ready partition inside it, which keeps them isolated. Contexts are never made current: a stream is all that a lane
needs. The whole has several streams, because lanes of uncontrolled sharing all run there and must not queue up behind
each other; lanes of an isolated plan never share a partition, so one stream serves every other.

A stream that a lane was on lives as long as the process. torch remembers on which streams it copied from pinned
memory, and when that memory is freed it records an event on each of them. On one that is gone this fails, in a
destructor, which ends the process; and pinned memory of callers is freed whenever they like. So nothing is destroyed
when a backend is closed: the next one on the device continues with what is there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spacetime.backends.cuda.driver import Driver
from spacetime.device import Partition
from spacetime.errors import PartitionError, SpacetimeError

_log = logging.getLogger("spacetime")

ATOM_UNITS = 8  # Hopper grants SMs by eights; older chips grant at least as finely
MOST_EXTRA = 64  # partitions beside the menu that are made
WHOLE_STREAMS = 8  # of the whole device: as many as a GPU has hardware queues by default
_COMING = 0  # stands for a stream that is being created; no handle is 0

Later = Callable[[Callable[[], None]], None]  # have a function called soon, on another thread


@dataclass(frozen=True, slots=True)
class Grant:
    """Where a lane may run: a stream, and what stands behind it. `atoms` may be fewer than were asked for."""

    stream: int
    atoms: int
    units: int


@dataclass(slots=True)
class _Made:
    atoms: int
    units: int
    context: Any
    lanes: dict[int, int]  # by stream, how many lanes are on it
    spare: list[int] = field(default_factory=list)  # streams for captures that nobody has now ...
    leased: set[int] = field(default_factory=set)  # ... and those that somebody has

    def grant(self, stream: int) -> Grant:
        return Grant(stream, self.atoms, self.units)


def menu(num_atoms: int) -> tuple[int, ...]:
    """Masks made at start, smallest first: aligned power-of-two blocks, prefixes, suffixes, the whole.

    >>> [f"{mask:03b}" for mask in menu(3)]
    ['001', '010', '100', '011', '110', '111']
    """
    whole = (1 << num_atoms) - 1
    masks = {whole}
    for size in range(1, num_atoms):
        prefix = (1 << size) - 1
        masks |= {prefix, whole & ~prefix}
    size = 1
    while size < num_atoms:
        masks |= {((1 << size) - 1) << start for start in range(0, num_atoms - size + 1, size)}
        size *= 2
    return tuple(sorted(masks, key=lambda mask: (mask.bit_count(), mask)))


class GreenContexts:
    """All partitions of one device. `acquire` and `release` are cheap and create nothing; any thread may call them."""

    confines = True
    reason = ""  # why lanes are not confined: they are

    @classmethod
    def opened(cls, driver: Driver, device: int, later: Later) -> GreenContexts:
        """Those that somebody has closed, or new ones."""
        try:
            found: GreenContexts = driver.parked.setdefault(device, []).pop()
        except IndexError:
            return cls(driver, device, later)
        found._later = later
        return found

    def __init__(self, driver: Driver, device: int, later: Later, *, atom_units: int = ATOM_UNITS) -> None:
        self._driver = driver
        self._device = device
        self._later = later
        self._lock = threading.Lock()
        resource = driver.sm_resource(device)
        self.num_units = driver.num_units(resource)
        split = driver.split(resource, atom_units)
        self._atoms = split.groups
        self._whole = resource
        sizes = {driver.num_units(group) for group in split.groups}
        if len(sizes) != 1:
            raise PartitionError(
                f"device {device} was split into groups of {sorted(sizes)} SMs",
                f"{atom_units} were asked for",
                "partitions need groups of one size; use policy='time_slice', which needs no partitions",
            )
        self.units_per_atom = sizes.pop()
        self._menu: dict[int, _Made] = {}
        self._extra: dict[int, _Made] = {}
        self._wanted: set[int] = set()
        self._refused: dict[int, str] = {}
        try:
            self._make_menu()
        except BaseException:
            for made in self._menu.values():
                self._destroy(made)
            raise

    @property
    def num_atoms(self) -> int:
        return len(self._atoms)

    @property
    def refused(self) -> dict[int, str]:
        """Unions that the driver would not make, and what it said."""
        with self._lock:
            return dict(self._refused)

    def acquire(self, partition: Partition) -> Grant:
        """A stream of the partition, or of the largest ready part of it. Kept until `release`."""
        atoms = partition.atoms
        self._check(atoms)
        with self._lock:
            made = self._find(atoms)
            is_wanted = made is None and self._is_wanted(atoms)
            made = made or self._largest_inside(atoms)
            stream = min(made.lanes, key=made.lanes.__getitem__)
            made.lanes[stream] += 1
        if is_wanted:
            self._later(lambda: self._make_wanted(atoms))
        return made.grant(stream)

    def release(self, grant: Grant) -> None:
        """Nothing more is put on the grant's stream by this caller, and what was put there has ended."""
        with self._lock:
            self._having(grant).lanes[grant.stream] -= 1

    def lease(self, atoms: int) -> Grant | None:
        """A stream of exactly these atoms that no lane is on, to capture a graph; None while they are not ready.

        Off the hot path, by one thread at a time: it may create the stream. The context lives until `give_back`.
        """
        self._check(atoms)
        with self._lock:
            made = self._find(atoms)
            is_wanted = made is None and self._is_wanted(atoms)
            if made is not None:
                stream = made.spare.pop() if made.spare else _COMING
                made.leased.add(stream)
        if made is None:
            if is_wanted:
                self._later(lambda: self._make_wanted(atoms))
            return None
        if stream == _COMING:  # without the lock: lanes go on being granted
            try:
                stream = self._driver.create_stream(made.context, 0)
            finally:
                with self._lock:
                    made.leased.remove(_COMING)
                    if stream != _COMING:
                        made.leased.add(stream)
        return made.grant(stream)

    def give_back(self, grant: Grant) -> None:
        """The graph is gone; its stream serves the next one."""
        with self._lock:
            made = self._having(grant)
            made.leased.remove(grant.stream)
            made.spare.append(grant.stream)

    def close(self) -> None:
        """No lane is running, and the last function given to `later` has returned."""
        self._driver.parked.setdefault(self._device, []).append(self)

    def _make_menu(self) -> None:
        """The whole and the atoms must be there; of what the driver refuses besides, lanes get the largest part."""
        whole, masks = (1 << len(self._atoms)) - 1, menu(len(self._atoms))
        for mask in sorted(masks, key=lambda mask: (mask != whole, mask.bit_count(), mask)):
            try:
                self._menu[mask] = self._make(mask)
            except SpacetimeError as error:
                if mask == whole or mask.bit_count() == 1:
                    raise
                self._refused[mask] = str(error)
        if self._refused:
            reason = next(iter(self._refused.values())).replace("\n", " ")
            _log.warning("%d of %d partitions cannot be made: %s", len(self._refused), len(masks), reason)

    def _check(self, atoms: int) -> None:
        if atoms <= 0 or atoms >> len(self._atoms):
            raise PartitionError(
                f"a partition on atoms {atoms:#x} was asked for",
                f"device {self._device} has {len(self._atoms)} atoms",
                "ask for some of these",
            )

    def _find(self, atoms: int) -> _Made | None:
        return self._menu.get(atoms) or self._extra.get(atoms)

    def _having(self, grant: Grant) -> _Made:
        return self._menu.get(grant.atoms) or self._extra[grant.atoms]

    def _largest_inside(self, atoms: int) -> _Made:
        """Aligned blocks of one atom are on the menu, so there is always one."""
        ready = (*self._menu.items(), *self._extra.items())
        return max((item for item in ready if not item[0] & ~atoms), key=lambda item: item[0].bit_count())[1]

    def _is_wanted(self, atoms: int) -> bool:
        """With the lock: is it to be made now? The caller sees to that without the lock."""
        if atoms in self._wanted or atoms in self._refused or len(self._extra) + len(self._wanted) >= MOST_EXTRA:
            return False
        self._wanted.add(atoms)
        return True

    def _make_wanted(self, atoms: int) -> None:
        """In the background. What the driver refuses is remembered and not tried again."""
        try:
            made = self._make(atoms)
        except SpacetimeError as error:
            with self._lock:
                self._wanted.discard(atoms)
                self._refused[atoms] = str(error)
            return
        with self._lock:
            self._wanted.discard(atoms)
            self._extra[atoms] = made

    def _make(self, atoms: int) -> _Made:
        is_whole = atoms == (1 << len(self._atoms)) - 1
        parts = [resource for index, resource in enumerate(self._atoms) if atoms >> index & 1]
        resources = [self._whole] if is_whole else parts  # SMs that make up no atom are in the whole only
        context = self._driver.create_context(self._device, resources)
        streams: dict[int, int] = {}
        try:
            for _ in range(WHOLE_STREAMS if is_whole else 1):
                streams[self._driver.create_stream(context, 0)] = 0
            return _Made(atoms, self._driver.context_units(context), context, streams)
        except BaseException:
            for stream in streams:
                self._driver.destroy_stream(stream)
            self._driver.destroy_context(context)
            raise

    def _destroy(self, made: _Made) -> None:
        """Of what no lane has been on."""
        for stream in made.lanes:
            self._driver.destroy_stream(stream)
        self._driver.destroy_context(made.context)
