"""What a plan must satisfy before it touches a device. The loop, the simulator and tests call `verify`; pure."""

from __future__ import annotations

from collections.abc import Iterable

from spacetime.device import Capabilities, Device, Partition
from spacetime.errors import PlanError
from spacetime.plan import Lane, Plan, RequestView, Snapshot, TenantView


def verify(plan: Plan, snapshot: Snapshot, capabilities: Capabilities) -> None:
    """Raise PlanError, naming the lane and the rule that it breaks."""
    if plan.wake_at_us is not None and plan.wake_at_us <= snapshot.now_us:
        raise PlanError(f"wake_at_us is {plan.wake_at_us}", f"now is {snapshot.now_us}", "wake in the future, or None")
    tenants = {tenant.name: tenant for tenant in snapshot.tenants}
    takeable: dict[str, dict[int, RequestView]] = {}
    running = {tenant.name: tenant.running for tenant in snapshot.tenants}
    for index, lane in enumerate(plan.lanes):
        _verify_segments(index, lane, snapshot.device, capabilities)
        for name in lane.tenants:
            if name not in tenants:
                raise PlanError(f"lane {index}: tenant {name!r} has nothing waiting")
            running[name] += 1
            _verify_tenant(index, lane, tenants[name], running[name])
            if name not in takeable:
                takeable[name] = {view.id: view for view in tenants[name].waiting}
        _verify_requests(index, lane, tenants, takeable)
    if plan.isolated:
        _verify_isolation(plan.lanes, snapshot)


def _verify_requests(
    index: int, lane: Lane, tenants: dict[str, TenantView], takeable: dict[str, dict[int, RequestView]]
) -> None:
    if not lane.requests:
        raise PlanError(f"lane {index} of cohort {lane.cohort!r} is empty")
    for request in lane.requests:
        known = takeable[request.tenant].pop(request.id, None)
        if known is not request and known != request:
            taken = known is None and any(view.id == request.id for view in tenants[request.tenant].waiting)
            problem = "is in the plan twice" if taken else "does not wait"
            raise PlanError(f"lane {index}: request {request.id} of tenant {request.tenant!r} {problem}")


def _verify_tenant(index: int, lane: Lane, tenant: TenantView, num_lanes: int) -> None:
    if num_lanes > tenant.max_concurrency:
        facts = f"max_concurrency is {tenant.max_concurrency}"
        raise PlanError(f"lane {index}: tenant {tenant.name!r} would run in {num_lanes} lanes at once", facts)
    if tenant.cohort != lane.cohort:
        facts = f"tenant {tenant.name!r} is of cohort {tenant.cohort!r}"
        raise PlanError(f"lane {index} is of cohort {lane.cohort!r}", facts, "one cohort per lane")
    if lane.units < tenant.min_units:
        facts = f"lane has {lane.units} units, the tenant needs {tenant.min_units}"
        raise PlanError(f"lane {index} is too small for tenant {tenant.name!r}", facts)
    if not tenant.fusible and (lane.fused or len(lane.tenants) > 1):
        facts = f"lane has fused={lane.fused} and {len(lane.tenants)} tenants"
        raise PlanError(
            f"lane {index}: tenant {tenant.name!r} is not fusible", facts, "give it a plain lane of its own"
        )


def _verify_segments(index: int, lane: Lane, device: Device, capabilities: Capabilities) -> None:
    kernel = 0
    for segment in lane.segments:
        _verify_partition(index, segment.partition, device)
        last = segment.last_kernel
        if segment.first_kernel != kernel or (last != -1 and last <= kernel):
            facts = f"kernels {segment.first_kernel}..{last} follow kernel {kernel}"
            raise PlanError(f"lane {index}: segments have a gap or overlap", facts)
        kernel = last
    if kernel != -1:
        raise PlanError(f"lane {index}: segments end at kernel {kernel}", "the last one must end at -1")
    floating = [segment.partition.is_floating for segment in lane.segments]
    if any(floating):
        if not all(floating) or lane.placement is None:
            facts = f"{sum(floating)} of {len(floating)} segments float, placement is {lane.placement}"
            raise PlanError(f"lane {index} floats in part", facts, "float in every segment, and say how to place them")
        if not capabilities.placement:
            raise PlanError(f"lane {index} floats", "this backend cannot place kernels", "give it atoms")
    if len(lane.segments) > 1 and not capabilities.segments:
        raise PlanError(f"lane {index} has {len(lane.segments)} segments", "this backend can run one per lane")


def _verify_partition(index: int, partition: Partition, device: Device) -> None:
    atoms = partition.atoms
    if partition.is_floating:
        if not 1 <= partition.granted_units <= device.num_units:
            facts = f"the device has {device.num_units}"
            raise PlanError(f"lane {index}: {partition.granted_units} floating units were granted", facts)
        return
    if atoms <= 0 or atoms & ~device.all_atoms:
        raise PlanError(f"lane {index}: atoms {atoms:#x} are not on the device", f"it has {device.all_atoms:#x}")
    granted = device.num_units if atoms == device.all_atoms else atoms.bit_count() * device.units_per_atom
    if partition.granted_units not in (granted, atoms.bit_count() * device.units_per_atom):
        facts = f"{atoms.bit_count()} atoms hold {granted} units"
        raise PlanError(f"lane {index}: {partition.granted_units} units were granted", facts)
    if not 1 <= partition.asked_units <= partition.granted_units:
        facts = f"{partition.granted_units} were granted"
        raise PlanError(f"lane {index}: {partition.asked_units} units were asked for", facts)


def _verify_isolation(lanes: Iterable[Lane], snapshot: Snapshot) -> None:
    free = snapshot.free_atoms
    for index, lane in enumerate(lanes):
        atoms = lane.atoms
        if atoms & ~free:
            facts = f"atoms {atoms & ~free:#x} are taken"
            raise PlanError(f"lane {index} of an isolated plan overlaps another lane", facts, "take free atoms only")
        free &= ~atoms
