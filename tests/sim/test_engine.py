"""The contention model where its answer can be worked out by hand. test_engine_vs_simpy.py does the rest."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from spacetime.device import Device
from spacetime.plan import Placement
from spacetime.sim.engine import FLOATS, Engine, Script
from spacetime.sim.state import STEP

DEVICE = Device("four atoms of two", "model", num_units=9, units_per_atom=2, bytes_per_us=100.0, cache_bytes=10_000)


def fixed(
    engine: Engine, atoms: int, *, compute_us: float = 0.0, traffic: int = 0, serial_us: float = 0.0, kernels: int = 1
) -> Script:
    steps = np.zeros(kernels, STEP)
    steps["compute_us"], steps["traffic_bytes"], steps["serial_us"] = compute_us, traffic, serial_us
    steps["atoms"] = steps["busy_atoms"] = atoms.bit_count()
    steps["region"] = engine.region(atoms)
    return Script(steps, engine.region(atoms))


def floating(
    engine: Engine,
    wanted: int,
    one_atom_us: float,
    max_overlap: int = 0,
    serial_us: float = 0.0,
    min_units: int = 1,
) -> Script:
    steps = np.zeros(1, STEP)
    sizes = np.arange(1, DEVICE.num_atoms + 1)
    steps["atoms"], steps["serial_us"] = wanted, serial_us
    steps["row"] = engine.table(one_atom_us / sizes[None, :], sizes[None, :])
    return Script(steps, FLOATS, Placement("packed", max_overlap, min_units))


def ends(engine: Engine) -> dict[int, float]:
    found = {}
    while engine.num_lanes:
        for number in engine.advance():
            found[number] = engine.now_us
    return found


def test_a_lane_alone_takes_its_launches_and_the_slower_of_arithmetic_and_traffic() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b1111, compute_us=10, traffic=500, serial_us=3, kernels=4))
    assert ends(engine) == {0: pytest.approx(4 * (3 + 10))}
    engine.start(fixed(engine, 0b1111, compute_us=10, traffic=5000, serial_us=3))
    assert ends(engine) == {1: pytest.approx(52 + 3 + 50)}
    assert (engine.num_kernels, engine.moved_bytes) == (5, 4 * 500 + 5000)


def test_stretch_lengthens_everything() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b11, compute_us=10, serial_us=3, kernels=2), stretch=1.5)
    assert ends(engine) == {0: pytest.approx(1.5 * 26)}


def test_lanes_on_atoms_of_their_own_do_not_know_each_other() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b0011, compute_us=10))
    engine.start(fixed(engine, 0b1100, compute_us=25))
    assert ends(engine) == {0: pytest.approx(10), 1: pytest.approx(25)}


def test_lanes_on_the_same_atoms_share_their_time_and_pay_for_it() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b1111, compute_us=10))
    engine.start(fixed(engine, 0b1111, compute_us=10))
    assert ends(engine)[1] == pytest.approx(20 * (1 + DEVICE.interference))


def test_kernels_that_fill_half_the_atoms_fit_beside_each_other() -> None:
    engine = Engine(DEVICE)
    script = fixed(engine, 0b1111, compute_us=10)
    script.steps["busy_atoms"] = 2
    engine.start(script)
    engine.start(script)
    assert ends(engine)[1] == pytest.approx(10 * (1 + DEVICE.interference / 2))


def test_bandwidth_is_shared_and_who_needs_little_gets_it() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b0111, traffic=1000))  # it could draw all of the 100 bytes per us
    engine.start(fixed(engine, 0b1000, compute_us=50, traffic=500))  # draws 10
    assert engine.advance(10.0) == []
    first = ends(engine)
    assert first[0] == pytest.approx(1000 / 90)
    assert first[1] == pytest.approx(50)


def test_working_sets_beyond_the_cache_add_traffic() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b0011, traffic=8000))
    engine.start(fixed(engine, 0b1100, traffic=8000))
    displaced = 6000  # of 16000, 10000 fit
    assert ends(engine)[1] == pytest.approx(160 * (1 + DEVICE.cache_penalty * displaced / 10_000))


def test_floating_kernels_get_what_is_free_and_wait_for_the_first_atom() -> None:
    engine = Engine(DEVICE)
    engine.start(floating(engine, 3, 30.0))  # three atoms until 10
    engine.start(floating(engine, 3, 20.0))  # the last one until 20
    engine.start(floating(engine, 3, 30.0))  # none until 10, then three
    found = ends(engine)
    assert [found[number] for number in range(3)] == pytest.approx([10, 20, 20])


def test_floating_kernels_wait_for_the_least_they_may_have() -> None:
    engine = Engine(DEVICE)
    engine.start(floating(engine, 3, 30.0))  # three atoms until 10
    engine.start(floating(engine, 3, 30.0, min_units=3))  # one atom is free: two units; it waits
    engine.start(floating(engine, 1, 5.0, min_units=8))  # wants less than its least: all it wants will do
    found = ends(engine)
    assert [found[number] for number in range(3)] == pytest.approx([10, 20, 15])  # the last one waits its turn


def test_lanes_beyond_the_hardware_queues_wait_for_each_others_kernels() -> None:
    engine = Engine(replace(DEVICE, hardware_queues=1))
    engine.start(fixed(engine, 0b0011, compute_us=10, serial_us=2, kernels=2))
    engine.start(fixed(engine, 0b1100, compute_us=10, serial_us=3, kernels=1))
    found = ends(engine)  # 2..12, 12..22, 22..32: the first lane's second launch goes on meanwhile
    assert found == {1: pytest.approx(22), 0: pytest.approx(32)}


def test_each_lane_takes_the_hardware_queue_with_the_fewest() -> None:
    engine = Engine(replace(DEVICE, hardware_queues=2))
    for atom in range(2):
        engine.start(fixed(engine, 1 << atom, compute_us=10))
    assert list(ends(engine).values()) == pytest.approx([10, 10])
    for atom in range(3):
        engine.start(fixed(engine, 1 << atom, compute_us=10))
    assert list(ends(engine).values()) == pytest.approx([20, 20, 30])


def test_overlap_shares_atoms_instead_of_waiting() -> None:
    engine = Engine(DEVICE)
    engine.start(floating(engine, 4, 40.0, max_overlap=1))
    engine.start(floating(engine, 4, 40.0, max_overlap=1))
    assert ends(engine)[1] == pytest.approx(20 * (1 + DEVICE.interference))


def test_atoms_of_a_fixed_lane_are_its_own_until_it_ends() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b1111, compute_us=1, serial_us=9, kernels=3))
    engine.start(floating(engine, 2, 10.0))
    assert ends(engine) == {0: pytest.approx(30), 1: pytest.approx(35)}


def test_units_count_as_busy_while_they_have_work() -> None:
    engine = Engine(DEVICE)
    engine.start(fixed(engine, 0b0011, compute_us=10, serial_us=5))
    ends(engine)
    assert engine.busy_unit_us == pytest.approx(4 * 10)
    engine.start(fixed(engine, 0b1111, compute_us=10))
    ends(engine)
    assert engine.busy_unit_us == pytest.approx(4 * 10 + 9 * 10)  # with the unit that is in no atom


def test_time_passes_without_lanes_and_stops_where_it_was_told_to() -> None:
    engine = Engine(DEVICE)
    assert engine.advance(7.5) == [] and engine.now_us == 7.5
    assert engine.advance(inf) == [] and engine.now_us == 7.5  # nothing will happen
    engine.start(fixed(engine, 0b1, compute_us=10))
    assert engine.advance(12.0) == [] and engine.now_us == 12.0
    assert engine.advance(3.0) == [] and engine.now_us == 12.0  # it never goes back
    assert engine.advance() == [0] and engine.now_us == pytest.approx(17.5)


def test_there_is_room_for_any_number_of_lanes_kernels_and_sets_of_atoms() -> None:
    engine = Engine(Device("many", "model", num_units=12))
    for index in range(100):
        engine.start(fixed(engine, index + 1, compute_us=1e-6, serial_us=index, kernels=index + 1))
    found = ends(engine)
    assert sorted(found) == list(range(100))
    assert [found[index] for index in range(100)] == pytest.approx([index * (index + 1) for index in range(100)], abs=1)


def test_waiting_lanes_keep_their_turn_while_room_is_made_for_more() -> None:
    engine = Engine(DEVICE)
    for _ in range(40):
        engine.start(floating(engine, 4, 40.0))
        engine.advance(engine.now_us + 0.1)
    found = ends(engine)
    assert list(found) == list(range(40)), "first come, first served"
    assert found[39] == pytest.approx(400)
