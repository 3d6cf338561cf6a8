"""Merged executions as the loop knows them: which there are, and the books of their lanes. Only the loop imports it.

A merged lane holds tenants of several cohorts. It says nothing of the speed of any one of them, and its time is charged
by what the lanes of its cohorts would take by themselves: rows of unlike programs are not alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from spacetime.errors import OptionError
from spacetime.plan import Lane, Load, MergedView
from spacetime.scheduler.merged_prior import Loads
from spacetime.scheduler.protocols import CostModel, Executable, MergedCostModel
from spacetime.scheduler.queues import Queues


class MergedLanes:
    """Empty, and asked for nothing, where nothing is merged."""

    def __init__(self, queues: Queues, costs: CostModel) -> None:
        self.views: tuple[MergedView, ...] = ()
        self._queues = queues
        self._costs = costs
        self._executables: dict[str, Executable] = {}

    def add(self, view: MergedView, executable: Executable) -> None:
        """From now on policies see it."""
        if not isinstance(self._costs, MergedCostModel):
            facts = f"{type(self._costs).__name__} has no merged_us()"
            raise OptionError("lanes cannot be merged", facts, "use a cost model that knows merged lanes")
        unknown = [cohort for cohort in view.cohorts if not self._queues.has_cohort(cohort)]
        if unknown or len(set(view.cohorts)) < max(2, len(view.cohorts)):
            raise OptionError(
                f"{view.id!r} cannot be merged",
                f"its cohorts are {list(view.cohorts)}, of which {unknown} have no tenants",
                "merge two or more cohorts that have tenants",
            )
        self._executables[view.id] = executable
        self.views = (*self._others(view.id), view)

    def remove(self, merged: str) -> None:
        """No lane of it starts any more; those that run end as they began."""
        if self._executables.pop(merged, None) is not None:
            self.views = self._others(merged)
            self._priced.forget_merged(merged)

    def forget(self, cohort: str) -> None:
        """Its last tenant has left, and merged executions go with it."""
        for view in self.views:
            if cohort in view.cohorts:
                self.remove(view.id)

    def find(self, merged: str) -> tuple[MergedView, Executable] | None:
        executable = self._executables.get(merged)
        if executable is None:
            return None
        return next(view for view in self.views if view.id == merged), executable

    def observe(self, view: MergedView, lane: Lane, cohorts: Sequence[str], duration_us: int) -> None:
        """`cohorts` of the lane's requests."""
        if view.id in self._executables:  # what is known of one that is no more helps nobody
            loads = _loads(view, lane, cohorts)
            self._priced.observe_merged(view.id, loads, units=lane.units, duration_us=duration_us)

    def charges(self, lane: Lane, cohorts: Sequence[str], lane_us: float) -> list[float]:
        """For every request, the part of the lane's time that its tenant is charged."""
        names = tuple(dict.fromkeys(cohorts))
        loads = dict(zip(names, _loads(MergedView(lane.cohort, names), lane, cohorts), strict=True))
        row_us = {
            name: self._costs.lane_us(name, tenants=load.tenants, rows=load.rows, units=lane.units) / load.rows
            for name, load in loads.items()
        }
        parts = [row_us[cohort] * view.rows for cohort, view in zip(cohorts, lane.requests, strict=True)]
        whole = sum(parts)
        return [lane_us * part / whole for part in parts]

    def _others(self, merged: str) -> tuple[MergedView, ...]:
        return tuple([view for view in self.views if view.id != merged])

    @property
    def _priced(self) -> MergedCostModel:
        assert isinstance(self._costs, MergedCostModel), "add() has looked"
        return self._costs


def _loads(view: MergedView, lane: Lane, cohorts: Sequence[str]) -> Loads:
    rows = dict.fromkeys(view.cohorts, 0)
    tenants: dict[str, set[str]] = {cohort: set() for cohort in view.cohorts}
    for cohort, request in zip(cohorts, lane.requests, strict=True):
        rows[cohort] += request.rows
        tenants[cohort].add(request.tenant)
    return tuple([Load(len(tenants[cohort]), rows[cohort]) for cohort in view.cohorts])
