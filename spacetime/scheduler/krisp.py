"""Policies `krisp...`: as much of the device as each kernel needs, and no more. Nothing is fused.

KRISP (HPCA 2023) serves one model per worker: so does each tenant here, one request after another. A kernel is given
its knee. Where the device places kernels itself (`Capabilities.placement`), a lane floats, and changes size from
kernel to kernel; where not, a lane keeps to the atoms that its largest kernel needs.

`krisp`, `krisp_packed` and `krisp_distributed` isolate: a kernel gets fewer atoms than its knee when others hold them,
but never fewer than an equal share of the device among the lanes that run (or its knee, if that is less): it waits for
those. Without such a bound a kernel that starts at a bad moment is left with a single unit until it ends.
`krisp_overlap...` share atoms without limit, those that the fewest hold first.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from spacetime.device import Device, Partition
from spacetime.plan import Lane, Placement, Plan, Segment, Snapshot, TenantView
from spacetime.scheduler.allocation import UNLIMITED, Allocator
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy
from spacetime.scheduler.tables import KernelTimes

# At once, or one per atom, and no more than hardware queues: others would wait on the device, not in the queue.
MAX_LANES = 64


class Sizing(NamedTuple):
    """What the kernels of a lane need."""

    largest: int  # atoms
    smallest: int  # atoms; the tenant takes no fewer
    segments: tuple[Segment, ...]  # one per run of kernels of equal size; of lanes that do not float: none


def _decide(placement: Placement, snapshot: Snapshot, costs: CostModel) -> Plan:
    """Start a lane for every tenant that has none, oldest request first, as far as there is room."""
    tenants = [tenant for tenant in snapshot.tenants if not tenant.running]
    tenants.sort(key=_arrival_us)
    most = max(MAX_LANES, snapshot.device.num_atoms)
    if snapshot.device.hardware_queues:
        most = min(most, snapshot.device.hardware_queues)
    del tenants[max(0, most - len(snapshot.running)) :]
    isolated = placement.max_overlap == 0
    if isolated and tenants:
        placement = _isolated(placement.order, _equal_share(snapshot, len(tenants)))
    floats = snapshot.capabilities.placement and snapshot.capabilities.segments
    lanes = _floating if floats else _confined
    return Plan(tuple(lanes(tenants, placement, snapshot, costs)), isolated=isolated)


def _equal_share(snapshot: Snapshot, num_starting: int) -> int:
    """In units, of each lane that runs or starts."""
    device = snapshot.device
    return max(1, device.num_atoms // (len(snapshot.running) + num_starting)) * device.units_per_atom


@lru_cache(maxsize=512)  # the simulator compares placements: equal ones are the same
def _isolated(order: str, min_units: int) -> Placement:
    return Placement(order, 0, min_units)


def _floating(tenants: list[TenantView], placement: Placement, snapshot: Snapshot, costs: CostModel) -> list[Lane]:
    """The device sees to it that kernels keep apart, or wait."""
    sizings: dict[LaneKind, Sizing] = {}
    lanes = []
    for tenant in tenants:
        kind = tenant.cohort, tenant.waiting[0].rows, tenant.min_units
        sizing = sizings.get(kind)
        if sizing is None:
            sizing = sizings[kind] = _sizing(kind, snapshot.device, costs, True)
        lanes.append(Lane(tenant.cohort, tenant.waiting[:1], sizing.segments, False, placement))
    return lanes


def _confined(tenants: list[TenantView], placement: Placement, snapshot: Snapshot, costs: CostModel) -> list[Lane]:
    """On atoms that are the lane's from its start to its end."""
    device, free_atoms = snapshot.device, snapshot.free_atoms & snapshot.device.all_atoms
    if placement.max_overlap == 0:
        held = [device.all_atoms & ~free_atoms]
        sizes = _sizes(tenants, free_atoms.bit_count(), placement.min_units // device.units_per_atom, device, costs)
    else:
        held = [lane.atoms for lane in snapshot.running]
        sizes = _sizes(tenants, None, 0, device, costs)
    masks = Allocator(device, placement, held).take_each(sizes)
    segments = {atoms: _whole_lane(atoms, _units(atoms.bit_count(), device)) for atoms in set(masks)}
    return [
        Lane(tenant.cohort, tenant.waiting[:1], segments[atoms], False)
        for tenant, atoms in zip(tenants, masks, strict=False)
    ]


def _sizes(tenants: list[TenantView], num_free: int | None, share: int, device: Device, costs: CostModel) -> list[int]:
    """How many atoms each of the tenants that can start is to have. `num_free` None: as many as they like."""
    known: dict[LaneKind, tuple[int, int]] = {}
    sizes = []
    for tenant in tenants:
        if num_free == 0:
            break
        kind = tenant.cohort, tenant.waiting[0].rows, tenant.min_units
        found = known.get(kind)
        if found is None:
            sizing = _sizing(kind, device, costs, False)
            found = known[kind] = (sizing.largest, sizing.smallest)
        largest, smallest = found
        if num_free is not None:
            if num_free < max(smallest, min(share, largest)):
                break  # it is next: what is free stays free until there is enough, or it would wait for ever
            num_free -= min(largest, num_free)
        sizes.append(largest)
    return sizes


def _arrival_us(tenant: TenantView) -> int:
    return tenant.waiting[0].arrival_us


@lru_cache(maxsize=4096)
def _whole_lane(atoms: int, units: int) -> tuple[Segment, ...]:
    return (Segment(Partition(atoms, units, units)),)


def _units(num_atoms: int, device: Device) -> int:
    """All atoms hold the whole device, with the units that fill no atom."""
    return device.num_units if num_atoms == device.num_atoms else num_atoms * device.units_per_atom


LaneKind = tuple[str, int, int]  # cohort, rows, the tenant's min_units: tenants that agree in these need the same


def _sizing(kind: LaneKind, device: Device, costs: CostModel, floats: bool) -> Sizing:
    """Kept with the times that it follows from: it is too slow to work out again for every decision."""
    cohort, rows, min_units = kind
    times = costs.kernel_times(cohort, tenants=1, rows=rows, fused=False)
    key = "krisp", min_units, device.num_units, device.units_per_atom, floats
    sizing: Sizing | None = times.derived.get(key)
    if sizing is None:
        sizing = times.derived[key] = _size_lane(times, min_units, device, floats)
    return sizing


def _size_lane(times: KernelTimes, min_units: int, device: Device, floats: bool) -> Sizing:
    smallest = min(device.num_atoms, -(-min_units // device.units_per_atom))
    sizes = times.knees()
    if not floats:
        return Sizing(max(int(sizes.max()), smallest), smallest, ())
    sizes = np.maximum(sizes, smallest)
    starts = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist()]
    ends = [*starts[1:], -1]
    segments = tuple(
        Segment(Partition.floating(_units(int(sizes[start]), device)), start, end)
        for start, end in zip(starts, ends, strict=True)
    )
    return Sizing(int(sizes.max()), smallest, segments)


krisp = policy("krisp")(partial(_decide, Placement("conserved", 0)))
krisp_packed = policy("krisp_packed")(partial(_decide, Placement("packed", 0)))
krisp_distributed = policy("krisp_distributed")(partial(_decide, Placement("distributed", 0)))
krisp_overlap = policy("krisp_overlap")(partial(_decide, Placement("conserved", UNLIMITED)))
krisp_overlap_packed = policy("krisp_overlap_packed")(partial(_decide, Placement("packed", UNLIMITED)))
krisp_overlap_distributed = policy("krisp_overlap_distributed")(partial(_decide, Placement("distributed", UNLIMITED)))
