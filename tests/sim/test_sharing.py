"""What sharing does to others, whole simulations: floods, tails of isolated kernels, closed loops that split."""

from __future__ import annotations

from spacetime.scheduler.costs import OnlineCosts
from spacetime.sim.architectures import program
from spacetime.sim.devices import find
from spacetime.sim.simulate import Simulation, simulate
from spacetime.workload import closed_loop, merge, poisson


def test_costs_do_not_learn_from_lanes_that_float() -> None:
    """They had fewer units than they asked for whenever others held them."""
    loop = closed_loop(["a", "b", "c"], 30, models=["squeezenet"])
    known = OnlineCosts()
    known.register(program("squeezenet").signature, program("squeezenet"), find("mi50"))
    for policy, learns in (("krisp", False), ("static", True)):
        simulation = Simulation(loop, policy, "mi50", noise=0.05)
        simulation.run()
        found = [
            costs.lane_us(program("squeezenet").signature, tenants=1, rows=1, units=units, fused=False)
            for costs in (known, simulation.costs)
            for units in (20, 60)
        ]
        assert (found[:2] != found[2:]) is learns


def test_isolated_kernels_of_krisp_have_no_long_tails() -> None:
    """A kernel that starts at a bad moment waits for an equal share, and is not left with a single unit."""
    loop = closed_loop([f"worker {index}" for index in range(4)], 8, rows=[32], models=["squeezenet"])
    krisp, static = (simulate(loop, policy, "mi50", noise=0.05, oracle_costs=True) for policy in ("krisp", "static"))
    assert krisp.p99_us < 1.3 * static.p99_us


def test_a_closed_loop_with_noise_does_not_stay_in_two_halves() -> None:
    """Its lanes end at different times; half of it waits for the other half when that is about to end."""
    loop = closed_loop([f"tenant {index}" for index in range(8)], 60, models=["resnet50"])
    report = simulate(loop, "space_time", "v100", seed=1, noise=0.05)
    assert report.requests_per_s > 475  # 448 when nobody waits


def flooded_us(neighbour_per_s: float) -> int:
    """The p99 of a tenant with an objective of 20 ms beside one without that asks so often."""
    victim = poisson([("victim", 200)], 0.6, seed=1, models=["resnet50"], slo_us=20_000)
    neighbour = poisson([("neighbour", neighbour_per_s)], 0.6, seed=2, models=["resnet50"])
    report = simulate(merge(victim, neighbour), "space_time", "h200", warm_up_s=0.2, max_queue=512)
    return next(tenant.p99_us for tenant in report.tenants if tenant.name == "victim")


def test_a_flood_does_not_break_the_promise_made_to_another() -> None:
    assert flooded_us(8_000) < 20_000, "68 ms where its lanes may be as long as they like"
