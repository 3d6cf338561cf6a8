"""The simulated backend: what lanes take, chance, stragglers, executables in the making. Conformance is elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from spacetime.device import Partition
from spacetime.errors import OptionError, PlanError
from spacetime.plan import Lane, Placement, RequestView, Segment
from spacetime.scheduler.analytic import kernel_work
from spacetime.scheduler.protocols import LaneResult
from spacetime.sim import architectures
from spacetime.sim.backend import SimBackend, Slowdown
from spacetime.sim.devices import find
from spacetime.sim.executables import SimExecutable
from spacetime.sim.work import OPAQUE_US, busy_atoms
from tests.backends.conformance import Double

H200 = find("h200")
PROGRAM = architectures.program("mlp")
NUM_KERNELS = len(PROGRAM.kernels)


def lane(
    *segments: Segment, tenants: int = 1, rows: int = 1, fused: bool = True, placement: Placement | None = None
) -> Lane:
    views = tuple(RequestView(index, f"tenant {index}", rows, 0) for index in range(tenants))
    return Lane(PROGRAM.signature, views, segments or (Segment(H200.whole),), fused, placement)


def duration_us(backend: SimBackend, *lanes: Lane) -> list[int]:
    """Of lanes that start together."""
    results: list[LaneResult] = []
    for each in lanes:
        backend.start(each, SimExecutable(PROGRAM), [None] * len(each.requests), results.append)
    while backend.num_running:
        assert backend.advance()
    return [result.end_us - result.start_us for result in results]


def model_us(tenants: int, rows: int, fused: bool, atoms: int = H200.num_atoms) -> float:
    work = kernel_work(PROGRAM, H200, tenants=tenants, rows=rows, fused=fused)
    return work.times(H200).lane_us(atoms)


@pytest.mark.parametrize(("tenants", "rows", "fused"), [(1, 1, True), (5, 3, True), (5, 3, False), (64, 1, True)])
def test_a_lane_alone_takes_what_the_analytic_model_says(tenants: int, rows: int, fused: bool) -> None:
    (found,) = duration_us(SimBackend(H200), lane(tenants=tenants, rows=rows, fused=fused))
    assert found == pytest.approx(model_us(tenants, tenants * rows, fused), abs=1)


def test_a_plain_lane_runs_request_by_request_even_of_one_tenant() -> None:
    views = tuple(RequestView(index, "tenant", 1, 0) for index in range(4))
    plain = Lane(PROGRAM.signature, views, (Segment(H200.whole),), fused=False)
    assert duration_us(SimBackend(H200), plain) == [pytest.approx(model_us(4, 4, False), abs=1)]


def test_a_lane_on_fewer_atoms_takes_longer() -> None:
    partition = H200.partition(16)
    (found,) = duration_us(SimBackend(H200), lane(Segment(partition), tenants=16, rows=64))
    assert found == pytest.approx(model_us(16, 1024, True, atoms=2), abs=1)
    assert found > model_us(16, 1024, True) + 1


def test_a_change_of_partition_costs_a_switch_and_floating_none() -> None:
    half = NUM_KERNELS // 2
    low, high = H200.partition(64, 0x00FF), H200.partition(64, 0xFF00)
    same = lane(Segment(low, 0, half), Segment(low, half))
    split = lane(Segment(low, 0, half), Segment(high, half))
    float_ = Partition.floating(64)
    floats = lane(Segment(float_, 0, half), Segment(float_, half), placement=Placement())
    once, switched, floated = (duration_us(SimBackend(H200), each)[0] for each in (same, split, floats))
    assert switched - once == pytest.approx(H200.switch_us, abs=1)
    assert floated == once


def test_segments_beyond_the_program_are_refused() -> None:
    with pytest.raises(PlanError, match=rf"kernels 0\.\.{NUM_KERNELS + 1}"):
        duration_us(
            SimBackend(H200), lane(Segment(H200.whole, 0, NUM_KERNELS + 1), Segment(H200.whole, NUM_KERNELS + 1))
        )


def test_what_is_not_a_simulated_program_takes_a_fixed_time() -> None:
    backend = SimBackend(H200)
    results: list[LaneResult] = []
    backend.start(lane(), Double(), [21], results.append)
    assert backend.advance() and results[0].outcomes[0].value == 42
    assert results[0].end_us == OPAQUE_US


def test_noise_is_seeded() -> None:
    lanes = [lane(tenants=8)] * 5

    def run(seed: int, noise: float) -> list[int]:
        backend = SimBackend(H200, noise=noise, seed=seed)
        return [duration_us(backend, each)[0] for each in lanes]

    assert run(1, 0.5) == run(1, 0.5) != run(2, 0.5)
    assert len(set(run(1, 0.5))) > 1 == len(set(run(1, 0.0)))


def test_model_error_is_each_kernel_s_own_and_lasts() -> None:
    def run(seed: int) -> list[int]:
        backend = SimBackend(H200, model_error=1.0, seed=seed)
        return [duration_us(backend, lane(tenants=16, rows=64))[0] for _ in range(2)]

    first, again = run(1)
    assert first == pytest.approx(again, abs=1)  # whole microseconds
    assert len({run(seed)[0] for seed in range(5)}) > 1


def test_a_straggler_slows_every_lane_that_it_is_in_for_as_long_as_it_lasts() -> None:
    backend = SimBackend(H200, slowdowns=[Slowdown("tenant 1", 3.0, from_us=1000, until_us=2000)])
    usual = duration_us(backend, lane(tenants=2))[0]
    backend.advance(1000)
    assert duration_us(backend, lane(tenants=1))[0] == pytest.approx(usual, abs=5)
    assert duration_us(backend, lane(tenants=2))[0] == pytest.approx(3 * usual, abs=3)
    while backend.now_us() < 2000:
        backend.advance(2000)
    assert duration_us(backend, lane(tenants=2))[0] == usual


def test_an_executable_is_ready_when_it_was_made_and_lanes_go_on_meanwhile() -> None:
    backend = SimBackend(H200, prepare_us=100)
    ready_us: list[int] = []
    for _ in range(2):
        backend.prepare("cohort", SimExecutable(PROGRAM), 8, lambda: ready_us.append(backend.now_us()))
    assert not backend.advance(99) and ready_us == []
    assert backend.advance() and backend.advance() and ready_us == [100, 100]
    assert not backend.advance(150) and backend.now_us() == 150
    SimBackend(H200).prepare("cohort", SimExecutable(PROGRAM), 8, lambda: ready_us.append(0))
    assert ready_us[-1] == 0


@pytest.mark.parametrize("option", ["noise", "model_error", "prepare_us"])
def test_negative_options_are_refused(option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} is -1"):
        SimBackend(H200, **{option: -1})


def test_a_slowdown_needs_a_factor() -> None:
    with pytest.raises(OptionError, match="slowdown by 0"):
        Slowdown("tenant", 0)


def test_atoms_that_do_nothing_in_the_last_wave_are_not_busy() -> None:
    waves = np.ceil(6 / np.arange(1, 9))[None, :]  # six tiles, one per atom at a time
    assert busy_atoms(waves).tolist() == [[1, 2, 3, 3, 3, 6, 6, 6]]
