"""Threads of lanes, and the one in the background."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from spacetime.backends.cuda.workers import Background, Report, Workers

PATIENCE_S = 30


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def run_on(workers: Workers, stream: int) -> int:
    """The thread that a piece of work ran on; its worker is free again by then."""
    done = threading.Event()
    threads: list[int] = []

    def work() -> Report:
        threads.append(threading.get_ident())
        return done.set

    workers.submit(stream, work)
    assert done.wait(PATIENCE_S)
    return threads[0]


def test_a_stream_keeps_its_thread(workers: Workers) -> None:
    assert run_on(workers, 1) == run_on(workers, 1)
    assert run_on(workers, 1) != run_on(workers, 2)


def test_a_busy_stream_gets_another_thread_and_a_report_may_submit(workers: Workers) -> None:
    barrier, done = threading.Barrier(4), threading.Event()
    threads: set[int] = set()

    def work() -> Report:
        threads.add(threading.get_ident())
        barrier.wait(PATIENCE_S)
        return lambda: None

    def first() -> Report:
        return lambda: workers.submit(1, last)  # the worker that reports is free already

    def last() -> Report:
        return done.set

    for _ in range(3):
        workers.submit(1, work)
    workers.submit(1, first)
    barrier.wait(PATIENCE_S)  # all three run
    assert done.wait(PATIENCE_S) and len(threads) == 3


def test_work_is_dropped_before_the_report(workers: Workers) -> None:
    class Payload:
        pass

    payload = Payload()
    gone = weakref.ref(payload)
    seen: list[object] = []
    done = threading.Event()

    def make(held: Payload | None) -> Report:
        def report() -> None:
            gc.collect()
            seen.append(gone())
            done.set()

        return report

    def work(held: Payload = payload) -> Report:
        return make(held)

    workers.submit(1, work)
    del work, payload
    assert done.wait(PATIENCE_S) and seen == [None]


def test_closing_does_what_was_submitted_first() -> None:
    workers, entered, go = Workers(), threading.Event(), threading.Event()
    reports: list[int] = []

    def work() -> Report:
        entered.set()
        assert go.wait(PATIENCE_S)
        return lambda: reports.append(1)

    workers.submit(1, work)
    assert entered.wait(PATIENCE_S)
    closer = threading.Thread(target=workers.close)
    closer.start()
    go.set()
    closer.join(PATIENCE_S)
    assert reports == [1]


def test_the_background_does_one_thing_after_another_and_outlives_failures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    background = Background()
    done: list[int] = []

    def fail() -> None:
        raise ValueError("no memory to pin")

    with caplog.at_level(logging.ERROR, "spacetime"):
        background(lambda: done.append(1))
        background(fail)
        background(lambda: done.append(2))
        background.settle()
    assert done == [1, 2] and "no memory to pin" in caplog.text
    background.close()


def test_what_is_left_sees_that_the_end_has_come() -> None:
    background, entered, go = Background(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def hold() -> None:
        entered.set()
        assert go.wait(PATIENCE_S)

    background(hold)
    assert entered.wait(PATIENCE_S)
    background(lambda: seen.append(background.closing))
    closer = threading.Thread(target=background.close)
    closer.start()
    while not background.closing:
        closer.join(0.001)
    go.set()
    closer.join(PATIENCE_S)
    assert seen == [True] and not closer.is_alive()


def test_what_is_asked_for_while_it_closes_is_called() -> None:
    background, called = Background(), list[str]()
    entered, go = threading.Event(), threading.Event()

    def first() -> None:
        entered.set()
        assert go.wait(PATIENCE_S)
        background(lambda: called.append("asked for by the first"))

    background(first)
    assert entered.wait(PATIENCE_S)
    closer = threading.Thread(target=background.close)
    closer.start()
    while background._jobs.empty():  # until it has been told to end
        time.sleep(0.001)
    go.set()
    closer.join(PATIENCE_S)
    assert called == ["asked for by the first"] and not closer.is_alive()
