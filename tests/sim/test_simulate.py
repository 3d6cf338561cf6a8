"""Whole simulations: nothing is lost, a seed gives one report, closed loops stay closed, warm-ups do not count."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime import workload as workloads
from spacetime.errors import OptionError
from spacetime.plan import Lane, Plan, Segment, Snapshot
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.registry import policy_names
from spacetime.scheduler.verify import verify
from spacetime.sim import architectures
from spacetime.sim.backend import Slowdown
from spacetime.sim.devices import find, names
from spacetime.sim.report import Report
from spacetime.sim.simulate import Simulation, simulate
from spacetime.workload import Arrival, Resident, Workload

MODELS = ("mlp", "gemm_64x8x32")


def poisson(rate_per_s: float = 2000, seconds: float = 0.02, num_tenants: int = 4, **options: Any) -> Workload:
    rates = [(f"tenant {index}", rate_per_s) for index in range(num_tenants)]
    return workloads.poisson(rates, seconds, **({"models": MODELS} | options))


def lone_us(model: str = "mlp", device: str = "h200") -> int:
    """One request, alone."""
    return simulate(Workload((Arrival(0, model),)), "time_slice", device).max_us


@pytest.mark.parametrize("policy", policy_names())
def test_every_policy_serves_every_request_and_gives_the_same_report_again(policy: str) -> None:
    played = poisson(rows=(1, 3), slo_us=5000)
    report = simulate(played, policy, noise=0.1, seed=3)
    assert report.first_error is None
    assert sum(tenant.submitted for tenant in report.tenants) == report.completed == len(played.arrivals)
    assert sum(tenant.rows for tenant in report.tenants) == played.num_rows
    assert simulate(played, policy, noise=0.1, seed=3) == report
    assert simulate(played, policy, noise=0.1, seed=4) != report
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("device", names())
def test_every_device_serves(device: str) -> None:
    report = simulate(poisson(), "streams", device)
    assert report.completed == len(poisson().arrivals) and 0 < report.utilisation <= 1
    assert report.device == find(device)


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3), st.integers(1, 70)), min_size=1, max_size=40),
    st.sampled_from(["space_time", "time_slice", "streams", "krisp", "krisp_overlap"]),
    st.sampled_from([0, 30]),
)
@settings(max_examples=40)
def test_no_request_is_lost_and_no_lane_breaks_a_rule(
    asked: list[tuple[int, int, int]], policy: str, decision_us: int
) -> None:
    arrivals = tuple(Arrival(at_us, f"tenant {who}", rows) for at_us, who, rows in sorted(asked))
    residents = tuple(Resident(f"tenant {index}", MODELS[index % 2], 2000) for index in range(4))
    simulation = Simulation(Workload(arrivals, residents), policy, "mi50", decision_us=decision_us)
    report = simulation.run()
    assert report.completed == len(arrivals) and report.first_error is None
    ran = [view for event in simulation.trace.events for view in event.lane.requests]
    assert sorted(view.id for view in ran) == list(range(len(arrivals)))
    assert all(event.start_us >= view.arrival_us for event in simulation.trace.events for view in event.lane.requests)
    assert report.num_lanes == len(simulation.trace.events)


def test_a_lone_request_takes_what_its_kernels_take() -> None:
    report = simulate(Workload((Arrival(1000, "mlp"),)), "time_slice")
    assert report.p50_us == report.max_us == report.tenants[0].p99_us
    assert report.num_kernels == len(architectures.program("mlp").kernels)
    assert report.duration_us == 1000 + report.max_us


def test_a_closed_loop_keeps_so_many_requests_outstanding() -> None:
    played = workloads.closed_loop(["one", "two"], 20, models=["mlp"])
    one = simulate(played, "time_slice")
    assert one.completed == 40
    assert one.duration_us == pytest.approx(40 * lone_us(), rel=0.05)
    assert one.p50_us == pytest.approx(2 * lone_us(), abs=2)  # the other's request, then its own
    three = simulate(Workload(played.arrivals, played.residents, outstanding=3), "time_slice")
    assert three.p50_us == pytest.approx(6 * lone_us(), abs=4)
    with pytest.raises(OptionError, match=r"0 requests outstanding(.|\n)*outstanding=1"):
        simulate(Workload(played.arrivals, played.residents, outstanding=0))


def test_fusing_serves_more_than_taking_turns() -> None:
    played = workloads.closed_loop([f"tenant {index}" for index in range(16)], 100, models=["mlp"])
    fused, turns = simulate(played, "space_time"), simulate(played, "time_slice")
    assert fused.requests_per_s > 3 * turns.requests_per_s
    assert fused.num_lanes < turns.num_lanes == 1600


def test_what_arrives_during_the_warm_up_is_served_but_not_reported() -> None:
    played = poisson(seconds=0.05)
    late = [arrival for arrival in played.arrivals if arrival.at_us >= 20_000]
    report = simulate(played, "streams", warm_up_s=0.02)
    assert report.completed == len(late)
    assert report.warm_up_us == 20_000 and 29_000 < report.duration_us < 33_000
    whole = simulate(played, "streams")
    assert whole.num_lanes == len(played.arrivals) > report.num_lanes >= len(late)
    nothing = simulate(played, "streams", warm_up_s=10)
    assert (nothing.completed, nothing.duration_us, nothing.requests_per_s, nothing.energy_joules) == (0, 0, 0, 0)


def test_decisions_take_time_when_asked_to() -> None:
    alone = Workload((Arrival(0, "mlp"),))
    free, paid = simulate(alone, "time_slice"), simulate(alone, "time_slice", decision_us=250)
    assert paid.max_us == free.max_us + 250


def test_a_straggler_is_slow_and_alone_suffers_under_streams() -> None:
    played = workloads.closed_loop(["slow", "fast"], 20, models=["gemm_64x8x32"])
    report = simulate(played, "streams", slowdowns=[Slowdown("slow", 10.0)])
    slow, fast = report.tenants
    assert slow.p50_us > 8 * fast.p50_us


def test_objectives_are_counted() -> None:
    needed_us = lone_us()
    arrivals = (Arrival(0, "mlp"), Arrival(0, "mlp"))
    report = simulate(Workload(arrivals, (Resident("mlp", "mlp", slo_us=needed_us + 1),)), "time_slice")
    assert (report.tenants[0].late, report.violations) == (1, 1)
    assert report.goodput_per_s == pytest.approx(report.requests_per_s / 2)


def test_a_full_queue_rejects_and_the_report_says_so() -> None:
    arrivals = tuple(Arrival(0, "mlp") for _ in range(10))
    report = simulate(Workload(arrivals), "time_slice", max_queue=4)
    tenant = report.tenants[0]
    assert (tenant.submitted, tenant.completed, tenant.rejected, tenant.violations) == (10, 4, 6, 6)
    assert report.first_error is not None and "queue is full" in report.first_error
    assert "queue is full" in str(report)


def test_a_broken_policy_fails_requests_and_is_named() -> None:
    def forgetful(snapshot: Snapshot, costs: CostModel) -> Plan:
        return Plan()

    report = simulate(Workload((Arrival(0, "mlp"),)), forgetful)
    assert report.policy == "forgetful" and report.tenants[0].failed == 1
    assert report.first_error is not None and "would wait forever" in report.first_error


def test_a_users_policy_sees_verified_snapshots_of_the_device() -> None:
    seen: list[Snapshot] = []

    def mine(snapshot: Snapshot, costs: CostModel) -> Plan:
        seen.append(snapshot)
        lanes = tuple(
            Lane(tenant.cohort, tenant.waiting[:1], (Segment(snapshot.device.whole),), fused=False)
            for tenant in snapshot.tenants[: not snapshot.running]
        )
        verify(plan := Plan(lanes), snapshot, snapshot.capabilities)
        return plan

    report = simulate(poisson(seconds=0.005), mine, "v100")
    assert report.completed and report.first_error is None and report.num_decisions == len(seen)
    assert {snapshot.device for snapshot in seen} == {find("v100")}
    assert all(snapshot.capabilities.placement for snapshot in seen)


def test_oracle_costs_know_what_online_costs_learn() -> None:
    played = Workload((Arrival(0, "mlp"),))
    simulation = Simulation(played, "time_slice", oracle_costs=True)
    signature = architectures.program("mlp").signature
    asked = {"tenants": 1, "rows": 1, "units": 132, "fused": False}
    assert simulation.costs.lane_us(signature, **asked) == pytest.approx(lone_us(), abs=1)
    times = simulation.costs.kernel_times(signature, tenants=1, rows=1, fused=False)
    assert times.lane_us(16) == pytest.approx(lone_us(), abs=1)
    assert simulation.run().completed == 1
    with pytest.raises(OptionError, match="'nobody' has no costs"):
        simulation.costs.lane_us("nobody", tenants=1, rows=1, units=1)


def test_programs_given_by_name_come_first() -> None:
    programs = {"mlp": architectures.program("gemm_64x8x32")}
    assert simulate(Workload((Arrival(0, "mlp"),)), "time_slice", programs=programs).num_kernels == 1


@pytest.mark.parametrize(
    ("played", "message"),
    [
        (Workload(()), "the workload is empty"),
        (Workload((Arrival(0, "nonesuch"),)), r"(?s)tenant 'nonesuch' runs 'nonesuch', which nobody knows.*resnet50"),
        (Workload((Arrival(0, "b"),), (Resident("a", "mlp"),)), "tenant 'b' sends requests but is no resident"),
        (Workload((Arrival(0, "a"),), (Resident("a", "mlp"), Resident("a", "gru"))), "names a tenant twice"),
    ],
)
def test_a_workload_that_cannot_be_played_is_refused(played: Workload, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        simulate(played)
    assert caught.value.facts and caught.value.next_step


@pytest.mark.parametrize(("wrong", "kind"), [(None, "NoneType"), ((Arrival(0, "a"),), "tuple"), ("w.json", "str")])
def test_only_workloads_are_played(wrong: Any, kind: str) -> None:
    with pytest.raises(OptionError, match=rf"the workload is a {kind}\n.*Workload\n.*poisson\(\)"):
        simulate(wrong)


def test_an_objective_of_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="tenant 'a': slo_us is 0"):
        simulate(Workload((Arrival(0, "a"),), (Resident("a", "mlp", slo_us=0),)))


@pytest.mark.parametrize("options", [{"decision_us": -1}, {"warm_up_s": inf}, {"policy": "nonesuch"}, {"device": "x"}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        simulate(poisson(), **options)
    assert caught.value.facts and caught.value.next_step


def test_the_report_prints_as_a_table_and_says_modelled() -> None:
    report = simulate(poisson(num_tenants=30), "streams")
    text = str(report)
    assert text.startswith("modelled: h200, 132 units, policy streams")
    assert "tenant 7" in text or "more" in text
    assert "and 6 tenants with a lower p99" in text
    assert report.method.startswith("modelled")


def test_weights_that_do_not_fit_are_said() -> None:
    residents = tuple(Resident(f"tenant {index}", "vgg19") for index in range(40))
    report = simulate(Workload((Arrival(0, "tenant 0"),), residents), "time_slice", "mi50")
    assert "the weights do not fit" in str(report)


def test_figures_of_the_report_hang_together() -> None:
    report = simulate(poisson(), "streams")
    device = report.device
    idle = device.idle_watts * report.duration_us * 1e-6
    busy = (device.busy_watts - device.idle_watts) * report.utilisation * report.duration_us * 1e-6
    assert report.energy_joules == pytest.approx(idle + busy)
    assert report.requests_per_s == pytest.approx(sum(tenant.requests_per_s for tenant in report.tenants))
    assert report.p50_us <= report.p99_us <= report.max_us == max(tenant.max_us for tenant in report.tenants)
    assert 0 < report.fairness <= 1 and 0 < report.bandwidth_share < 1
