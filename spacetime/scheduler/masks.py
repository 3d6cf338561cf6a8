"""Unit allocation, compiled: the rule of `allocation` for a loop that asks a million times a second.

The simulator imports it, and tests and benches; policies use `allocation`, which loads no numba.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spacetime.scheduler.allocation import ORDERS, UNLIMITED, Allocator, check_order, mask

__all__ = ["CONSERVED", "DISTRIBUTED", "PACKED", "UNLIMITED", "Allocator", "mask", "order_code", "place", "places"]

CONSERVED, PACKED, DISTRIBUTED = range(len(ORDERS))


def order_code(order: str) -> int:
    """What `place` calls this Placement.order."""
    check_order(order)
    return ORDERS.index(order)


@njit(cache=True)
def places(num_atoms: int, num_groups: int) -> int:
    """The least length of the array `chosen` for `place`."""
    return num_atoms + 4 * num_groups


@njit(cache=True)
def place(
    counters: NDArray[np.int32], num_groups: int, wanted: int, order: int, max_overlap: int, chosen: NDArray[np.int32]
) -> int:
    """Choose `wanted` atoms, or fewer; returns how many. `counters` stay as they are: counting is the caller's.

    chosen[:granted] are the atoms, in ascending order. The rest of `chosen`, `places()` entries in all, is working
    space: nothing is allocated here.
    """
    num_atoms = counters.size
    assert chosen.size >= num_atoms + 4 * num_groups, "chosen is too short: make places(num_atoms, num_groups) entries"
    rooms = chosen[num_atoms : num_atoms + num_groups]
    loads = chosen[num_atoms + num_groups : num_atoms + 2 * num_groups]
    ranked = chosen[num_atoms + 2 * num_groups : num_atoms + 3 * num_groups]
    shares = chosen[num_atoms + 3 * num_groups : num_atoms + 4 * num_groups]
    room = 0
    for group in range(num_groups):
        rooms[group], loads[group] = _room_and_load(counters, num_groups, group, max_overlap)
        ranked[group], shares[group] = group, 0
        room += rooms[group]
    if wanted >= room:
        shares[:] = rooms
    else:
        _sort(ranked, loads, 1)
        if order == PACKED:
            _fill(ranked, rooms, shares, wanted)
        else:
            num_giving = _fewest(ranked, rooms, wanted, shares) if order == CONSERVED else num_groups
            _deal(ranked[:num_giving], rooms, shares, wanted)
    granted = 0
    for group in range(num_groups):
        if shares[group]:
            first, end = group * num_atoms // num_groups, (group + 1) * num_atoms // num_groups
            granted = _choose(counters, first, end, shares[group], rooms[group], max_overlap, chosen, granted)
    return granted


@njit(cache=True)
def _room_and_load(counters: NDArray[np.int32], num_groups: int, group: int, max_overlap: int) -> tuple[int, int]:
    """How many atoms of the group may be taken, and the sum of its counters."""
    num_atoms, room, load = counters.size, 0, 0
    for atom in range(group * num_atoms // num_groups, (group + 1) * num_atoms // num_groups):
        room += counters[atom] <= max_overlap
        load += counters[atom]
    return room, load


@njit(cache=True)
def _sort(groups: NDArray[np.int32], keys: NDArray[np.int32], sign: int) -> None:
    """In place, by key (sign -1: descending); equal ones stay as they are. There are few, and little to move."""
    for end, group in enumerate(groups):
        rank = end
        while rank > 0 and sign * keys[groups[rank - 1]] > sign * keys[group]:
            groups[rank] = groups[rank - 1]
            rank -= 1
        groups[rank] = group


@njit(cache=True)
def _fewest(ranked: NDArray[np.int32], rooms: NDArray[np.int32], wanted: int, scratch: NDArray[np.int32]) -> int:
    """Bring the fewest groups with room for the atoms to the front: the first in rank where they will do."""
    if rooms[ranked[0]] >= wanted:
        return 1
    scratch[:] = ranked
    _sort(scratch, rooms, -1)
    num_groups, room, room_of_first = 0, 0, 0
    while room < wanted:
        room += rooms[scratch[num_groups]]
        room_of_first += rooms[ranked[num_groups]]
        num_groups += 1
    if room_of_first < wanted:
        ranked[:] = scratch
    scratch[:] = 0
    return num_groups


@njit(cache=True)
def _fill(ranked: NDArray[np.int32], rooms: NDArray[np.int32], shares: NDArray[np.int32], wanted: int) -> None:
    """One group after another."""
    for group in ranked:
        shares[group] = min(rooms[group], wanted)
        wanted -= shares[group]


@njit(cache=True)
def _deal(giving: NDArray[np.int32], rooms: NDArray[np.int32], shares: NDArray[np.int32], wanted: int) -> None:
    """One atom from each group in turn; a group that is used up is passed over."""
    round_ = 0
    while wanted > 0:
        for group in giving:
            gives = (rooms[group] > round_) & (wanted > 0)
            shares[group] += gives
            wanted -= gives
        round_ += 1


@njit(cache=True)
def _choose(
    counters: NDArray[np.int32],
    first: int,
    end: int,
    share: int,
    room: int,
    max_overlap: int,
    chosen: NDArray[np.int32],
    granted: int,
) -> int:
    """Append the `share` least held of the atoms first..end; returns how many are chosen now."""
    limit, num_at_limit = max_overlap, room
    if share < room:
        limit = _threshold(counters, first, end, share, max_overlap)
        num_at_limit = share - _num_up_to(counters, first, end, limit - 1)
    for atom in range(first, end):  # no branches: which atoms are held is hard to predict
        takes_at_limit = (counters[atom] == limit) & (num_at_limit > 0)
        chosen[granted] = atom  # the next one overwrites it if it is not taken; granted <= atom
        granted += (counters[atom] < limit) | takes_at_limit
        num_at_limit -= takes_at_limit
    return granted


@njit(cache=True)
def _threshold(counters: NDArray[np.int32], first: int, end: int, count: int, max_overlap: int) -> int:
    """The counter of the last of the `count` least held atoms."""
    low = high = int(counters[first])
    for atom in range(first, end):
        low, high = min(low, int(counters[atom])), max(high, int(counters[atom]))
    if _num_up_to(counters, first, end, low) >= count:  # often the case
        return low
    low += 1
    high = min(high, max_overlap)
    while low < high:  # bisect the values: atoms are few, but their counters may be anything
        middle = (low + high) // 2
        if _num_up_to(counters, first, end, middle) >= count:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True)
def _num_up_to(counters: NDArray[np.int32], first: int, end: int, value: int) -> int:
    num_atoms = 0
    for atom in range(first, end):
        num_atoms += int(counters[atom] <= value)
    return num_atoms
