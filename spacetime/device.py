"""Devices and partitions as values. Bottom layer, no torch.

A *unit* is an SM, a CU or a core; an *atom* is the smallest group of units that can be allocated. A
partition is a set of atoms (a bit mask) that remembers how many units were asked for and granted.
"""

from __future__ import annotations

from dataclasses import dataclass

from spacetime.errors import PartitionError
from spacetime.values import Value, quickly_made


@quickly_made
@dataclass(frozen=True, slots=True)
class Partition(Value):
    """A set of atoms of one device: bit i of `atoms` is atom i."""

    atoms: int
    asked_units: int
    granted_units: int

    @classmethod
    def floating(cls, units: int) -> Partition:
        """So many units, wherever the device puts them when a kernel starts (needs `Capabilities.placement`)."""
        return cls(0, units, units)

    @property
    def is_floating(self) -> bool:
        return self.atoms == 0

    def overlaps(self, other: Partition) -> bool:
        return bool(self.atoms & other.atoms)

    def __str__(self) -> str:
        if self.is_floating:
            return f"{self.granted_units} units (anywhere)"
        asked = "" if self.asked_units == self.granted_units else f", asked {self.asked_units}"
        return f"{self.granted_units} units (atoms {self.atoms:#x}{asked})"


@dataclass(frozen=True, slots=True)
class Capabilities(Value):
    """What a backend can do; policies and docs query it instead of testing for a vendor."""

    partitions: bool  # lanes can be confined to a partition
    segments: bool  # one lane may change its partition between two kernels
    graphs: bool  # a lane can be captured once and replayed
    placement: bool = False  # a lane may float: the device chooses its units anew for every kernel


PARTITIONS_ONLY = Capabilities(partitions=True, segments=False, graphs=False)


@dataclass(frozen=True, slots=True)
class Device(Value):
    """One device, as far as scheduling needs to know it. Peaks are estimates for the analytic cost model."""

    name: str
    kind: str  # "cpu" | "cuda" | "hip" | "null" | "model"
    num_units: int
    units_per_atom: int = 1
    flops_per_unit_us: float = 1e5  # fp32
    bytes_per_us: float = 2e4
    launch_us: float = 5.0
    num_groups: int = 1  # shader engines, GPCs, sockets: atoms are numbered group by group
    tiles: tuple[tuple[int, int], ...] = ()  # outputs that one unit computes at a time; none: work divides evenly
    switch_us: float = 0.0  # a lane's change of partition between two kernels
    memory_bytes: int | None = None
    cache_bytes: int = 0  # the last level; what co-running lanes keep there
    idle_watts: float = 0.0
    busy_watts: float = 0.0  # with every unit at work
    hardware_queues: int = 0  # lanes beyond these share a queue, and wait for each other's kernels; 0: no bound known
    interference: float = 0.1  # slowdown by a neighbour that keeps the same units busy, besides the time it takes
    cache_penalty: float = 0.25  # more traffic when a whole cache's worth is displaced

    @property
    def num_atoms(self) -> int:
        """Whole atoms; units of a remainder belong to the whole device only."""
        return self.num_units // self.units_per_atom

    @property
    def all_atoms(self) -> int:
        return (1 << self.num_units // self.units_per_atom) - 1

    @property
    def whole(self) -> Partition:
        return Partition(self.all_atoms, self.num_units, self.num_units)

    def partition(self, asked_units: int, free_atoms: int | None = None) -> Partition:
        """The lowest free atoms that hold `asked_units`; what was asked is kept beside what was granted."""
        free = self.all_atoms if free_atoms is None else free_atoms & self.all_atoms
        if not 1 <= asked_units <= self.num_units:
            raise PartitionError(
                f"{self.name}: a partition of {asked_units} units was asked for",
                f"device has {self.num_units}; partitions come in multiples of {self.units_per_atom}",
                f"ask for 1..{self.num_units} units",
            )
        if asked_units == self.num_units and free == self.all_atoms:
            return self.whole
        needed = -(-asked_units // self.units_per_atom)
        if free.bit_count() < needed:
            raise PartitionError(
                f"{self.name}: a partition of {asked_units} units was asked for",
                f"{free.bit_count() * self.units_per_atom} of {self.num_units} units are free",
                "wait until a lane completes, or ask for fewer units",
            )
        atoms = 0
        for _ in range(needed):
            lowest = free & -free
            atoms |= lowest
            free ^= lowest
        return Partition(atoms, asked_units, needed * self.units_per_atom)
