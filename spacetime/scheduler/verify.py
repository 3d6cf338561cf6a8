"""What a plan must satisfy before it touches a device. The loop, the simulator and tests call `verify`; pure."""

from __future__ import annotations

from collections.abc import Sequence

from spacetime.device import Capabilities, Device, Partition
from spacetime.errors import PlanError
from spacetime.plan import Lane, Plan, RequestView, Snapshot, TenantView


def verify(plan: Plan, snapshot: Snapshot, capabilities: Capabilities) -> None:
    """Raise PlanError, naming the lane and the rule that it breaks."""
    if plan.wake_at_us is not None and plan.wake_at_us <= snapshot.now_us:
        raise PlanError(f"wake_at_us is {plan.wake_at_us}", f"now is {snapshot.now_us}", "wake in the future, or None")
    lanes = plan.lanes
    if not lanes:
        return
    taken = _Taken(snapshot)
    extents: dict[tuple[int, bool], tuple[int, int]] = {}  # lanes may share their segments: those need one look
    held = []
    for index, lane in enumerate(lanes):
        kind = (id(lane.segments), lane.placement is None)
        extent = extents.get(kind)
        if extent is None:
            extent = extents[kind] = _extent(index, lane, snapshot.device, capabilities)
        atoms, units = extent
        held.append(atoms)
        _verify_lane(index, lane, units, taken)
    if plan.isolated:
        _verify_isolation(held, snapshot)


class _Taken:
    """Who waits, and what of it earlier lanes of the plan have taken."""

    __slots__ = ("left", "merged", "num_taken", "running", "tenants")

    def __init__(self, snapshot: Snapshot) -> None:
        self.tenants = {tenant.name: tenant for tenant in snapshot.tenants}
        self.running: dict[str, int] = {}  # lanes of a tenant, those of the plan included
        self.merged = {view.id: view.cohorts for view in snapshot.merged} if snapshot.merged else {}
        self.num_taken: dict[str, int] = {}  # of a queue, from its head on, while they are taken in order
        self.left: dict[str, dict[int, RequestView]] = {}  # of one whose requests were not

    def take_out_of_order(self, index: int, request: RequestView, views: Sequence[RequestView]) -> None:
        name = request.tenant
        left = self.left.get(name)
        if left is None:
            left = self.left[name] = {view.id: view for view in views[self.num_taken.get(name, 0) :]}
            self.num_taken[name] = len(views)
        known = left.pop(request.id, None)
        if known is not request and known != request:
            is_taken = known is None and any(view.id == request.id for view in views)
            problem = "is in the plan twice" if is_taken else "does not wait"
            facts = f"the snapshot has {len(views)} requests of it"
            what = f"lane {index}: request {request.id} of tenant {name!r} {problem}"
            raise PlanError(what, facts, "take each of them once at most, and as it is there")


def _verify_lane(index: int, lane: Lane, units: int, taken: _Taken) -> None:
    """Its tenants, and that each of its requests waits and is taken once."""
    requests, cohort = lane.requests, lane.cohort
    if not requests:
        raise PlanError(f"lane {index} of cohort {cohort!r} is empty", "it has no requests", "leave it out of the plan")
    members = taken.merged.get(cohort, _NO_MEMBERS)
    tenants, running, num_taken = taken.tenants, taken.running, taken.num_taken
    names: set[str] = set()
    for request in requests:
        name = request.tenant
        tenant = tenants.get(name)
        if tenant is None:
            facts = f"{len(tenants)} tenants wait: {', '.join(list(tenants)[:8]) or 'none'}"
            raise PlanError(f"lane {index}: tenant {name!r} has nothing waiting", facts, "plan for snapshot.tenants")
        if name not in names:
            names.add(name)
            num_lanes = running[name] = running.get(name, tenant.running) + 1
            if (
                num_lanes > tenant.max_concurrency
                or (tenant.cohort != cohort and tenant.cohort not in members)
                or units < tenant.min_units
                or not tenant.fusible
            ):
                _verify_tenant(index, lane, members, units, tenant, num_lanes)
            if members and (tenant.apart or not lane.fused):
                _refuse_merged(index, lane, tenant)
        views, count = tenant.waiting, num_taken.get(name, 0)
        if count < len(views) and views[count] is request:  # as in most plans: spare the dictionary
            num_taken[name] = count + 1
        else:
            taken.take_out_of_order(index, request, views)


_NO_MEMBERS: tuple[str, ...] = ()


