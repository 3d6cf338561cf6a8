"""Which atoms a lane gets, when others hold some: KRISP's mask generation on bit masks. Policies import it; no numba.

The rule, here and compiled in `masks.place`. Every atom has a counter: how many lanes (or kernels) hold it. An atom
whose counter exceeds `Placement.max_overlap` is not taken, so that fewer atoms may be granted than were wanted, or
none. Groups are ranked by the sum of their counters, least first, then by number. Their atoms are dealt

- "packed": from the first group until it is used up, then from the next;
- "distributed": from all groups in turn;
- "conserved": in turn from the fewest groups that can give them: the first ones, or, if those lack room, the roomiest.

A group gives the atoms with the least counters, then the lowest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.plan import Placement

ORDERS = ("conserved", "packed", "distributed")
UNLIMITED = (1 << 31) - 1  # as `max_overlap`: no counter gets there

Levels = tuple[int, ...]  # counters of a group: bit i of levels[c] is set when that of its atom i exceeds c


class Allocator:
    """Grants atoms to one lane after another, and counts them. It lives as long as one decision.

    A group forgets the levels that all of its atoms exceed, so that counters may grow: its limit sinks instead.
    """

    __slots__ = ("_levels", "_limits", "_loads", "_order", "_rooms", "_sizes", "_starts")

    def __init__(self, device: Device, placement: Placement, held: Iterable[int] = ()) -> None:
        """`held`: the atoms of each lane that runs."""
        check_order(placement.order)
        self._order = placement.order
        self._starts, self._sizes = _geometry(device.num_atoms, device.num_groups)
        num_groups = device.num_groups
        self._levels: list[Levels] = [()] * num_groups
        self._limits = [placement.max_overlap] * num_groups
        self._loads = [0] * num_groups
        self._rooms = list(self._sizes)
        levels: Levels = ()
        for atoms in held:
            levels = _added(levels, atoms & device.all_atoms)
        if levels:
            self._count(levels)

    def take(self, num_atoms: int) -> int:
        """A mask of so many atoms, or of fewer, or 0; they count as held from now on."""
        rooms = self._rooms
        if len(rooms) == 1:
            return self.take_each((num_atoms,))[0]
        ranked = sorted(range(len(rooms)), key=self._loads.__getitem__)
        atoms = 0
        for rank, share in enumerate(_shares(self._order, tuple([rooms[group] for group in ranked]), num_atoms)):
            if share:
                atoms |= self._give(ranked[rank], share)
        return atoms

    def take_each(self, sizes: Iterable[int]) -> list[int]:
        """`take` for one lane after another."""
        if len(self._rooms) > 1:
            return [self.take(num_atoms) for num_atoms in sizes]
        size, levels, limit, room = self._sizes[0], self._levels[0], self._limits[0], self._rooms[0]
        masks = []
        for num_atoms in sizes:  # as `_give`, without what only tells groups apart
            share = num_atoms if num_atoms < room else room
            relevant = limit if limit <= len(levels) else len(levels) + 1
            atoms, levels, num_dropped, room = _grant(size, relevant, levels, share)
            limit -= num_dropped
            masks.append(atoms)
        self._levels[0], self._limits[0], self._rooms[0] = levels, limit, room
        return masks

    def _give(self, group: int, share: int) -> int:
        levels = self._levels[group]
        limit = self._limits[group]
        if limit > len(levels):
            limit = len(levels) + 1  # beyond that it makes no difference
        atoms, self._levels[group], num_dropped, self._rooms[group] = _grant(self._sizes[group], limit, levels, share)
        self._limits[group] -= num_dropped
        self._loads[group] += share
        return atoms << self._starts[group]

    def _count(self, levels: Levels) -> None:
        """Set the counters of an empty device."""
        for group, (start, size) in enumerate(zip(self._starts, self._sizes, strict=True)):
            here = (1 << size) - 1
            local = [level >> start & here for level in levels]
            self._loads[group] = sum([level.bit_count() for level in local])
            self._levels[group], num_dropped = _trimmed(local, here)
            self._limits[group] -= num_dropped
            self._rooms[group] = _free(self._levels[group], self._limits[group], here).bit_count()


def mask(device: Device, held: Iterable[int], num_atoms: int, placement: Placement) -> int:
    """The atoms for one lane that wants `num_atoms`, where lanes hold the atoms `held`.

    >>> two_groups = Device("two groups of three", "model", num_units=6, num_groups=2)
    >>> bin(mask(two_groups, [0b000011], 4, Placement("distributed")))
    '0b111100'
    """
    return Allocator(device, placement, held).take(num_atoms)


def check_order(order: str) -> None:
    if order not in ORDERS:
        facts = f"known: {', '.join(ORDERS)}"
        raise OptionError(f"placement order {order!r} does not exist", facts, "name one of these")


def first_atom(group: int, num_atoms: int, num_groups: int) -> int:
    """Where a group begins. Where the atoms do not divide evenly, groups differ by one atom at most."""
    return group * num_atoms // num_groups


@lru_cache(maxsize=64)
def _geometry(num_atoms: int, num_groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first atom and the size of every group."""
    starts = [first_atom(group, num_atoms, num_groups) for group in range(num_groups + 1)]
    return tuple(starts[:-1]), tuple([end - start for start, end in pairwise(starts)])


