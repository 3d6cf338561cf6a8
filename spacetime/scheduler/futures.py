"""A future that is cheap as long as nobody waits for it on another thread. The driver's results are made of it.

concurrent.futures.Future makes a condition, with a lock of its own, for every future, and takes it at every step of its
life. Here the condition comes into being when a method of the base class first asks for it: somebody waits, adds a
callback, cancels. Until then a plain lock, the gate, guards what the future goes through by itself: begun, ended.

Why no step is lost: the condition is made under the gate, and the steps below look under the gate whether it is there.
Whatever they do without it is done before it exists, so whoever holds it sees the outcome; once it exists every step is
the base class's, under the condition. The gate is a leaf: nothing is locked and nothing called while it is held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger("concurrent.futures")  # the base class's

_CANCELLED = (CANCELLED, CANCELLED_AND_NOTIFIED)
_DONE = (FINISHED, *_CANCELLED)
_OPEN = (PENDING, RUNNING)


class LazyFuture(Future[T]):
    """In everything but its cost a concurrent.futures.Future."""

    # The attributes of the base class; lists are made with the condition, under which alone they are used.
    _state: str = PENDING
    _result: T | None = None
    _exception: BaseException | None = None
    _waiters: list[Any]
    _done_callbacks: list[Callable[[Future[T]], Any]]
    _made: threading.Condition | None = None

    def __init__(self) -> None:  # the base class's own would make the condition
        self._gate = threading.RLock()  # re-entrant, for handlers of signals that cancel, say

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made
        return self._make_condition() if made is None else made

    def _make_condition(self) -> threading.Condition:
        condition = threading.Condition()  # made outside: nothing is called in the gate
        waiters: list[Any] = []
        callbacks: list[Callable[[Future[T]], Any]] = []
        with self._gate:
            if self._made is None:
                self._waiters, self._done_callbacks = waiters, callbacks
                self._made = condition
            return self._made

    # -- what a state says by itself is read without a lock: it is one value, and an end is final ---------------

    def done(self) -> bool:
        return self._state in _DONE

    def cancelled(self) -> bool:
        return self._state in _CANCELLED

    def result(self, timeout: float | None = None) -> T:
        if self._state == FINISHED and self._exception is None:
            return self._result  # type: ignore[return-value]
        try:
            return super().result(timeout)
        finally:
            del self  # as the base class does: the error that it raises holds this frame, and the future the error

    def _invoke_callbacks(self) -> None:
        """As in the base class, but that a callback which exits, as by sys.exit(), ends nothing but itself: the thread
        is a worker's, or that of somebody who waits, and other requests end on it.
        """
        for callback in self._done_callbacks:
            try:
                callback(self)
            except KeyboardInterrupt:  # meant for the thread, whose turn it was
                raise
            except BaseException:
                _log.exception("exception calling callback for %r", self)

    # -- what it goes through by itself --------------------------------------------------------------------------

    def set_running_or_notify_cancel(self) -> bool:
        with self._gate:
            if self._made is None and self._state == PENDING:
                self._state = RUNNING
                return True
        return super().set_running_or_notify_cancel()

    def set_result(self, result: T) -> None:
        with self._gate:
            if self._made is None and self._state in _OPEN:
                self._result = result
                self._state = FINISHED  # last: who sees the state finds the rest
                return
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        with self._gate:
            if self._made is None and self._state in _OPEN:
                self._exception = exception
                self._state = FINISHED
                return
        super().set_exception(exception)
