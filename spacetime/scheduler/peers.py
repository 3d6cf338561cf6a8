"""Until when a cohort waits for peers that may share its lane. Only `space_time` imports it.

It waits while others of its cohort keep submitting, for a moment, or until a lane of theirs ends that they come back
from. What is known to wait in vain does not (`Snapshot.held_in_vain`).
"""

from __future__ import annotations

from spacetime.plan import Snapshot
from spacetime.scheduler.arrangements import Arrangement, lane_units
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.selection import ROWS_PER_LANE, Cohort

MAX_HOLD_US = 500  # the longest that a cohort waits for its peers ...
HOLD_SHARE = 0.25  # ... the largest part of its lane's duration ...
HOLD_GAP_US = 60  # ... and how long after the last arrival it gives up
REJOIN_SHARE = 0.5  # the largest part of its lane's duration that a cohort waits for peers whose lane is to end ...
REJOIN_ROUNDS = 4  # ... and in so many lanes together it must gain as much
BUSY = 0.5  # a tenant that has more requests than this in the system on average comes back soon after it was served


def hold_until_us(
    cohort: Cohort, arrangement: Arrangement, slack_us: float, snapshot: Snapshot, costs: CostModel
) -> int:
    """Until when to wait for active peers, while they keep coming; in the past when it would cost too much."""
    waiting = [chunk[2].waiting for chunk in cohort.chunks]
    rejoin_until_us = _rejoin_until_us(cohort, arrangement, slack_us, snapshot, costs)
    if rejoin_until_us > snapshot.now_us:
        return rejoin_until_us
    if cohort.name in snapshot.held_in_vain:
        return snapshot.now_us
    if cohort.num_missing <= sum([len(lane.tenants) for lane in snapshot.running if lane.cohort == cohort.name]):
        return snapshot.now_us
    window_us = int(min(MAX_HOLD_US, HOLD_SHARE * arrangement.lane_us))
    oldest_us = min([views[0].arrival_us for views in waiting])
    newest_us = max([views[-1].arrival_us for views in waiting])
    latest_us = snapshot.now_us + slack_us - arrangement.lane_us  # or a deadline would be missed
    return int(min(oldest_us + window_us, newest_us + HOLD_GAP_US, latest_us))


def _rejoin_until_us(
    cohort: Cohort, arrangement: Arrangement, slack_us: float, snapshot: Snapshot, costs: CostModel
) -> int:
    """Until when to wait for peers who come back when their lane ends; in the past when it is not worth it.

    A closed loop whose lanes end at different times stays in two halves otherwise, each on a part of the device. The
    device never idles meanwhile, but for HOLD_GAP_US: the peers' lane runs. Who waits does so for REJOIN_SHARE of its
    lane's duration at most, counted from its arrival, and no deadline is missed by it.
    """
    now_us, own_us = snapshot.now_us, arrangement.lane_us
    if arrangement.num_lanes > 1 or not arrangement.fused or not _come_back(cohort):
        return now_us
    oldest_us = min([chunk[2].waiting[0].arrival_us for chunk in cohort.chunks])
    latest_us = oldest_us + REJOIN_SHARE * own_us
    if latest_us <= now_us:
        return now_us
    if oldest_us <= snapshot.freed_at_us + HOLD_GAP_US and not snapshot.running:
        return int(min(snapshot.freed_at_us + HOLD_GAP_US, latest_us, now_us + slack_us - own_us))
    device, own_rows = snapshot.device, sum([chunk[0] for chunk in cohort.chunks])
    found_us = now_us
    for lane, since_us in zip(snapshot.running, snapshot.running_since_us, strict=False):
        if lane.cohort != cohort.name or not lane.fused or not lane.atoms:
            continue
        tenants, rows = len(lane.tenants), lane.num_rows
        peers_us = costs.lane_us(lane.cohort, tenants=tenants, rows=rows, units=lane.units)
        units = lane_units((lane.atoms | snapshot.free_atoms & device.all_atoms).bit_count(), device)
        all_tenants, all_rows = tenants + len(cohort.chunks) - cohort.num_extra, rows + own_rows
        together_us = costs.lane_us(lane.cohort, tenants=all_tenants, rows=all_rows, units=units)
        gain_us = all_rows / (own_rows / own_us + rows / peers_us) - together_us
        until_us = since_us + peers_us + HOLD_GAP_US
        is_worth_it = until_us - now_us <= REJOIN_ROUNDS * gain_us
        if all_rows <= ROWS_PER_LANE and is_worth_it and until_us <= min(latest_us, now_us + slack_us - together_us):
            found_us = max(found_us, int(until_us))
    return found_us


def _come_back(cohort: Cohort) -> bool:
    """Whether most of its tenants are in the system most of the time (Little's law): a closed loop, or a backlog."""
    tenants = [chunk[2] for chunk in cohort.chunks]
    return 2 * sum([tenant.arrivals_per_s * tenant.latency_us >= BUSY * 1e6 for tenant in tenants]) > len(tenants)
