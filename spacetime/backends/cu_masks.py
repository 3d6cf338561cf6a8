"""Compute-unit masks of AMD GPUs: which bit is which unit, and streams that keep to a mask. Used by the GPU backend.

The kernel driver hands mask bits out engine by engine: bit 0 is the first CU of engine 0, bit 1 the first of engine
1, and so on; on chips of several dies (XCCs) the die changes fastest. From RDNA on, two CUs form a work-group
processor and are masked together. Our atoms are numbered group by group instead (group: shader engine), so that a
partition of neighbours stays in few engines. Not run on hardware yet; checked against the driver's published order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_void_p
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spacetime.device import Partition
from spacetime.errors import PartitionError
from spacetime.kernels.native import Library
from spacetime.values import Value

MAX_STREAMS = 7  # masked ones; beyond the chip's 8 hardware queues latency degrades
WORD = 32

SIGNATURES: dict[str, Sequence[Any]] = {
    "st_hip_open": [c_char_p],
    "st_hip_device_count": [POINTER(c_int)],
    "st_hip_stream_create": [c_int, POINTER(c_uint32), c_int, POINTER(c_void_p)],
    "st_hip_stream_mask": [c_void_p, POINTER(c_uint32), c_int],
    "st_hip_stream_destroy": [c_void_p],
}


@dataclass(frozen=True)
class Topology(Value):
    """How many CUs are alive, by die and engine: `units[die][engine]`."""

    units: tuple[tuple[int, ...], ...]
    paired: bool = False  # two CUs are one work-group processor, and one atom

    @property
    def units_per_atom(self) -> int:
        return 2 if self.paired else 1

    @property
    def num_groups(self) -> int:
        return sum(len(engines) for engines in self.units)

    @property
    def num_units(self) -> int:
        return sum(map(sum, self.units))

    @cached_property
    def bits(self) -> tuple[int, ...]:
        """For every atom, engine by engine and die by die, its (first) bit in the driver's mask."""
        step = self.units_per_atom
        atoms: dict[tuple[int, int, int], int] = {}
        for die, engines in enumerate(self.units):
            bit = die * step
            for cu in range(0, max(engines), step):
                for engine, alive in enumerate(engines):
                    if cu < alive:
                        atoms[die, engine, cu] = bit
                        bit += step * len(self.units)
        return tuple(atoms[place] for place in sorted(atoms))

    def mask(self, atoms: int) -> int:
        """The driver's mask for a set of our atoms."""
        width = (1 << self.units_per_atom) - 1
        return sum(width << bit for atom, bit in enumerate(self.bits) if atoms >> atom & 1)

    def atoms(self, mask: int) -> int:
        """The inverse, for a mask read back from the driver."""
        return sum(1 << atom for atom, bit in enumerate(self.bits) if mask >> bit & 1)

    def words(self, atoms: int) -> list[int]:
        """The mask in 32-bit words, as many as the driver wants to see."""
        mask = self.mask(atoms)
        num_words = -(-(max(self.bits) + self.units_per_atom) // WORD)
        return [mask >> (WORD * index) & 0xFFFFFFFF for index in range(num_words)]


class MaskedStreams:
    """Streams for partitions, at most `MAX_STREAMS` at a time; the one that was idle longest makes room."""

    def __init__(self, topology: Topology, device: int = 0, library: Library | None = None) -> None:
        self._topology = topology
        self._device = device
        self._library = library or Library("spacetime_hip", "st_hip_error", SIGNATURES)
        self._streams: OrderedDict[int, c_void_p] = OrderedDict()
        self._in_use: dict[int, int] = {}

    def acquire(self, partition: Partition) -> int:
        """The stream of the partition; it is kept until `release`."""
        atoms = partition.atoms
        if atoms not in self._streams:
            self._make_room(partition)
            self._streams[atoms] = self._create(atoms)
        self._streams.move_to_end(atoms)
        self._in_use[atoms] = self._in_use.get(atoms, 0) + 1
        return self._streams[atoms].value or 0

    def release(self, partition: Partition) -> None:
        """Nothing runs on the stream for this caller any more."""
        self._in_use[partition.atoms] -= 1

    def granted_atoms(self, partition: Partition) -> int:
        """What the driver says the stream may run on."""
        num_words = len(self._topology.words(self._topology_all))
        words = (c_uint32 * num_words)()
        self._library.call("st_hip_stream_mask", self._streams[partition.atoms], words, num_words)
        return self._topology.atoms(sum(int(word) << (WORD * index) for index, word in enumerate(words)))

    def close(self) -> None:
        for stream in self._streams.values():
            self._library.call("st_hip_stream_destroy", stream)
        self._streams.clear()

    @property
    def _topology_all(self) -> int:
        return (1 << len(self._topology.bits)) - 1

    def _create(self, atoms: int) -> c_void_p:
        words = self._topology.words(atoms)
        stream = c_void_p()
        self._library.call(
            "st_hip_stream_create", self._device, (c_uint32 * len(words))(*words), len(words), byref(stream)
        )
        return stream

    def _make_room(self, partition: Partition) -> None:
        if not partition.atoms & self._topology_all or partition.atoms & ~self._topology_all:
            raise PartitionError(
                f"a stream on atoms {partition.atoms:#x} was asked for",
                f"the device has atoms {self._topology_all:#x}; an empty mask would hang its queue",
                "ask for one atom or more",
            )
        if len(self._streams) < MAX_STREAMS:
            return
        idle = next((atoms for atoms in self._streams if not self._in_use.get(atoms)), None)
        if idle is None:
            raise PartitionError(
                f"a stream on {partition} was asked for",
                f"{len(self._streams)} masked streams are busy; more would share hardware queues",
                "wait until a lane completes, or use fewer partitions",
            )
        self._library.call("st_hip_stream_destroy", self._streams.pop(idle))
