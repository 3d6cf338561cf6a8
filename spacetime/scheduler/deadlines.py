"""Lanes that end in time. Only `space_time` imports it.

The tightest deadline counts that can still be met: what is too late anyway shrinks nobody's lane. A lane in which the
tightest request would be late, though by itself on the same units it would not be, is cut down to the largest part, in
order of deadline, that ends in time; the rest goes elsewhere, or waits.
"""

from __future__ import annotations

from functools import cache
from math import inf
from typing import NamedTuple

from spacetime.device import Device
from spacetime.plan import RequestView, TenantView
from spacetime.scheduler.arrangements import Arrangement, atoms_needed, lane_sizes, lane_units
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.selection import ROWS_PER_LANE, Chunk, Cohort, Urgency, forms, lanes_us

Part = tuple[RequestView, TenantView, Urgency]  # one request of a chunk


class Due(NamedTuple):
    """A deadline: how long until then, and the rows of the request that has it."""

    slack_us: float
    rows: int


NEVER = Due(inf, 0)


class Deadlines:
    """Those of one cohort, as its cost model sees them now."""

    def __init__(self, cohort: Cohort, device: Device, now_us: int, costs: CostModel) -> None:
        self._cohort = cohort
        self._device = device
        self._now_us = now_us
        self._costs = costs

    def next_one(self, chunks: list[Chunk]) -> Due:
        """The next deadline, be it within reach or not."""
        now_us, first_us, rows = self._now_us, inf, 0
        for chunk in chunks:
            for view in chunk[3]:
                due_us = view.deadline_us
                if due_us is not None and now_us < due_us < first_us:
                    first_us, rows = due_us, view.rows
        return NEVER if first_us == inf else Due(first_us - now_us, rows)

    def tightest(self, free_atoms: int) -> Due:
        """The next deadline that can be met on the free atoms."""
        quickest_us = cache(lambda rows: self.quickest_us(rows, free_atoms))
        found = NEVER
        for chunk in self._cohort.chunks:
            for view in chunk[3]:
                if view.deadline_us is not None and view.deadline_us - self._now_us < found.slack_us:
                    slack_us = view.deadline_us - self._now_us
                    if quickest_us(view.rows) <= slack_us:
                        found = Due(slack_us, view.rows)
        return found

    def meets(self, arrangement: Arrangement, due: Due) -> bool:
        """Whether an average lane ends in time, and one with just the rows that are due."""
        if due is NEVER:
            return True
        alone_us = self.alone_us(due.rows, arrangement.units, arrangement.fused)
        return max(arrangement.lane_us, alone_us) <= due.slack_us

    def alone_us(self, rows: int, units: int, fused: bool) -> float:
        """A lane of one request."""
        return self._lane_us(1, rows, units, fused)

    def quickest_us(self, rows: int, free_atoms: int) -> float:
        """A lane of one request, on as many of the atoms as it likes."""
        return min([us for us, _, _ in self._alone(rows, free_atoms)])

    def alone_in_time(self, due: Due, free_atoms: int) -> Arrangement:
        """For a lane of just the rows that are due, in time with the least unit-time. There is one."""
        in_time = [found for found in self._alone(due.rows, free_atoms) if found[0] <= due.slack_us]
        lane_us, atoms, fused = min(in_time, key=lambda found: found[0] * found[1])
        num_lanes = 1 if self._cohort.fusible else len(self._cohort.chunks)
        return Arrangement(atoms, lane_units(atoms, self._device), num_lanes, free_atoms // atoms, fused, lane_us)

    def fit(
        self, chunks: list[Chunk], units: int, fused: bool, most_us: float = inf
    ) -> tuple[list[Chunk], list[Chunk]]:
        """What of a lane's chunks ends in time with the tightest of them, and within `most_us`; and the rest."""
        parts: list[Part] = [(view, tenant, urgency) for _, urgency, tenant, views in chunks for view in views]
        alone_us = cache(lambda rows: self._lane_us(1, rows, units, fused))
        due_us: list[float] = []
        for view, _, _ in parts:
            deadline_us = view.deadline_us
            can_be_met = deadline_us is not None and self._now_us + alone_us(view.rows) <= deadline_us
            due_us.append(deadline_us if can_be_met and deadline_us is not None else inf)
        slack_us = min(min(due_us) - self._now_us, most_us)
        order = sorted(range(len(parts)), key=lambda index: (due_us[index], parts[index][0].deadline_us is not None))
        parts = [parts[index] for index in order]  # those too late to be met come last

        def in_time(count: int) -> bool:
            rows = sum([view.rows for view, _, _ in parts[:count]])
            tenants = len({tenant.name for _, tenant, _ in parts[:count]})
            within_cap = count == 1 or rows <= ROWS_PER_LANE
            return within_cap and self._lane_us(tenants, rows, units, fused) <= slack_us

        if len(parts) == 1 or in_time(len(parts)):
            return chunks, []
        fits, too_many = 1, len(parts)
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            fits, too_many = (middle, too_many) if in_time(middle) else (fits, middle)
        return _chunks(parts[:fits]), _chunks(parts[fits:])

    def _lane_us(self, tenants: int, rows: int, units: int, fused: bool) -> float:
        return self._costs.lane_us(self._cohort.name, tenants=tenants, rows=rows, units=units, fused=fused)

    def _alone(self, rows: int, free_atoms: int) -> list[tuple[float, int, bool]]:
        """(lane_us, atoms, fused) of one request by itself, for every size that it may have."""
        smallest = atoms_needed(self._cohort.min_units, self._device)
        sizes = [(atoms, fused) for atoms in lane_sizes(free_atoms, smallest) for fused in forms(self._cohort.fusible)]
        lanes = [(1, rows, lane_units(atoms, self._device), fused) for atoms, fused in sizes]
        prices = lanes_us(self._costs, self._cohort.name, lanes)
        return [(us, atoms, fused) for us, (atoms, fused) in zip(prices, sizes, strict=True)]


def _chunks(parts: list[Part]) -> list[Chunk]:
    """Requests by tenant again."""
    by_tenant: dict[str, list[Part]] = {}
    for part in parts:
        by_tenant.setdefault(part[1].name, []).append(part)
    chunks: list[Chunk] = []
    for members in by_tenant.values():
        views = tuple([view for view, _, _ in members])
        _, tenant, urgency = members[0]
        chunks.append((sum([view.rows for view in views]), urgency, tenant, views))
    return chunks
