"""Which cores there are for this process. No torch; the CPU backend, the profiler and the doctor ask."""

from __future__ import annotations

import os


def available_cores() -> tuple[int, ...]:
    """The cores this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def can_pin() -> bool:
    return hasattr(os, "sched_setaffinity")
