"""An export is seconds of Python while others are being served: how it leaves them their turns. Runtime only.

A thread that has computed may wait for the interpreter until another one's switch interval is over, 5 ms by default,
and a request does so several times. Measured beside an export: what takes 0.7 ms alone took 17 ms on the median, and
2 ms with the interval below.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_S = 1e-4


class _Turns:
    """How long a thread may keep the interpreter; the process has one such setting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._before_s: float | None = None

    def shorten(self) -> None:
        with self._lock:
            self._num_inside += 1
            before_s = sys.getswitchinterval()
            if self._num_inside == 1 and before_s > SWITCH_S:
                sys.setswitchinterval(SWITCH_S)
                self._before_s = before_s

    def restore(self) -> None:
        """After the last one; unless somebody has set something else meanwhile."""
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0 and self._before_s is not None:
                if abs(sys.getswitchinterval() - SWITCH_S) < SWITCH_S / 10:
                    sys.setswitchinterval(self._before_s)
                self._before_s = None


_turns = _Turns()


@contextmanager
def courteous() -> Iterator[None]:
    """Threads of this process take turns quickly until the last one that is inside has left."""
    _turns.shorten()
    try:
        yield
    finally:
        _turns.restore()


def collect_garbage() -> None:
    """After an export, which leaves a lot: Python would look through all objects before long, and stop all for 150 ms.

    Now it is a part of what add() takes. Who has switched collections off decides by himself.
    """
    if gc.isenabled():
        gc.collect()
