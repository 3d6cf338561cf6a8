"""Threads of the CUDA backend: one per lane that runs, kept by stream, and one for everything that may take its time.

A lane has a thread of its own because the host's part of a lane is real work (hundreds of launches) and may block: a
module that reads a result back would hold up everybody behind a single submitter. The thread then waits for the lane's
last event, which costs no other thread anything, and reports at once; a poller would be one more hand-off. Threads
belong to a stream because libraries keep a handle and tens of megabytes of workspace for every pair of the two.
Used by backends/cuda/backend.py; no torch.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

_log = logging.getLogger("spacetime")

Report = Callable[[], None]
Work = Callable[[], Report]  # what it returns is called once its worker is free for the next


class Workers:
    """Threads by stream; `submit` starts one only where all that the stream has are busy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int, deque[_Worker]] = {}
        self._all: list[_Worker] = []

    def submit(self, stream: int, work: Work) -> None:
        with self._lock:
            idle = self._idle.setdefault(stream, deque())
            worker = idle.pop() if idle else None
            if worker is None:
                worker = _Worker(idle, f"spacetime-stream-{stream}-{len(self._all)}")
                self._all.append(worker)
        worker.jobs.put(work)

    def close(self) -> None:
        """What was submitted is done first."""
        for worker in self._all:
            worker.jobs.put(None)
        for worker in self._all:
            if worker.thread is not threading.current_thread():
                worker.thread.join()
        self._all.clear()
        self._idle.clear()


class _Worker:
    """Rejoins the idle ones before it reports, so that the next lane can reuse it."""

    def __init__(self, idle: deque[_Worker], name: str) -> None:
        self.jobs: SimpleQueue[Work | None] = SimpleQueue()
        self._idle = idle
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while (work := self.jobs.get()) is not None:
            report = work()
            del work  # tenants' tensors must not live until the next lane
            self._idle.append(self)
            report()
            del report


class Background:
    """One thread, one thing after another; a failure is logged and ends only what failed."""

    def __init__(self) -> None:
        self.closing = False
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="spacetime-background", daemon=True)
        self._thread.start()

    def __call__(self, function: Callable[[], None]) -> None:
        """Have it called soon. From any thread, finalizers included."""
        self._jobs.put(function)

    def settle(self) -> None:
        """Wait until everything that was asked for is done."""
        settled = threading.Event()
        self(settled.set)
        settled.wait()

    def close(self) -> None:
        """What is left is still called, and sees `closing`."""
        self.closing = True
        self._jobs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (function := self._jobs.get()) is not None or not self._jobs.empty():
            if function is None:  # what was called before it has asked for more, which is called as well
                self._jobs.put(None)
                continue
            try:
                function()
            except Exception:
                _log.exception("something in the background of the CUDA backend failed")
            del function
