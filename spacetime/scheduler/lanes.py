"""Drafts as lanes: which atoms each has, and in what segments its kernels run there. Only `space_time` imports it.

A lane keeps its atoms from its start to its end. Smaller segments inside of it would free nothing for others, so they
are made only where kernels run faster on fewer atoms. A floating lane has no atoms: the device places every kernel, on
as many units as the lane's segment needs (docs/decisions/003, segments.py).
"""

from __future__ import annotations

from functools import lru_cache

from spacetime.device import Device, Partition
from spacetime.plan import Lane, Placement, Segment, Snapshot
from spacetime.scheduler.allocation import UNLIMITED
from spacetime.scheduler.arrangements import atoms_needed, lane_units
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.segments import SEGMENTS_FROM_US, Run, fastest_runs, leanest_runs
from spacetime.scheduler.widening import Draft

ANYWHERE = Placement("conserved", UNLIMITED)


def lanes_of(drafts: list[Draft], snapshot: Snapshot, costs: CostModel) -> tuple[Lane, ...]:
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


def floating_lane(draft: Draft, device: Device, costs: CostModel) -> Lane:
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


def mean_atoms(lane: Lane, device: Device, costs: CostModel) -> float:
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
