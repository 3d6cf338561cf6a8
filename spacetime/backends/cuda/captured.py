"""One fused lane as a CUDA graph: its mix, the capture, the replay. graphs.py keeps and finds them; nobody else."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spacetime.backends.cuda.gpu import Gpu, Replayable
from spacetime.backends.cuda.green import Grant
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.outcomes import outcomes_of
from spacetime.capture.cohort import Member
from spacetime.capture.selfcheck import problem
from spacetime.errors import InputError, SpacetimeError
from spacetime.kernels import RowMap
from spacetime.kernels.rowmap import faults_in
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Outcome

Parts = tuple[tuple[int, int], ...]  # (id of a cohort's member, rows), by slot


class GraphError(SpacetimeError, RuntimeError):
    """A lane that could not be captured. It runs eagerly."""


class _Rows(RowMap):
    """Remembers its words on the device, where embeddings mark rows that asked for what is not in their tables."""

    on_device: Tensor | None = None

    def words(self, device: torch.device) -> Tensor:
        self.on_device = super().words(device)
        return self.on_device


class _Recorded(CohortExecutable):
    """The executable for a capture: the same program, whose last words stay at hand."""

    def __init__(self, executable: CohortExecutable) -> None:
        vars(self).update(vars(executable))
        self.rows: _Rows | None = None

    def _row_map(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> RowMap:
        self.rows = _Rows(slots, rows)
        return self.rows


class Outdated(Exception):
    """A tenant left while its graph was made. Says nothing about others."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A lane, fused, in the order of its slots: lanes of equal `parts` are the same work."""

    executable: CohortExecutable
    lane: Lane
    order: tuple[int, ...]  # order[i]: where the i-th request was in the lane as it was planned
    members: tuple[Member, ...]
    parts: Parts

    @staticmethod
    def of(executable: CohortExecutable, lane: Lane, calls: Sequence[Call]) -> Mix:
        """KeyError when a tenant is not in the cohort."""
        members = [executable.cohort.members[request.tenant] for request in lane.requests]
        rows = [int(call.tensors[0].shape[0]) for call in calls]
        order = sorted(range(len(members)), key=lambda index: (members[index].slot, rows[index]))
        return Mix(
            executable,
            replace(lane, requests=tuple([lane.requests[index] for index in order]), fused=True),
            tuple(order),
            tuple([members[index] for index in order]),
            tuple([(id(members[index]), rows[index]) for index in order]),
        )

    def sort(self, values: Sequence[Any]) -> list[Any]:
        return [values[index] for index in self.order]

    def unsort(self, values: Sequence[Any]) -> tuple[Any, ...]:
        result: list[Any] = [None] * len(values)
        for value, index in zip(values, self.order, strict=True):
            result[index] = value
        return tuple(result)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What it takes to capture a mix on any atoms: shapes, nobody's tensors, and nothing that keeps a cohort alive."""

    executable: weakref.ref[CohortExecutable]
    members: tuple[weakref.ref[Member], ...]
    lane: Lane
    shapes: tuple[tuple[Tensor, ...], ...]  # meta tensors

    @staticmethod
    def of(mix: Mix, calls: Sequence[Call]) -> Recipe:
        shapes = tuple(tuple(tensor.to("meta") for tensor in call.tensors) for call in mix.sort(calls))
        return Recipe(weakref.ref(mix.executable), tuple(map(weakref.ref, mix.members)), mix.lane, shapes)

    @property
    def is_outdated(self) -> bool:
        """Has one of its tenants left, whether or not another has come under its name?"""
        executable = self.executable()
        known = {} if executable is None else executable.cohort.members
        pairs = zip(self.lane.requests, self.members, strict=True)
        return any(member() is None or known.get(request.tenant) is not member() for request, member in pairs)


