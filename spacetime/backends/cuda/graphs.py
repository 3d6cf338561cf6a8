"""The CUDA graphs of a device: captured in the background, found and replayed by lanes. Only backend.py uses it.

What a graph is good for, honestly: today's slot kernels are plain torch calls driven by a row map on the host, so a
graph bakes in which rows belong to whom. It is valid for one mix: these members of a cohort with so many rows each, on
these atoms. The order of requests does not matter. Traffic whose mixes keep changing therefore stays eager; a lone
tenant and steady mixes are replayed. Once slot kernels read their owners from device tables, the key shrinks to
(cohort, row bucket, atoms), and one small copy before each replay sets the owners.

The life of a graph: a mix that ran eagerly CAPTURE_AFTER times is captured on a stream of its own inside its partition
(a kernel's partition is that of the stream it was captured on, wherever the graph is launched; and torch keys library
workspaces by stream, which two living graphs must not share). A replay copies inputs in and results out, on the lane's
stream; a graph has one set of buffers, so a second lane of the same mix at the same time runs eagerly. A graph has its
own memory pool, so dropping it gives memory back: the least recently used go when the byte budget is exceeded, those of
a tenant go when it leaves. What cannot be captured is remembered with its reason and stays eager.

Opaque modules are never captured: they may decide anew in Python at every call. A lane that was planned plain because
it has one request of a cohort's tenant is another matter: its module was captured as a program and passed the
self-check, so its graph is that of the program, and a lone tenant runs without the host.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spacetime.backends.cuda.captured import Graph, GraphError, Mix, Outdated, Parts, Recipe, capture
from spacetime.backends.cuda.gpu import Gpu
from spacetime.backends.cuda.green import Later
from spacetime.backends.cuda.streams import Partitions
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture.cohort import Member
from spacetime.errors import SpacetimeError
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, Outcome
from spacetime.values import Value

BUDGET_BYTES = 2 << 30
CAPTURE_AFTER = 3  # eager runs: what comes once is not worth it, and by then libraries have made their choices
MOST_GRAPHS = 64
MOST_MIXES = 4096  # whose runs are counted

Key = tuple[int, Parts]  # atoms first


class TooLarge(GraphError):
    """Its memory exceeds the whole budget."""


@dataclass(frozen=True, slots=True)
class GraphReport(Value):
    """What there is, what happened, and why some lanes stay eager."""

    ready: int
    num_bytes: int
    budget_bytes: int
    captured: int
    dropped: int
    replays: int
    eager: int  # lanes that might have had a graph, and ran without
    refused: tuple[str, ...]


class Graphs:
    """`run` and `release` are the hot path's; everything else happens in the background."""

    def __init__(self, gpu: Gpu, partitions: Partitions, later: Later, budget_bytes: int = BUDGET_BYTES) -> None:
        self._gpu = gpu
        self._partitions = partitions
        self._later = later
        self._budget_bytes = budget_bytes
        self._stopped = False
        self._lock = threading.Lock()
        self._ready: OrderedDict[Key, Graph] = OrderedDict()
        self._runs: OrderedDict[Key, int] = OrderedDict()
        self._recipes: OrderedDict[Parts, Recipe] = OrderedDict()
        self._too_large: dict[Key, str] = {}
        self._uncapturable: weakref.WeakKeyDictionary[CohortExecutable, str] = weakref.WeakKeyDictionary()
        self._members: dict[int, weakref.ref[Member]] = {}
        self._left: deque[int] = deque()  # members that are gone; their ids may come again
        self._captured = self._dropped = self._replays = self._eager = 0

    def run(
        self, executable: Executable, lane: Lane, calls: Sequence[Any], atoms: int
    ) -> tuple[tuple[Outcome, ...], Graph] | None:
        """Replay the lane on the current stream, if there is a graph for it; `release` it when the lane has ended."""
        if not isinstance(executable, CohortExecutable) or not (lane.fused or len(lane.requests) == 1):
            return None
        try:
            mix = Mix.of(executable, lane, calls)
        except (KeyError, AttributeError):  # nothing that the cohort knows: the executable says so itself
            return None
        graph = self._take(mix, calls, atoms)
        if graph is None:
            return None
        try:
            return mix.unsort(graph.run(mix.sort(calls))), graph
        except BaseException:
            self.release(graph)
            raise

    def release(self, graph: Graph) -> None:
        with self._lock:
            graph.busy = False
            if graph.retired:
                self._later(lambda: self._close(graph))

    def prepare(self, executable: Executable, atoms: int) -> None:
        """In the background: graphs on these atoms for the mixes of a cohort that have been captured elsewhere."""
        with self._lock:
            known = [parts for parts, recipe in self._recipes.items() if recipe.executable() is executable]
            keys = [(atoms, parts) for parts in known if (atoms, parts) not in self._ready]
        for key in keys:
            self._capture(key)

    def report(self) -> GraphReport:
        with self._lock:
            refused = dict.fromkeys((*self._too_large.values(), *self._uncapturable.values()))
            counts = (self._captured, self._dropped, self._replays, self._eager)
            return GraphReport(len(self._ready), self._num_bytes(), self._budget_bytes, *counts, tuple(refused))

    def bytes_by_tenant(self) -> dict[str, int]:
        """A graph of several tenants counts in equal parts."""
        parts: Counter[str] = Counter()
        with self._lock:
            for graph in self._ready.values():
                for index, tenant in enumerate(graph.tenants):
                    parts[tenant] += (graph.num_bytes + index) // len(graph.tenants)
        return dict(parts)

    def stop(self) -> None:
        """Capture nothing more."""
        self._stopped = True

    def close(self) -> None:
        """No lane is running, and the background has ended."""
        for graph in self._ready.values():
            self._close(graph)
        self._ready.clear()
        self._recipes.clear()

    # -- the hot path ---------------------------------------------------------------------------------

    def _take(self, mix: Mix, calls: Sequence[Call], atoms: int) -> Graph | None:
        key = (atoms, mix.parts)
        with self._lock:
            self._bury()
            graph = self._ready.get(key)
            if graph is not None and not graph.busy:
                self._ready.move_to_end(key)
                graph.busy = True
                self._replays += 1
                return graph
            self._eager += 1
            if graph is None and self._count(key) == CAPTURE_AFTER and self._may_capture(key, mix.executable):
                self._remember(mix, calls)
                self._later(lambda: self._capture(key))
            return None

    def _count(self, key: Key) -> int:
        runs = self._runs[key] = self._runs.pop(key, 0) + 1
        if len(self._runs) > MOST_MIXES:
            self._runs.popitem(last=False)
        return runs

    def _may_capture(self, key: Key, executable: CohortExecutable) -> bool:
        return key not in self._too_large and executable not in self._uncapturable and not self._stopped

    def _remember(self, mix: Mix, calls: Sequence[Call]) -> None:
        self._recipes[mix.parts] = Recipe.of(mix, calls)
        self._recipes.move_to_end(mix.parts)
        if len(self._recipes) > MOST_GRAPHS:
            self._recipes.popitem(last=False)
        for member in mix.members:
            if id(member) not in self._members:
                self._members[id(member)] = weakref.ref(member, self._on_leaving(id(member)))

    def _on_leaving(self, number: int) -> Any:
        """For a finalizer, which may be called in the middle of anything: it takes no lock."""
        left, later, clean = self._left, self._later, weakref.WeakMethod(self._clean)

        def call() -> None:
            method = clean()
            if method is not None:
                method()

        def gone(_: object) -> None:
            left.append(number)
            later(call)

        return gone

    # -- with the lock --------------------------------------------------------------------------------

    def _bury(self) -> None:
        """Forget everything that names a member that has left, before its id can mean another."""
        if not self._left:
            return
        left = set()
        while self._left:
            left.add(self._left.popleft())
        for number in left:
            self._members.pop(number, None)

        def is_stale(parts: Parts) -> bool:
            return any(number in left for number, _ in parts)

        for parts in [parts for parts in self._recipes if is_stale(parts)]:
            del self._recipes[parts]
        for known in (self._runs, self._too_large):
            for key in [key for key in known if is_stale(key[1])]:
                del known[key]
        for key in [key for key in self._ready if is_stale(key[1])]:
            self._retire(key)

    def _trim(self) -> None:
        """Drop what keeps memory that nobody else has, then the least recently used until the budget is kept."""
        for key in [key for key, graph in self._ready.items() if graph.is_outgrown]:
            self._retire(key)
        while len(self._ready) > MOST_GRAPHS or self._num_bytes() > self._budget_bytes:
            self._retire(next(iter(self._ready)))

    def _num_bytes(self) -> int:
        return sum(graph.num_bytes for graph in self._ready.values())

    def _retire(self, key: Key) -> None:
        """A lane that is on it keeps it until it ends. If the mix comes again, it is captured again."""
        graph = self._ready.pop(key)
        self._runs.pop(key, None)
        self._dropped += 1
        graph.retired = True
        if not graph.busy:
            self._later(lambda: self._close(graph))

    # -- the background -------------------------------------------------------------------------------

    def _clean(self) -> None:
        with self._lock:
            self._bury()

    def _capture(self, key: Key) -> None:
        with self._lock:
            recipe = self._recipes.get(key[1])
            executable = None if recipe is None else recipe.executable()
            if recipe is None or executable is None or not self._may_capture(key, executable):
                return
        try:
            grant = self._partitions.lease(key[0])
        except SpacetimeError as error:
            with self._lock:
                self._too_large[key] = str(error).replace("\n", " ")
            return
        if grant is None:  # its partition is still being made: count again from the start
            with self._lock:
                self._runs.pop(key, None)
            return
        try:
            graph = capture(self._gpu, grant, executable, recipe)
        except Outdated:
            self._partitions.give_back(grant)
            return
        except Exception as error:
            self._partitions.give_back(grant)
            self._refuse(key, executable, error)
            return
        if graph.num_bytes > self._budget_bytes:
            self._close(graph)
            facts = f"all graphs together may have {self._budget_bytes}"
            self._refuse(key, executable, TooLarge(f"a graph of {graph.num_bytes} bytes is too large", facts))
            return
        with self._lock:
            self._captured += 1
            self._ready[key] = graph
            self._bury()
            if key in self._ready and key[1] not in self._recipes:
                self._retire(key)  # a tenant left while its graph was made
            self._trim()

    def _refuse(self, key: Key, executable: CohortExecutable, error: Exception) -> None:
        """What a program does it always does; but for a smaller mix there may be memory."""
        text = f"{error.what}: {error.facts}" if isinstance(error, GraphError) else f"{type(error).__name__}: {error}"
        reason = f"cohort {executable.cohort.program.signature}: {text}".replace("\n", " ")
        with self._lock:
            if isinstance(error, (torch.OutOfMemoryError, TooLarge)):
                self._too_large[key] = reason
            else:
                self._uncapturable[executable] = reason

    def _close(self, graph: Graph) -> None:
        graph.drop()
        self._partitions.give_back(graph.grant)
