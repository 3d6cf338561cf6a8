"""Plays a Workload against anything that answers with futures, and times it. No torch; demo, benches, tests import it.

Requests are sent and counted in the futures' callbacks: nothing polls, and there is no thread per tenant.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from spacetime.errors import OptionError
from spacetime.values import Value
from spacetime.workload import Arrival, Workload

Submit = Callable[[int, Arrival], "Future[Any]"]  # send the request with this index in the workload
Ended = Callable[[int, int, "str | None"], None]  # index, latency_us, what the error said; from any thread


@dataclass(frozen=True, slots=True)
class Load(Value):
    """How a workload was served. Latencies of requests that succeeded, in order of their end; what the others said."""

    duration_us: int
    num_rows: int
    latencies_us: tuple[int, ...]
    errors: tuple[str, ...] = ()

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_us) / self.duration_us * 1e6 if self.duration_us else 0.0

    @property
    def rows_per_s(self) -> float:
        return self.num_rows / self.duration_us * 1e6 if self.duration_us else 0.0

    def latency_us(self, fraction: float) -> int:
        """The latency within which `fraction` of the requests ended (nearest rank); 0 when none succeeded."""
        ordered = sorted(self.latencies_us)
        return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] if ordered else 0


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


def closed_loop(
    workload: Workload, submit: Submit, now_us: Callable[[], int] = monotonic_us, *, ended: Ended | None = None
) -> Load:
    """Each tenant has `workload.outstanding` requests on their way, one if that is None: the next leaves when one ends.

    Arrival times are ignored.
    """
    outstanding = 1 if workload.outstanding is None else workload.outstanding
    if outstanding < 1:
        what = f"a closed loop of {outstanding} requests at a time was asked for"
        raise OptionError(what, "nothing would be sent", "give the workload outstanding=1 or more, or None")
    book = _Book(workload, now_us, ended)
    queues: defaultdict[str, deque[int]] = defaultdict(deque)
    for index, arrival in enumerate(workload.arrivals):
        queues[arrival.tenant].append(index)

    def send_next(queue: deque[int]) -> None:
        while (index := _next(queue)) is not None:
            sent_us = now_us()
            future = _send(submit, index, workload.arrivals[index])
            if not future.done():  # what ends at once must not recurse into the callback
                future.add_done_callback(partial(go_on, queue, index, sent_us))
                return
            book.enter(index, sent_us, future)

    def go_on(queue: deque[int], index: int, sent_us: int, future: Future[Any]) -> None:
        book.enter(index, sent_us, future)
        send_next(queue)

    for _ in range(outstanding):
        for queue in queues.values():
            send_next(queue)
    return book.close()


def open_loop(
    workload: Workload,
    submit: Submit,
    now_us: Callable[[], int] = monotonic_us,
    sleep_s: Callable[[float], None] = time.sleep,
    *,
    ended: Ended | None = None,
    patience_s: float | None = None,
) -> Load:
    """Requests leave when they are due, whatever has ended. Latency counts from then: a late sender hides nothing.

    `patience_s` after the last one was sent, those that have not started yet are cancelled: an overload ends.
    """
    book, sent = _Book(workload, now_us, ended), []
    for index, arrival in enumerate(workload.arrivals):
        due_us = book.start_us + arrival.at_us
        while (wait_us := due_us - now_us()) > 0:
            sleep_s(wait_us * 1e-6)
        future = _send(submit, index, arrival)
        future.add_done_callback(partial(book.enter, index, due_us))
        if patience_s is not None:
            sent.append(future)
    if patience_s is not None and not book.wait(patience_s):
        for future in sent:
            future.cancel()
    return book.close()


class _Book:
    """Enters how requests end, from any thread."""

    def __init__(self, workload: Workload, now_us: Callable[[], int], ended: Ended | None) -> None:
        self.start_us = now_us()
        self._ended = ended
        self._arrivals = workload.arrivals
        self._now_us = now_us
        self._end_us = self.start_us
        self._latencies_us: list[int] = []
        self._num_rows = 0
        self._errors: list[str] = []
        self._lock = threading.Lock()
        self._complete = threading.Event()
        if not workload.arrivals:
            self._complete.set()

    def enter(self, index: int, sent_us: int, future: Future[Any]) -> None:
        end_us = self._now_us()
        error: BaseException | str | None = "cancelled" if future.cancelled() else future.exception()
        if self._ended is not None:
            self._ended(index, end_us - sent_us, None if error is None else str(error))
        with self._lock:
            self._end_us = max(self._end_us, end_us)
            if error is None:
                self._latencies_us.append(end_us - sent_us)
                self._num_rows += self._arrivals[index].rows
            else:
                self._errors.append(str(error))
            if len(self._latencies_us) + len(self._errors) == len(self._arrivals):
                self._complete.set()

    def wait(self, timeout_s: float) -> bool:
        """For the last request; False if that takes longer."""
        return self._complete.wait(timeout_s)

    def close(self) -> Load:
        """Wait for the last request."""
        self._complete.wait()
        duration_us = self._end_us - self.start_us
        return Load(duration_us, self._num_rows, tuple(self._latencies_us), tuple(self._errors))


def _next(queue: deque[int]) -> int | None:
    """Several requests of a tenant may end at the same moment, on threads of their own."""
    try:
        return queue.popleft()
    except IndexError:
        return None


def _send(submit: Submit, index: int, arrival: Arrival) -> Future[Any]:
    """A request that is refused is one that failed: the others go on."""
    try:
        return submit(index, arrival)
    except Exception as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future
