"""Policy `time_slice`: one request at a time on the whole device, as when models are called one after another."""

from __future__ import annotations

from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy


@policy("time_slice")
def time_slice(snapshot: Snapshot, costs: CostModel) -> Plan:
    """The tenant that has waited longest runs one request; nobody else meanwhile."""
    if snapshot.running or not snapshot.tenants:
        return Plan()
    request = min((tenant.waiting[0] for tenant in snapshot.tenants), key=lambda view: (view.arrival_us, view.id))
    cohort = next(tenant.cohort for tenant in snapshot.tenants if tenant.name == request.tenant)
    return Plan((Lane(cohort, (request,), (Segment(snapshot.device.whole),), fused=False),))