# Lanes come and go, but the same few situations come back: the two halves of the rule remember what they answered.


@lru_cache(maxsize=4096)
def _shares(order: str, rooms: tuple[int, ...], wanted: int) -> list[int]:
    """How many atoms each group gives, for groups in order of rank; groups at the end that give none are left out."""
    wanted = min(wanted, sum(rooms))
    if order == "packed":
        return _fill(rooms, wanted)
    if order == "distributed":
        return _deal(rooms, range(len(rooms)), wanted)
    return _deal(rooms, _fewest(rooms, wanted), wanted)


@lru_cache(maxsize=4096)
def _grant(size: int, limit: int, levels: Levels, count: int) -> tuple[int, Levels, int, int]:
    """`count` atoms of a group, its levels with them, how many of those were dropped, and the room that is left."""
    here = (1 << size) - 1
    atoms = _least_held(_free(levels, limit, here), levels, count)
    trimmed, num_dropped = _trimmed(_added(levels, atoms), here)
    return atoms, trimmed, num_dropped, _free(trimmed, limit - num_dropped, here).bit_count()


def _free(levels: Levels, limit: int, here: int) -> int:
    """The atoms whose counters do not exceed the limit."""
    if limit < 0:
        return 0
    return here & ~levels[limit] if limit < len(levels) else here


def _fewest(rooms: Sequence[int], wanted: int) -> Sequence[int]:
    """The fewest groups with room for the atoms: the first in rank where they will do."""
    num_groups, room = 0, 0
    for largest in sorted(rooms, reverse=True):
        if room >= wanted:
            break
        num_groups += 1
        room += largest
    if sum(rooms[:num_groups]) >= wanted:
        return range(num_groups)
    return sorted(range(len(rooms)), key=lambda rank: -rooms[rank])[:num_groups]


def _fill(rooms: Sequence[int], wanted: int) -> list[int]:
    """One group after another."""
    shares = []
    for room in rooms:
        if not wanted:
            break
        shares.append(min(room, wanted))
        wanted -= shares[-1]
    return shares


def _deal(rooms: Sequence[int], giving: Sequence[int], wanted: int) -> list[int]:
    """One atom from each giving group in turn, whole rounds at a time; one that is used up is passed over."""
    shares = [0] * (max(giving, default=-1) + 1)
    while wanted:
        giving = [group for group in giving if rooms[group] > shares[group]]
        rounds = min([wanted // len(giving), *[rooms[group] - shares[group] for group in giving]])
        if not rounds:  # the last round ends before everybody had a turn
            giving, rounds = giving[:wanted], 1
        for group in giving:
            shares[group] += rounds
        wanted -= rounds * len(giving)
    return shares


def _least_held(free: int, levels: Levels, count: int) -> int:
    """`count` of the free atoms, those with the least counters first, then the lowest."""
    atoms = 0
    for level in levels:
        at_level = free & ~level
        room = at_level.bit_count()
        if room >= count:
            return atoms | _lowest(at_level, count)
        atoms |= at_level
        count -= room
        free &= level
    return atoms | _lowest(free, count)


def _lowest(atoms: int, count: int) -> int:
    """The `count` lowest of at least so many atoms."""
    first = atoms & -atoms
    run = (first << count) - first
    if atoms & run == run:
        return run
    rest = atoms
    for _ in range(count):
        rest &= rest - 1
    return atoms ^ rest


def _added(levels: Sequence[int], atoms: int) -> Levels:
    """The levels when another lane holds these atoms."""
    counted = []
    for level in levels:
        counted.append(level | atoms)
        atoms &= level
    if atoms:
        counted.append(atoms)
    return tuple(counted)


def _trimmed(levels: Sequence[int], here: int) -> tuple[Levels, int]:
    """The levels that tell atoms apart, and how many were dropped because every atom exceeds them."""
    if not here:
        return (), 0
    num_full = 0
    while num_full < len(levels) and levels[num_full] == here:
        num_full += 1
    return tuple([level for level in levels[num_full:] if level]), num_full