def _verify_tenant(
    index: int,
    lane: Lane,
    members: tuple[str, ...],
    units: int,
    tenant: TenantView,
    num_lanes: int,
) -> None:
    if num_lanes > tenant.max_concurrency:
        what = f"lane {index}: tenant {tenant.name!r} would run in {num_lanes} lanes at once"
        facts = f"max_concurrency is {tenant.max_concurrency}, {tenant.running} of its lanes run"
        raise PlanError(what, facts, "put its requests into one lane, or wait until a lane ends")
    if tenant.cohort != lane.cohort and tenant.cohort not in members:
        facts = f"tenant {tenant.name!r} is of cohort {tenant.cohort!r}"
        raise PlanError(f"lane {index} is of cohort {lane.cohort!r}", facts, "one cohort per lane, or merged ones")
    if units < tenant.min_units:
        facts = f"lane has {units} units, the tenant needs {tenant.min_units}"
        raise PlanError(f"lane {index} is too small for tenant {tenant.name!r}", facts, "grant min_units or more")
    if not tenant.fusible and (lane.fused or len(lane.tenants) > 1 or members):
        facts = f"lane has fused={lane.fused} and {len(lane.tenants)} tenants"
        raise PlanError(
            f"lane {index}: tenant {tenant.name!r} is not fusible", facts, "give it a plain lane of its own"
        )


def _refuse_merged(index: int, lane: Lane, tenant: TenantView) -> None:
    if not lane.fused:
        what, next_step = f"lane {index} is merged and plain", "merged lanes are fused; plain ones have one cohort"
        raise PlanError(what, f"its id is {lane.cohort!r}", next_step)
    what, facts = f"lane {index} is merged with a straggler", f"tenant {tenant.name!r} is apart"
    raise PlanError(what, facts, "give it a lane of its own until it keeps up")


def _extent(index: int, lane: Lane, device: Device, capabilities: Capabilities) -> tuple[int, int]:
    """The atoms and units of a lane whose segments are sound."""
    segments = lane.segments
    if len(segments) == 1:
        segment = segments[0]
        partition = segment.partition
        if partition.atoms and segment.first_kernel == 0 and segment.last_kernel == -1:
            _verify_partition(index, partition, device)
            return partition.atoms, partition.granted_units
    _verify_segments(index, lane, device, capabilities)
    return lane.atoms, lane.units


def _verify_segments(index: int, lane: Lane, device: Device, capabilities: Capabilities) -> None:
    kernel = num_floating = 0
    for segment in lane.segments:
        _verify_partition(index, segment.partition, device)
        num_floating += segment.partition.is_floating
        last = segment.last_kernel
        if segment.first_kernel != kernel or (last != -1 and last <= kernel):
            facts = f"kernels {segment.first_kernel}..{last} follow kernel {kernel}"
            next_step = "begin each where the one before ended, the first at kernel 0"
            raise PlanError(f"lane {index}: segments have a gap or overlap", facts, next_step)
        kernel = last
    if kernel != -1:
        facts = f"there are {len(lane.segments)} of them"
        raise PlanError(f"lane {index}: segments end at kernel {kernel}", facts, "have the last one end at -1")
    if num_floating:
        if num_floating < len(lane.segments) or lane.placement is None:
            facts = f"{num_floating} of {len(lane.segments)} segments float, placement is {lane.placement}"
            raise PlanError(f"lane {index} floats in part", facts, "float in every segment, and say how to place them")
        if not capabilities.placement:
            raise PlanError(f"lane {index} floats", "this backend cannot place kernels", "give it atoms")
    if len(lane.segments) > 1 and not capabilities.segments:
        what, facts = f"lane {index} has {len(lane.segments)} segments", "this backend can run one per lane"
        raise PlanError(what, facts, "look at snapshot.capabilities.segments first")


def _verify_partition(index: int, partition: Partition, device: Device) -> None:
    atoms, granted_units = partition.atoms, partition.granted_units
    if atoms == 0:  # it floats
        if not 1 <= granted_units <= device.num_units:
            facts, next_step = f"the device has {device.num_units}", f"grant 1..{device.num_units}"
            raise PlanError(f"lane {index}: {granted_units} floating units were granted", facts, next_step)
        return
    all_atoms = device.all_atoms
    if atoms < 0 or atoms & ~all_atoms:
        what, facts = f"lane {index}: atoms {atoms:#x} are not on the device", f"it has {all_atoms:#x}"
        raise PlanError(what, facts, "take atoms of device.all_atoms only")
    held_units = atoms.bit_count() * device.units_per_atom
    if granted_units != held_units and (atoms != all_atoms or granted_units != device.num_units):
        granted = device.num_units if atoms == all_atoms else held_units
        facts = f"{atoms.bit_count()} atoms hold {granted} units"
        next_step = f"grant {granted}, or have device.partition() do so"
        raise PlanError(f"lane {index}: {granted_units} units were granted", facts, next_step)
    if not 1 <= partition.asked_units <= granted_units:
        what, facts = f"lane {index}: {partition.asked_units} units were asked for", f"{granted_units} were granted"
        raise PlanError(what, facts, "ask for 1 unit or more, and grant as many as were asked for at least")


def _verify_isolation(held: list[int], snapshot: Snapshot) -> None:
    """`held`: the atoms of each lane."""
    free = snapshot.free_atoms
    for index, atoms in enumerate(held):
        if atoms & ~free:
            facts = f"atoms {atoms & ~free:#x} are taken"
            raise PlanError(f"lane {index} of an isolated plan overlaps another lane", facts, "take free atoms only")
        free &= ~atoms
