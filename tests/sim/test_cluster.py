"""Several devices: placement keeps cohorts together and loads even, and one report tells of all devices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime import workload as workloads
from spacetime.errors import OptionError
from spacetime.sim import architectures
from spacetime.sim.cluster import HEADROOM, MOST_LOAD, Assignment, Demand, assign, predict, simulate_cluster
from spacetime.sim.devices import find
from spacetime.sim.simulate import simulate
from spacetime.workload import Arrival, Resident, Workload

DEVICE = find("h200")

demands_of = st.lists(
    st.tuples(st.sampled_from("abcde"), st.floats(0.0, 0.6), st.integers(0, 5)), min_size=1, max_size=60
).map(lambda drawn: [Demand(f"t{i}", cohort, load, size) for i, (cohort, load, size) in enumerate(drawn)])


def loads(demands: list[Demand], assignment: Assignment) -> list[float]:
    load_of = {demand.tenant: demand.load for demand in demands}
    return [sum(load_of[name] for name in tenants) for tenants in assignment]


def poisson(num_tenants: int = 8, rate: float = 200.0, seconds: float = 0.2) -> Workload:
    rates = [(f"tenant {index}", rate) for index in range(num_tenants)]
    return workloads.poisson(rates, seconds, models=("mlp", "gru"), slo_us=5_000)


# -- placement ----------------------------------------------------------------------------------------


@given(demands_of, st.integers(1, 64))
def test_everybody_is_placed_once_and_no_device_is_much_fuller_than_the_mean(
    demands: list[Demand], num_devices: int
) -> None:
    assignment = assign(demands, num_devices)
    assert len(assignment) == num_devices
    assert Counter(name for tenants in assignment for name in tenants) == Counter(each.tenant for each in demands)
    full = max(MOST_LOAD, HEADROOM * sum(each.load for each in demands) / num_devices)
    assert max(loads(demands, assignment)) <= full + max(each.load for each in demands) + 1e-9


@given(demands_of, st.integers(1, 16))
def test_the_order_of_the_tenants_does_not_matter(demands: list[Demand], num_devices: int) -> None:
    found = [set(tenants) for tenants in assign(demands[::-1], num_devices)]
    assert found == [set(tenants) for tenants in assign(demands, num_devices)]


@given(demands_of, st.integers(1, 64))
def test_a_cohort_that_fits_stays_together(demands: list[Demand], num_devices: int) -> None:
    light = [replace(demand, load=demand.load / 100) for demand in demands]  # all of them fit on any one device
    assignment = assign(light, num_devices)
    for cohort in {demand.cohort for demand in light}:
        members = {demand.tenant for demand in light if demand.cohort == cohort}
        assert sum(1 for tenants in assignment if members & set(tenants)) == 1


def test_a_cohort_with_too_much_load_is_cut_into_few_equal_parts() -> None:
    demands = [Demand(f"t{index}", "one", 0.1) for index in range(12)]
    assignment = assign(demands, 8)
    assert sorted(len(tenants) for tenants in assignment) == [0, 0, 0, 0, 0, 4, 4, 4]


def test_devices_are_filled_evenly() -> None:
    demands = [Demand(f"t{index}", f"cohort {index % 6}", 0.001 * (1 + index % 7)) for index in range(1000)]
    demands = [replace(demand, load=8 * demand.load) for demand in demands]
    found = loads(demands, assign(demands, 64))
    mean = sum(found) / len(found)
    assert max(found) <= 1.1 * mean and min(found) > 0.5 * mean


def test_weights_must_fit() -> None:
    demands = [Demand(f"t{index}", "one", 0.0, weight_bytes=6) for index in range(4)]
    assert sorted(len(tenants) for tenants in assign(demands, 2, memory_bytes=12)) == [2, 2]
    with pytest.raises(OptionError, match="fits on none of 3 devices"):
        assign(demands, 3, memory_bytes=6)
    free = assign(demands, 2)
    assert sorted(len(tenants) for tenants in free) == [0, 4]


def test_wrong_placements_are_refused() -> None:
    with pytest.raises(OptionError, match="on 0 devices"):
        assign([Demand("a", "a", 0.1)], 0)
    with pytest.raises(OptionError, match="placed twice"):
        assign([Demand("a", "a", 0.1)] * 2, 1)
    with pytest.raises(OptionError, match="not of this workload"):
        simulate_cluster(poisson(2), "streams", DEVICE, 2, assignment=(("tenant 0",), ("tenant 0",)))
    with pytest.raises(OptionError, match="not of this workload"):
        simulate_cluster(poisson(2), "streams", DEVICE, 2, assignment=(("tenant 0", "tenant 1"),))


def test_load_follows_the_rows_and_their_cost() -> None:
    residents = (Resident("small", "mlp"), Resident("large", "resnet50"), Resident("idle", "mlp"))
    arrivals = tuple(Arrival(at, name) for at in range(1000, 101_000, 1000) for name in ("small", "large"))
    small, large, idle = predict(Workload(arrivals, residents), DEVICE)
    assert (small.cohort, large.cohort) == tuple(architectures.program(m).signature for m in ("mlp", "resnet50"))
    assert 0 < small.load < large.load / 20 and idle.load == 0 and idle.cohort == small.cohort
    assert large.weight_bytes == architectures.program("resnet50").bytes(rows=0)
    doubled = predict(Workload(tuple(replace(each, rows=2) for each in arrivals), residents), DEVICE)
    assert doubled[1].load == pytest.approx(2 * large.load)
    with pytest.raises(OptionError, match="closed loop"):
        predict(workloads.closed_loop(["mlp"], 3), DEVICE)


# -- all devices together -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["space_time", "streams"])
def test_one_device_is_what_simulate_reports(policy: str) -> None:
    played = poisson()
    alone = simulate(played, policy, DEVICE, warm_up_s=0.05)
    cluster = simulate_cluster(played, policy, DEVICE, 1, warm_up_s=0.05)
    assert str(cluster.report) == str(alone)
    assert cluster.report.utilisation == pytest.approx(alone.utilisation)
    assert cluster.report.energy_joules == pytest.approx(alone.energy_joules)
    assert cluster.utilisations == (alone.utilisation,)


def test_devices_do_not_know_each_other() -> None:
    played = poisson(4)
    one, two, none = ("tenant 0", "tenant 2"), ("tenant 1", "tenant 3"), ()
    cluster = simulate_cluster(played, "space_time", DEVICE, 3, assignment=(one, two, none))
    parts = []
    for names in (one, two):
        arrivals = tuple(each for each in played.arrivals if each.tenant in names)
        residents = tuple(each for each in played.residents if each.name in names)
        parts.append(simulate(Workload(arrivals, residents), "space_time", DEVICE))
    latencies = {each.name: (each.p50_us, each.p99_us, each.max_us) for part in parts for each in part.tenants}
    assert {each.name: (each.p50_us, each.p99_us, each.max_us) for each in cluster.report.tenants} == latencies
    report = cluster.report
    assert report.completed == len(played.arrivals) and report.max_us == max(part.max_us for part in parts)
    assert min(part.p50_us for part in parts) <= report.p50_us <= max(part.p50_us for part in parts)
    assert report.num_lanes == sum(part.num_lanes for part in parts)
    assert report.duration_us == max(part.duration_us for part in parts)
    assert report.device.num_units == 3 * DEVICE.num_units and report.device.name == "3 x h200"
    assert len(list(filter(None, cluster.assignment))) == 2 and cluster.utilisations[2] == 0.0
    busy_s = sum(part.utilisation * part.duration_us for part in parts) * 1e-6
    idle = 3 * DEVICE.idle_watts * report.duration_us * 1e-6
    assert report.energy_joules == pytest.approx(idle + (DEVICE.busy_watts - DEVICE.idle_watts) * busy_s)
    assert str(report).startswith("modelled: 3 x h200")


def test_rejections_and_their_reason_are_of_all_devices() -> None:
    arrivals = tuple(Arrival(1 + index, f"tenant {index % 2}") for index in range(40))
    residents = (Resident("tenant 0", "mlp"), Resident("tenant 1", "mlp"))
    split = (("tenant 0",), ("tenant 1",))
    found = simulate_cluster(Workload(arrivals, residents), "time_slice", DEVICE, 2, assignment=split, max_queue=4)
    report = found.report
    assert [each.rejected > 0 for each in report.tenants] == [True, True]
    assert report.completed + sum(each.rejected for each in report.tenants) == 40
    assert report.first_error is not None and "queue is full" in report.first_error


@given(st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=5)
def test_the_same_arguments_give_the_same_report(num_devices: int, seed: int) -> None:
    first, second = (
        simulate_cluster(poisson(6, 100.0, 0.05), "space_time", DEVICE, num_devices, seed, noise=0.1) for _ in range(2)
    )
    assert first == second
