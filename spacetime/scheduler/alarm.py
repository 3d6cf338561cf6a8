"""Wakes one sleeping thread some time from now, without another thread's help. Only the driver imports it.

Waking a thread at once has it compete for the interpreter's lock with the thread that woke it, and for a core with
those that compute. Most alarms are cancelled before they ring, and nobody has been woken by them. On Linux the kernel
keeps the time (timerfd); elsewhere the sleeper does, so there it is woken once to hear of the new time.

To set a timer, or to stop one, is a matter of 0.3 us on most machines, but of 12 us on a virtual one whose clock is its
host's. So a timer that is not needed any more goes on, muted, and may serve for the next time.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, Protocol

_CLOCK_MONOTONIC = 1
_MUTED = 0  # of the events of a timer none is heard


class Alarm(Protocol):
    """Several bells and one sleeper, who hears all of them. Everything but `wait` may be called from any thread."""

    def set(self, bell: int, after_us: int, not_before_us: int | None = None) -> None:
        """The bell rings once, so long from now, whatever it was set to before; after the close it does not.

        `not_before_us`: it may ring earlier, if that is cheaper, but not before that.
        """

    def cancel(self, bell: int) -> None:
        """The bell does not ring, unless the sleeper is hearing it already."""

    def wait(self) -> None:
        """Block until a bell rings, or return at once if one has rung since the last wait."""

    def close(self) -> None:
        """The sleeper is done with it."""


def make_alarm(num_bells: int) -> Alarm:
    """The best alarm that this system has."""
    return SleeperAlarm(num_bells) if _timers() is None else TimerAlarm(num_bells)


class TimerAlarm:
    """A kernel timer per bell. Raises OSError where there are none."""

    def __init__(self, num_bells: int) -> None:
        timers = _timers()
        if timers is None:
            raise OSError("this system has no timerfd")
        self._settime = timers.timerfd_settime
        self._bells = tuple([_new_timer(timers) for _ in range(num_bells)])
        self._due_ns = [0] * num_bells  # when their timers end
        self._heard = select.epoll()
        for timer in self._bells:
            self._heard.register(timer, _MUTED)
        # Above all, the number of a closed timer may soon be another file's. Re-entrant, for what Python's collector
        # ends while a thread is in here: a runtime that nobody has a name for.
        self._lock = threading.RLock()
        self._closed = False

    def set(self, bell: int, after_us: int, not_before_us: int | None = None) -> None:
        now_ns, timer = time.monotonic_ns(), self._bells[bell]
        latest_ns = now_ns + max(1, after_us * 1000)
        earliest_ns = latest_ns if not_before_us is None else now_ns + not_before_us * 1000
        with self._lock:
            if self._closed:
                return
            if not earliest_ns <= self._due_ns[bell] <= latest_ns:
                if self._settime(timer, 0, _expiry(latest_ns - now_ns), None) != 0:
                    raise OSError("timerfd_settime failed")
                self._due_ns[bell] = latest_ns
            self._heard.modify(timer, select.EPOLLIN)

    def cancel(self, bell: int) -> None:
        with self._lock:
            if not self._closed:
                self._heard.modify(self._bells[bell], _MUTED)

    def wait(self) -> None:
        for timer, _ in self._heard.poll():
            with suppress(BlockingIOError):  # it was set again since it rang
                os.read(timer, 8)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._heard.close()
                for timer in self._bells:
                    os.close(timer)


class SleeperAlarm:
    """The sleeper minds the time itself."""

    def __init__(self, num_bells: int) -> None:
        self._due_ns: list[int | None] = [None] * num_bells
        self._changed = threading.Condition()
        self._closed = False

    def set(self, bell: int, after_us: int, not_before_us: int | None = None) -> None:
        with self._changed:
            self._due_ns[bell] = time.monotonic_ns() + max(0, after_us) * 1000
            self._changed.notify()

    def cancel(self, bell: int) -> None:
        with self._changed:
            self._due_ns[bell] = None

    def wait(self) -> None:
        with self._changed:
            while not self._closed:
                now_ns = time.monotonic_ns()
                pending = [due_ns for due_ns in self._due_ns if due_ns is not None]
                if any(due_ns <= now_ns for due_ns in pending):
                    self._due_ns = [None if due is None or due <= now_ns else due for due in self._due_ns]
                    return
                self._changed.wait((min(pending) - now_ns) * 1e-9 if pending else None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


class _Expiry(ctypes.Structure):
    """struct itimerspec: first an interval, nought for a timer that rings once."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "after_s", "after_ns")]


@lru_cache(maxsize=64)
def _expiry(after_ns: int) -> Any:
    """A reference to the structure for so many nanoseconds from now."""
    return ctypes.byref(_Expiry(0, 0, after_ns // 1_000_000_000, after_ns % 1_000_000_000))


@cache
def _timers() -> Any:
    """The C library, if it has kernel timers that work here.

    The interpreter's lock is kept while it is called (PyDLL): that takes less time than to give it up.
    """
    try:
        library = ctypes.PyDLL(None)
        os.close(_new_timer(library))
    except (OSError, AttributeError, TypeError):  # another system; a sandbox that forbids the call
        return None
    return library


def _new_timer(library: Any) -> int:
    timer = int(library.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
    if timer < 0:
        raise OSError("timerfd_create failed")
    return timer
