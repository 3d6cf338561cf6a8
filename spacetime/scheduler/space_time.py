"""Policy `space_time`: fuse, right-size the partition, or do neither, whichever the cost model says is best.

Cohorts are served in order of urgency. A cohort that must share the device takes the arrangement with the
least unit-time per row; a cohort that has what is left to itself takes the one that ends first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapreplace
from itertools import islice
from math import inf
from operator import itemgetter
from typing import NamedTuple

from spacetime.device import Device
from spacetime.plan import Lane, Plan, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy

ROWS_PER_LANE = 64  # a request with more rows goes alone
MAX_HOLD_US = 500  # the longest that a cohort waits for its peers ...
HOLD_SHARE = 0.25  # ... the largest part of its lane's duration ...
HOLD_GAP_US = 60  # ... and how long after the last arrival it gives up


Urgency = tuple[float, int, float, int]  # deadline, priority, served time per weight, arrival


class Chunk(NamedTuple):
    """Requests of one tenant that go into one lane."""

    rows: int
    tenant: TenantView
    requests: tuple[RequestView, ...]


class Arrangement(NamedTuple):
    """How a cohort's chunks are laid over the free atoms."""

    atoms: int  # per lane
    units: int  # per lane
    num_lanes: int
    fused: bool
    lane_us: float


