"""One fused lane as a CUDA graph for its mix alone: capture and replay. graphs.py keeps and finds them; nobody else."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spacetime.backends.cuda.capturing import (
    EAGERLY,
    GraphError,
    Outdated,
    addresses,
    checked,
    fault,
    faulty,
    leaves_of,
    looks_up,
    pattern,
    recorded,
)
from spacetime.backends.cuda.gpu import Gpu, Replayable
from spacetime.backends.cuda.green import Grant
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.outcomes import outcomes_of
from spacetime.capture.cohort import Member
from spacetime.capture.selfcheck import problem
from spacetime.kernels import RowMap
from spacetime.kernels.rowmap import faults_in
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Outcome

Parts = tuple[tuple[int, int], ...]  # (id of a cohort's member, rows), by slot


class _Rows(RowMap):
    """Remembers its words on the device, where embeddings mark rows that asked for what is not in their tables."""

    on_device: Tensor | None = None

    def words(self, device: torch.device) -> Tensor:
        self.on_device = super().words(device)
        return self.on_device


class _Recorded(CohortExecutable):
    """The executable for a capture: the same program, whose last words stay at hand.

    The run before the capture has the same rows. So all that it brings to the device for them is there: a capture can
    neither wait for a copy from the host nor lock memory of the host.
    """

    def __init__(self, executable: CohortExecutable) -> None:
        vars(self).update(vars(executable))
        self.rows: _Rows | None = None

    def _row_map(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> RowMap:
        if self.rows is None or (self.rows.slots, self.rows.rows) != (slots, rows):
            self.rows = _Rows(slots, rows)
        return self.rows


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

    @property
    def is_of_one(self) -> bool:
        """Do all requests belong to one tenant?"""
        return self.parts[0][0] == self.parts[-1][0]

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

    def serve(self, mix: Mix, calls: Sequence[Call]) -> tuple[Outcome, ...]:
        """One outcome per request, as they were planned."""
        return mix.unsort(self.run(mix.sort(calls)))

    def is_usable(self) -> bool:
        """It serves its own tenants only, who are there, and their weights stay where they were captured."""
        return True

    @property
    def is_outgrown(self) -> bool:
        """The cohort's slabs have grown. The graph is still right, but it keeps the old memory."""
        executable = self.executable()
        return executable is None or addresses(executable) != self.stacks

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """On the current stream; results are copies in memory of their own."""
        assert self.replayable is not None, "it was dropped"
        with torch.no_grad():
            torch._foreach_copy_(self.inputs, [tensor for call in calls for tensor in call.tensors])
            self.replayable.replay()
            static = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
            fresh = [torch.empty_like(leaf) for leaf in static]
            torch._foreach_copy_(fresh, static)
            failed = set() if self.faults is None else faulty(self.faults, self.rows)
        copies = iter(fresh)
        leaves = [next(copies) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        outcomes, start = [], 0
        for index, (count, spec) in enumerate(self.specs):
            value = pytree.tree_unflatten(leaves[start : start + count], spec)
            outcomes.append(Outcome(error=fault(self.rows[index])) if index in failed else Outcome(value))
            start += count
        return outcomes

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
    stacks = addresses(executable)
    outcomes, watched = list[Outcome](), _Recorded(executable)
    with gpu.under(stream), torch.no_grad():
        calls = [Call((), tuple(gpu.upload(pattern(shape)) for shape in shapes)) for shapes in recipe.shapes]
        reference = leaves_of(checked(outcomes_of(watched, lane, calls)))

    def function() -> None:
        outcomes.extend(checked(outcomes_of(watched, lane, calls)))

    replayable, reads = recorded(gpu, stream, function)
    flat = [pytree.tree_flatten(outcome.value) for outcome in outcomes]
    inputs = [tensor for call in calls for tensor in call.tensors]
    graph = Graph(
        recipe.executable,
        lane.tenants,
        grant,
        replayable,
        inputs,
        [leaf for leaves, _ in flat for leaf in leaves],
        [(len(leaves), spec) for leaves, spec in flat],
        reads,
        stacks,
        replayable.num_bytes + sum(tensor.nbytes for tensor in inputs),
        tuple([int(call.tensors[0].shape[0]) for call in calls]),
        _faults(executable, watched.rows),
        watched.rows,
    )
    with gpu.under(stream), torch.no_grad():
        wrong = problem(leaves_of(graph.run(calls)), reference)
    if wrong is not None:
        raise GraphError("a replay answers otherwise than the lane", wrong, EAGERLY)
    return graph


def _faults(executable: CohortExecutable, rows: _Rows | None) -> Tensor | None:
    if rows is None or rows.on_device is None or not looks_up(executable):
        return None
    return faults_in(rows.on_device)
