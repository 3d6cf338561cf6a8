"""The CPU backend: cores and intra-op threads of its workers, and of everybody else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from spacetime.backends import make_backend
from spacetime.backends.cores import available_cores, can_pin
from spacetime.backends.cpu import CpuBackend
from spacetime.backends.null import NullBackend
from spacetime.errors import OptionError
from tests.backends.conformance import PATIENCE_S, Calls, partitions, start

needs_pinning = pytest.mark.skipif(not can_pin(), reason="this system cannot pin threads")


@pytest.fixture
def backend() -> Iterator[CpuBackend]:
    made = CpuBackend()
    yield made
    made.close()


def in_a_lane(backend: CpuBackend, atoms: int, call: Callable[[], Any]) -> Any:
    partition = backend.device.partition(atoms.bit_count(), atoms)
    (outcome,) = start(backend, Calls(), call, on=partition).result(PATIENCE_S).outcomes
    assert outcome.error is None
    return outcome.value


@needs_pinning
def test_a_worker_is_pinned_to_the_cores_of_its_partition(backend: CpuBackend) -> None:
    cores = available_cores()
    for partition in partitions(backend):
        expected = {core for index, core in enumerate(cores) if partition.atoms >> index & 1}
        assert in_a_lane(backend, partition.atoms, lambda: os.sched_getaffinity(0)) == expected


def test_a_worker_has_as_many_threads_as_its_partition_has_units(backend: CpuBackend) -> None:
    for partition in partitions(backend):
        assert in_a_lane(backend, partition.atoms, torch.get_num_threads) == partition.granted_units


def multiply() -> None:
    torch.ones(256, 256) @ torch.ones(256, 256)


def settings_of_this_thread() -> tuple[int, set[int]]:
    return torch.get_num_threads(), os.sched_getaffinity(0) if can_pin() else set()


def test_other_threads_keep_their_settings(backend: CpuBackend) -> None:
    """MKL's own setting shows in torch.get_num_threads() too: it is what torch asks."""
    before = settings_of_this_thread()
    asked, answer = threading.Event(), Future[tuple[Any, Any]]()

    def bystander() -> None:
        multiply()
        first = settings_of_this_thread()
        asked.wait(PATIENCE_S)
        multiply()
        answer.set_result((first, settings_of_this_thread()))

    thread = threading.Thread(target=bystander)
    thread.start()
    for partition in partitions(backend):
        in_a_lane(backend, partition.atoms, multiply)
    asked.set()
    thread.join(PATIENCE_S)
    first, second = answer.result(0)
    assert first == second
    assert settings_of_this_thread() == before
    report: list[tuple[int, set[int]]] = []
    late = threading.Thread(target=lambda: report.append(settings_of_this_thread()))
    late.start()
    late.join(PATIENCE_S)
    assert report == [first], "a thread that starts later is not affected either"


def test_a_device_may_have_fewer_units_than_the_machine() -> None:
    backend = CpuBackend(num_units=1)
    assert backend.device.num_units == 1
    assert in_a_lane(backend, 1, torch.get_num_threads) == 1
    backend.close()


@pytest.mark.parametrize("num_units", [0, -1, 100_000])
def test_units_that_are_not_there_are_refused(num_units: int) -> None:
    with pytest.raises(OptionError, match=rf"(?s){num_units} units was asked for.*this process may use \d+.*ask for 1"):
        CpuBackend(num_units)


def test_backends_are_made_by_name_or_taken_as_they_are() -> None:
    for name in ("auto", "cpu"):
        made = make_backend(name)
        assert made.device.kind == "cpu"
        made.close()
    null = NullBackend()
    assert make_backend(null) is null
    with pytest.raises(OptionError, match=r"(?s)device 'tpu' does not exist.*known: auto, cpu"):
        make_backend("tpu")


# -- the thread that asks --------------------------------------------------------------------------------


def thread_of_a_lane(backend: CpuBackend, most_us: int | None, lasting_s: float = 0.0) -> int:
    """On which thread a lane on the whole device runs, if this one offers itself for so long."""
    result: list[Future[Any]] = []

    def work() -> int:
        time.sleep(lasting_s)
        return threading.get_ident()

    backend.assist(lambda: result.append(start(backend, Calls(), work, on=backend.device.whole)), most_us)
    (outcome,) = result[0].result(PATIENCE_S).outcomes
    assert outcome.error is None
    return int(outcome.value)


def test_a_thread_that_waits_takes_any_lane(backend: CpuBackend) -> None:
    torch.set_num_threads(backend.device.num_units)
    assert thread_of_a_lane(backend, None, lasting_s=0.02) == threading.get_ident()


def test_a_thread_in_a_hurry_takes_lanes_that_were_short(backend: CpuBackend) -> None:
    torch.set_num_threads(backend.device.num_units)
    here, long_us = threading.get_ident(), 10_000_000
    assert thread_of_a_lane(backend, long_us) != here, "nobody knows how long it takes"
    assert thread_of_a_lane(backend, long_us) == here
    assert thread_of_a_lane(backend, 0, lasting_s=0.02) != here
    assert thread_of_a_lane(backend, 2_000) != here, "the last one took long"
    for _ in range(40):  # of which each counts for a quarter
        thread_of_a_lane(backend, 0)
    assert thread_of_a_lane(backend, long_us) == here


def test_workers_that_a_rush_has_needed_do_not_stay_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacetime.backends.cpu._MOST_WORKERS", 2)
    backend = CpuBackend(1)
    before = {thread for thread in threading.enumerate() if "spacetime-cores" in thread.name}
    go_on = threading.Event()
    whole, some = backend.device.whole, backend.device.partition(1, 1)
    rush = [start(backend, Calls(), lambda: go_on.wait(PATIENCE_S), on=whole) for _ in range(12)]
    assert len(backend._workers) == 12, "nobody waits for another lane"
    go_on.set()
    for future in rush:
        assert future.result(PATIENCE_S).outcomes[0].value is True
    for number in range(30):
        assert in_a_lane(backend, some.atoms, lambda number=number: number) == number
    assert len(backend._workers) <= backend._most_workers == 4
    backend.close()
    assert {thread for thread in threading.enumerate() if "spacetime-cores" in thread.name} == before
