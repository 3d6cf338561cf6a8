"""The conformance suite: what the loop relies on, for every backend."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from spacetime.errors import ClosedError, SpacetimeError
from spacetime.scheduler.protocols import Backend, Executable, LaneResult
from tests.backends.conformance import (
    ASYNCHRONOUS,
    BACKENDS,
    PATIENCE_S,
    Answers,
    Calls,
    Double,
    partitions,
    start,
)


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = BACKENDS[str(request.param)]()
    yield made
    made.close()


@pytest.fixture(params=ASYNCHRONOUS)
def asynchronous(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = BACKENDS[str(request.param)]()
    yield made
    made.close()


def test_the_device_is_described(backend: Backend) -> None:
    device, capabilities = backend.device, backend.capabilities
    assert device.name and device.kind and device.num_atoms >= 1
    assert min(device.flops_per_unit_us, device.bytes_per_us, device.launch_us) > 0
    assert type(device).from_json(device.to_json()) == device
    assert type(capabilities).from_json(capabilities.to_json()) == capabilities


def test_the_clock_never_goes_back(backend: Backend) -> None:
    times = [backend.now_us() for _ in range(1000)]
    assert times == sorted(times) and all(isinstance(time, int) for time in times)


def test_a_lane_answers_in_order_within_its_times(backend: Backend) -> None:
    before_us = backend.now_us()
    result = start(backend, Double(), 1, 2, 3).result(PATIENCE_S)
    assert [outcome.value for outcome in result.outcomes] == [2, 4, 6]
    assert before_us <= result.start_us <= result.end_us <= backend.now_us()


def raise_error() -> None:
    raise ValueError("no")


def raise_exit() -> None:
    raise SystemExit("no")


def raise_interrupt() -> None:
    raise KeyboardInterrupt("no")


@pytest.mark.parametrize(
    ("executable", "payload", "kind"),
    [
        (Calls(), raise_error, ValueError),
        (Calls(), raise_exit, SystemExit),
        (Calls(), raise_interrupt, KeyboardInterrupt),
        (Answers(1), None, SpacetimeError),
        (Answers(3), None, SpacetimeError),
    ],
)
def test_whatever_an_executable_does_every_request_ends_once(
    backend: Backend, executable: Executable, payload: object, kind: type[BaseException]
) -> None:
    reports: list[LaneResult] = []
    result = start(backend, executable, payload, payload, reports=reports).result(PATIENCE_S)
    assert [type(outcome.error) for outcome in result.outcomes] == [kind, kind]
    # The same worker serves the next lane; by its end a second report of the first one would be here.
    assert start(backend, Double(), 1).result(PATIENCE_S).outcomes[0].value == 2
    assert reports == [result]


def test_many_lanes_run_on_every_partition(backend: Backend) -> None:
    ended = [
        (number, start(backend, Double(), number, on=partition))
        for partition in partitions(backend)
        for number in range(50)
    ]
    for number, lane in ended:
        assert lane.result(PATIENCE_S).outcomes[0].value == 2 * number


def test_what_ends_may_start_the_next_lane(backend: Backend) -> None:
    finished = threading.Event()
    seen: list[int] = []

    def again(result: LaneResult) -> None:
        seen.append(result.outcomes[0].value)
        if len(seen) < 20:
            start(backend, Double(), len(seen)).add_done_callback(lambda lane: again(lane.result()))
        else:
            finished.set()

    start(backend, Double(), 0).add_done_callback(lambda lane: again(lane.result()))
    assert finished.wait(PATIENCE_S) and seen == [2 * number for number in range(20)]


class Payload:
    """Something that a weak reference can point to."""

    def __call__(self) -> None:
        return None


def test_payloads_and_results_are_dropped_after_the_lane(backend: Backend) -> None:
    payload = Payload()
    gone = weakref.ref(payload)
    lane = start(backend, Calls(), payload)
    lane.result(PATIENCE_S)
    del payload
    start(backend, Double(), 1).result(PATIENCE_S)  # the worker has let go of the first lane by now
    gc.collect()
    assert gone() is None


def test_a_closed_backend_starts_nothing_and_leaves_no_thread(backend: Backend) -> None:
    before = set(threading.enumerate())
    for partition in partitions(backend):
        start(backend, Double(), 1, on=partition).result(PATIENCE_S)
    backend.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(ClosedError, match=r"(?s)a lane was started.*closed.*make another"):
        start(backend, Double(), 1)


# -- backends whose lanes run beside the thread that starts them ----------------------------------------


def test_starting_a_lane_does_not_wait_for_it(asynchronous: Backend) -> None:
    go = threading.Event()
    lane = start(asynchronous, Calls(), lambda: go.wait(PATIENCE_S))
    assert not lane.done()
    go.set()
    assert lane.result(PATIENCE_S).outcomes[0].value is True


def meet(barrier: threading.Barrier) -> bool:
    """True when everybody came; lanes run one after another would never meet."""
    barrier.wait(PATIENCE_S)
    return True


def test_lanes_on_disjoint_partitions_run_side_by_side(asynchronous: Backend) -> None:
    device = asynchronous.device
    barrier = threading.Barrier(device.num_atoms)
    lanes = [
        start(asynchronous, Calls(), lambda: meet(barrier), on=device.partition(device.units_per_atom, 1 << atom))
        for atom in range(device.num_atoms)
    ]
    assert [lane.result(PATIENCE_S).outcomes[0].value for lane in lanes] == [True] * device.num_atoms


def test_lanes_on_the_same_partition_run_side_by_side_too(asynchronous: Backend) -> None:
    barrier = threading.Barrier(6)
    lanes = [start(asynchronous, Calls(), lambda: meet(barrier)) for _ in range(6)]
    assert [lane.result(PATIENCE_S).outcomes[0].value for lane in lanes] == [True] * 6


def test_workers_are_used_again(asynchronous: Backend) -> None:
    first = start(asynchronous, Calls(), threading.get_ident).result(PATIENCE_S).outcomes[0].value
    second = start(asynchronous, Calls(), threading.get_ident).result(PATIENCE_S).outcomes[0].value
    assert first == second != threading.get_ident()


def test_closing_waits_for_no_thread_that_a_report_still_holds_up(asynchronous: Backend) -> None:
    """A report may take its time; close() ends all the same once it returns."""
    reported, go = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        reported.set()
        go.wait(PATIENCE_S)

    start(asynchronous, Double(), 1).add_done_callback(slow)
    assert reported.wait(PATIENCE_S)
    closer = threading.Thread(target=asynchronous.close)
    closer.start()
    go.set()
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
