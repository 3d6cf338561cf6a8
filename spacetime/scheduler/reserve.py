"""Who floods, and what it may not take: units that others find free when they come. For `space_time`, and above all
`space_time_reserved`.

A lane that runs is never interrupted, and even a lane of one row runs as long as the lanes of those who wait for it. So
a tenant that keeps a device busy by itself moves the latency of all others, however short its lanes are and however
late its turn comes. What helps is to leave units to the others before they ask.

A tenant *floods* when it asks for more than the whole device can serve, going by its recent rate or by its queue, and
somebody else was promised something. `space_time` keeps its lanes short, and no more. In `space_time_reserved`, while
somebody floods

- floods and others share no lane, be they of one cohort or not, and an arrangement for the others is chosen as if there
  were no flood;
- lanes of floods, those that run included, leave as many atoms as any one lane of the others needs to be within
  TOLERANCE of its best latency. Whose cohort the snapshot does not tell, as it does not wait, is left UNSEEN_SHARE;
- what is reserved is for everybody else, and they may take all that is free besides.

Nothing is reserved unless somebody floods, nor when nobody else was active for a second (`Snapshot.promised_us`): then
the flood has the device. Whoever asks for less than the device has is soon no flood again, even if few units do not
drain its queue, since a queue fills up with requests that came at their tenant's true rate.

The flood pays: it has what is not reserved, also while nobody else asks, until all others have been quiet for a second.
So this is a policy of its own, for those who would rather have it so.

Partitions do not keep memory bandwidth and caches apart. Nor can anything be reserved on a device of one atom: there
only the length of lanes is bounded (`LANE_SHARE`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from spacetime.device import Device
from spacetime.plan import Snapshot, TenantView
from spacetime.scheduler.arrangements import atoms_needed, lane_units
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.selection import ROWS_PER_LANE, Cohort
from spacetime.values import quickly_made

TOLERANCE = 0.05  # of the best latency of a lane: what the reserve may cost those that it is for
UNSEEN_SHARE = 5 / 6  # of the device: every model of the simulator is within 15% there, with one row
OVERLOAD = 0.8  # of the device, in the best of lanes: nobody is served at that rate beside others
FEW_WAITING = 8  # who has no more in its queue, and does not ask ...
BRISK_PER_S = 500.0  # ... so often, is not looked at
MANY_WAITING = 4 * ROWS_PER_LANE  # no more of a queue is shown


@quickly_made
@dataclass(frozen=True, slots=True)
class Part:
    """Cohorts that are served by themselves."""

    cohorts: list[Cohort]
    most_atoms: int  # of those that are free
    promised_us: float  # the tightest objective of those who may have to wait for a lane of these
    floods: frozenset[str]  # tenants that flood; not all of them need be in these cohorts


NOBODY = Part([], 0, inf, frozenset())


Share = Callable[[list[Cohort], int, Snapshot, CostModel], list[Part]]  # who is served together, and with how much


def together(cohorts: list[Cohort], num_free: int, snapshot: Snapshot, costs: CostModel) -> list[Part]:
    """Everybody, with all that is free."""
    return [Part(cohorts, num_free, snapshot.promised_us or inf, floods(cohorts, snapshot, costs))]


def parts(cohorts: list[Cohort], num_free: int, snapshot: Snapshot, costs: CostModel) -> list[Part]:
    """Everybody together; floods and others apart when somebody floods, first those who have the most urgent one."""
    flooding = floods(cohorts, snapshot, costs)
    if not flooding:
        return [Part(cohorts, num_free, snapshot.promised_us or inf, flooding)]
    reserved = reserved_atoms(snapshot, flooding, costs)
    if reserved == snapshot.device.num_atoms:
        return [Part(cohorts, num_free, snapshot.promised_us or inf, flooding)]
    parted = [each for cohort in cohorts for each in _parted(cohort, flooding)]
    of_floods, of_others = _held(snapshot, flooding)
    most_of_floods = max(0, min(num_free, snapshot.device.num_atoms - reserved - of_floods))
    # A second lane of the others has what the first one left of the reserve, or waits for it as it would without the
    # flood: on the atom that a flood's lane has just left it would take many times as long.
    most_of_others = max(0, min(num_free, reserved - of_others)) if of_others else num_free
    promised_us = snapshot.promised_us or inf
    waiting_us = [tenant.slo_us or inf for tenant in snapshot.tenants if tenant.name not in flooding]
    crowd = Part(
        [each for is_flood, each in parted if is_flood], most_of_floods, min([promised_us, *waiting_us]), flooding
    )
    others = Part([each for is_flood, each in parted if not is_flood], most_of_others, promised_us, flooding)
    return [crowd, others] if parted and parted[0][0] else [others, crowd]


def floods(cohorts: list[Cohort], snapshot: Snapshot, costs: CostModel) -> frozenset[str]:
    """Who asks for more than the device has, while somebody else was promised something."""
    if snapshot.promised_us is None and not any([cohort.has_deadlines for cohort in cohorts]):
        return frozenset()
    tenants = snapshot.tenants
    suspects = [each for each in tenants if len(each.waiting) > FEW_WAITING or each.arrivals_per_s > BRISK_PER_S]
    if not suspects:
        return frozenset()
    tightest = sorted([(each.slo_us, each.name) for each in tenants if each.slo_us is not None])[:2]
    found = []
    for tenant in suspects:
        others_us = [slo_us for slo_us, name in tightest if name != tenant.name]
        promised_us = min([snapshot.promised_us or inf, *others_us])
        if promised_us < inf and _floods(tenant, snapshot.device, costs, promised_us):
            found.append(tenant.name)
    return frozenset(found)


def reserved_atoms(snapshot: Snapshot, flooding: frozenset[str], costs: CostModel) -> int:
    """What any one lane of the others needs. An atom is left to floods, or they would never be served.

    All atoms where somebody can do with nothing less: then nothing can be reserved.
    """
    device = snapshot.device
    reserved = 0 if snapshot.promised_us is None else int(UNSEEN_SHARE * device.num_atoms)
    others = [tenant for tenant in snapshot.tenants if tenant.name not in flooding]
    for cohort, rows, fusible in {(tenant.cohort, tenant.waiting[0].rows, tenant.fusible) for tenant in others}:
        reserved = max(reserved, _needed(cohort, rows, fusible, device, costs))
    smallest = max([atoms_needed(tenant.min_units, device) for tenant in others if tenant.min_units > 1], default=0)
    return max(min(reserved, device.num_atoms - 1), smallest)


def _floods(tenant: TenantView, device: Device, costs: CostModel, promised_us: float) -> bool:
    """By its rate, which is known within a second, or by its queue.

    More than could be served in the time that others were promised came faster than it could be served.
    """
    if tenant.min_units > device.units_per_atom:
        return False  # it cannot be kept to a part of the device
    waiting = tenant.waiting
    rows = sum([view.rows for view in waiting])
    work_us = rows * _row_us(tenant, device, costs)
    if tenant.arrivals_per_s * work_us > OVERLOAD * 1e6 * len(waiting):
        return True
    came_within_us = waiting[-1].arrival_us - waiting[0].arrival_us
    return work_us > OVERLOAD * came_within_us and (work_us > promised_us or len(waiting) >= MANY_WAITING)


def _row_us(tenant: TenantView, device: Device, costs: CostModel) -> float:
    """Time of the whole device that a row takes: by itself on one atom, or in the fullest lane of the whole device.

    The larger of the two. What nobody measured yet has a price that invites to try it, far below what it will take.
    """
    cohort, fused = tenant.cohort, tenant.fusible
    alone_us = costs.lane_us(cohort, tenants=1, rows=1, units=lane_units(1, device), fused=fused) / device.num_atoms
    if not fused:
        return alone_us
    lane_us = costs.lane_us(cohort, tenants=1, rows=ROWS_PER_LANE, units=device.num_units, fused=True)
    return max(alone_us, lane_us / ROWS_PER_LANE)


def _needed(cohort: str, rows: int, fusible: bool, device: Device, costs: CostModel) -> int:
    """The least atoms, about, on which a request by itself is within the tolerance of its best beside a flood.

    The whole device is no measure: nobody runs there while somebody floods, and what was not seen for long is priced
    to be tried again.
    """

    def request_us(atoms: int) -> float:
        return costs.lane_us(cohort, tenants=1, rows=rows, units=lane_units(atoms, device), fused=fusible)

    enough, too_few = max(1, device.num_atoms - 1), 0
    bound_us = request_us(enough) * (1 + TOLERANCE)
    while enough - too_few > 1:  # waves make it not quite monotonous, but what is found is within the bound
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if request_us(middle) <= bound_us else (enough, middle)
    return enough


def _held(snapshot: Snapshot, flooding: frozenset[str]) -> tuple[int, int]:
    """How many atoms running lanes of floods have, and those of the others."""
    of_floods = of_others = 0
    for lane in snapshot.running:
        held = lane.atoms.bit_count() or atoms_needed(lane.units, snapshot.device)
        if any([name in flooding for name in lane.tenants]):
            of_floods += held
        else:
            of_others += held
    return of_floods, of_others


def _parted(cohort: Cohort, flooding: frozenset[str]) -> list[tuple[bool, Cohort]]:
    """(whether they flood, floods or others) of one cohort. Nobody waits for peers of the other kind."""
    floods_of = [chunk for chunk in cohort.chunks if chunk[2].name in flooding]
    if not floods_of:
        return [(False, cohort)]
    if len(floods_of) == len(cohort.chunks):
        return [(True, cohort)]
    others = [chunk for chunk in cohort.chunks if chunk[2].name not in flooding]
    parted = []
    for is_flood, chunks in ((False, others), (True, floods_of)):
        num_extra = len(chunks) - len({chunk[2].name for chunk in chunks})
        part = Cohort(cohort.name, cohort.fusible, False, chunks, cohort.min_units, cohort.has_deadlines, num_extra)
        parted.append((is_flood, part))
    return parted
