"""How a cohort's chunks are laid over free atoms: how large and how many lanes, fused or plain. For `space_time` only.

A cohort that has what is free to itself takes the arrangement that ends first, where the device has little to do; the
more it has, the more the unit-time counts that is taken from those who come next (load.py). One that shares what is
free takes the least unit-time per row, on at least its share of the atoms: in one lane of up to twice the share, or in
several smaller ones. An arrangement in which the tightest deadline is missed is taken only if it is missed in all of
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from heapq import heapreplace
from math import inf
from typing import NamedTuple

from spacetime.device import Device
from spacetime.scheduler.load import price
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.selection import ROWS_OF, ROWS_PER_LANE, URGENCY_OF, Chunk, Cohort, lanes_us
from spacetime.scheduler.tables import LaneSize

LATE = 1e18  # added to the score of what misses the deadline


class Arrangement(NamedTuple):
    """Lanes of equal size for the chunks of a cohort; the first `num_slots` of them start now."""

    atoms: int  # per lane
    units: int  # per lane
    num_lanes: int
    num_slots: int
    fused: bool
    lane_us: float  # of an average lane


class _Candidates(NamedTuple):
    """Lanes of one size each; entries of the same index belong together."""

    lanes: tuple[LaneSize, ...]  # what an average one would hold
    times: tuple[float, ...]  # what makes a score of a lane's duration: times its units, ...
    over: tuple[float, ...]  # ... over its rows; of a cohort by itself, times its rounds, over 1
    arrangements: tuple[tuple[int, int, int, int, bool], ...]  # atoms, units, lanes, slots, fused


def choose(
    cohort: Cohort,
    device: Device,
    free_atoms: int,
    num_claims: int,
    costs: CostModel,
    slack_us: float = inf,
    load: float = 0.0,
) -> Arrangement:
    """The best arrangement when `num_claims` cohorts, this one included, want the free atoms.

    `slack_us`: in how much time lanes must end. `load`: what all other cohorts ask of the device.
    """
    best = _best(cohort, device, free_atoms, num_claims, costs, slack_us, load)
    if best.lane_us > slack_us and num_claims > 1:
        # Whoever comes after this cohort is less urgent: for a deadline it may take more than its share.
        best = min(best, _best(cohort, device, free_atoms, 1, costs, slack_us, load), key=lambda found: found.lane_us)
    return best


def _best(
    cohort: Cohort,
    device: Device,
    free_atoms: int,
    num_claims: int,
    costs: CostModel,
    slack_us: float,
    load: float,
) -> Arrangement:
    num_rows, num_chunks = sum(map(ROWS_OF, cohort.chunks)), len(cohort.chunks)
    smallest = 1 if cohort.min_units == 1 else atoms_needed(cohort.min_units, device)
    fewest = min(num_chunks, -(-num_rows // ROWS_PER_LANE)) if cohort.fusible else num_chunks
    lanes, times, over, arrangements = _candidates(
        num_rows,
        num_chunks,
        fewest,
        cohort.fusible,
        smallest,
        free_atoms,
        num_claims,
        device.num_units,
        device.units_per_atom,
    )
    prices = lanes_us(costs, cohort.name, lanes)
    best, best_score, factors = 0, inf, times
    if num_claims == 1 and load:
        num_requests = sum([len(chunk[3]) for chunk in cohort.chunks])
        tolls = _tolls(arrangements, device.num_units, load)
        factors = tuple([own * num_requests + toll for own, toll in zip(times, tolls, strict=True)])
    for index, lane_us in enumerate(prices):
        score = lane_us * factors[index] / over[index]
        if lane_us > slack_us:
            score += LATE
        if score < best_score:
            best, best_score = index, score
    atoms, units, num_lanes, num_slots, fused = arrangements[best]
    return Arrangement(atoms, units, num_lanes, num_slots, fused, prices[best])


@lru_cache(maxsize=4096)
def _tolls(arrangements: tuple[tuple[int, int, int, int, bool], ...], num_units: int, load: float) -> tuple[float, ...]:
    """What lanes cost all others, by arrangement: so many times their duration."""
    return tuple(
        [price(load, num_units / units) * num_lanes * units / num_units for _, units, num_lanes, _, _ in arrangements]
    )


def atoms_needed(units: int, device: Device) -> int:
    return min(device.num_atoms, -(-units // device.units_per_atom))


def lane_units(atoms: int, device: Device) -> int:
    """All atoms are the whole device, with the units that fill no atom."""
    return device.num_units if atoms == device.num_atoms else atoms * device.units_per_atom


@lru_cache(maxsize=4096)
def _candidates(
    num_rows: int,
    num_chunks: int,
    fewest: int,
    fusible: bool,
    smallest: int,
    free_atoms: int,
    num_claims: int,
    num_units: int,
    units_per_atom: int,
) -> _Candidates:
    """Everything worth a look, largest lanes first."""
    is_alone = num_claims == 1
    share = free_atoms // num_claims  # atoms left idle help nobody: an arrangement fills its share of them
    most = free_atoms if is_alone else max(2 * share, smallest)  # nor does one that leaves none to others
    lanes, times, arrangements = [], [], []
    for atoms in lane_sizes(most, smallest):
        units = num_units if atoms == num_units // units_per_atom else atoms * units_per_atom
        slots = most // atoms if is_alone else max(1, min(most // atoms, -(-share // atoms)))
        for num_lanes, fused in _deals(num_chunks, fewest, fusible, slots, is_alone):
            if is_alone or min(num_lanes, slots) * atoms >= share:
                lanes.append((-(-num_chunks // num_lanes), -(-num_rows // num_lanes), units, fused))
                times.append(float(-(-num_lanes // slots) if is_alone else units))
                arrangements.append((atoms, units, num_lanes, slots, fused))
    over = tuple([1.0 if is_alone else float(lane[1]) for lane in lanes])
    return _Candidates(tuple(lanes), tuple(times), over, tuple(arrangements))


def lane_sizes(most: int, smallest: int) -> list[int]:
    """All there is, then a half of it, a quarter, ... : when nothing is known, a lane gets the whole device."""
    halves = [most >> times for times in range(most.bit_length())]
    return [*[size for size in halves if size > smallest], smallest]


def _deals(num_chunks: int, fewest: int, fusible: bool, slots: int, is_alone: bool) -> list[tuple[int, bool]]:
    """(number of lanes, fused): as few as the row cap allows, a lane per slot, a lane per chunk.

    A cohort that shares the device with others tries less, since all of them must be looked at: to fuse, lanes that
    start at once; not to fuse, a lane per chunk, as plain tenants gain nothing from each other.
    """
    if not fusible:
        return [(num_chunks, False)]
    counts = sorted({fewest, num_chunks, *([slots] if fewest < slots < num_chunks else [])})
    if is_alone:
        return [(count, fused) for count in counts for fused in (True, False)]
    return [*[(count, True) for count in counts if count <= max(slots, fewest)], (num_chunks, False)]


def deal(chunks: list[Chunk], num_lanes: int, num_slots: int) -> list[list[Chunk]]:
    """Chunks in lanes of about equal rows; when not all lanes can start, the most urgent ones first."""
    if num_lanes == 1:
        return [chunks]
    groups = [[chunk] for chunk in chunks] if num_lanes == len(chunks) else _balanced(chunks, num_lanes)
    if len(groups) > num_slots:
        groups.sort(key=lambda group: min(map(URGENCY_OF, group)))
    return groups


def _balanced(chunks: Iterable[Chunk], num_lanes: int) -> list[list[Chunk]]:
    """The largest chunk goes where there is most room; one that fits nowhere gets a lane of its own."""
    ordered = sorted(chunks, key=ROWS_OF, reverse=True)
    groups = [ordered[first::num_lanes] for first in range(num_lanes)]  # quick, and hardly worse when there are many
    most, least = [sum(map(ROWS_OF, group)) for group in (groups[0], groups[-1])]  # in descending order
    if most <= min(ROWS_PER_LANE, least + 1 + least // 16):
        return groups
    groups = [[] for _ in range(num_lanes)]
    loads = [(0, index) for index in range(num_lanes)]
    for chunk in ordered:
        load, index = loads[0]
        if load and load + chunk[0] > ROWS_PER_LANE:
            groups.append([chunk])
        else:
            groups[index].append(chunk)
            heapreplace(loads, (load + chunk[0], index))
    return groups
