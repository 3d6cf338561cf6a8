"""Which of the lanes that start together become one merged lane. Only `space_time` imports it.

Drafts of unlike cohorts join one after another, in their order, as long as the merged lane, on all their atoms, is
predicted to end before the last of them would side by side, by LEAST_GAIN. Whoever would have ended earlier ends with
the others then, and its atoms are free later: a merged lane takes hardly more of the device in all than its drafts do.
No deadline that they make is lost by it. Ties go to separate lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from spacetime.errors import OptionError
from spacetime.plan import Load, MergedView, Snapshot
from spacetime.scheduler.arrangements import lane_units
from spacetime.scheduler.protocols import CostModel, MergedCostModel
from spacetime.scheduler.widening import Draft

LEAST_GAIN = 0.05  # predictions are no better than that
MOST_AREA = 1.02  # a merged lane takes at most so much of its drafts' unit-time: others may want the units
MOST_TRIALS = 8  # merged lanes that are priced in one decision


@dataclass(slots=True, eq=False)
class _Group:
    """Drafts that start as one lane; by themselves until others join."""

    drafts: list[Draft]
    view: MergedView | None
    lane_us: float
    area: float  # unit-time that the drafts take by themselves, in atoms and microseconds
    latest_us: float  # how long it may take before a deadline is lost

    @property
    def atoms(self) -> int:
        return sum([draft.atoms for draft in self.drafts])

    @property
    def cohorts(self) -> set[str]:
        return {draft.cohort for draft in self.drafts}

    def draft(self) -> Draft:
        if self.view is None:
            return self.drafts[0]
        chunks = [chunk for draft in self.drafts for chunk in draft.chunks]
        return Draft(self.view.id, chunks, self.atoms, True, self.lane_us, is_whole=True)


def join(drafts: list[Draft], snapshot: Snapshot, costs: CostModel) -> list[Draft]:
    """The drafts, some of them as one; of the same requests, on as many atoms."""
    if not isinstance(costs, MergedCostModel):
        facts = f"the snapshot has {len(snapshot.merged)} merged executions, {type(costs).__name__} no merged_us()"
        raise OptionError("merged lanes have no costs", facts, "give the policy a MergedCostModel")
    known = {cohort for view in snapshot.merged for cohort in view.cohorts}
    joined: list[_Group | Draft] = []
    num_trials = 0
    for draft in drafts:
        if draft.cohort not in known or not _may_share(draft):
            joined.append(draft)
            continue
        group = _alone(draft, snapshot, costs)
        for index, other in enumerate(joined):
            views = _views(other, draft, snapshot)
            if num_trials >= MOST_TRIALS or not views:
                continue
            assert isinstance(other, _Group)
            found = _merged(other, group, views, snapshot, costs)
            num_trials += len(views)
            if found is not None:
                joined[index] = found
                break
        else:
            joined.append(group)
    return [each if isinstance(each, Draft) else each.draft() for each in joined]


def _may_share(draft: Draft) -> bool:
    return draft.fused and all([chunk[2].fusible and not chunk[2].apart for chunk in draft.chunks])


def _views(other: _Group | Draft, draft: Draft, snapshot: Snapshot) -> list[MergedView]:
    """What the draft could join the others by. Two lanes of one cohort are two for a reason."""
    if isinstance(other, Draft) or draft.cohort in other.cohorts:
        return []
    cohorts = other.cohorts | {draft.cohort}
    return [view for view in snapshot.merged if cohorts.issubset(view.cohorts)]


def _alone(draft: Draft, snapshot: Snapshot, costs: CostModel) -> _Group:
    lane_us = draft.lane_us(draft.atoms, snapshot.device, costs)
    left_us = [deadline_us - snapshot.now_us for deadline_us in _deadlines_us(draft)]
    latest_us = min([us for us in left_us if us >= lane_us], default=inf)
    return _Group([draft], None, lane_us, lane_us * draft.atoms, latest_us)


def _deadlines_us(draft: Draft) -> Iterator[int]:
    for chunk in draft.chunks:
        for view in chunk[3]:
            if view.deadline_us is not None:
                yield view.deadline_us


def _merged(
    one: _Group, other: _Group, views: list[MergedView], snapshot: Snapshot, costs: MergedCostModel
) -> _Group | None:
    """Both as one, by the best of these; None if it does not pay."""
    drafts, atoms = [*one.drafts, *other.drafts], one.atoms + other.atoms
    units = lane_units(atoms, snapshot.device)
    last_us, area = max(one.lane_us, other.lane_us), one.area + other.area
    least_us, view = min(
        [(costs.merged_us(view.id, _loads(view, drafts), units=units), view) for view in views],
        key=lambda found: found[0],
    )
    latest_us = min(one.latest_us, other.latest_us)
    if least_us >= last_us * (1 - LEAST_GAIN) or least_us > min(area * MOST_AREA / atoms, latest_us):
        return None
    return _Group(drafts, view, least_us, area, latest_us)


def _loads(view: MergedView, drafts: list[Draft]) -> tuple[Load, ...]:
    loads = {draft.cohort: Load(*draft.size) for draft in drafts}
    return tuple([loads.get(cohort, Load(0, 0)) for cohort in view.cohorts])
