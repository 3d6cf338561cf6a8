"""Policy `streams`: every tenant at once on the whole device, uncontrolled, as with one plain stream per model."""

from __future__ import annotations

from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy


@policy("streams")
def streams(snapshot: Snapshot, costs: CostModel) -> Plan:
    """Each tenant runs its requests in order, one at a time, whatever the others do."""
    whole = (Segment(snapshot.device.whole),)
    lanes = [Lane(tenant.cohort, tenant.waiting[:1], whole, False) for tenant in snapshot.tenants if not tenant.running]
    return Plan(tuple(lanes), isolated=False)
