"""Isolation in virtual time: thousands of requests of one tenant are no worse for others than a busy neighbour is."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from spacetime.plan import Lane
from tests.scheduler.harness import World

LANE_US = 1000
ROW_US = 20
GAP_US = 4_000  # about, between two requests of a tenant that behaves
WARM_US = 300_000  # the cost model learns meanwhile
HORIZON_US = 800_000
BUSY = 512  # requests that wait at any time: enough for full lanes on every unit
FLOOD = 4_000
BEHAVED = ("good", "other")


def latency_us(lane: Lane) -> int:
    """Launches, and rows that share the lane's units."""
    return LANE_US + ROW_US * lane.num_rows * 4 // lane.units


def p99_us(cohorts: dict[str, str], outstanding: int) -> int:
    """Of those who behave, beside a neighbour that keeps so many requests waiting."""
    world = World("space_time", latency_us=latency_us)
    for name, cohort in cohorts.items():
        world.add(name, cohort, max_concurrency=4)
    due = {name: index * 1_700 for index, name in enumerate(BEHAVED)}
    latencies: list[int] = []
    flood: set[Future[Any]] = set()
    while (now_us := world.backend.now_us()) < HORIZON_US:
        for index, name in enumerate(BEHAVED):
            if due[name] <= now_us:
                ask(world, name, latencies)
                due[name] += GAP_US + 97 * ((due[name] // GAP_US + index) % 11)  # no rhythm that lanes could fall into
        for _ in range(outstanding - len(flood)):
            future = world.submit("neighbour")
            flood.add(future)
            future.add_done_callback(flood.discard)
        wake_at_us = world.step()
        next_us = min(*due.values(), wake_at_us or HORIZON_US, now_us + 200)
        world.backend.advance(max(1, next_us - world.backend.now_us()))
    assert len(latencies) > 150
    return sorted(latencies)[int(0.99 * len(latencies))]


def ask(world: World, name: str, latencies: list[int]) -> None:
    submitted_us = world.backend.now_us()

    def done(_: Future[Any]) -> None:
        if submitted_us > WARM_US:
            latencies.append(world.backend.now_us() - submitted_us)

    world.submit(name).add_done_callback(done)


@pytest.mark.parametrize("shared", [True, False], ids=["one cohort", "three cohorts"])
def test_a_flood_moves_the_p99_of_others_by_a_fifth_at_most(shared: bool) -> None:
    cohorts = {name: "all" if shared else f"of {name}" for name in (*BEHAVED, "neighbour")}
    busy_us, flooded_us = p99_us(cohorts, BUSY), p99_us(cohorts, FLOOD)
    assert flooded_us <= 1.2 * busy_us
    assert flooded_us < 10 * LANE_US, "thousands of requests that came before are not waited for"
