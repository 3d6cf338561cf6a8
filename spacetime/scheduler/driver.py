"""Drives a Scheduler for real devices. The runtime owns one driver; the simulator does without.

Everything that touches the scheduler passes through one inbox, and whoever holds the *pump* empties it: the
thread that waits for a result, the worker that has just finished a lane, or else the driver's own thread.
The scheduler so needs no locks, and a request costs no more hand-offs between threads than the lane itself.
The driver's thread blocks while there is nothing to do.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from spacetime.errors import RejectedError, SpacetimeError
from spacetime.scheduler.loop import Post, Scheduler
from spacetime.scheduler.request import Request

T = TypeVar("T")
_log = logging.getLogger("spacetime")


class Driver:
    """Owns the scheduler that `build` makes; `build` is given the `post` through which lanes report their end."""

    def __init__(
        self,
        build: Callable[[Post], Scheduler],
        at_end: Callable[[], None] = lambda: None,
        name: str = "spacetime-loop",
    ) -> None:
        self._inbox: deque[Callable[[], None]] = deque()
        self._pump_lock = threading.Lock()
        self._pump_owner: int | None = None
        self._wake_at_us: int | None = None
        self._pokes: SimpleQueue[None] = SimpleQueue()
        self._poked = False
        self._ended = False
        self._at_end = at_end  # called once, when everything has ended and the backend is closed
        self._scheduler = build(self._post_now)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, request: Request, *, assisted: bool = False) -> None:
        """Queue a request and return; what is submitted together is planned together.

        `assisted`: the caller waits for the result right away, so it will pump and nobody need be woken.
        """
        self._inbox.append(partial(self._scheduler.submit, request))
        if not assisted:
            self._poke()

    def call(self, function: Callable[[Scheduler], T]) -> T:
        """Run the function between two steps of the loop; its result, or its exception."""
        if self._is_pumping():
            return function(self._scheduler)
        answer: Future[T] = Future()
        self._post_now(partial(_answer, answer, function, self._scheduler))
        return answer.result()

    def close(self, drain: bool = True) -> None:
        """Serve what waits (drain) or reject it, let running lanes end, release the backend. May be called again."""
        self._inbox.append(partial(self._scheduler.close, drain))
        self._poke()
        if not self._is_pumping():  # a future's callback may close the runtime; it ends without it
            self._thread.join()

    def may_wait(self, what: str) -> None:
        """Refuse a call that waits for the loop when it comes from inside the loop: it would wait for ever."""
        if self._is_pumping():
            raise SpacetimeError(
                f"{what} was called from a future's callback",
                "the loop runs the callback, and the call waits for the loop",
                "let the callback hand it to another thread",
            )

    def assist(self) -> bool:
        """A thread is about to wait for a result: it plans, and runs a lane, itself. True if it ran one."""
        return self._scheduler.backend.assist(self.pump)

    def pump(self) -> None:
        """Plan and start what was posted, on this thread, unless another thread is at it and will see it."""
        while self._inbox:
            if not self._pump_lock.acquire(blocking=False):
                return  # its owner looks into the inbox once more after it lets go
            try:
                self._pump_owner = threading.get_ident()
                self._empty_inbox()
            except BaseException as error:  # Ctrl-C in the thread that pumps: nobody may wait for ever because of it
                self._interrupted(error)
                if threading.current_thread() is threading.main_thread():
                    raise  # the interruption was meant for it; a worker's thread must live on
            finally:
                self._pump_owner = None
                self._pump_lock.release()

    def _empty_inbox(self) -> None:
        inbox = self._inbox
        while inbox:
            while inbox:
                _guard(inbox.popleft())
            self._step()

    def _step(self) -> None:
        try:
            self._wake_at_us = self._scheduler.step()
        except Exception as error:  # a defect of ours or of the backend: nobody may wait for ever because of it
            _log.exception("a step of the loop failed; what waits is rejected")
            facts, next_step = f"{type(error).__name__}: {error}", "submit the request again"
            self._scheduler.reject_waiting(RejectedError("the loop failed", facts, next_step))
            self._wake_at_us = None
        if self._wake_at_us is not None or self._scheduler.closed:
            self._poke()

    def _interrupted(self, error: BaseException) -> None:
        _log.error("the loop was interrupted; what waits and what runs is rejected", exc_info=error)
        facts, next_step = f"{type(error).__name__}: {error}", "submit the request again"
        self._scheduler.abandon(RejectedError("the loop was interrupted", facts, next_step))
        self._poke()  # the driver's thread looks whether that was the end

    def _is_pumping(self) -> bool:
        return self._pump_owner == threading.get_ident()

    def _post_now(self, function: Callable[[], None]) -> None:
        self._inbox.append(function)
        self.pump()

    # -- the driver's own thread ----------------------------------------------------------------------

    def _poke(self) -> None:
        """Wake the thread, once however often it is called; after its end, do its work."""
        if self._ended:
            self.pump()
        elif not self._poked:
            self._poked = True
            self._pokes.put(None)

    def _run(self) -> None:
        while not self._finished():
            if not self._inbox and not self._wait():
                self._inbox.append(_nothing)  # it is time: have a step made
            self.pump()
        _guard(self._scheduler.backend.close)
        _guard(self._at_end)
        self._ended = True  # before the last look: what is posted from now on is pumped by who posts it
        self.pump()

    def _finished(self) -> bool:
        if not self._scheduler.closed:
            return False
        with self._pump_lock:  # a lane that is just being started is neither waiting nor running
            return self._scheduler.idle and not self._inbox

    def _wait(self) -> bool:
        """Block until poked (True), or until the time the policy asked for (False)."""
        wake_at_us, timeout_s = self._wake_at_us, None
        if wake_at_us is not None:
            timeout_s = max(0, wake_at_us - self._scheduler.backend.now_us()) * 1e-6
        try:
            self._pokes.get(timeout=timeout_s)
        except Empty:
            return False
        self._poked = False
        return True


class Result(Future[T]):
    """A future whose waiting thread helps the loop instead of waiting for another thread."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def result(self, timeout: float | None = None) -> T:
        if self.done():  # as most are of those that were submitted together, once one of them has ended
            return super().result()
        self._driver.may_wait("result()")
        if timeout is None:
            while self._driver.assist() and not self.done():
                pass
        else:
            self._driver.pump()  # a lane that it runs itself could not be interrupted
        return super().result(timeout)


def _nothing() -> None:
    """A step is made after every call, so calling nothing makes one."""


def _guard(function: Callable[[], None]) -> None:
    """The loop outlives whatever it is asked to call."""
    try:
        function()
    except Exception:
        _log.exception("a call on the loop failed")


def _answer(answer: Future[T], function: Callable[[Scheduler], T], scheduler: Scheduler) -> None:
    try:
        answer.set_result(function(scheduler))
    except BaseException as error:
        answer.set_exception(error)
