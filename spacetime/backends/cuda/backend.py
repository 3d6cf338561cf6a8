"""NVIDIA GPUs as a device: a unit is an SM, an atom 8 of them, a lane runs on a stream of its partition.

Only backends/__init__ and the doctor import it. What holds for every lane:

- It runs on a stream of its partition (green.py), never on one of the primary context; without green contexts, on one
  of a few plain streams, and `unconfined` says why. What was asked for and granted is kept: `granted()`.
- Inputs on the device are taken as they are; the lane's stream waits for the stream that the caller submitted from
  (`accept`), or, for payloads that did not pass there, for the device's default stream. Inputs on the host are brought
  to the device. Results are always on the device, like those of the module, whose weights are there.
- `done` is called after the lane's last event has passed, so whoever has the result may use it on any stream. Its
  memory belongs to the lane's stream: `keep` tells torch that the caller's stream uses it too. Inputs, buffers and
  whatever `retire` was told are held until the lane has ended, so nothing is freed under a running kernel.
- An error in a lane is the lane's. After an error that breaks the context (an illegal access), nothing can run in
  this process any more, and every lane is rejected with that reason.
- A lane that comes again and again becomes a CUDA graph (graphs.py), made in the background.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from spacetime.backends.cuda.apart import run_apart
from spacetime.backends.cuda.forms import Made
from spacetime.backends.cuda.gpu import Facts, Gpu, Stream, TorchGpu
from spacetime.backends.cuda.graphs import BUDGET_BYTES, Graphs
from spacetime.backends.cuda.green import Grant, Later
from spacetime.backends.cuda.staging import Arrived, Staging, tensors_in
from spacetime.backends.cuda.streams import Partitions, open_partitions
from spacetime.backends.cuda.workers import Background, Report, Workers
from spacetime.backends.executables import Call
from spacetime.backends.outcomes import outcomes_of
from spacetime.backends.threads import is_neutral
from spacetime.device import Capabilities, Device
from spacetime.errors import ClosedError, RejectedError
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, LaneResult, Outcome
from spacetime.values import Value

_log = logging.getLogger("spacetime")

LAUNCH_US = 3.0  # estimates that the cost model starts from
SWITCH_US = 5.0
TILES = ((128, 128), (64, 64), (32, 32))  # what GPU libraries have kernels for, about

Done = Callable[[LaneResult], None]
Opener = Callable[[Gpu, Facts, Later], Partitions]


@dataclass(frozen=True, slots=True)
class Granted(Value):
    """What lanes were planned on and what they ran on: fewer units while a partition was being made, or in a graph."""

    asked_units: int
    planned_units: int
    units: int
    lanes: int


@dataclass(slots=True, eq=False)
class _Job:
    lane: Lane
    executable: Executable
    payloads: Sequence[Any]
    done: Done
    grant: Grant
    buffers: list[torch.Tensor] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)  # what its kernels may still read
    graphs: list[Made] = field(default_factory=list)


class CudaBackend:
    """A Backend. Tests pass a fake `gpu`, and an `opener` of partitions on a fake driver."""

    def __init__(
        self,
        index: int = 0,
        kind: str = "cuda",
        *,
        gpu: Gpu | None = None,
        opener: Opener = open_partitions,
        graph_bytes: int = BUDGET_BYTES,
    ) -> None:
        self._gpu = gpu or TorchGpu(index, kind)
        facts = self._gpu.facts()
        self._background = Background()
        try:
            self._partitions = opener(self._gpu, facts, self._background)
        except BaseException:
            self._background.close()
            raise
        self.device = describe(facts, self._gpu.index, self._partitions)
        self.capabilities = Capabilities(partitions=self._partitions.confines, segments=False, graphs=True)
        self.graphs = Graphs(self._gpu, self._partitions, self._background, graph_bytes)
        self._staging = Staging(self._gpu, self._background)
        self._workers = Workers()
        self._lock = threading.Lock()
        self._running: set[_Job] = set()
        self._granted: Counter[tuple[int, int, int]] = Counter()
        self._closed = False
        self._broken: str | None = None
        self._lent = _Lent()

    @property
    def unconfined(self) -> str:
        """Why lanes are not confined to partitions; "" when they are."""
        return self._partitions.reason

    def uncaptured(self) -> tuple[str, ...]:
        """What cannot become a graph, and why."""
        return self.graphs.report().refused

    def granted(self) -> tuple[Granted, ...]:
        """What was asked for, planned and given, and how often."""
        with self._lock:
            return tuple(Granted(*kind, lanes) for kind, lanes in self._granted.items())

    def now_us(self) -> int:
        return time.monotonic_ns() // 1000

    @property
    def torch_device(self) -> str:
        """Where modules that become tenants are."""
        return self._gpu.torch_device

    def free_bytes(self) -> int:
        """Device memory that can still be had."""
        return self._gpu.free_bytes()

    def graph_bytes(self) -> dict[str, int]:
        """Of CUDA graphs by tenant; what several tenants share is divided among them."""
        return self.graphs.bytes_by_tenant()

    def accept(self, payload: Any) -> Any:
        """On the submitting thread: remember the stream that the inputs are coming from."""
        return self._staging.arrive(payload) if isinstance(payload, Call) else payload

    def retire(self, memory: Sequence[Any]) -> None:
        """Weights have been put in place, and those replaced (a slab that grew) may still be read: hold these until

        the lanes that run now end. A lane's Python calls return long before its kernels end, so references of its own
        are not enough. What the calling thread, and the default stream, still do to the new ones is waited for.
        """
        self._gpu.finish()
        with self._lock:
            for job in self._running:
                job.held.extend(memory)

    def start(self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Done) -> None:
        if self._closed:
            raise ClosedError("a lane was started on a CUDA backend", "it is closed", "make another backend")
        if self._broken is not None:
            what = f"a lane of cohort {lane.cohort!r} was not started: the GPU can run nothing more in this process"
            raise RejectedError(what, self._broken, "start the process again; a kernel read or wrote out of bounds")
        partition = lane.segments[0].partition
        grant = self._partitions.acquire(partition)
        job = _Job(lane, executable, payloads, done, grant)
        with self._lock:
            self._running.add(job)
        if self._lent.takes_a_lane and lane.atoms == self.device.all_atoms:
            self._lent.takes_a_lane, self._lent.job = False, job
        else:
            self._workers.submit(grant.stream, partial(self._perform, job))

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        """Warm up the first partition of that size, and capture what this cohort has graphs of elsewhere."""

        def make() -> None:
            try:
                if not self._background.closing:
                    self._warm(units)
                    self.graphs.prepare(executable, self.device.partition(units).atoms)
            finally:
                ready()

        self._background(make)

    def assist(self, pump: Callable[[], None], most_us: int | None = None) -> bool:
        # The main thread only: libraries keep a handle and a workspace for every thread that computes.
        is_main = threading.current_thread() is threading.main_thread()
        neutral = is_main and is_neutral(torch.get_num_threads()) and not torch.is_autocast_enabled("cuda")
        neutral = neutral and most_us is None  # how long the host takes for a lane is not known
        self._lent.takes_a_lane = neutral
        try:
            pump()
        finally:
            self._lent.takes_a_lane = False
            job, self._lent.job = self._lent.job, None
            if job is not None:
                self._perform(job)()
        return job is not None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.graphs.stop()
        self._background.close()  # first: it may be warming up a worker
        self._workers.close()
        if self._broken is None:  # nothing on a broken device can be destroyed; the end of the process does it
            self.graphs.close()
            self._partitions.close()

    def settle(self) -> None:
        """Wait until everything that was being made in the background is there. For tests and benches."""
        self._background.settle()

    # -- a lane, on its thread --------------------------------------------------------------------------

    def _perform(self, job: _Job) -> Report:
        start_us = self.now_us()
        outcomes = self._outcomes(job)
        return partial(job.done, LaneResult(outcomes, start_us, self.now_us()))

    def _outcomes(self, job: _Job) -> tuple[Outcome, ...]:
        """One per request, whatever happens; by then nothing of the lane runs any more."""
        stream = self._gpu.stream(job.grant.stream)
        try:
            with self._gpu.under(stream):
                outcomes = self._enqueue(job, stream)
        except BaseException as error:
            outcomes = (Outcome(error=error),) * len(job.lane.requests)
        trouble = self._wait(stream)
        if trouble is not None:
            outcomes = (Outcome(error=trouble),) * len(job.lane.requests)
        if any(isinstance(outcome.error, RuntimeError) for outcome in outcomes):
            self._broken = self._broken or self._gpu.health()
        self._end(job)
        return outcomes

    def _wait(self, stream: Stream) -> BaseException | None:
        """For everything on the stream; what went wrong on the device shows here."""
        try:
            event = self._staging.event()
            event.record(stream)
            event.synchronize()
            self._staging.done_with(event)
        except BaseException as error:
            return error
        return None

    def _enqueue(self, job: _Job, stream: Stream) -> tuple[Outcome, ...]:
        """Put the lane on its stream. A request whose inputs cannot be brought fails alone."""
        origin = self._join_producers(job, stream)
        calls: list[Any] = []
        failed: dict[int, Outcome] = {}
        for index, payload in enumerate(job.payloads):
            call = payload.call if isinstance(payload, Arrived) else payload
            try:
                calls.append(self._staging.bring(call, job.buffers) if isinstance(call, Call) else call)
            except Exception as error:
                failed[index] = Outcome(error=error)
        lane = job.lane
        if failed:
            requests = tuple(r for index, r in enumerate(lane.requests) if index not in failed)
            lane = replace(lane, requests=requests)
        ran = iter(self._run(job, lane, calls) if calls else ())
        outcomes = tuple([failed.get(index) or next(ran) for index in range(len(job.payloads))])
        for payload, outcome in zip(job.payloads, outcomes, strict=True):
            caller = payload.origin if isinstance(payload, Arrived) else origin
            if caller is not None:
                for tensor in filter(self._gpu.holds, tensors_in(outcome.value)):
                    self._gpu.keep(tensor, caller)
        return outcomes

    def _join_producers(self, job: _Job, stream: Stream) -> Stream | None:
        """The lane's stream waits for whoever makes its inputs; where other payloads than `accept`'s come from."""
        others = False
        for payload in job.payloads:
            if isinstance(payload, Arrived):
                if payload.ready is not None:
                    payload.ready.wait(stream)
                    self._staging.done_with(payload.ready)
            else:
                others = others or isinstance(payload, Call)
        if not others:
            return None
        origin, event = self._gpu.default(), self._staging.event()
        event.record(origin)
        event.wait(stream)
        self._staging.done_with(event)
        return origin

    def _run(self, job: _Job, lane: Lane, calls: list[Any]) -> tuple[Outcome, ...]:
        try:
            replayed = self.graphs.run(job.executable, lane, calls, job.grant.atoms)
            apart = None if replayed else run_apart(self.graphs, job.executable, lane, calls, job.grant.atoms)
        except Exception as error:
            return (Outcome(error=error),) * len(calls)
        job.held.append(calls)
        if replayed is not None:
            outcomes, graph = replayed
            job.graphs.append(graph)
            return outcomes
        if apart is not None:
            outcomes, job.graphs = apart
            return outcomes
        return outcomes_of(job.executable, lane, calls)

    def _end(self, job: _Job) -> None:
        planned, ran_on = job.lane.segments[0].partition, job.graphs[0].grant if job.graphs else job.grant
        with self._lock:
            self._running.discard(job)
            self._granted[planned.asked_units, planned.granted_units, ran_on.units] += 1
        self._staging.give_back(job.buffers)
        for graph in job.graphs:
            self.graphs.release(graph)
        job.held.clear()
        job.payloads = ()
        self._partitions.release(job.grant)

    def _warm(self, units: int) -> None:
        """Handles and workspaces of the thread and the stream that lanes of this size start with."""
        grant = self._partitions.acquire(self.device.partition(units))
        warmed = threading.Event()

        def work() -> Report:
            try:
                stream, event = self._gpu.stream(grant.stream), self._gpu.event()
                with self._gpu.under(stream):
                    self._gpu.warm()
                    event.record(stream)
                event.synchronize()
            except Exception:  # the first lane makes what is missing, or fails with the reason
                _log.exception("a partition of %d units could not be warmed up", units)
            self._partitions.release(grant)
            return warmed.set

        self._workers.submit(grant.stream, work)
        warmed.wait()


class _Lent(threading.local):
    """Of a thread that waits for a result: does it take a lane, and which has it been given?"""

    takes_a_lane = False
    job: _Job | None = None


def describe(facts: Facts, index: int, partitions: Partitions) -> Device:
    """The device as scheduling knows it. What torch does not tell stays at the Device's own estimates."""
    device = Device(
        name=f"{facts.name} ({facts.kind}:{index})",
        kind=facts.kind,
        num_units=partitions.num_units,
        units_per_atom=partitions.units_per_atom,
        launch_us=LAUNCH_US,
        tiles=TILES,
        switch_us=SWITCH_US,
        memory_bytes=facts.memory_bytes,
        cache_bytes=facts.cache_bytes,
    )
    if facts.flops_per_unit_us is not None:
        device = replace(device, flops_per_unit_us=facts.flops_per_unit_us)
    if facts.bytes_per_us is not None:
        device = replace(device, bytes_per_us=facts.bytes_per_us)
    return device
