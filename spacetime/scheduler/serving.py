"""Which lanes this thread is running just now. Backends tell it, the driver asks.

Who waits inside of a lane for another lane of the same loop may wait for ever: the units that the other one needs may
be its own.
"""

from __future__ import annotations

import threading

from spacetime.plan import Lane


class _Here(threading.local):
    """Of each thread. Several where a lane of one runtime waits for another runtime, and helps it meanwhile."""

    lanes: tuple[Lane, ...] = ()


_here = _Here()


def enter(lane: Lane) -> tuple[Lane, ...]:
    """The thread begins to run it; what `leave` has to be given."""
    before = _here.lanes
    _here.lanes = (*before, lane)
    return before


def leave(before: tuple[Lane, ...]) -> None:
    _here.lanes = before


def lanes_here() -> tuple[Lane, ...]:
    return _here.lanes
