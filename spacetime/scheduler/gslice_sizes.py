"""How many atoms a tenant of `gslice` is to have: max-min shares, and the self-tuning of one share. Only gslice.py.

A share is tuned by two residuals, both relative. Latency: what the objective leaves over what was observed. Throughput:
what is achieved over what arrives. Either one negative: the share grows by the part that is missing. Both above
`SURPLUS`: it shrinks, but only to where both are expected to stay above half of that. So no size is left for one that
would be left again at once, and none is judged before the averages speak of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import NamedTuple

from spacetime.plan import Snapshot, TenantView
from spacetime.scheduler.metering import RECENT_US
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.tables import TOLERANCE

SURPLUS = 0.05  # a share shrinks when both residuals are above this ...
RESERVE = SURPLUS / 2  # ... and are expected to stay above this
GROW_MOST = 0.25  # a share grows by what is missing, at most by this part of it, at least by an atom
SHRINK_BY = 0.125  # a share shrinks by this part, or if that is too much by an atom
GROW_AFTER_US = RECENT_US  # a share may grow so long after the last change: the averages begin to speak of it ...
SHRINK_AFTER_US = 3 * RECENT_US  # ... and may shrink when they speak of little else ...
SETTLE_LANES = 20  # ... and neither before it could have been used so many times
MAX_ROWS = 64  # of one lane; a request with more rows goes alone


class Served(NamedTuple):
    """What a tenant is about to get."""

    size: int  # atoms, as max-min allows
    rows: int  # of the lane
    leaves_backlog: bool  # more waits than the lane holds


def water_level(wants: Sequence[int], floors: Sequence[int], num_atoms: int) -> int:
    """Max-min: everybody gets what they want, but no more than so many atoms, nor less than their floor.

    Whose floor does not fit beside the others' takes turns with them instead, and is left out here.

    >>> water_level([2, 9, 12], [1, 1, 1], 16)
    7
    """
    if len(wants) >= num_atoms:
        return 1
    if sum(wants) <= num_atoms:
        return num_atoms
    fitting = sorted(zip(floors, wants, strict=True))
    while sum([floor for floor, _ in fitting]) > num_atoms:
        fitting.pop()
    low, high = 1, num_atoms
    while low < high:
        level = (low + high + 1) // 2
        if sum([min(want, max(floor, level)) for floor, want in fitting]) <= num_atoms:
            low = level
        else:
            high = level - 1
    return low


class Shares:
    """Looks up and tunes shares; lives as long as one decision."""

    __slots__ = ("_atom_units", "_costs", "_knees", "_now_us", "_num_atoms", "_num_units")

    def __init__(self, snapshot: Snapshot, costs: CostModel) -> None:
        self._now_us = snapshot.now_us
        self._num_atoms = snapshot.device.num_atoms
        self._num_units = snapshot.device.num_units
        self._atom_units = snapshot.device.units_per_atom
        self._costs = costs
        self._knees: dict[tuple[str, int, bool], int] = {}

    def units(self, atoms: int) -> int:
        """All atoms hold the whole device, with the units that fill no atom."""
        return self._num_units if atoms == self._num_atoms else atoms * self._atom_units

    def atoms(self, units: int) -> int:
        """The least number of atoms that hold so many units."""
        return min(self._num_atoms, -(-units // self._atom_units))

    def floor(self, tenant: TenantView) -> int:
        """The least number of atoms that is any use to the tenant."""
        return 1 if tenant.min_units == 1 else self.atoms(tenant.min_units)

    def share(self, tenant: TenantView) -> int:
        """In atoms: what is in force, or the model's knee when nothing is yet."""
        if tenant.share_units is not None:
            return max(self.atoms(tenant.share_units), self.floor(tenant))
        key = tenant.cohort, tenant.waiting[0].rows, tenant.fusible
        knee = self._knees.get(key)
        if knee is None:
            cohort, rows, fused = key
            knee = self._costs.kernel_times(cohort, tenants=1, rows=rows, fused=fused).knee()
            self._knees[key] = knee
        return max(knee, self.floor(tenant))

    def tuned(self, tenant: TenantView, share: int, served: Served) -> int:
        """What the share should be from now on."""
        age_us = self._now_us - tenant.share_since_us
        if tenant.share_units is None or not self._is_settled(tenant, served, age_us):
            return share
        latency = _residual_latency(tenant)
        throughput = self._residual_throughput(tenant, served)
        missing = -min(latency, throughput)
        if missing > 0:
            return self._grown(tenant, share, missing, served)
        if latency > SURPLUS and throughput > SURPLUS and age_us >= SHRINK_AFTER_US:
            return self._shrunk(tenant, share, served)
        return share

    def _is_settled(self, tenant: TenantView, served: Served, age_us: int) -> bool:
        """Whether there is anything to judge the size by that is in force."""
        if age_us < GROW_AFTER_US or not tenant.latency_us:
            return False
        return age_us >= SETTLE_LANES * self._lane_us(tenant, served.rows, served.size)

    def _residual_throughput(self, tenant: TenantView, served: Served) -> float:
        """While a tenant keeps up it completes what arrives; what more it could do, the cost model must say."""
        arrivals_per_s = tenant.arrivals_per_s
        if not arrivals_per_s:
            return inf
        if served.leaves_backlog:
            return tenant.completions_per_s / arrivals_per_s - 1
        return self._capacity_per_s(tenant, served.size, arrivals_per_s * (1 + SURPLUS)) / arrivals_per_s - 1

    def _capacity_per_s(self, tenant: TenantView, atoms: int, enough_per_s: float) -> float:
        """Requests per second in the best batches that the objective allows; looks no further than `enough_per_s`."""
        count, rows, budget_us, best_per_s = 1, tenant.waiting[0].rows, batch_budget_us(tenant), 0.0
        while True:
            lane_us = self._lane_us(tenant, count * rows, atoms)
            if count > 1 and lane_us > budget_us:
                return best_per_s
            best_per_s = max(best_per_s, count / lane_us * 1e6)
            count *= 2
            if best_per_s > enough_per_s or not tenant.fusible or count * rows > MAX_ROWS:
                return best_per_s

    def _grown(self, tenant: TenantView, share: int, missing: float, served: Served) -> int:
        if served.size < share:
            return share  # others keep it from what it has already; to ask for more would be of no use
        larger = min(self._num_atoms, share + ceil(share * min(missing, GROW_MOST)))
        gains = self._lane_us(tenant, served.rows, larger) < self._lane_us(tenant, served.rows, share)
        return larger if gains else share

    def _shrunk(self, tenant: TenantView, share: int, served: Served) -> int:
        size, floor = served.size, self.floor(tenant)
        if size == floor:
            return share
        for smaller in (max(floor, size - int(size * SHRINK_BY)), size - 1):
            if smaller < size and self._would_do(tenant, smaller, served):
                return smaller
        return share

    def _would_do(self, tenant: TenantView, smaller: int, served: Served) -> bool:
        """Whether a tenant that has time to spare would still have some on fewer atoms."""
        lane_us = self._lane_us(tenant, served.rows, smaller)
        if tenant.slo_us is None:  # no objective: the knee is all that can be asked of it
            if lane_us > self._lane_us(tenant, served.rows, self._num_atoms) * (1 + TOLERANCE):
                return False
        else:
            # Fewer atoms are never faster, nor slower than by their part: a cost model that is only guessing is held
            # to what is possible.
            slower = lane_us / self._lane_us(tenant, served.rows, served.size)
            slower = min(max(slower, 1.0), served.size / smaller)
            if tenant.latency_us * slower > tenant.slo_us * (1 - RESERVE):
                return False
        needed_per_s = tenant.arrivals_per_s * (1 + RESERVE)
        return self._capacity_per_s(tenant, smaller, needed_per_s) >= needed_per_s

    def _lane_us(self, tenant: TenantView, rows: int, atoms: int) -> float:
        return self._costs.lane_us(tenant.cohort, tenants=1, rows=rows, units=self.units(atoms), fused=tenant.fusible)


def batch_budget_us(tenant: TenantView) -> float:
    """A request that has just missed a lane waits for it and then for its own: each may take half of the objective."""
    return inf if tenant.slo_us is None else tenant.slo_us / 2


def _residual_latency(tenant: TenantView) -> float:
    """Without an objective there is always time."""
    return inf if tenant.slo_us is None else 1 - tenant.latency_us / tenant.slo_us
