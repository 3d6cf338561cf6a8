"""Policies `space_time`, `space_time_reserved`, `space_time_floating`: fuse, right-size, or neither, by the cost model.

Cohorts are served in order of urgency (selection.py). Each takes the arrangement of its waiting rows that the cost
model likes best (arrangements.py), as long as it meets the tightest deadline that can be met (deadlines.py). When
everybody had a turn, what still waits has another, and what is left widens the lanes that gain most (widening.py).
Lanes of unlike cohorts that start together become one where there is a merged execution, and it pays
(merged_drafts.py).

Nobody keeps the device from others for long. A lane of several requests ends within LANE_SHARE of the tightest
objective of all others. Who asks for more than the device has (reserve.py) keeps to that with single requests too: it
waits until there are atoms enough for it, instead of sitting on a few for long. In `space_time_reserved` it is also
kept from taking the whole device, the others wait for more atoms where that is sooner, and lanes leave what they gain
nothing from (postponing.py).

In `space_time` a lane keeps its atoms from its start to its end. Smaller segments inside of it would free nothing for
others, so it is the lane's size that is chosen, and segments are made only where kernels run faster on fewer atoms.
`space_time_floating` has the device place every kernel, on as many units as the lane's segment needs and shared with
other kernels if it must be; where the device cannot, it is `space_time` (docs/decisions/003, segments.py).
"""

from __future__ import annotations

from collections import Counter, deque
from functools import lru_cache
from math import inf

from spacetime.device import Device, Partition
from spacetime.plan import Lane, Placement, Plan, Segment, Snapshot
from spacetime.scheduler.allocation import UNLIMITED
from spacetime.scheduler.arrangements import Arrangement, atoms_needed, choose, deal, lane_units
from spacetime.scheduler.deadlines import Deadlines, Due
from spacetime.scheduler.merged_drafts import join
from spacetime.scheduler.postponing import better_at_us, lean, short_at_us
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy
from spacetime.scheduler.reserve import NOBODY, Share, parts, together
from spacetime.scheduler.segments import SEGMENTS_FROM_US, Run, fastest_runs, leanest_runs
from spacetime.scheduler.selection import PATIENCE_US, ROWS_PER_LANE, Chunk, Cohort, cohorts_by_urgency
from spacetime.scheduler.widening import Draft, widen

__all__ = ["HOLD_GAP_US", "HOLD_SHARE", "MAX_HOLD_US", "PATIENCE_US", "ROWS_PER_LANE", "space_time"]

LANE_SHARE = 0.25  # of the tightest objective among those who wait or may come: no lane of many rows takes longer
REJOIN_SHARE = 0.5  # the largest part of its lane's duration that a cohort waits for peers whose lane is to end ...
REJOIN_ROUNDS = 4  # ... and in so many lanes together it must gain as much
BUSY = 0.5  # a tenant that has more requests than this in the system on average comes back soon after it was served
MAX_HOLD_US = 500  # the longest that a cohort waits for its peers ...
HOLD_SHARE = 0.25  # ... the largest part of its lane's duration ...
HOLD_GAP_US = 60  # ... and how long after the last arrival it gives up
ANYWHERE = Placement("conserved", UNLIMITED)
OVERCOMMIT = 2.0  # of the atoms that floating lanes hold on average: kernels of one fill what others' leave idle


