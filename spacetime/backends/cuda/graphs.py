"""The CUDA graphs of a device: captured in the background, found and replayed by lanes. Only backend.py uses it.

What a graph is good for: where a program's slot kernels read the owners of rows from device tables (kernels/bound),
one graph serves every mix of a cohort's tenants, of up to a power of two of rows, on one block of atoms (anymix.py). A
tenant that comes with nobody else has a graph of its own besides: with one owner, plain kernels are the fastest. Where
a step must know its rows on the host (`MixError`; no kernel for its shapes, or no Triton), a graph is valid for one
mix: these members with so many rows each (captured.py). Merged lanes have a graph for any mix, or none (anymerged.py).
The order of requests does not matter. Atoms are rounded down to blocks (blocks.py), or lanes whose partitions keep
changing would never come three times.

The life of a graph: a lane that ran eagerly CAPTURE_AFTER times is captured on a stream of its own inside its partition
(a kernel's partition is that of the stream it was captured on, wherever the graph is launched; and torch keys library
workspaces by stream, which two living graphs must not share). A replay copies inputs in and results out, on the lane's
stream; a graph has one set of buffers, so a second lane like it at the same time runs eagerly. A graph has its own
memory pool, so dropping it gives memory back (to the device when an allocation would fail otherwise, as torch does
it): the least recently used go when the byte budget is exceeded, those of a tenant go when it leaves. What cannot be
captured is remembered with its reason and stays eager; a capture that somebody else's call broke is tried again.

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

from spacetime.backends.cuda.anymerged import MergedMix, MergedRecipe
from spacetime.backends.cuda.anymix import AnyRecipe, bucket_of
from spacetime.backends.cuda.blocks import block_of
from spacetime.backends.cuda.captured import Parts, Recipe
from spacetime.backends.cuda.capturing import EAGERLY, Disturbed, GraphError, Outdated
from spacetime.backends.cuda.forms import AMix, ARecipe, Fused, Made, captured, mix_of, name_of
from spacetime.backends.cuda.gpu import Gpu
from spacetime.backends.cuda.green import Grant, Later
from spacetime.backends.cuda.streams import Partitions
from spacetime.backends.executables import Call
from spacetime.errors import SpacetimeError
from spacetime.kernels import MixError
from spacetime.kernels.bound import entry_table, gains_from_own_graph
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, Outcome
from spacetime.values import Value

BUDGET_BYTES = 2 << 30
CAPTURE_AFTER = 3  # eager runs: what comes once is not worth it, and by then libraries have made their choices
MOST_GRAPHS = 64
MOST_DISTURBED = 5  # captures of one lane that may be broken from outside before it stays eager
MOST_MIXES = 4096  # whose runs are counted

Work = Parts  # of a mix; or, for any mix, the id of its executable and the rows of its bucket, or of each member's
Key = tuple[int, Work]  # atoms first


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
    by_mix: tuple[str, ...] = ()  # cohorts that need a graph for each mix of tenants, and why


class Graphs:
    """`run` and `release` are the hot path's; everything else happens in the background."""

    def __init__(self, gpu: Gpu, partitions: Partitions, later: Later, budget_bytes: int = BUDGET_BYTES) -> None:
        self._gpu = gpu
        self._partitions = partitions
        self._later = later
        self._num_atoms = partitions.num_units // partitions.units_per_atom
        self._budget_bytes = budget_bytes
        self._stopped = False
        self._lock = threading.Lock()
        self._ready: OrderedDict[Key, Made] = OrderedDict()
        self._runs: OrderedDict[Key, int] = OrderedDict()
        self._recipes: OrderedDict[Work, ARecipe] = OrderedDict()
        self._barred: dict[Key, str] = {}  # not tried again, though the executable may be elsewhere, and why
        self._disturbed: Counter[Key] = Counter()
        self._uncapturable: weakref.WeakKeyDictionary[Fused, str] = weakref.WeakKeyDictionary()
        self._by_mix: weakref.WeakKeyDictionary[Fused, str] = weakref.WeakKeyDictionary()
        self._watched: dict[int, weakref.ref[Any]] = {}  # members and executables that works name
        self._left: deque[int] = deque()  # those that are gone; their ids may come again
        self._captured = self._dropped = self._replays = self._eager = 0

    def run(
        self, executable: Executable, lane: Lane, calls: Sequence[Any], atoms: int, *, is_spare: bool = False
    ) -> tuple[tuple[Outcome, ...], Made] | None:
        """Replay the lane on the current stream, if there is a graph for it; `release` it when the lane has ended.

        `is_spare`: a graph is made for it only where there is room.
        """
        try:
            mix = mix_of(executable, lane, calls)
        except (KeyError, AttributeError):  # nothing that the cohort knows: the executable says so itself
            return None
        graph = None if mix is None else self._take(mix, calls, atoms, is_spare)
        if graph is None:
            return None
        try:
            return graph.serve(mix, calls), graph  # type: ignore[arg-type]  # it was found by what the mix is of
        except BaseException:
            self.release(graph)
            raise

    def release(self, graph: Made) -> None:
        with self._lock:
            graph.busy = False
            if graph.retired:
                self._later(lambda: self._close(graph))

    def prepare(self, executable: Executable, atoms: int) -> None:
        """In the background: graphs on these atoms for what of a cohort has been captured elsewhere."""
        block = block_of(self._num_atoms, atoms)
        with self._lock:
            known = [work for work, recipe in self._recipes.items() if recipe.executable() is executable]
            keys = [(block, work) for work in known if (block, work) not in self._ready]
        for key in keys:
            self._capture(key)

    def report(self) -> GraphReport:
        with self._lock:
            refused = dict.fromkeys((*self._barred.values(), *self._uncapturable.values()))
            counts = (self._captured, self._dropped, self._replays, self._eager)
            by_mix = tuple(dict.fromkeys(self._by_mix.values()))
            return GraphReport(len(self._ready), self._num_bytes(), self._budget_bytes, *counts, tuple(refused), by_mix)

    def bytes_by_tenant(self) -> dict[str, int]:
        """A graph of several tenants counts in equal parts."""
        parts: Counter[str] = Counter()
        with self._lock:
            for graph in self._ready.values():
                tenants = graph.tenants
                for index, tenant in enumerate(tenants):
                    parts[tenant] += (graph.num_bytes + index) // len(tenants)
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

    def _take(self, mix: AMix, calls: Sequence[Call], atoms: int, is_spare: bool) -> Made | None:
        """A graph for the lane; those that were wanted before it are wanted still."""
        block = block_of(self._num_atoms, atoms)
        with self._lock:
            self._bury()
            found, wanted = None, []
            for work in self._works(mix):
                key = (block, work)
                graph = self._ready.get(key)
                if graph is None or not self._keep(key, graph):
                    wanted.append(key)
                elif not graph.busy:
                    self._ready.move_to_end(key)
                    graph.busy = True
                    found = graph
                    break
            self._replays += found is not None
            self._eager += found is None
            for key in wanted:
                if (found is None and not is_spare) or self._has_room():
                    self._want(key, mix, calls)
            return found

    def _works(self, mix: AMix) -> tuple[Work, ...]:
        """What a graph for the lane may be captured of, the fastest first."""
        if isinstance(mix, MergedMix):  # never of one mix: there are too many
            return () if mix.executable in self._by_mix else (mix.work,)
        executable = mix.executable
        if executable in self._by_mix or entry_table(executable.kernels) is None:
            return (mix.parts,)
        any_mix: Work = ((id(executable), bucket_of(sum([rows for _, rows in mix.parts]))),)
        if not mix.is_of_one:
            return (mix.parts, any_mix) if gains_from_own_graph(executable.kernels, mix.parts) else (any_mix,)
        return (mix.parts,) if len(executable.cohort.members) == 1 else (mix.parts, any_mix)

    def _keep(self, key: Key, graph: Made) -> bool:
        if not graph.is_usable():
            self._retire(key)
            return False
        return True

    def _has_room(self) -> bool:
        """For graphs that could be done without: they must not push out others."""
        return len(self._ready) < MOST_GRAPHS // 2 and 2 * self._num_bytes() < self._budget_bytes

    def _want(self, key: Key, mix: AMix, calls: Sequence[Call]) -> None:
        if self._count(key) == CAPTURE_AFTER and self._may_capture(key, mix.executable):
            self._remember(key[1], mix, calls)
            self._later(lambda: self._capture(key))

    def _count(self, key: Key) -> int:
        runs = self._runs[key] = self._runs.pop(key, 0) + 1
        if len(self._runs) > MOST_MIXES:
            self._runs.popitem(last=False)
        return runs

    def _may_capture(self, key: Key, executable: Fused) -> bool:
        return key not in self._barred and executable not in self._uncapturable and not self._stopped

    def _remember(self, work: Work, mix: AMix, calls: Sequence[Call]) -> None:
        recipe: ARecipe
        named: Sequence[Any] = [mix.executable]
        if isinstance(mix, MergedMix):
            recipe = MergedRecipe.of(mix, calls)
        elif work is mix.parts:
            recipe, named = Recipe.of(mix, calls), mix.members
        else:
            recipe = AnyRecipe.of(mix, calls, work[0][1])
        self._recipes[work] = recipe
        self._recipes.move_to_end(work)
        if len(self._recipes) > MOST_GRAPHS:
            self._recipes.popitem(last=False)
        for each in named:
            if id(each) not in self._watched:
                self._watched[id(each)] = weakref.ref(each, self._on_leaving(id(each)))

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
        """Forget everything that names what is gone, before its id can mean another."""
        if not self._left:
            return
        left = set()
        while self._left:
            left.add(self._left.popleft())
        for number in left:
            self._watched.pop(number, None)

        def is_stale(work: Work) -> bool:
            return any(number in left for number, _ in work)

        for work in [work for work in self._recipes if is_stale(work)]:
            del self._recipes[work]
        for known in (self._runs, self._barred, self._disturbed):
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
        """A lane that is on it keeps it until it ends. If its lanes come again, they are captured again."""
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
                self._barred[key] = str(error).replace("\n", " ")
            return
        if grant is None:  # its partition is still being made: count again from the start
            with self._lock:
                self._runs.pop(key, None)
            return
        graph = self._made(key, grant, executable, recipe)
        if graph is None:
            self._partitions.give_back(grant)
            return
        if graph.num_bytes > self._budget_bytes:
            self._close(graph)
            facts = f"all graphs together may have {self._budget_bytes}"
            what = f"a graph of {graph.num_bytes} bytes is too large"
            self._refuse(key, executable, TooLarge(what, facts, EAGERLY))
            return
        with self._lock:
            self._captured += 1
            self._ready[key] = graph
            self._bury()
            if key in self._ready and key[1] not in self._recipes:
                self._retire(key)  # a tenant left while its graph was made
            self._trim()

    def _made(self, key: Key, grant: Grant, executable: Fused, recipe: ARecipe) -> Made | None:
        """The graph. If there is none, it is noted why."""
        try:
            return captured(self._gpu, grant, executable, recipe)
        except (Outdated, MixError) as error:
            with self._lock:
                self._runs.pop(key, None)
                if isinstance(error, MixError):
                    self._recipes.pop(key[1], None)
                    self._by_mix[executable] = f"{name_of(executable)}: {error.what}: {error.facts}"
        except Disturbed as error:
            self._note_disturbance(key, executable, error)
        except Exception as error:
            self._refuse(key, executable, error)
        return None

    def _note_disturbance(self, key: Key, executable: Fused, error: Disturbed) -> None:
        """Its lanes count again from the start, a few times."""
        with self._lock:
            self._runs.pop(key, None)
            self._disturbed[key] += 1
            if self._disturbed[key] >= MOST_DISTURBED:
                text = f"{MOST_DISTURBED} captures were broken from outside (does a thread wait for the whole device?)"
                self._barred[key] = f"{name_of(executable)}: {text}: {error}"

    def _refuse(self, key: Key, executable: Fused, error: Exception) -> None:
        """What a program does it always does; but for a smaller mix there may be memory."""
        text = f"{error.what}: {error.facts}" if isinstance(error, GraphError) else f"{type(error).__name__}: {error}"
        reason = f"{name_of(executable)}: {text}".replace("\n", " ")
        with self._lock:
            if isinstance(error, (torch.OutOfMemoryError, TooLarge)):
                self._barred[key] = reason
            else:
                self._uncapturable[executable] = reason

    def _close(self, graph: Made) -> None:
        graph.drop()
        self._partitions.give_back(graph.grant)
