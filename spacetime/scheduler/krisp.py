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
from weakref import WeakKeyDictionary

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
    capabilities = snapshot.capabilities
    floats = capabilities.placement and capabilities.segments
    lanes = _floating if floats else _confined
    isolated = placement.max_overlap == 0
    if isolated and tenants:
        placement = _isolated(placement.order, _equal_share(snapshot, len(tenants)))
    return Plan(tuple(lanes(tenants, placement, snapshot, _Sizings(snapshot.device, costs, floats))), isolated=isolated)


def _equal_share(snapshot: Snapshot, num_starting: int) -> int:
    """In units, of each lane that runs or starts."""
    device = snapshot.device
    return max(1, device.num_atoms // (len(snapshot.running) + num_starting)) * device.units_per_atom


@lru_cache(maxsize=512)  # the simulator compares placements: equal ones are the same
def _isolated(order: str, min_units: int) -> Placement:
    return Placement(order, 0, min_units)


def _floating(tenants: list[TenantView], placement: Placement, snapshot: Snapshot, sizings: _Sizings) -> list[Lane]:
    """The device sees to it that kernels keep apart, or wait."""
    return [Lane(t.cohort, t.waiting[:1], sizings[_lane_kind(t)].segments, False, placement) for t in tenants]


def _confined(tenants: list[TenantView], placement: Placement, snapshot: Snapshot, sizings: _Sizings) -> list[Lane]:
    """On atoms that are the lane's from its start to its end."""
    device, free_atoms = snapshot.device, snapshot.free_atoms & snapshot.device.all_atoms
    isolated = placement.max_overlap == 0
    held = [device.all_atoms & ~free_atoms] if isolated else [lane.atoms for lane in snapshot.running]
    allocator, num_free = Allocator(device, placement, held), free_atoms.bit_count()
    share = placement.min_units // device.units_per_atom
    segments: dict[int, tuple[Segment, ...]] = {}
    lanes = []
    for tenant in tenants:
        if isolated and not num_free:
            break
        sizing = sizings[_lane_kind(tenant)]
        if isolated and num_free < max(sizing.smallest, min(share, sizing.largest)):
            break  # it is next: what is free stays free until there is enough, or it would wait for ever
        atoms = allocator.take(sizing.largest)
        num_free -= atoms.bit_count()
        if atoms not in segments:
            segments[atoms] = (Segment(_partition(atoms, device)),)
        lanes.append(Lane(tenant.cohort, tenant.waiting[:1], segments[atoms], False))
    return lanes


def _arrival_us(tenant: TenantView) -> int:
    return tenant.waiting[0].arrival_us


def _partition(atoms: int, device: Device) -> Partition:
    units = _units(atoms.bit_count(), device)
    return Partition(atoms, units, units)


def _units(num_atoms: int, device: Device) -> int:
    """All atoms hold the whole device, with the units that fill no atom."""
    return device.num_units if num_atoms == device.num_atoms else num_atoms * device.units_per_atom


LaneKind = tuple[str, int, int]  # cohort, rows, the tenant's min_units


def _lane_kind(tenant: TenantView) -> LaneKind:
    return tenant.cohort, tenant.waiting[0].rows, tenant.min_units


class _Sizings(dict[LaneKind, Sizing]):
    """Tenants of one cohort need the same: within a decision each kind of lane is looked up once."""

    def __init__(self, device: Device, costs: CostModel, floats: bool) -> None:
        super().__init__()
        self._floats = floats
        self._device = device
        self._costs = costs

    def __missing__(self, kind: LaneKind) -> Sizing:
        cohort, rows, min_units = kind
        times = self._costs.kernel_times(cohort, tenants=1, rows=rows, fused=False)
        sizing = self[kind] = _sizing(times, min_units, self._device, self._floats)
        return sizing


# A function of values that do not change, and too slow to work out again for every decision.
_sizings: WeakKeyDictionary[KernelTimes, dict[tuple[int, int, int, bool], Sizing]] = WeakKeyDictionary()


def _sizing(times: KernelTimes, min_units: int, device: Device, floats: bool) -> Sizing:
    known = _sizings.get(times)
    if known is None:
        known = _sizings[times] = {}
    key = min_units, device.num_units, device.units_per_atom, floats
    if key not in known:
        known[key] = _size_lane(times, min_units, device, floats)
    return known[key]


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
