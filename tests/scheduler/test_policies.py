"""What holds for every policy, whatever waits: plans verify, lose nothing, repeat nothing, and are pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Capabilities, Device
from spacetime.plan import Lane, RequestView, Segment, Snapshot, TenantView
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.registry import get_policy, policy_names
from spacetime.scheduler.verify import verify
from tests.scheduler.harness import snapshot, tenant_view

POLICIES = list(policy_names())
CAPABLE = Capabilities(partitions=True, segments=False, graphs=False)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    device = draw(st.sampled_from([Device("a", "null", 2), Device("b", "null", 132, 8), Device("c", "null", 1)]))
    busy = draw(st.integers(0, device.num_atoms))
    tenants: list[TenantView] = []
    for index in range(draw(st.integers(1, 8))):
        fusible = draw(st.booleans())
        tenants.append(
            tenant_view(
                f"t{index}",
                *draw(st.lists(st.integers(1, 100), min_size=1, max_size=6)),
                cohort=draw(st.sampled_from("xy")) if fusible else f"opaque{index}",
                fusible=fusible,
                running=draw(st.integers(0, min(busy, 1))),
                max_concurrency=draw(st.integers(1, 3)),
                priority=draw(st.integers(0, 1)),
                min_units=1 if fusible else draw(st.sampled_from([1, device.num_units])),
                served_us=draw(st.integers(0, 1000)),
                active_peers=draw(st.integers(0, 8)),
                arrival_us=draw(st.integers(0, 1000)),
                deadline_us=draw(st.none() | st.integers(0, 2000)),
            )
        )
    running: tuple[Lane, ...] = ()
    if busy:
        part = device.partition(busy * device.units_per_atom)
        running = (Lane("x", (RequestView(0, "gone", 1, 0),), (Segment(part),)),)
    return snapshot(*tenants, device=device, running=running)


def costs_for(seen: Snapshot) -> OnlineCosts:
    costs = OnlineCosts()
    for tenant in seen.tenants:
        costs.register(tenant.cohort, None, seen.device)
    return costs


@pytest.mark.parametrize("name", POLICIES)
@given(seen=snapshots())
def test_plans_verify_and_repeat(name: str, seen: Snapshot) -> None:
    policy, costs = get_policy(name), costs_for(seen)
    plan = policy(seen, costs)
    verify(plan, seen, CAPABLE)  # no unknown or duplicate request, no overlap in an isolated plan
    assert policy(seen, costs) == plan


class OneByOne:
    """The same costs, for one lane at a time only: what every cost model has."""

    def __init__(self, costs: OnlineCosts) -> None:
        self.lane_us = costs.lane_us
        self.kernel_times = costs.kernel_times


@pytest.mark.parametrize("name", [name for name in POLICIES if name.startswith("space_time")])
@given(seen=snapshots(), durations_us=st.lists(st.integers(1, 500), max_size=20))
def test_lanes_may_be_priced_one_by_one_or_all_at_once(name: str, seen: Snapshot, durations_us: list[int]) -> None:
    costs = costs_for(seen)
    for index, duration_us in enumerate(durations_us):
        tenants, units = 1 + index % 2, 1 + index % seen.device.num_units
        cohort = seen.tenants[index % len(seen.tenants)].cohort
        costs.observe(cohort, tenants=tenants, rows=3, units=units, fused=index % 3 > 0, duration_us=duration_us)
    assert get_policy(name)(seen, costs) == get_policy(name)(seen, OneByOne(costs))


@pytest.mark.parametrize("name", POLICIES)
@given(seen=snapshots())
def test_an_idle_device_is_used(name: str, seen: Snapshot) -> None:
    startable = [tenant for tenant in seen.tenants if tenant.running < tenant.max_concurrency]
    if seen.running or not startable or any(tenant.running for tenant in seen.tenants):
        return
    plan = get_policy(name)(seen, costs_for(seen))
    assert plan.lanes or plan.wake_at_us is not None


@given(seen=snapshots())
def test_space_time_is_work_conserving(seen: Snapshot) -> None:
    plan = get_policy("space_time")(seen, costs_for(seen))
    free = seen.free_atoms
    started: dict[str, int] = {}
    taken = set()
    for lane in plan.lanes:
        free &= ~lane.atoms
        taken |= {(request.tenant, request.id) for request in lane.requests}
        for name in lane.tenants:
            started[name] = started.get(name, 0) + 1
    kept = any(  # for a tenant that needs more
        -(-tenant.min_units // seen.device.units_per_atom) > free.bit_count()
        for tenant in seen.tenants
        if tenant.name not in started
    )
    if free and plan.wake_at_us is None and not kept:
        for tenant in seen.tenants:
            left = [view for view in tenant.waiting if (tenant.name, view.id) not in taken]
            assert (
                not left
                or tenant.running + started.get(tenant.name, 0) >= tenant.max_concurrency
                or (
                    tenant.name in started  # its other lanes' worth was merged with what did start
                )
            )
