"""How the load of a device is measured, by itself and in the loop, and what units cost because of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.scheduler.load import DIGITS, LEAST_PART, LOAD_US, MOST_LOAD, DeviceLoad, load_beside, price
from tests.scheduler.harness import World

STEP_US = 1000
SERVERS = st.floats(1, 64)


def measured(
    work_us: float, met: float = 1.0, *, cohorts: tuple[str, ...] = ("cohort",), steps: int = 2000
) -> DeviceLoad:
    """A lane ends every STEP_US."""
    load = DeviceLoad()
    for step in range(1, steps + 1):
        load.lane_ended(step * STEP_US, work_us, met, cohorts)
    return load


# -- by itself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_load_is_the_part_of_its_time_that_lanes_take(share: float) -> None:
    assert measured(share * STEP_US).at(2000 * STEP_US) == pytest.approx(share, abs=0.02)


def test_it_is_no_more_than_what_comes_while_others_run() -> None:
    assert measured(0.9 * STEP_US, 0.25).at(2000 * STEP_US) == 0.25
    assert measured(0.9 * STEP_US, 0.0).at(2000 * STEP_US) == 0.0


def test_a_device_that_nobody_used_yet_is_idle() -> None:
    assert DeviceLoad().at(0) == DeviceLoad().at(10**9) == 0.0


def test_it_fades_and_is_never_more_than_full() -> None:
    load, end_us = measured(10 * STEP_US), 2000 * STEP_US
    assert load.at(end_us) == 1.0
    assert load.at(end_us + 30 * LOAD_US) == 0.0
    assert load.at(end_us - LOAD_US) == 1.0, "a clock that was read earlier"


def test_cohorts_have_their_parts_and_small_ones_none() -> None:
    load = DeviceLoad()
    for step in range(1, 500):
        load.lane_ended(step * STEP_US, 300, 1.0, ("large",))
        load.lane_ended(step * STEP_US, 100, 1.0, ("fourth", "large"))
        load.lane_ended(step * STEP_US, 400 * LEAST_PART / 2, 1.0, (f"small {step % 3}",))
    parts = dict(load.parts)
    assert parts.keys() == {"large", "fourth"}
    assert parts["large"] == pytest.approx(0.86, abs=0.03)
    assert parts["fourth"] == pytest.approx(0.12, abs=0.03)


def test_parts_follow_the_traffic() -> None:
    load = measured(500, cohorts=("gone",))
    for step in range(2001, 4000):
        load.lane_ended(step * STEP_US, 500, 1.0, ("here",))
    assert load.parts == (("here", 1.0),)


def test_a_cohort_pays_for_the_others() -> None:
    parts = {"a": 0.75, "b": 0.25}
    assert load_beside("a", True, 0.8, parts) == 0.2
    assert load_beside("b", True, 0.8, parts) == 0.6
    assert load_beside("c", True, 0.8, parts) == 0.8
    assert load_beside("a", False, 0.8, parts) == 0.8, "its requests wait for each other"
    assert load_beside("a", True, 0.0, {}) == 0.0


LANES = st.lists(st.tuples(st.integers(0, 50_000), st.floats(0, 1e6), st.floats(0, 1)), max_size=40)


@given(LANES, st.integers(0, 10**6))
def test_it_is_always_between_idle_and_full(lanes: list[tuple[int, float, float]], later_us: int) -> None:
    load, at_us = DeviceLoad(), 0
    for gap_us, work_us, met in lanes:
        at_us += gap_us
        load.lane_ended(at_us, work_us, met, ("cohort",))
    assert 0 <= load.at(at_us + later_us) <= 1
    assert load.at(at_us + later_us) == round(load.at(at_us + later_us), DIGITS)
    assert sum([part for _, part in load.parts]) <= 1 + 1e-9


# -- what it costs --------------------------------------------------------------------------------------------------


@given(st.floats(0, MOST_LOAD))
def test_one_server_has_the_price_of_its_textbook_queue(load: float) -> None:
    assert price(load, 1) == pytest.approx(1 / (1 - load) ** 2 - 1)


@given(SERVERS)
def test_nothing_is_free_but_on_an_idle_device(servers: float) -> None:
    prices = [price(step / 50, servers) for step in range(50)]
    assert prices[0] == 0
    assert all(cheap <= dear for cheap, dear in pairwise(prices))
    assert prices[-1] > 100


@given(st.floats(0, 1), SERVERS, SERVERS)
def test_the_more_lanes_fit_the_less_one_of_them_is_in_the_way(load: float, one: float, other: float) -> None:
    assert price(load, max(one, other)) <= price(load, min(one, other)) * (1 + 1e-9)


def test_it_is_the_slope_of_the_queue() -> None:
    def waiting(load: float, servers: float) -> float:
        return load ** (2 * (servers + 1)) ** 0.5 / (1 - load)

    for load in (0.2, 0.5, 0.8):
        for servers in (1, 2, 7, 16):
            slope = (waiting(load + 1e-6, servers) - waiting(load - 1e-6, servers)) / 2e-6
            assert price(load, servers) == pytest.approx(slope, rel=1e-4)


# -- in the loop ----------------------------------------------------------------------------------------------------


def loads(calls: list[tuple[int, str]]) -> float:
    """What a snapshot tells after requests at these times, on one unit, where each takes half a step."""
    world = World(device=Device("one", "null", num_units=1), latency_us=STEP_US // 2)
    for name in dict.fromkeys(name for _, name in calls):
        world.add(name, f"cohort of {name}")
    for at_us, name in calls:
        while world.backend.now_us() < at_us:
            world.backend.advance(STEP_US // 10)
            world.step()
        world.submit(name)
        world.step()
    world.run()
    return world.scheduler.snapshot().load


def test_a_lone_caller_and_one_who_calls_tenants_in_turn_are_no_load() -> None:
    assert loads([(STEP_US * i, "a") for i in range(600)]) == 0.0
    assert loads([(STEP_US * i, "ab"[i % 2]) for i in range(600)]) == 0.0


def test_requests_that_come_while_others_run_are() -> None:
    calls = sorted([*[(2 * STEP_US * i, "a") for i in range(400)], *[(2 * STEP_US * i + 200, "b") for i in range(400)]])
    assert loads(calls) == pytest.approx(0.5, abs=0.1), "every other one meets another's lane"
