"""Whether to start now, on the atoms that are free, or a little later on more of them. Only `space_time` imports it.

Who waits has what is free then kept for it: only lanes that end before that may start meanwhile. So every wait here is
until a lane that runs is expected to end, and each has a bound of its own.
"""

from __future__ import annotations

from math import inf

from spacetime.errors import OptionError
from spacetime.plan import Lane, Snapshot
from spacetime.scheduler.arrangements import Arrangement, atoms_needed, choose, lane_units
from spacetime.scheduler.deadlines import Deadlines
from spacetime.scheduler.load import load_beside
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.selection import Cohort

LEAST_GAIN = 0.1  # of the time until the rows are done: for less it is not worth waiting
MOST_ENDS = 8  # ends of running lanes that are looked at
MORE_ATOMS = 1.25  # so many times those looked at last: for less there is hardly a faster lane
LEAN = 0.05  # of a lane's duration: what it may cost to leave atoms to others


def short_at_us(
    deadlines: Deadlines, rows: int, most_us: float, num_free: int, snapshot: Snapshot, costs: CostModel
) -> float:
    """How long until a request of so many rows can have enough atoms to take no longer than `most_us`; 0: never."""
    free = num_free
    for wait_us, atoms in _ends(snapshot, costs):
        free += atoms
        if deadlines.quickest_us(rows, free) <= most_us:
            return wait_us
    return 0.0


def in_reach_at_us(deadlines: Deadlines, cohort: Cohort, num_free: int, snapshot: Snapshot, costs: CostModel) -> float:
    """How long until there are atoms enough to meet a deadline that cannot be met on what is free; 0: they never are.

    To start at once would be the worst for everybody: the request is late for certain, and keeps a few atoms for so
    long that the next one finds as few. Nobody waits for a deadline that will be past.
    """
    num_atoms, now_us = snapshot.device.num_atoms, snapshot.now_us
    slacks_us: dict[int, int] = {}  # by rows, of the request that may wait longest
    for chunk in cohort.chunks:
        for view in chunk[3]:
            if view.deadline_us is not None:
                slacks_us[view.rows] = max(slacks_us.get(view.rows, 0), view.deadline_us - now_us)
    latest_us = max([us - deadlines.quickest_us(rows, num_atoms) for rows, us in slacks_us.items()], default=0.0)
    if latest_us <= 0:
        return 0.0
    free = looked_at = num_free
    for wait_us, atoms in _ends(snapshot, costs):
        if wait_us > latest_us:
            break
        free = min(num_atoms, free + atoms)
        if free < min(num_atoms, looked_at * MORE_ATOMS):
            continue
        looked_at = free
        if any([deadlines.quickest_us(rows, free) <= us - wait_us for rows, us in slacks_us.items()]):
            return wait_us
    return 0.0


def better_at_us(
    cohort: Cohort, arrangement: Arrangement, num_free: int, num_claims: int, snapshot: Snapshot, costs: CostModel
) -> float:
    """How long to wait for the atoms on which the cohort's rows are done first; 0: not at all.

    Nobody waits on its fair share of the device, counted by the tenants that are there now. And nobody waits longer in
    all, from its arrival, than it would have lost by starting at once; nor longer than idles as much unit-time as the
    lane takes.
    """
    names = {chunk[2].name for chunk in cohort.chunks}
    present = names.union(*[lane.tenants for lane in snapshot.running], [tenant.name for tenant in snapshot.tenants])
    share = snapshot.device.num_atoms * len(names) // len(present)
    if arrangement.atoms * min(arrangement.num_lanes, arrangement.num_slots) >= share:
        return 0.0
    waited_us = snapshot.now_us - min([chunk[3][0].arrival_us for chunk in cohort.chunks])
    now_us, found_us, free = _all_us(arrangement), 0.0, num_free
    best_us = now_us * (1 - LEAST_GAIN)
    load = load_beside(cohort.name, cohort.fusible, snapshot.load, dict(snapshot.load_parts))
    for wait_us, atoms in _ends(snapshot, costs)[:MOST_ENDS]:
        free += atoms
        if wait_us >= best_us:
            break
        later = choose(cohort, snapshot.device, free, num_claims, costs, load=load)
        later_us = _all_us(later)
        if wait_us * num_free > later.lane_us * later.atoms * later.num_lanes:
            break
        if waited_us + wait_us <= now_us - later_us and wait_us + later_us < best_us:
            best_us, found_us = wait_us + later_us, wait_us
    return found_us


def lean(cohort: Cohort, arrangement: Arrangement, snapshot: Snapshot, costs: CostModel) -> Arrangement:
    """The same lane on the fewest atoms, about, that make it no longer: who comes next finds the others free."""
    atoms, _, num_lanes, num_slots, fused, lane_us = arrangement
    if num_lanes != 1:
        return arrangement
    device, rows = snapshot.device, sum([chunk[0] for chunk in cohort.chunks])
    num_tenants = len({chunk[2].name for chunk in cohort.chunks})
    enough, enough_us = atoms, lane_us
    too_few = 0 if cohort.min_units == 1 else atoms_needed(cohort.min_units, device) - 1
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        units = lane_units(middle, device)
        middle_us = costs.lane_us(cohort.name, tenants=num_tenants, rows=rows, units=units, fused=fused)
        if middle_us <= lane_us * (1 + LEAN):
            enough, enough_us = middle, middle_us
        else:
            too_few = middle
    return Arrangement(enough, lane_units(enough, device), 1, num_slots, fused, enough_us)


def _ends(snapshot: Snapshot, costs: CostModel) -> list[tuple[float, int]]:
    """When lanes that run are expected to end, and how many atoms they let go of; the first one first."""
    ends = [
        (_left_us(lane, since_us, snapshot.now_us, costs), lane.atoms.bit_count())
        for lane, since_us in zip(snapshot.running, snapshot.running_since_us, strict=False)
    ]
    return sorted([end for end in ends if end[0] < inf])


def _left_us(lane: Lane, since_us: int, now_us: int, costs: CostModel) -> float:
    """What is overdue takes as long again as it is overdue, for all that is known."""
    num_sets = len(lane.tenants) if lane.fused else len(lane.requests)
    try:
        lane_us = costs.lane_us(lane.cohort, tenants=num_sets, rows=lane.num_rows, units=lane.units, fused=lane.fused)
    except OptionError:  # a merged lane, or its cohort was removed while it runs: its end is not known
        return inf
    return max(1.0, abs(since_us + lane_us - now_us))


def _all_us(arrangement: Arrangement) -> float:
    """Until the last of the lanes has ended."""
    return arrangement.lane_us * -(-arrangement.num_lanes // arrangement.num_slots)
