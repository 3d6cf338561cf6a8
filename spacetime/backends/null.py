"""A device that takes no real time: the fake that ships for users' tests. Imports no torch.

A lane calls its executable at once, on the thread that starts it, and ends when its virtual duration has passed.
Time is virtual and deterministic: `advance(us)` moves it, and each look at the clock takes `tick_us`, so that nothing
that waits for the clock waits for ever. With the default latency of 0 a lane ends as soon as it starts.

>>> backend = NullBackend(latency_us=100)
>>> backend.device.num_units, backend.num_running
(8, 0)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from spacetime.backends.outcomes import outcomes_of
from spacetime.device import Capabilities, Device
from spacetime.errors import ClosedError
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, LaneResult, Outcome

NULL_DEVICE = Device(name="null", kind="null", num_units=8)
NULL_CAPABILITIES = Capabilities(partitions=True, segments=True, graphs=False)


@dataclass(frozen=True, slots=True, order=True)
class _Ending:
    """A lane that runs, ordered by its end."""

    end_us: int
    index: int
    start_us: int
    outcomes: tuple[Outcome, ...]
    done: Callable[[LaneResult], None]


class NullBackend:
    """A Backend. `latency_us` is the virtual duration of a lane, or a function of the lane."""

    def __init__(
        self,
        device: Device = NULL_DEVICE,
        *,
        latency_us: int | Callable[[Lane], int] = 0,
        capabilities: Capabilities = NULL_CAPABILITIES,
        tick_us: int = 1,
    ) -> None:
        self.device = device
        self.capabilities = capabilities
        self.lanes: list[Lane] = []  # every lane that was started, in order
        self.closed = False
        self._latency_us = latency_us
        self._tick_us = tick_us
        self._now_us = 0
        self._running: list[_Ending] = []
        self._lock = threading.Lock()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def now_us(self) -> int:
        with self._lock:
            self._now_us += self._tick_us
            return self._now_us

    def start(
        self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Callable[[LaneResult], None]
    ) -> None:
        if self.closed:
            raise ClosedError("a lane was started on a null backend", "it is closed", "make another backend")
        start_us = self.now_us()
        outcomes = outcomes_of(executable, lane, payloads)
        latency_us = self._latency_us if isinstance(self._latency_us, int) else self._latency_us(lane)
        with self._lock:
            self.lanes.append(lane)
            if latency_us:
                ending = _Ending(start_us + latency_us, len(self.lanes), start_us, outcomes, done)
                heappush(self._running, ending)
        if not latency_us:
            done(LaneResult(outcomes, start_us, start_us))

    def advance(self, us: int) -> None:
        """Let time pass; lanes that are due end in order."""
        with self._lock:
            until_us = self._now_us + us
        while (ending := self._next_until(until_us)) is not None:
            ending.done(LaneResult(ending.outcomes, ending.start_us, ending.end_us))
        with self._lock:
            self._now_us = max(self._now_us, until_us)

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        ready()

    def assist(self, pump: Callable[[], None], most_us: int | None = None) -> bool:
        pump()
        return False

    def close(self) -> None:
        self.closed = True

    def _next_until(self, until_us: int) -> _Ending | None:
        with self._lock:
            if not self._running or self._running[0].end_us > until_us:
                return None
            ending = heappop(self._running)
            self._now_us = max(self._now_us, ending.end_us)
            return ending
