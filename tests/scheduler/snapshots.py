"""Random snapshots of tenants that own parts of the device: shares, rosters, lanes of their own that run."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from spacetime.device import Device, Partition
from spacetime.plan import Lane, RequestView, Segment, Snapshot, TenantView
from tests.scheduler.harness import tenant_view

DEVICES = (
    Device("one core", "null", 1),
    Device("three cores", "null", 3),
    Device("132 units by 8", "null", 132, 8),  # 16 atoms and a remainder
    Device("304 units", "null", 304, 1, num_groups=8),
)


@st.composite
def snapshots(draw: st.DrawFn, *, idle: bool = False) -> Snapshot:
    """`idle`: nothing runs."""
    device = draw(st.sampled_from(DEVICES))
    rates = st.sampled_from([0.0, 10.0, 1000.0])
    tenants: list[TenantView] = []
    running: list[Lane] = []
    free = device.all_atoms
    for index in range(draw(st.integers(1, 20))):
        fusible = draw(st.booleans())
        tenant = tenant_view(
            f"t{index}",
            *draw(st.lists(st.integers(1, 100), min_size=1, max_size=6)),
            cohort=draw(st.sampled_from("xy")) if fusible else f"opaque{index}",
            fusible=fusible,
            weight=draw(st.sampled_from([0.5, 1.0, 4.0])),
            slo_us=draw(st.sampled_from([None, 1, 1000, 1_000_000])),
            max_concurrency=draw(st.integers(1, 3)),
            min_units=draw(st.sampled_from([1, 1, device.num_units // 2 + 1, device.num_units])),
            share_units=draw(st.none() | st.integers(1, device.num_units)),
            resizing=draw(st.booleans()),
            served_us=draw(st.integers(0, 1000)),
            arrivals_per_s=draw(rates),
            completions_per_s=draw(rates),
            latency_us=draw(rates),
            arrival_us=draw(st.integers(0, 1000)),
        )
        if free and not idle and draw(st.integers(0, 3)) == 0:
            lane = _running(draw, tenant, device, free)
            free &= ~lane.atoms
            running.append(lane)
            tenant = replace(tenant, running=1)
        tenants.append(tenant)
    waiting = tuple(tenant for tenant in tenants if not tenant.running or draw(st.booleans()))
    roster = draw(st.permutations([*(tenant.name for tenant in tenants), "idle 0", "idle 1"]))
    now_us = draw(st.sampled_from([1000, 10_000_000]))
    return Snapshot(now_us, device, free, waiting, tuple(running), roster=tuple(roster))


def _running(draw: st.DrawFn, tenant: TenantView, device: Device, free: int) -> Lane:
    """A lane of the tenant on some of the free atoms."""
    atoms = 0
    for _ in range(draw(st.integers(1, free.bit_count()))):
        lowest = free & -free
        free ^= lowest
        atoms |= lowest
    units = atoms.bit_count() * device.units_per_atom
    return Lane(tenant.cohort, (RequestView(99, tenant.name, 1, 0),), (Segment(Partition(atoms, units, units)),))
