"""Drives a Scheduler for real devices. The runtime owns one driver; the simulator does without.

Everything that touches the scheduler passes through one inbox, and whoever holds the *pump* empties it: the
thread that waits for a result, the worker that has just finished a lane, or else the driver's own thread.
The scheduler so needs no locks, and a request costs no more hand-offs between threads than the lane itself.
The driver's thread sleeps; an alarm wakes it for requests that nobody has pumped shortly after they were submitted,
and at the times that policies ask for.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, TypeVar
from weakref import WeakSet

from spacetime.errors import ClosedError, RejectedError, SpacetimeError
from spacetime.scheduler.alarm import make_alarm
from spacetime.scheduler.futures import LazyFuture
from spacetime.scheduler.loop import Post, Scheduler
from spacetime.scheduler.request import Request
from spacetime.scheduler.serving import lanes_here

T = TypeVar("T")
_log = logging.getLogger("spacetime")

UNATTENDED_US = 150  # who submits and then waits has begun to by then; nobody else should have to wait for long
# While everybody waits for what they submit, the alarm may be later, and so serve for several rounds of requests (see
# alarm.py). It costs the first request that nobody awaits so much; a request is looked at within a millisecond.
PATIENT_US = 900
HAND_OVER_US = 400  # until another thread has woken up, and has woken this one again with all that it has to say
EXIT_S = 10.0  # for lanes that run when the interpreter ends
HABIT = 32  # alarms on end that were not needed make one

_SUBMITTED, _POLICY = 0, 1  # bells: requests are unattended; the time has come that the policy asked for
_UNSURE = -1  # whether the policy's bell is still set


class _Drain(NamedTuple):
    """Somebody waits until a tenant has nothing left to do."""

    is_over: Callable[[], bool]
    future: Future[None]


class Driver:
    """Owns the scheduler that `build` makes; `build` is given the `post` through which lanes report their end."""

    def __init__(
        self,
        build: Callable[[Post], Scheduler],
        at_end: Callable[[], None] = lambda: None,
        name: str = "spacetime-loop",
    ) -> None:
        self._inbox: deque[Request | Callable[[], None]] = deque()
        self._pump_lock = threading.Lock()
        self._pump_owner: int | None = None
        self._wake_at_us: int | None = None  # what the policy's bell is set to
        self._alarm = make_alarm(num_bells=2)
        self._is_alarmed = False  # the other bell is set, or somebody is about to set it
        self._is_hurried = False  # ... and was then set to ring at once
        self._num_attended = 0  # alarms since one was needed
        self._drains: list[_Drain] = []
        self._ended = False
        self._is_orphan = False
        self._at_end = at_end  # called once, when everything has ended and the backend is closed
        self._scheduler = build(self._post_now)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _drivers.add(self)

    def submit(self, request: Request, *, assisted: bool = False) -> None:
        """Queue a request and return; what is submitted together is planned together.

        `assisted`: the caller waits for the result, or has it planned, right away: nobody need be woken.
        """
        if self._is_orphan:
            raise _orphaned("a request")
        self._inbox.append(request)
        if assisted:
            return
        if self._ended:  # the thread is no more: do its work
            self.pump()
        elif not self._is_alarmed:
            self._set_alarm()

    def _set_alarm(self) -> None:
        after_us = UNATTENDED_US if self._num_attended < HABIT else PATIENT_US
        try:
            self._is_alarmed = True
            self._alarm.set(_SUBMITTED, after_us, UNATTENDED_US)
        except BaseException:  # Ctrl-C: the next one has to set it
            self._is_alarmed = False
            raise

    def hurry(self) -> None:
        """Somebody waits in a way that does not pump."""
        if self._is_alarmed and not self._is_hurried:
            self._is_hurried = True
            self._wake()

    def call(self, function: Callable[[Scheduler], T]) -> T:
        """Run the function between two steps of the loop; its result, or its exception."""
        if self._is_orphan:
            raise _orphaned("a call")
        if self._is_pumping():
            return function(self._scheduler)
        answer: Future[T] = Future()
        self._post_now(partial(_answer, answer, function, self._scheduler))
        return answer.result()

    def drained(self, name: str) -> Future[None]:
        """Completes when nothing of the tenant waits or runs, whatever came meanwhile, or when it has left."""
        drained: Future[None] = Future()
        self.call(lambda scheduler: self._drains.append(_Drain(scheduler.idleness(name), drained)))
        return drained

    def close(self, drain: bool = True) -> None:
        """Serve what waits (drain) or reject it, let running lanes end, release the backend. May be called again."""
        if self._is_orphan:
            return  # there is nobody to wait for, and what there is to release is the other process's
        self._inbox.append(partial(self._scheduler.close, drain))
        self._wake()
        if not (self._is_pumping() or self._is_in_lane()):  # a callback may close the runtime; it ends without it
            self._thread.join()

    def let_go(self, drain: bool = True) -> None:
        """close() that does not wait, for whoever may not: Python's collector, which comes at any moment."""
        if not (self._is_orphan or self._ended):
            self._inbox.append(partial(self._scheduler.close, drain))
            self._alarm.set(_SUBMITTED, 0)

    @property
    def is_closed(self) -> bool:
        """Whether it accepts nothing more, whoever has ended it."""
        return self._scheduler.closed

    def ends_within(self, timeout_s: float) -> bool:
        """Wait for the end of one that was let go."""
        if not self._is_orphan:
            self._thread.join(max(0.0, timeout_s))
        return self._is_orphan or not self._thread.is_alive()

    def may_wait(self, what: str) -> None:
        """Refuse a call that waits for the loop, or for lanes, from inside of one: it would wait for ever."""
        if self._is_orphan:
            raise _orphaned(what)
        if self._is_pumping():
            raise SpacetimeError(
                f"{what} was called from a future's callback",
                "the loop runs the callback, and the call waits for the loop",
                "let the callback hand it to another thread",
            )
        if self._is_in_lane():
            raise SpacetimeError(
                f"{what} was called from a module's forward, in a lane of the same runtime",
                "a lane must not wait for another lane: that one may need the units of this one",
                "call the plain module there, or a tenant of another Runtime",
            )

    def orphan(self) -> None:
        """This process is a child of the one it was made in: its threads are not here, their locks stay held."""
        self._is_orphan = True

    def assist(self, most_us: int | None = None) -> bool:
        """A thread is about to wait for a result: it plans, and runs a lane, itself. True if it ran one.

        `most_us`: it cannot wait for long, and leaves lanes that may take longer to others.
        """
        return self._scheduler.backend.assist(self.pump, most_us)

    def pump(self) -> None:
        """Plan and start what was posted, on this thread, unless another thread is at it and will see it."""
        while self._inbox:
            if not self._pump_lock.acquire(blocking=False):
                return  # its owner looks into the inbox once more after it lets go
            is_interrupted = True
            try:
                self._pump_owner = threading.get_ident()
                self._disarm()
                self._empty_inbox()
                is_interrupted = False
            except BaseException as error:  # Ctrl-C in the thread that pumps: nobody may wait for ever because of it
                self._interrupted(error)
                if threading.current_thread() is threading.main_thread():
                    raise  # the interruption was meant for it; a worker's thread must live on
            finally:
                self._pump_owner = None
                self._pump_lock.release()
                if is_interrupted:  # woken before, the thread could find the lock taken, and sleep on
                    self._wake()

    def _disarm(self) -> None:
        """Before the inbox is emptied, and in this order: a request is in the inbox before its bell is looked at, so

        either it is found there, or its bell is set again.
        """
        if self._is_alarmed:
            self._alarm.cancel(_SUBMITTED)
            self._is_alarmed = self._is_hurried = False
            self._num_attended += 1

    def _empty_inbox(self) -> None:
        inbox, submit = self._inbox, self._scheduler.submit
        while inbox:
            while inbox:
                item = inbox.popleft()
                try:
                    if isinstance(item, Request):
                        submit(item)
                    else:
                        item()
                except Exception:  # the loop outlives whatever it is asked to call
                    _log.exception("a call on the loop failed")
            self._step()
            if self._drains:
                self._end_drains()

    def _step(self) -> None:
        try:
            wake_at_us = self._scheduler.step()
            if wake_at_us != self._wake_at_us:
                self._set_wake(wake_at_us)
        except Exception as error:  # a defect of ours or of the backend: nobody may wait for ever because of it
            _log.exception("a step of the loop failed; what waits is rejected")
            facts, next_step = f"{type(error).__name__}: {error}", "submit the request again"
            self._scheduler.reject_waiting(RejectedError("the loop failed", facts, next_step))
            self._wake_at_us = _UNSURE
        if self._scheduler.closed and self._pump_owner != self._thread.ident:
            self._wake()  # the driver's thread looks whether that was the end

    def _set_wake(self, wake_at_us: int | None) -> None:
        self._wake_at_us = wake_at_us
        if wake_at_us is None:
            self._alarm.cancel(_POLICY)
        else:
            self._alarm.set(_POLICY, wake_at_us - self._scheduler.backend.now_us())

    def _end_drains(self) -> None:
        """After a step: in the middle of one a request may be on its way from its queue to a lane."""
        ended = [drain for drain in self._drains if drain.is_over()]
        self._drains = [drain for drain in self._drains if drain not in ended]
        for drain in ended:
            drain.future.set_result(None)

    def _interrupted(self, error: BaseException) -> None:
        _log.error("the loop was interrupted; what waits and what runs is rejected", exc_info=error)
        facts, next_step = f"{type(error).__name__}: {error}", "submit the request again"
        self._scheduler.abandon(RejectedError("the loop was interrupted", facts, next_step))

    def _is_pumping(self) -> bool:
        return self._pump_owner == threading.get_ident()

    def _is_in_lane(self) -> bool:
        return any(map(self._scheduler.runs, lanes_here()))

    def _post_now(self, function: Callable[[], None]) -> None:
        self._inbox.append(function)
        self.pump()

    # -- the driver's own thread ----------------------------------------------------------------------

    def _wake(self) -> None:
        """Wake the thread at once; after its end, do its work."""
        if self._ended:
            self.pump()
        else:
            self._alarm.set(_SUBMITTED, 0)

    def _run(self) -> None:
        while not self._finished():
            if not self._scheduler.closed or not self._inbox:  # see _finished
                self._alarm.wait()
                if self._is_alarmed:
                    self._num_attended = 0
                self._inbox.append(self._look_again)
            self.pump()
        _guard(self._scheduler.backend.close)
        _guard(self._at_end)
        self._ended = True  # before the last look: what is posted from now on is pumped by who posts it
        self.pump()
        self._alarm.close()

    def _finished(self) -> bool:
        if not self._scheduler.closed:
            return False
        # A lane that is just being started is neither waiting nor running. Who could not have the lock meanwhile leaves
        # what it posted to us.
        with self._pump_lock:
            return self._scheduler.idle and not self._inbox

    def _look_again(self) -> None:
        """A step is made after every call. The policy's bell may have rung: it is to be set again if it still waits."""
        self._wake_at_us = _UNSURE


