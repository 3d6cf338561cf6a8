"""How a cohort's chunks are laid over free atoms: how large and how many lanes, fused or plain. For `space_time` only.

A cohort that has what is free to itself takes the arrangement that ends first; one that shares it takes the least
unit-time per row, on at least its share of the atoms: in one lane of up to twice the share, or in several smaller
ones. An arrangement in which the tightest deadline is missed is taken only if it is missed in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from heapq import heapreplace
from math import inf
from operator import itemgetter
from typing import NamedTuple

from spacetime.device import Device
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.selection import ROWS_PER_LANE, Chunk, Cohort

LATE = 1e18  # added to the score of what misses the deadline


class Arrangement(NamedTuple):
    """Lanes of equal size for the chunks of a cohort; the first `num_slots` of them start now."""

    atoms: int  # per lane
    units: int  # per lane
    num_lanes: int
    num_slots: int
    fused: bool
    lane_us: float  # of an average lane


class _Candidate(NamedTuple):
    """Lanes of one size, and what an average one would hold."""

    atoms: int
    units: int
    num_lanes: int
    num_slots: int
    fused: bool
    tenants: int  # per lane
    rows: int  # per lane
    rounds: int


def choose(
    cohort: Cohort, device: Device, free_atoms: int, num_claims: int, costs: CostModel, slack_us: float = inf
) -> Arrangement:
    """The best arrangement when `num_claims` cohorts, this one included, want the free atoms.

    `slack_us`: in how much time lanes must end.
    """
    best = _best(cohort, device, free_atoms, num_claims, costs, slack_us)
    if best.lane_us > slack_us and num_claims > 1:
        # Whoever comes after this cohort is less urgent: for a deadline it may take more than its share.
        best = min(best, _best(cohort, device, free_atoms, 1, costs, slack_us), key=lambda found: found.lane_us)
    return best


def _best(
    cohort: Cohort, device: Device, free_atoms: int, num_claims: int, costs: CostModel, slack_us: float
) -> Arrangement:
    name, lane_us_of = cohort.name, costs.lane_us
    num_rows, num_chunks = sum([chunk[0] for chunk in cohort.chunks]), len(cohort.chunks)
    smallest = 1 if cohort.min_units == 1 else atoms_needed(cohort.min_units, device)
    fewest = min(num_chunks, -(-num_rows // ROWS_PER_LANE)) if cohort.fusible else num_chunks
    candidates = _candidates(
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
    best, best_us, best_score = candidates[0], inf, inf
    for candidate in candidates:
        _, units, _, _, fused, tenants, rows, rounds = candidate
        lane_us = lane_us_of(name, tenants=tenants, rows=rows, units=units, fused=fused)
        score = lane_us * rounds if num_claims == 1 else lane_us * units / rows
        if lane_us > slack_us:
            score += LATE
        if score < best_score:
            best, best_us, best_score = candidate, lane_us, score
    return Arrangement(*best[:5], best_us)


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
) -> tuple[_Candidate, ...]:
    """Everything worth a look, largest lanes first."""
    share = free_atoms // num_claims  # atoms left idle help nobody: an arrangement fills its share of them
    most = free_atoms if num_claims == 1 else max(2 * share, smallest)  # nor does one that leaves none to others
    found = []
    for atoms in lane_sizes(most, smallest):
        units = num_units if atoms == num_units // units_per_atom else atoms * units_per_atom
        slots = most // atoms if num_claims == 1 else max(1, min(most // atoms, -(-share // atoms)))
        for num_lanes, fused in _deals(num_chunks, fewest, fusible, slots, num_claims == 1):
            if num_claims == 1 or min(num_lanes, slots) * atoms >= share:
                tenants, rows = -(-num_chunks // num_lanes), -(-num_rows // num_lanes)
                rounds = -(-num_lanes // slots)
                found.append(_Candidate(atoms, units, num_lanes, slots, fused, tenants, rows, rounds))
    return tuple(found)


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
        groups.sort(key=lambda group: min([chunk[1] for chunk in group]))
    return groups


def _balanced(chunks: Iterable[Chunk], num_lanes: int) -> list[list[Chunk]]:
    """The largest chunk goes where there is most room; one that fits nowhere gets a lane of its own."""
    ordered = sorted(chunks, key=itemgetter(0), reverse=True)
    groups = [ordered[first::num_lanes] for first in range(num_lanes)]  # quick, and hardly worse when there are many
    rows_of = [sum([chunk[0] for chunk in group]) for group in groups]
    if max(rows_of) <= min(ROWS_PER_LANE, min(rows_of) + 1 + min(rows_of) // 16):
        return groups
    groups = [[] for _ in range(num_lanes)]
    loads = [(0, index) for index in range(num_lanes)]
    for chunk in ordered:
        rows, index = loads[0]
        if rows and rows + chunk[0] > ROWS_PER_LANE:
            groups.append([chunk])
        else:
            groups[index].append(chunk)
            heapreplace(loads, (rows + chunk[0], index))
    return groups