@policy("space_time")
def space_time(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Fill the free atoms, cohort by cohort; hold a cohort back for a moment when peers are likely to join."""
    free, lanes, wake_at_us = snapshot.free_atoms, [], inf
    cohorts = _cohorts_by_urgency(snapshot) if free else []
    for index, tenants in enumerate(cohorts):
        if not free:
            break
        chunks = _chunks(tenants)
        if _atoms_needed(tenants[0], snapshot.device) > free.bit_count():
            break  # it is next: what is free stays free until there is enough, or it would wait for ever
        while free and chunks:
            arrangement = _choose(chunks, snapshot.device, free.bit_count(), len(cohorts) - index, costs)
            hold_until_us = _hold_until_us(tenants, arrangement, snapshot)
            if hold_until_us > snapshot.now_us:
                wake_at_us = min(wake_at_us, hold_until_us)
                break
            slots = free.bit_count() // arrangement.atoms
            groups = _groups(chunks, arrangement.num_lanes, slots)
            for group in groups[:slots]:
                lane = _lane(group, arrangement, snapshot.device, free)
                free &= ~lane.atoms
                lanes.append(lane)
            chunks = [chunk for group in groups[slots:] for chunk in group]
    return Plan(tuple(lanes), None if wake_at_us == inf else int(wake_at_us))


def _cohorts_by_urgency(snapshot: Snapshot) -> list[list[TenantView]]:
    """Tenants that may share a lane, most urgent cohort first. What cannot be fused is a cohort of its own."""
    cohorts: dict[str | tuple[str, str], list[TenantView]] = {}
    urgencies: dict[str | tuple[str, str], Urgency] = {}
    for tenant in snapshot.tenants:
        if tenant.running >= tenant.max_concurrency:
            continue
        key = tenant.cohort if tenant.fusible else (tenant.cohort, tenant.name)
        urgency = _urgency(tenant)
        members = cohorts.get(key)
        if members is None:
            cohorts[key], urgencies[key] = [tenant], urgency
            continue
        members.append(tenant)
        urgencies[key] = min(urgencies[key], urgency)
    return [cohorts[key] for key in sorted(cohorts, key=urgencies.__getitem__)]


def _urgency(tenant: TenantView) -> Urgency:
    oldest = tenant.waiting[0]
    deadline_us = inf if oldest.deadline_us is None else oldest.deadline_us
    return deadline_us, tenant.priority, tenant.served_us / tenant.weight, oldest.arrival_us


def _chunks(tenants: Iterable[TenantView]) -> list[Chunk]:
    """What may start now, in lanes' worth."""
    chunks: list[Chunk] = []
    for tenant in tenants:
        waiting = tenant.waiting
        if len(waiting) == 1:
            chunks.append(Chunk(waiting[0].rows, tenant, waiting))
        else:
            chunks.extend(islice(_split(tenant), tenant.max_concurrency - tenant.running))
    return chunks


def _split(tenant: TenantView) -> Iterator[Chunk]:
    """A long queue in parts that keep to the row cap. A tenant that cannot be fused runs request by request."""
    waiting = tenant.waiting
    rows_per_lane = ROWS_PER_LANE if tenant.fusible else 0
    end = 0
    while end < len(waiting):
        start, rows = end, waiting[end].rows
        end += 1
        while end < len(waiting) and rows + waiting[end].rows <= rows_per_lane:
            rows += waiting[end].rows
            end += 1
        yield Chunk(rows, tenant, waiting[start:end])


def _choose(
    chunks: Sequence[Chunk], device: Device, free_atoms: int, num_cohorts: int, costs: CostModel
) -> Arrangement:
    """The best arrangement of the chunks when `num_cohorts`, this one included, want the free atoms."""
    num_rows = sum([chunk.rows for chunk in chunks])
    tenant = chunks[0].tenant
    smallest = _atoms_needed(tenant, device)
    share = free_atoms // num_cohorts  # atoms left idle help nobody: an arrangement fills its share of them
    largest = free_atoms if num_cohorts == 1 else max(2 * share, smallest)  # nor does a lane that leaves none to others
    best, best_score = None, inf
    for atoms in _lane_sizes(free_atoms):
        if not smallest <= atoms <= largest:
            continue
        units = device.num_units if atoms == device.num_atoms else atoms * device.units_per_atom
        slots = free_atoms // atoms
        for num_lanes in _lane_counts(len(chunks), num_rows, tenant.fusible, slots):
            if num_cohorts > 1 and min(num_lanes, slots) * atoms < share:
                continue
            rows = -(-num_rows // num_lanes)
            group = -(-len(chunks) // num_lanes)
            rounds = -(-num_lanes // slots)
            for fused in (True, False) if tenant.fusible else (False,):
                lane_us = costs.lane_us(tenant.cohort, tenants=group, rows=rows, units=units, fused=fused)
                score = lane_us * rounds if num_cohorts == 1 else lane_us * units / rows
                if score < best_score:
                    best, best_score = Arrangement(atoms, units, num_lanes, fused, lane_us), score
    assert best is not None, "one lane on all free atoms is always possible, and its cost is finite"
    return best


def _atoms_needed(tenant: TenantView, device: Device) -> int:
    return min(device.num_atoms, -(-tenant.min_units // device.units_per_atom))


def _lane_sizes(free_atoms: int) -> list[int]:
    """All free atoms, then smaller powers of two: when nothing is known, a lane gets the whole device."""
    return [free_atoms, *(1 << bit for bit in reversed(range((free_atoms - 1).bit_length())))]


def _lane_counts(num_chunks: int, num_rows: int, fusible: bool, slots: int) -> list[int]:
    """Everything in one lane (or as few as the row cap allows), a lane per slot, a lane per chunk."""
    if not fusible:
        return [num_chunks]
    fewest = min(num_chunks, -(-num_rows // ROWS_PER_LANE))
    counts = [fewest]
    if fewest < slots < num_chunks:
        counts.append(slots)
    if fewest < num_chunks:
        counts.append(num_chunks)
    return counts


def _groups(chunks: list[Chunk], num_lanes: int, slots: int) -> list[list[Chunk]]:
    """Chunks in lanes of about equal rows; when not all lanes can start, the most urgent ones first."""
    if num_lanes == 1:
        return [chunks]
    groups = [[chunk] for chunk in chunks] if num_lanes == len(chunks) else _balanced(chunks, num_lanes)
    if len(groups) > slots:
        groups.sort(key=lambda group: min([_urgency(chunk.tenant) for chunk in group]))
    return groups


def _balanced(chunks: Iterable[Chunk], num_lanes: int) -> list[list[Chunk]]:
    """The largest chunk goes where there is most room; one that fits nowhere gets a lane of its own."""
    groups: list[list[Chunk]] = [[] for _ in range(num_lanes)]
    loads = [(0, index) for index in range(num_lanes)]
    for chunk in sorted(chunks, key=itemgetter(0), reverse=True):
        rows, index = loads[0]
        if rows and rows + chunk.rows > ROWS_PER_LANE:
            groups.append([chunk])
        else:
            groups[index].append(chunk)
            heapreplace(loads, (rows + chunk.rows, index))
    return groups


def _lane(group: Sequence[Chunk], arrangement: Arrangement, device: Device, free: int) -> Lane:
    requests = group[0].requests if len(group) == 1 else tuple([view for chunk in group for view in chunk.requests])
    partition = device.partition(arrangement.units, free)
    return Lane(group[0].tenant.cohort, requests, (Segment(partition),), arrangement.fused)


def _hold_until_us(tenants: Sequence[TenantView], arrangement: Arrangement, snapshot: Snapshot) -> int:
    """Until when to wait for active peers, while they keep coming; in the past when it would cost too much."""
    peers = tenants[0].active_peers + 1 - len(tenants)
    if peers <= sum([len(lane.tenants) for lane in snapshot.running if lane.cohort == tenants[0].cohort]):
        return snapshot.now_us
    window_us = int(min(MAX_HOLD_US, HOLD_SHARE * arrangement.lane_us))
    oldest_us = min([tenant.waiting[0].arrival_us for tenant in tenants])
    newest_us = max([tenant.waiting[-1].arrival_us for tenant in tenants])
    return min(oldest_us + window_us, newest_us + HOLD_GAP_US)
