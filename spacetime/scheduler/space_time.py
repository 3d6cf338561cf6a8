"""Policies `space_time`, `space_time_reserved`, `space_time_floating`: fuse, right-size, or neither, by the cost model.

Cohorts are served in order of urgency (selection.py). Each takes the arrangement of its waiting rows that the cost
model likes best (arrangements.py), as long as it meets the tightest deadline that can be met (deadlines.py). When
everybody had a turn, what still waits has another, and what is left widens the lanes that gain most (widening.py). A
cohort is held back for a moment when its peers are likely to join (peers.py). Lanes of unlike cohorts that start
together become one where there is a merged execution, and it pays (merged_drafts.py).

Whoever would be late on what is free, and not on what is free soon, waits for that (postponing.py).

Nobody keeps the device from others for long. A lane of several requests ends within LANE_SHARE of the tightest
objective of all others; or within LONG_SHARE, where shorter lanes keep the device for so much longer in all that
nobody gains by them; LONG_SHARE of its own objective, where a single row is too long for the others already. Who asks
for more than the device has (reserve.py) keeps to the bound with single requests too: it waits until there are atoms
enough for it, instead of sitting on a few for long. In `space_time_reserved` it is also kept from taking the whole
device, the others wait for more atoms where that is sooner, and lanes leave what they gain nothing from
(postponing.py).

In `space_time` a lane keeps its atoms from its start to its end, so it is the lane's size that is chosen (lanes.py).
`space_time_floating` has the device place every kernel, shared with other kernels if it must be; where the device
cannot, it is `space_time`.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from math import inf

from spacetime.plan import Plan, Snapshot
from spacetime.scheduler.arrangements import Arrangement, atoms_needed, choose, deal
from spacetime.scheduler.deadlines import Deadlines, Due
from spacetime.scheduler.lanes import floating_lane, lanes_of, mean_atoms
from spacetime.scheduler.load import load_beside, price
from spacetime.scheduler.merged_drafts import join
from spacetime.scheduler.peers import HOLD_GAP_US, hold_until_us
from spacetime.scheduler.postponing import better_at_us, in_reach_at_us, lean, short_at_us
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy
from spacetime.scheduler.reserve import NOBODY, Share, parts, together
from spacetime.scheduler.selection import Chunk, Cohort, cohorts_by_urgency
from spacetime.scheduler.widening import Draft, idle, widen

LANE_SHARE = 0.25  # of the tightest objective among those who wait or may come: no lane of many rows takes longer
LONG_SHARE = 1 - LANE_SHARE  # the same where shorter lanes are not worth what they cost: the rest is for one's own
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
    return Plan(lanes_of(drafts, snapshot, costs), step.wake_at_us)


@policy("space_time_floating")
def space_time_floating(snapshot: Snapshot, costs: CostModel) -> Plan:
    """The same decisions, on as many atoms as the running lanes leave idle on average, twice over."""
    device = snapshot.device
    if not (snapshot.capabilities.placement and snapshot.capabilities.segments):
        return space_time(snapshot, costs)
    held = sum([mean_atoms(lane, device, costs) for lane in snapshot.running])
    step = _Step(snapshot, costs, min(device.num_atoms, int(device.num_atoms * OVERCOMMIT - held)), together)
    step.decide()
    lanes = tuple([floating_lane(draft, device, costs) for draft in step.drafts])
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
        self.load = snapshot.load  # of all cohorts; mostly a device is idle, and nothing more is asked about it
        self.load_parts = dict(snapshot.load_parts) if self.load else {}
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
                beside = self._load_beside if self.load else idle
                self.num_free = widen(drafts, self.num_free, snapshot.device, costs, beside)
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
                load = self._load_of_others(cohort, num_claims)
                arrangement = choose(cohort, device, self.num_free, num_claims, self.costs, inf, load)
                slack_us, is_in_time = inf, True
            if arrangement.lane_us > gap_us:
                continue
            if cohort.has_deadlines and gap_us == inf:
                is_out_of_reach = slack_us == inf and not is_in_time
                arrangement, wait_us = self._postpone(cohort, arrangement, num_claims, is_out_of_reach)
                if wait_us:
                    gap_us = wait_us
                    self._wake_at(now_us + int(wait_us) + HOLD_GAP_US)
                    num_held += 1
                    continue
            if is_first and cohort.shared and cohort.num_missing > 0:
                until_us = hold_until_us(cohort, arrangement, slack_us, self.snapshot, self.costs)
                if until_us > now_us:
                    self._wake_at(until_us)
                    num_held += 1
                    continue
            self._start(cohort, arrangement, is_in_time)
            if cohort.chunks:
                turns.append(cohort)
        return num_held > 0

    def _postpone(
        self, cohort: Cohort, arrangement: Arrangement, num_claims: int, is_out_of_reach: bool
    ) -> tuple[Arrangement, float]:
        """How to start the chunks after all, and how long to leave what is free alone first; 0: not at all.

        `is_out_of_reach`: on what is free no deadline of theirs can be met.
        """
        snapshot, costs, floods = self.snapshot, self.costs, self.part.floods
        is_flood = bool(floods) and any([chunk[2].name in floods for chunk in cohort.chunks])
        if is_out_of_reach and snapshot.running and not is_flood:
            deadlines = Deadlines(cohort, snapshot.device, snapshot.now_us, costs)
            wait_us = in_reach_at_us(deadlines, cohort, self.num_free, snapshot, costs)
            if wait_us:
                return arrangement, wait_us
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

    def _load_of_others(self, cohort: Cohort, num_claims: int) -> float:
        """The load beside a cohort. Where several share what is free it makes no difference."""
        if not self.load or num_claims > 1:
            return 0.0
        return load_beside(cohort.name, cohort.fusible, self.load, self.load_parts)

    def _load_beside(self, draft: Draft) -> float:
        """The same of a draft's."""
        return load_beside(draft.cohort, draft.fused, self.load, self.load_parts)

    def _wake_at(self, at_us: int) -> None:
        self.wake_at_us = at_us if self.wake_at_us is None else min(self.wake_at_us, at_us)

    def _arrange_by_deadline(self, cohort: Cohort, num_claims: int) -> tuple[Arrangement, float, bool]:
        """How to start the chunks, how long their tightest deadline leaves, and if an average lane ends by the next."""
        device, costs, num_free = self.snapshot.device, self.costs, self.num_free
        load = self._load_of_others(cohort, num_claims)
        arrangement = choose(cohort, device, num_free, num_claims, costs, inf, load)
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
        device = self.snapshot.device
        load = self._load_of_others(cohort, 1)  # for a deadline it may take more than its share
        in_time = choose(cohort, device, self.num_free, num_claims, self.costs, due.slack_us, load)
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
                    draft.chunks, cut = self._fit(draft, deadlines, units, most_us)
                    rest.extend(cut)
                    is_cut = is_cut or bool(cut)
            self.drafts.append(draft)
            self.num_free -= atoms
        cohort.chunks = self._startable(rest) if is_cut else rest

    def _fit(self, draft: Draft, deadlines: Deadlines, units: int, most_us: float) -> tuple[list[Chunk], list[Chunk]]:
        """What of the draft starts now, and the rest: short lanes one after another, or one that is longer."""
        chunks, cut = deadlines.fit(draft.chunks, units, draft.fused, most_us)
        if not cut or self.part.floods or most_us == inf:
            return chunks, cut
        long_us = max(most_us * LONG_SHARE / LANE_SHARE, self._own_us(draft, deadlines, units, most_us))
        more, less = deadlines.fit(draft.chunks, units, draft.fused, long_us)
        device, load = self.snapshot.device, self._load_beside(draft)
        short, long = replace(draft, chunks=chunks), replace(draft, chunks=more)
        num_short, num_long = [sum([len(chunk[3]) for chunk in each.chunks]) for each in (short, long)]
        if num_short == num_long:
            return chunks, cut
        short_us, long_us = [each.lane_us(draft.atoms, device, self.costs) for each in (short, long)]
        num_lanes, part = num_long / num_short, units / device.num_units
        toll = price(load, 1 / part) * part
        apart_us = short_us * (num_long * (num_lanes + 1) / 2 + toll * num_lanes)
        return (more, less) if long_us * (num_long + toll) < apart_us else (chunks, cut)

    def _own_us(self, draft: Draft, deadlines: Deadlines, units: int, most_us: float) -> float:
        """How long a lane may take by its own objectives, where a single row takes too long for the others already.

        Cut, it would keep them waiting all the same, and more lanes of its kind after it. 0: they are no measure. On
        the whole device they are not, since everybody would wait for its end.
        """
        if draft.atoms == self.snapshot.device.num_atoms:
            return 0.0
        if deadlines.alone_us(draft.chunks[0][3][0].rows, units, draft.fused) <= most_us:
            return 0.0
        return LONG_SHARE * min([chunk[2].slo_us or 0 for chunk in draft.chunks])

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
