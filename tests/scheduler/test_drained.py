"""Driver.drained(): whoever waits for a tenant's last request hears of it, however that one ends."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from spacetime.backends.null import NullBackend
from spacetime.errors import OptionError, PlanError, RejectedError
from spacetime.plan import Plan, Snapshot
from spacetime.scheduler.driver import Driver
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.request import make_request
from tests.scheduler.harness import Echo
from tests.scheduler.test_driver import PATIENCE_S, SPEC, make_loop, submit


def start(loop: Driver) -> None:
    """What was submitted is planned now."""
    loop.call(lambda scheduler: None)


def test_a_tenant_that_has_nothing_to_do_is_drained() -> None:
    loop = make_loop(NullBackend())
    loop.drained("a").result(PATIENCE_S)
    with pytest.raises(OptionError, match=r"tenant 'b' does not exist(.|\n)*known: a"):
        loop.drained("b")
    loop.close()
    loop.drained("a").result(PATIENCE_S)


def test_what_waits_and_what_runs_is_waited_for() -> None:
    backend = NullBackend(latency_us=1000)
    loop = make_loop(backend, "time_slice")
    first, second = submit(loop, backend, 1), submit(loop, backend, 2)
    start(loop)
    drained = loop.drained("a")
    backend.advance(1100)  # the first one has ended, the second one runs
    assert first.done() and not second.done() and not drained.done()
    backend.advance(1100)
    drained.result(PATIENCE_S)
    assert second.result(0) == 2
    loop.close()


def test_requests_that_are_cancelled_are_not_waited_for() -> None:
    backend = NullBackend(latency_us=1000)
    loop = make_loop(backend, "time_slice")
    running, waiting = submit(loop, backend, 1), submit(loop, backend, 2)
    start(loop)
    drained = loop.drained("a")
    assert waiting.cancel() and not drained.done()
    backend.advance(1100)
    drained.result(PATIENCE_S)
    assert running.result(0) == 1 and len(backend.lanes) == 1
    loop.close()


def fails(snapshot: Snapshot, costs: CostModel) -> Plan:
    raise ZeroDivisionError


def test_what_is_rejected_is_over() -> None:
    backend = NullBackend()
    loop = make_loop(backend, fails)
    future = submit(loop, backend, 1)
    loop.drained("a").result(PATIENCE_S)
    assert isinstance(future.exception(0), PlanError)
    loop.close()


def test_what_others_post_while_the_loop_is_interrupted_is_seen_to() -> None:
    """They leave it to whoever pumps, who is thrown out."""
    backend = NullBackend()
    posted: list[threading.Thread] = []

    def until_posted(snapshot: Snapshot, costs: CostModel) -> Plan:
        posted.append(threading.Thread(target=loop.call, args=(lambda scheduler: None,)))
        posted[-1].start()
        while not loop._inbox:
            pass
        raise KeyboardInterrupt

    loop = make_loop(backend, until_posted)
    with suppress(KeyboardInterrupt):
        loop.call(lambda scheduler: scheduler.submit(make_request(SPEC, 1, 1, 1, backend.now_us())))
    for thread in posted:
        thread.join(PATIENCE_S)
    assert posted and not any(thread.is_alive() for thread in posted)
    loop.close()


def test_an_interruption_ends_the_wait() -> None:
    backend = NullBackend(latency_us=1000)
    stop = threading.Event()

    def until_stopped(snapshot: Snapshot, costs: CostModel) -> Plan:
        if stop.is_set():
            raise KeyboardInterrupt
        return Plan(wake_at_us=snapshot.now_us + 10**9)

    loop = make_loop(backend, until_stopped)
    future = submit(loop, backend, 1)
    drained = loop.drained("a")
    assert not drained.done()
    stop.set()
    with suppress(KeyboardInterrupt):  # it is met here, unless the loop's own thread is just at it
        start(loop)
    drained.result(PATIENCE_S)
    assert isinstance(future.exception(0), RejectedError)
    loop.close()


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_the_wait(drain: bool) -> None:
    backend = NullBackend(latency_us=1000)
    loop = make_loop(backend, "time_slice")
    futures = [submit(loop, backend, i) for i in range(3)]
    start(loop)
    drained = loop.drained("a")
    closer = threading.Thread(target=loop.close, args=(drain,))
    closer.start()
    while not drained.done() and closer.is_alive():
        backend.advance(500)
    closer.join(PATIENCE_S)
    drained.result(PATIENCE_S)
    assert not closer.is_alive() and all(future.done() for future in futures)


def test_a_tenant_that_has_left_is_drained_whoever_has_its_name_now() -> None:
    backend = NullBackend(latency_us=1000)
    loop = make_loop(backend, "time_slice")
    old = submit(loop, backend, 1)
    start(loop)
    drained = loop.drained("a")

    def replace(scheduler: Scheduler) -> None:
        scheduler.remove_tenant("a")
        scheduler.add_tenant(SPEC, Echo())
        scheduler.submit(make_request(SPEC, 2, 1, 2, backend.now_us()))

    loop.call(replace)
    drained.result(PATIENCE_S)
    assert not old.done() and not loop.drained("a").done()
    backend.advance(5000)
    backend.advance(5000)
    loop.close()


def test_many_may_wait_for_the_same_tenant() -> None:
    backend = NullBackend(latency_us=1000)
    loop = make_loop(backend)
    submit(loop, backend, 1)
    start(loop)
    drained = [loop.drained("a") for _ in range(3)]
    backend.advance(1100)
    for future in drained:
        future.result(PATIENCE_S)
    loop.close()