@dataclass(slots=True, eq=False)
class Graph:
    """Static buffers around a captured lane. `busy`: a lane is on it; `retired`: nobody will find it again."""

    executable: weakref.ref[CohortExecutable]
    tenants: tuple[str, ...]
    grant: Grant  # of the stream that it was captured on; keeps its context
    replayable: Replayable | None
    inputs: list[Tensor]
    leaves: list[Any]  # of all results, in order; tensors among them are the graph's
    specs: list[tuple[int, pytree.TreeSpec]]  # of each result: how many leaves, and its structure
    reads: list[Tensor]  # weights, indices, constants: what its kernels read beside its inputs
    stacks: tuple[int, ...]  # where the cohort's slabs were
    num_bytes: int
    rows: tuple[int, ...]  # of each request
    faults: Tensor | None  # of each row, where the program looks things up; see kernels/bound
    owners: RowMap | None  # what the graph copies to the device
    busy: bool = False
    retired: bool = False

    @property
    def is_outgrown(self) -> bool:
        """The cohort's slabs have grown. The graph is still right, but it keeps the old memory."""
        executable = self.executable()
        return executable is None or _stacks(executable) != self.stacks

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """On the current stream; results are copies in memory of their own."""
        assert self.replayable is not None, "it was dropped"
        with torch.no_grad():
            torch._foreach_copy_(self.inputs, [tensor for call in calls for tensor in call.tensors])
            self.replayable.replay()
            static = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
            fresh = [torch.empty_like(leaf) for leaf in static]
            torch._foreach_copy_(fresh, static)
            faulty = set() if self.faults is None else self._faulty()
        copies = iter(fresh)
        leaves = [next(copies) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        outcomes, start = [], 0
        for index, (count, spec) in enumerate(self.specs):
            value = pytree.tree_unflatten(leaves[start : start + count], spec)
            outcomes.append(Outcome(error=_fault(self.rows[index])) if index in faulty else Outcome(value))
            start += count
        return outcomes

    def _faulty(self) -> set[int]:
        """Requests with a row that asked for what does not exist. Waits for the lane, like its thread does anyway."""
        assert self.faults is not None
        marked = self.faults[: sum(self.rows)].nonzero().flatten().tolist()
        ends = list(accumulate(self.rows))
        return {bisect_right(ends, row) for row in marked}

    def drop(self) -> None:
        """Give its memory back. In the background: it may wait for the device."""
        self.replayable = None
        self.inputs, self.leaves, self.reads = [], [], []
        self.faults = self.owners = None


def capture(gpu: Gpu, grant: Grant, executable: CohortExecutable, recipe: Recipe) -> Graph:
    """The graph of a lane; `Outdated` when one of its tenants leaves meanwhile, whatever else came of it."""
    try:
        graph = _make(gpu, grant, executable, recipe)
    except Exception as error:
        if recipe.is_outdated:
            raise Outdated from error
        raise
    if recipe.is_outdated:
        raise Outdated
    return graph


def _make(gpu: Gpu, grant: Grant, executable: CohortExecutable, recipe: Recipe) -> Graph:
    """Once eagerly, for libraries to make what they need and as the reference; then the capture; then a replay."""
    stream, lane = gpu.stream(grant.stream), recipe.lane
    stacks = _stacks(executable)
    with gpu.under(stream), torch.no_grad():
        calls = [Call((), tuple(gpu.upload(_pattern(shape)) for shape in shapes)) for shapes in recipe.shapes]
        reference = _leaves(_checked(outcomes_of(executable, lane, calls)))
    reads, outcomes, recorded = _Reads(), list[Outcome](), _Recorded(executable)

    def function() -> None:
        with reads:
            outcomes.extend(outcomes_of(recorded, lane, calls))

    replayable = _capture(gpu, stream, function, outcomes)
    flat = [pytree.tree_flatten(outcome.value) for outcome in _checked(outcomes)]
    inputs = [tensor for call in calls for tensor in call.tensors]
    graph = Graph(
        recipe.executable,
        lane.tenants,
        grant,
        replayable,
        inputs,
        [leaf for leaves, _ in flat for leaf in leaves],
        [(len(leaves), spec) for leaves, spec in flat],
        reads.found,
        stacks,
        replayable.num_bytes + sum(tensor.nbytes for tensor in inputs),
        tuple([int(call.tensors[0].shape[0]) for call in calls]),
        _faults(executable, recorded.rows),
        recorded.rows,
    )
    with gpu.under(stream), torch.no_grad():
        wrong = problem(_leaves(graph.run(calls)), reference)
    if wrong is not None:
        raise GraphError("a replay answers otherwise than the lane", wrong)
    return graph


def _capture(gpu: Gpu, stream: Any, function: Callable[[], None], outcomes: list[Outcome]) -> Replayable:
    """The executable's own error says more than that of the capture it spoilt."""
    try:
        return gpu.capture(stream, function)
    except Exception as error:
        _checked(outcomes, cause=error)
        raise


def _faults(executable: CohortExecutable, rows: _Rows | None) -> Tensor | None:
    looks_up = any(step.target == "gpu_faults" for step in executable.cohort.fused.steps)
    return faults_in(rows.on_device) if looks_up and rows is not None and rows.on_device is not None else None


def _fault(num_rows: int) -> InputError:
    facts = f"in one of the request's {num_rows} rows"
    return InputError("an index is outside the table of its embedding", facts, "check the inputs' range")


def _checked(outcomes: Sequence[Outcome], cause: Exception | None = None) -> Sequence[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome.error, torch.OutOfMemoryError):
            raise outcome.error
        if outcome.error is not None:
            facts = f"{type(outcome.error).__name__}: {outcome.error}"
            raise GraphError("a lane cannot be captured", facts) from (cause or outcome.error)
    return outcomes


def _leaves(outcomes: Sequence[Outcome]) -> list[Any]:
    return [leaf for outcome in outcomes for leaf in pytree.tree_leaves(outcome.value)]


def _stacks(executable: CohortExecutable) -> tuple[int, ...]:
    return tuple([layer.stack.data_ptr() for layer in executable.cohort.layers])


def _pattern(shape: Tensor) -> Tensor:
    """An input of this shape that any module accepts: small numbers, and index 0. Draws nothing from a generator."""
    if not shape.dtype.is_floating_point:
        return torch.zeros(shape.shape, dtype=shape.dtype)
    values = torch.arange(shape.numel(), dtype=torch.float32).mul_(7).remainder_(13).sub_(6).div_(6)
    return values.reshape(shape.shape).to(shape.dtype)


class _Reads(TorchDispatchMode):
    """Finds the tensors that a capture reads and does not make: the graph must keep them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Tensor] = []
        self._known: set[int] = set()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), self.found)
        result = func(*args, **(kwargs or {}))
        self._note(result, None)
        return result

    def _note(self, values: Any, found: list[Tensor] | None) -> None:
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, Tensor) and (number := leaf.untyped_storage()._cdata) not in self._known:
                self._known.add(number)
                if found is not None:
                    found.append(leaf)