class Result(LazyFuture[T]):
    """A future whose waiting thread helps the loop instead of waiting for another thread."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def result(self, timeout: float | None = None) -> T:
        try:
            if not self.done():  # as most are of those that were submitted together, once one of them has ended
                self._help(timeout)
            return super().result(timeout)
        finally:
            del self  # see the base class

    def plan(self) -> None:
        """Have it planned, and what else was submitted, on this thread, which is wanted elsewhere.

        A lane so short that to hand it over takes longer is run here and now.
        """
        if not self.done():
            self._driver.assist(HAND_OVER_US)

    def _help(self, timeout: float | None) -> None:
        self._driver.may_wait("result()")
        if timeout is None:
            while self._driver.assist() and not self.done():
                pass
        else:
            self._driver.pump()  # a lane that it runs itself could not be interrupted
        self._prepare_to_wait()
        del self  # a lane that was run here may have failed, and its error holds this frame

    def _prepare_to_wait(self) -> None:
        if self._made is None and not self.done():
            super()._make_condition()

    def _make_condition(self) -> threading.Condition:
        self._driver.hurry()  # who is called back, or waits in exception(), wait() or as_completed(), does not pump
        return super()._make_condition()


_drivers: WeakSet[Driver] = WeakSet()


def _orphan_all() -> None:
    for driver in _drivers:
        driver.orphan()


@atexit.register
def _end_all() -> None:
    """Threads that are in native code when the interpreter goes away take the process down: lanes end before."""
    drivers, give_up_s = list(_drivers), time.monotonic() + EXIT_S
    for driver in drivers:
        driver.let_go(drain=False)
    if not all([driver.ends_within(give_up_s - time.monotonic()) for driver in drivers]):
        _log.warning("a lane was still running %g s after the end of the program, and is cut off", EXIT_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_orphan_all)


def _orphaned(what: str) -> ClosedError:
    facts = "the runtime was made in another process, and its threads did not survive the fork"
    return ClosedError(f"{what} cannot be served", facts, "make a Runtime after the fork, or start processes by spawn")


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
