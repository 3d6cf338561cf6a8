"""Policy `static`: equal partitions that stay as they are, as when every model gets a MIG slice of its own.

The device is cut once for all tenants that exist, whether they wait or not: the partition of an idle tenant stays idle,
and so do the atoms that no equal cut can use. Where there are more tenants than atoms, several share a partition and
take turns.
"""

from __future__ import annotations

from typing import NamedTuple

from spacetime.device import Device, Partition
from spacetime.plan import Lane, Plan, Segment, Snapshot, TenantView
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy


class Cut(NamedTuple):
    """Equal partitions, numbered from the lowest atom on."""

    num_partitions: int
    atoms_each: int


@policy("static")
def static(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Each tenant runs its requests in order, one at a time, on its own partition."""
    device, names = snapshot.device, snapshot.roster or [tenant.name for tenant in snapshot.tenants]
    cut = _cut(len(names), device)
    places = {name: place for place, name in enumerate(names)}
    free, lanes = snapshot.free_atoms, []
    for tenant in sorted([tenant for tenant in snapshot.tenants if not tenant.running], key=_turn):
        if not free:
            break
        atoms = _span(tenant, places[tenant.name] % cut.num_partitions, cut, device)
        if not atoms & ~free:
            lanes.append(Lane(tenant.cohort, tenant.waiting[:1], (Segment(_partition(atoms, device)),), False))
        free &= ~atoms  # also when it must wait for a part of them: those who come after it may not prolong that
    return Plan(tuple(lanes))


def _turn(tenant: TenantView) -> tuple[float, int]:
    """Whoever was served least is next."""
    return tenant.served_us / tenant.weight, tenant.waiting[0].arrival_us


def _cut(num_tenants: int, device: Device) -> Cut:
    num_partitions = min(num_tenants, device.num_atoms)
    return Cut(num_partitions, device.num_atoms // max(1, num_partitions))


def _span(tenant: TenantView, place: int, cut: Cut, device: Device) -> int:
    """The tenant's partition; for one that needs more than that, as many of its neighbours as it takes."""
    size = cut.atoms_each
    if tenant.min_units > size * device.units_per_atom:
        size = min(device.num_atoms, -(-tenant.min_units // device.units_per_atom))
    first = min(place * cut.atoms_each, device.num_atoms - size)
    return ((1 << size) - 1) << first


def _partition(atoms: int, device: Device) -> Partition:
    """All atoms hold the whole device, with the units that fill no atom."""
    if atoms == device.all_atoms:
        return device.whole
    units = atoms.bit_count() * device.units_per_atom
    return Partition(atoms, units, units)
