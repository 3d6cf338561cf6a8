"""The CPU as a device: a unit is a core, a partition is a set of cores, a lane runs on threads pinned to them.

The living definition of what a backend does. Every partition has its own worker threads, each with as many
intra-op threads as the partition has cores, so two lanes on two partitions truly run side by side. A lane on the
whole device may run on the thread that waits for it: no hand-off costs less than none. A thread that cannot wait for
long runs those that took less, of late, than it has time for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from queue import Empty, SimpleQueue
from typing import Any

from spacetime.backends.cores import available_cores, can_pin
from spacetime.backends.outcomes import outcomes_of
from spacetime.backends.threads import confine, is_neutral, release_team
from spacetime.device import Capabilities, Device
from spacetime.errors import ClosedError, OptionError
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, LaneResult

_MOST_SIZES = 4096  # of lanes, whose durations are remembered
_MOST_WORKERS = 64  # and at least four per core: above that, those that have nothing to do go, one at every lane
_TEAM_IDLE_S = 0.001  # how long a worker keeps its intra-op threads without work

Done = Callable[[LaneResult], None]
Job = tuple[Lane, Executable, Sequence[Any], Done]


class CpuBackend:
    def __init__(self, num_units: int | None = None) -> None:
        cores = available_cores()
        if num_units is not None and not 1 <= num_units <= len(cores):
            raise OptionError(
                f"a CPU device of {num_units} units was asked for",
                f"this process may use {len(cores)} cores",
                f"ask for 1..{len(cores)} units",
            )
        self._cores = cores[:num_units]
        self.device = Device(name="cpu", kind="cpu", num_units=len(self._cores))
        self.capabilities = Capabilities(partitions=can_pin(), segments=False, graphs=False)
        self._idle: dict[int, deque[_Worker]] = {}
        self._workers: list[_Worker] = []
        self._most_workers = max(_MOST_WORKERS, 4 * len(self._cores))
        self._leaving: list[_Worker] = []
        self._closed = False
        self._lent = _Lent()
        self._took_us: dict[tuple[str, int], float] = {}  # of late, lanes of a cohort with so many requests

    def now_us(self) -> int:
        return time.monotonic_ns() // 1000

    def start(self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Done) -> None:
        if self._closed:
            raise ClosedError("a lane was started on a CPU backend", "it is closed", "make another backend")
        job = (lane, executable, payloads, done)
        lent = self._lent
        if lent.takes_a_lane and lane.atoms == self.device.all_atoms and self._is_within(lane, lent.most_us):
            lent.takes_a_lane, lent.job = False, job
            return
        idle = self._idle.setdefault(lane.atoms, deque())
        worker = idle.pop() if idle else self._new_worker(lane.atoms, idle)
        worker.jobs.put(job)
        if len(self._workers) > self._most_workers:
            self._dismiss_one()

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        ready()  # programs run on any number of cores

    def assist(self, pump: Callable[[], None], most_us: int | None = None) -> bool:
        lent = self._lent
        lent.most_us = most_us
        # The main thread only: every thread that computes keeps a team of its own, see `release_team`.
        lent.takes_a_lane = lent.is_main and is_neutral(self.device.num_units)
        try:
            pump()
        finally:
            lent.takes_a_lane = False
            is_given = lent.job is not None
            if is_given:
                self._perform()
        return is_given

    def _perform(self) -> None:
        """The job that the thread has been lent for. No name for it outlives its run: an error's frames would."""
        job, self._lent.job = self._lent.job, None
        assert job is not None
        lane, executable, payloads, done = job
        del job
        start_us = self.now_us()
        outcomes = outcomes_of(executable, lane, payloads)
        del executable, payloads
        end_us = self.now_us()
        result = LaneResult(outcomes, start_us, end_us)
        del outcomes
        self._note(lane, end_us - start_us)
        del lane
        try:
            done(result)
        finally:
            del result, done

    def _is_within(self, lane: Lane, most_us: int | None) -> bool:
        """Is the lane expected to take no longer? One that nobody has seen yet may."""
        return most_us is None or self._took_us.get((lane.cohort, len(lane.requests)), inf) <= most_us

    def _note(self, lane: Lane, duration_us: int) -> None:
        size = (lane.cohort, len(lane.requests))
        known_us = self._took_us.get(size)
        if known_us is None and len(self._took_us) >= _MOST_SIZES:
            self._took_us.clear()  # cohorts come and go
        self._took_us[size] = duration_us if known_us is None else known_us + (duration_us - known_us) / 4

    def close(self) -> None:
        self._closed = True
        for worker in self._workers:
            worker.jobs.put(None)
        for worker in (*self._workers, *self._leaving):
            worker.thread.join()
        self._workers.clear()
        self._leaving.clear()
        self._idle.clear()

    def _dismiss_one(self) -> None:
        """Of the partition that is known for longest, if it has one to spare."""
        for atoms, idle in list(self._idle.items()):
            try:
                worker = idle.popleft()
            except IndexError:
                continue
            worker.jobs.put(None)
            self._workers.remove(worker)
            self._leaving = [*[other for other in self._leaving if other.thread.is_alive()], worker]
            if all([other.idle is not idle for other in self._workers]):
                del self._idle[atoms]
            return

    def _new_worker(self, atoms: int, idle: deque[_Worker]) -> _Worker:
        cores = [core for index, core in enumerate(self._cores) if atoms >> index & 1]
        worker = _Worker(cores, idle, self.now_us, self._note)
        self._workers.append(worker)
        return worker


class _Lent(threading.local):
    """Of a thread that waits for a result: does it take a lane, and which has it been given?"""

    takes_a_lane = False
    most_us: int | None = None  # no longer one
    job: Job | None = None

    def __init__(self) -> None:  # of each thread when it first looks
        self.is_main = threading.current_thread() is threading.main_thread()


class _Worker:
    """A thread on a partition. It rejoins the idle ones before it reports, so the next lane can reuse it."""

    def __init__(
        self, cores: list[int], idle: deque[_Worker], now_us: Callable[[], int], note: Callable[[Lane, int], None]
    ) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.idle = idle
        self._cores, self._now_us, self._note = cores, now_us, note
        name = f"spacetime-cores-{'-'.join(map(str, cores))}"
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        confine(self._cores)
        while (job := self._next_job()) is not None:
            lane, executable, payloads, done = job
            start_us = self._now_us()
            outcomes = outcomes_of(executable, lane, payloads)
            result = LaneResult(outcomes, start_us, self._now_us())
            self._note(lane, result.end_us - start_us)
            del job, lane, executable, payloads, outcomes  # tenants' tensors must not live until the next lane
            self.idle.append(self)
            done(result)
            del result, done

    def _next_job(self) -> Job | None:
        if len(self._cores) > 1:
            try:
                return self.jobs.get(timeout=_TEAM_IDLE_S)
            except Empty:
                release_team()
        return self.jobs.get()
