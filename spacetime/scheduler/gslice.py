"""Policy `gslice`: a share of the device per tenant, as GSLICE (SoCC 2020) gives to processes, and batches of its own.

A tenant starts at its model's knee. From then on its share follows what is observed (gslice_sizes.py): the policy asks
for a Resize, the old share serves until executables for the new one are ready. Requests of one tenant are batched, as
many as half of its objective allows; tenants are never fused.

Shares count among those that wait or run: an idle tenant keeps its share but holds no atoms. Where they do not fit,
lanes start on fewer atoms, max-min: the lowest shares are met first and the highest give way. That cuts lanes, not
shares, so that a tenant has its share back as soon as the others are idle.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, takewhile

from spacetime.device import Partition
from spacetime.plan import Lane, Plan, RequestView, Resize, Segment, Snapshot, TenantView
from spacetime.scheduler.gslice_sizes import MAX_ROWS, Served, Shares, batch_budget_us, water_level
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy


@policy("gslice")
def gslice(snapshot: Snapshot, costs: CostModel) -> Plan:
    """One lane per tenant that has none, the least served first, as far as there are atoms."""
    free = snapshot.free_atoms
    waiting = [tenant for tenant in snapshot.tenants if not tenant.running]
    if not free or not waiting:
        return Plan()
    waiting.sort(key=_turn)
    shares = Shares(snapshot, costs)
    level, spare = _level(waiting, snapshot, shares)
    lanes, resizes = [], []
    for tenant in waiting:
        share = shares.share(tenant)
        size = min(share, max(level, shares.floor(tenant)))
        if size < share and spare > 0:
            size, spare = size + 1, spare - 1
        if size > free.bit_count():
            break  # it is next: what is free stays free until there is enough, or it would wait for ever
        units = shares.units(size)
        batch = _batch(tenant, units, costs)
        atoms = _lowest(free, size)
        free &= ~atoms
        lanes.append(Lane(tenant.cohort, batch, (Segment(Partition(atoms, units, units)),), tenant.fusible))
        resize = _resize(tenant, share, Served(size, _rows(batch), len(batch) < len(tenant.waiting)), shares)
        if resize is not None:
            resizes.append(resize)
        if not free:
            break
    return Plan(tuple(lanes), resizes=tuple(resizes))


def _turn(tenant: TenantView) -> tuple[float, int]:
    return tenant.served_us / tenant.weight, tenant.waiting[0].arrival_us


def _level(waiting: list[TenantView], snapshot: Snapshot, shares: Shares) -> tuple[int, int]:
    """The most atoms for any one tenant, and how many are left over when all that wait have got theirs."""
    num_atoms, running = snapshot.device.num_atoms, snapshot.running
    if len(waiting) + len(running) >= num_atoms:
        return 1, 0  # an atom for each: no need to look at their shares
    wants = [shares.share(tenant) for tenant in waiting]
    floors = [shares.floor(tenant) for tenant in waiting]
    held = [max(1, shares.atoms(lane.units)) for lane in running]
    level = water_level(wants + held, floors + [1] * len(held), num_atoms)
    sizes = [min(want, max(floor, level)) for want, floor in zip(wants, floors, strict=True)]
    return level, snapshot.free_atoms.bit_count() - sum(sizes)


def _batch(tenant: TenantView, units: int, costs: CostModel) -> tuple[RequestView, ...]:
    """As many of its oldest requests as end within half of the objective; what cannot be fused gains nothing by it."""
    waiting = tenant.waiting
    if len(waiting) == 1 or not tenant.fusible:
        return waiting[:1]

    def lane_us(rows: int) -> float:
        return costs.lane_us(tenant.cohort, tenants=1, rows=rows, units=units)

    sums = list(takewhile(lambda rows: rows <= MAX_ROWS, accumulate([request.rows for request in waiting])))
    budget_us = batch_budget_us(tenant)
    if not sums or lane_us(sums[-1]) > budget_us:
        return waiting[: max(1, bisect_right(sums, budget_us, key=lane_us))]
    return waiting[: len(sums)]


def _rows(batch: tuple[RequestView, ...]) -> int:
    return sum([request.rows for request in batch])


def _lowest(free: int, num_atoms: int) -> int:
    """A mask of the lowest free atoms."""
    rest = free
    for _ in range(num_atoms):
        rest &= rest - 1
    return free & ~rest


def _resize(tenant: TenantView, share: int, served: Served, shares: Shares) -> Resize | None:
    """What to ask for, if anything; one thing at a time."""
    if tenant.resizing:
        return None
    wanted = shares.tuned(tenant, share, served)
    return None if tenant.share_units is not None and wanted == share else Resize(tenant.name, shares.units(wanted))