@policy("space_time")
def space_time(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Fill the free atoms, cohort by cohort; hold a cohort back for a moment when peers are likely to join."""
    return _plan(snapshot, costs, together)


@policy("space_time_reserved")
def space_time_reserved(snapshot: Snapshot, costs: CostModel) -> Plan:
    """The same, but who asks for more than the device has leaves units free for the others (reserve.py)."""
    return _plan(snapshot, costs, parts, is_reserved=True)


def _plan(snapshot: Snapshot, costs: CostModel, share: Share, *, is_reserved: bool = False) -> Plan:
    num_free = (snapshot.free_atoms & snapshot.device.all_atoms).bit_count()
    step = _Step(snapshot, costs, num_free, share, is_reserved=is_reserved)
    step.decide()
    drafts = step.drafts
    if snapshot.merged and len(drafts) > 1:
        drafts = join(drafts, snapshot, costs)
    return Plan(_lanes(drafts, snapshot, costs), step.wake_at_us)


@policy("space_time_floating")
def space_time_floating(snapshot: Snapshot, costs: CostModel) -> Plan:
    """The same decisions, on as many atoms as the running lanes leave idle on average, twice over."""
    device = snapshot.device
    if not (snapshot.capabilities.placement and snapshot.capabilities.segments):
        return space_time(snapshot, costs)
    held = sum([_mean_atoms(lane, device, costs) for lane in snapshot.running])
    step = _Step(snapshot, costs, min(device.num_atoms, int(device.num_atoms * OVERCOMMIT - held)), together)
    step.decide()
    lanes = tuple([_floating_lane(draft, device, costs) for draft in step.drafts])
    return Plan(lanes, step.wake_at_us, isolated=False)


class _Step:
    """One decision in the making."""

    def __init__(
        self, snapshot: Snapshot, costs: CostModel, num_free: int, share: Share, *, is_reserved: bool = False
    ) -> None:
        self.snapshot = snapshot
        self.costs = costs
        self.num_free = num_free
        self.share = share
        self.is_reserved = is_reserved
        self.drafts: list[Draft] = []
        self.wake_at_us: int | None = None
        self.part = NOBODY
        self.most_us = inf  # a lane that takes no longer is short enough for everybody
        self.objectives: list[tuple[int, str]] = []  # of those that wait, the tightest first

    def decide(self) -> None:
        if self.num_free <= 0:
            return
        snapshot, costs = self.snapshot, self.costs
        cohorts = cohorts_by_urgency(snapshot, costs)
        if len(snapshot.tenants) > 1 and any([cohort.has_deadlines for cohort in cohorts]):
            self.objectives = sorted([(each.slo_us, each.name) for each in snapshot.tenants if each.slo_us is not None])
        for part in self.share(cohorts, self.num_free, snapshot, costs):
            num_drafts, num_kept = len(self.drafts), max(0, self.num_free - part.most_atoms)
            self.num_free -= num_kept
            self.part = part
            self.most_us = LANE_SHARE * min(part.promised_us, self.objectives[0][0] if self.objectives else inf)
            is_spoken_for = self._serve(part.cohorts)
            drafts = self.drafts[num_drafts:]
            if self.num_free and drafts and not is_spoken_for:
                self.num_free = widen(drafts, self.num_free, snapshot.device, costs)
            self.num_free += num_kept

    def _serve(self, cohorts: list[Cohort]) -> bool:
        """Everybody has a turn, the most urgent first; those that had one have another, until nothing is free.

        Returns whether somebody waits for what is left.
        """
        device, now_us, num_held, first_turns = self.snapshot.device, self.snapshot.now_us, 0, len(cohorts)
        turns = deque(cohorts)
        gap_us = inf  # for how long nobody needs what is free
        while turns and self.num_free:
            cohort = turns.popleft()
            is_first, first_turns = first_turns > 0, first_turns - 1
            if cohort.min_units > 1 and atoms_needed(cohort.min_units, device) > self.num_free:
                if is_first:
                    return True  # it is next: what is free stays free until there is enough, or it would wait for ever
                continue
            num_claims = len(turns) + 1 + num_held
            if cohort.has_deadlines:
                arrangement, slack_us, is_in_time = self._arrange_by_deadline(cohort, num_claims)
            else:
                arrangement = choose(cohort, device, self.num_free, num_claims, self.costs)
                slack_us, is_in_time = inf, True
            if arrangement.lane_us > gap_us:
                continue
            if cohort.has_deadlines and gap_us == inf:
                arrangement, wait_us = self._postpone(cohort, arrangement, num_claims)
                if wait_us:
                    gap_us = wait_us
                    self._wake_at(now_us + int(wait_us) + HOLD_GAP_US)
                    num_held += 1
                    continue
            if is_first and cohort.shared and cohort.num_missing > 0:
                hold_until_us = _hold_until_us(cohort, arrangement, slack_us, self.snapshot, self.costs)
                if hold_until_us > now_us:
                    self._wake_at(hold_until_us)
                    num_held += 1
                    continue
            self._start(cohort, arrangement, is_in_time)
            if cohort.chunks:
                turns.append(cohort)
        return num_held > 0

    def _postpone(self, cohort: Cohort, arrangement: Arrangement, num_claims: int) -> tuple[Arrangement, float]:
        """How to start the chunks after all, and how long to leave what is free alone first; 0: not at all."""
        snapshot, costs, floods = self.snapshot, self.costs, self.part.floods
        is_flood = bool(floods) and any([chunk[2].name in floods for chunk in cohort.chunks])
        if self.is_reserved:
            wait_us = 0.0
            if snapshot.running and not is_flood:
                wait_us = better_at_us(cohort, arrangement, self.num_free, num_claims, snapshot, costs)
            if not wait_us and num_claims == 1 and snapshot.promised_us is not None:
                arrangement = lean(cohort, arrangement, snapshot, costs)
            return arrangement, wait_us
        if not is_flood or arrangement.lane_us <= self.most_us:
            return arrangement, 0.0
        most_us, rows = self._most_us(cohort.chunks), min([chunk[3][0].rows for chunk in cohort.chunks])
        deadlines = Deadlines(cohort, snapshot.device, snapshot.now_us, costs)
        if deadlines.alone_us(rows, arrangement.units, arrangement.fused) <= most_us:
            return arrangement, 0.0  # it will be cut
        if deadlines.quickest_us(rows, self.num_free) <= most_us:
            return deadlines.alone_in_time(Due(most_us, rows), self.num_free), 0.0
        return arrangement, short_at_us(deadlines, rows, most_us, self.num_free, snapshot, costs)

    def _most_us(self, chunks: list[Chunk]) -> float:
        """How long a lane of these may take for the sake of all others."""
        names = {chunk[2].name for chunk in chunks}
        others_us = next((slo_us for slo_us, name in self.objectives if name not in names), inf)
        return LANE_SHARE * min(self.part.promised_us, others_us)

    def _wake_at(self, at_us: int) -> None:
        self.wake_at_us = at_us if self.wake_at_us is None else min(self.wake_at_us, at_us)

    def _arrange_by_deadline(self, cohort: Cohort, num_claims: int) -> tuple[Arrangement, float, bool]:
        """How to start the chunks, how long their tightest deadline leaves, and if an average lane ends by the next."""
        device, costs, num_free = self.snapshot.device, self.costs, self.num_free
        arrangement = choose(cohort, device, num_free, num_claims, costs)
        deadlines = Deadlines(cohort, device, self.snapshot.now_us, costs)
        next_one = deadlines.next_one(cohort.chunks)
        if deadlines.meets(arrangement, next_one):
            return arrangement, next_one.slack_us, True
        tightest = deadlines.tightest(num_free)
        if not deadlines.meets(arrangement, tightest):
            arrangement = self._arrange_in_time(cohort, arrangement, tightest, num_claims, deadlines)
        return arrangement, tightest.slack_us, False

    def _arrange_in_time(
        self, cohort: Cohort, arrangement: Arrangement, due: Due, num_claims: int, deadlines: Deadlines
    ) -> Arrangement:
        """Everybody now and in time, if that can be; else the lanes that would be best, cut down to what is in time."""
        in_time = choose(cohort, self.snapshot.device, self.num_free, num_claims, self.costs, due.slack_us)
        if deadlines.meets(in_time, due) and in_time.num_lanes <= in_time.num_slots:
            return in_time
        for found in (arrangement, in_time):
            if deadlines.alone_us(due.rows, found.units, found.fused) <= due.slack_us:
                return found
        return deadlines.alone_in_time(due, self.num_free)

    def _start(self, cohort: Cohort, arrangement: Arrangement, is_in_time: bool) -> None:
        """Draft as many lanes as there is room for; the rest stays in the cohort."""
        atoms, units, num_lanes, num_slots, fused, lane_us = arrangement
        is_average = num_lanes == 1 and not (cohort.has_deadlines and cohort.num_extra)  # it takes just `lane_us`
        if is_average and is_in_time and lane_us <= self.most_us:
            self.drafts.append(Draft(cohort.name, cohort.chunks, atoms, fused, lane_us))
            self.num_free -= atoms
            cohort.chunks = []
            return
        device = self.snapshot.device
        groups = deal(cohort.chunks, num_lanes, num_slots)
        rest = [chunk for group in groups[num_slots:] for chunk in group]
        is_cut = bool(rest) and cohort.has_deadlines
        for group in groups[:num_slots]:
            draft = Draft(cohort.name, group, atoms, fused, lane_us)
            if cohort.has_deadlines or lane_us > self.most_us:
                deadlines = Deadlines(cohort, device, self.snapshot.now_us, self.costs)
                most_us = self._most_us(group)
                if draft.lane_us(atoms, device, self.costs) > min(most_us, deadlines.next_one(group).slack_us):
                    draft.chunks, cut = deadlines.fit(group, units, fused, most_us)
                    rest.extend(cut)
                    is_cut = is_cut or bool(cut)
            self.drafts.append(draft)
            self.num_free -= atoms
        cohort.chunks = self._startable(rest) if is_cut else rest

    def _startable(self, chunks: list[Chunk]) -> list[Chunk]:
        """Without the parts of tenants that have as many lanes as they may: cutting lanes made more of them."""
        num_lanes = Counter(name for draft in self.drafts for name in {chunk[2].name for chunk in draft.chunks})
        startable = []
        for chunk in chunks:
            tenant = chunk[2]
            if tenant.running + num_lanes[tenant.name] < tenant.max_concurrency:
                num_lanes[tenant.name] += 1
                startable.append(chunk)
        return startable


def _hold_until_us(
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


def _lanes(drafts: list[Draft], snapshot: Snapshot, costs: CostModel) -> tuple[Lane, ...]:
    """Each on the lowest of the atoms that those before it have left."""
    device, free, lanes = snapshot.device, snapshot.free_atoms, []
    num_atoms, num_units, units_per_atom = device.num_atoms, device.num_units, device.units_per_atom
    for draft in drafts:
        units = num_units if draft.atoms == num_atoms else draft.atoms * units_per_atom
        atoms, segments = _lowest_of(free, draft.atoms, units)
        free &= ~atoms
        if draft.about_us >= SEGMENTS_FROM_US and snapshot.capabilities.segments and not draft.is_whole:
            segments = _segments(draft, atoms, device, costs) or segments
        lanes.append(Lane(draft.cohort, draft.requests, segments, draft.fused))
    return tuple(lanes)


def _segments(draft: Draft, atoms: int, device: Device, costs: CostModel) -> tuple[Segment, ...]:
    """On which of the lane's atoms its kernels run fastest; nothing where that is all of them, all the time."""
    tenants, rows = draft.size
    times = costs.kernel_times(draft.cohort, tenants=tenants, rows=rows, fused=draft.fused)
    runs = fastest_runs(times, draft.atoms, device.switch_us)
    if len(runs) == 1 or max([run.atoms for run in runs]) < draft.atoms:
        return ()
    return tuple([_segment(atoms, run, device) for run in runs])


def _segment(atoms: int, run: Run, device: Device) -> Segment:
    """On the lowest of the lane's atoms."""
    units = lane_units(run.atoms, device)
    return Segment(Partition(_lowest(atoms, run.atoms), units, units), run.first_kernel, run.last_kernel)


def _floating_lane(draft: Draft, device: Device, costs: CostModel) -> Lane:
    tenants, rows = draft.size
    times = costs.kernel_times(draft.cohort, tenants=tenants, rows=rows, fused=draft.fused)
    smallest = atoms_needed(max([chunk[2].min_units for chunk in draft.chunks]), device)
    runs = leanest_runs(times, smallest, device.switch_us)
    segments = _floating(runs, device.num_atoms, device.num_units, device.units_per_atom)
    return Lane(draft.cohort, draft.requests, segments, draft.fused, ANYWHERE)


@lru_cache(maxsize=4096)  # the simulator knows long lists of segments by who they are
def _floating(runs: tuple[Run, ...], num_atoms: int, num_units: int, units_per_atom: int) -> tuple[Segment, ...]:
    units = [num_units if run.atoms == num_atoms else run.atoms * units_per_atom for run in runs]
    return tuple(
        [
            Segment(Partition.floating(size), run.first_kernel, run.last_kernel)
            for size, run in zip(units, runs, strict=True)
        ]
    )


def _mean_atoms(lane: Lane, device: Device, costs: CostModel) -> float:
    """How many atoms a running lane holds, on average over its time."""
    if lane.atoms:
        return lane.atoms.bit_count()
    times = costs.kernel_times(lane.cohort, tenants=len(lane.tenants), rows=lane.num_rows, fused=lane.fused)
    lane_us = area = 0.0
    for segment in lane.segments:
        atoms = atoms_needed(segment.partition.granted_units, device)
        last = times.num_kernels if segment.last_kernel == -1 else segment.last_kernel
        us = float(times.us[segment.first_kernel : last, atoms - 1].sum())
        lane_us, area = lane_us + us, area + us * atoms
    return area / lane_us


@lru_cache(maxsize=4096)
def _lowest(free: int, num_atoms: int) -> int:
    """A mask of the lowest free atoms."""
    atoms = 0
    for _ in range(num_atoms):
        atoms |= free & -free
        free &= free - 1
    return atoms


@lru_cache(maxsize=4096)
def _lowest_of(free: int, num_atoms: int, units: int) -> tuple[int, tuple[Segment, ...]]:
    """The same, and a lane on them from its start to its end."""
    atoms = _lowest(free, num_atoms)
    return atoms, (Segment(Partition(atoms, units, units)),)
