"""One CUDA graph for every mix of a merged lane's tenants, up to so many rows of each member. Only graphs.py uses it.

As anymix.py, with a bucket of rows for each member: its own inputs and outputs, and its own part of the words that say
who the rows belong to. One small copy brings the words of all. Members without rows are not in the graph.

Common launches read tables of addresses (kernels/bound/together.py). A graph's memory stays where it is, so its tables
are written once, behind the capture.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spacetime.backends.cuda.anymix import (
    OnSlabs,
    batch_of,
    bucket_of,
    cut,
    load,
    ragged,
    requests_of,
    shapes_of,
    version_of,
)
from spacetime.backends.cuda.capturing import (
    EAGERLY,
    GraphError,
    Outdated,
    addresses_of,
    checked,
    fault,
    faulty,
    leaves_of,
    looks_up,
    recorded,
)
from spacetime.backends.cuda.gpu import Gpu, Replayable
from spacetime.backends.cuda.green import Grant
from spacetime.backends.executables import Call
from spacetime.backends.merged import MergedExecutable, Taken
from spacetime.capture.cohort import Member
from spacetime.capture.layer import Layer
from spacetime.capture.selfcheck import problem
from spacetime.kernels import AnyRows
from spacetime.kernels.rowmap import faults_in, fill, num_words
from spacetime.kernels.together import LateSpans, Spans
from spacetime.plan import Lane, RequestView
from spacetime.scheduler.protocols import Outcome


@dataclass(frozen=True, slots=True)
class MergedMix:
    """A merged lane by member: lanes of equal `buckets` are the same work."""

    executable: MergedExecutable
    lane: Lane
    taken: tuple[Taken, ...]

    @staticmethod
    def of(executable: MergedExecutable, lane: Lane, calls: Sequence[Call]) -> MergedMix | None:
        """None for a lane of a single member, which launches nothing with others. KeyError: a tenant is not there."""
        taken = executable.taken(lane, calls)
        return MergedMix(executable, lane, taken) if sum([bool(own.indices) for own in taken]) > 1 else None

    @property
    def buckets(self) -> tuple[int, ...]:
        """Rows that a graph has for each member; 0 for one that has none."""
        return tuple([bucket_of(sum(own.counts)) if own.counts else 0 for own in self.taken])

    @property
    def work(self) -> tuple[tuple[int, int], ...]:
        return tuple([(id(self.executable), rows) for rows in self.buckets])


@dataclass(frozen=True, slots=True)
class MergedRecipe:
    """What it takes to capture such lanes on any atoms. Keeps no cohort alive."""

    executable: weakref.ref[MergedExecutable]
    lane: Lane  # as one came; where and how it is planned
    buckets: tuple[int, ...]
    shapes: tuple[tuple[Tensor, ...], ...]  # meta tensors of each member's inputs, without rows

    @staticmethod
    def of(mix: MergedMix, calls: Sequence[Call]) -> MergedRecipe:
        shapes = tuple([shapes_of(calls[own.indices[0]]) if own.indices else () for own in mix.taken])
        return MergedRecipe(weakref.ref(mix.executable), mix.lane, mix.buckets, shapes)

    def example(self, executable: MergedExecutable) -> _Example:
        """Tenants that are there, to compare a replay with: ragged, and short of the buckets."""
        pairs = zip(executable.members, self.buckets, strict=True)
        rows_of = [ragged(member, bucket) if bucket else [] for member, bucket in pairs]
        names = [row for own in rows_of for row in own]
        requests = [RequestView(index, name, rows, 0) for index, (name, rows) in enumerate(names)]
        lane = Lane(self.lane.cohort, tuple(requests), self.lane.segments, fused=True)
        try:
            members = [executable.members[m].cohort.members[name] for m, own in enumerate(rows_of) for name, _ in own]
        except KeyError as error:  # one of them has left by now
            raise Outdated from error
        return _Example(lane, [[rows for _, rows in own] for own in rows_of], members)


@dataclass(frozen=True, slots=True)
class _Example:
    lane: Lane
    counts: list[list[int]]  # by member
    members: list[Member]

    def is_outdated(self, executable: MergedExecutable) -> bool:
        known = {id(member) for each in executable.members for member in tuple(each.cohort.members.values())}
        return any(id(member) not in known for member in self.members)


@dataclass(slots=True, eq=False)
class _Share:
    """What a graph has of one member."""

    member: int
    bucket: int
    words: Tensor
    pinned: Tensor  # the same on the host, for the next replay
    inputs: tuple[Tensor, ...]
    row_dims: tuple[int | None, ...]  # of the outputs
    marks_faults: bool
    outputs: tuple[Any, ...] = ()

    @property
    def rows(self) -> AnyRows:
        return AnyRows(self.bucket, self.words)

    def write(self, own: Taken, calls: Sequence[Call]) -> None:
        """Its inputs, on the current stream, and whose they are, on the host."""
        load(self.inputs, [calls[index] for index in own.indices], sum(own.counts))
        fill(self.pinned, own.slots, own.counts)  # no copy of them is under way: one lane at a time is on a graph

    def results(self, executable: MergedExecutable, own: Taken) -> dict[int, Outcome]:
        """By request, as they were planned."""
        counts = list(own.counts)
        values = executable.members[self.member].results(cut(self.outputs, self.row_dims, sum(counts)), counts)
        failed = faulty(faults_in(self.words), counts) if self.marks_faults else set()
        return {
            index: Outcome(error=fault(counts[i])) if i in failed else Outcome(values[i])
            for i, index in enumerate(own.indices)
        }


@dataclass(slots=True, eq=False)
class MergedGraph(OnSlabs):
    """Static buffers around a merged program. `busy`: a lane is on it; `retired`: nobody will find it again."""

    executable: weakref.ref[MergedExecutable]
    grant: Grant  # of the stream that it was captured on; keeps its context
    replayable: Replayable | None
    shares: tuple[_Share, ...]
    words: Tensor | None  # of all shares
    pinned: Tensor | None
    reads: list[Tensor]  # weights, tables, constants: what its kernels read beside its inputs
    layers: list[Layer]
    version: int
    stacks: tuple[int, ...]
    num_bytes: int
    busy: bool = False
    retired: bool = False

    @property
    def tenants(self) -> tuple[str, ...]:
        """Whom its memory is for: all of the members that it has rows for."""
        executable = self.executable()
        if executable is None:
            return ()
        return tuple([name for share in self.shares for name in executable.members[share.member].cohort.members])

    def stacks_now(self) -> tuple[int, ...] | None:
        executable = self.executable()
        return None if executable is None else _addresses(executable, self.shares)

    def serve(self, mix: MergedMix, calls: Sequence[Call]) -> tuple[Outcome, ...]:
        """On the current stream. One outcome per request, as they were planned."""
        outcomes = self.run(mix.executable, mix.taken, calls)
        mix.executable.watch(mix.executable, mix.lane)
        return outcomes

    def run(self, executable: MergedExecutable, taken: Sequence[Taken], calls: Sequence[Call]) -> tuple[Outcome, ...]:
        assert self.replayable is not None and self.words is not None and self.pinned is not None, "it was dropped"
        found: dict[int, Outcome] = {}
        with torch.no_grad():
            for share in self.shares:
                share.write(taken[share.member], calls)
            self.words.copy_(self.pinned, non_blocking=True)
            self.replayable.replay()
            for share in self.shares:
                found |= share.results(executable, taken[share.member])
        return tuple([found[index] for index in range(len(calls))])

    def drop(self) -> None:
        """Give its memory back. In the background: it may wait for the device."""
        self.replayable = self.words = self.pinned = None
        self.shares, self.reads, self.layers = (), [], []


def capture_merged(gpu: Gpu, grant: Grant, executable: MergedExecutable, recipe: MergedRecipe) -> MergedGraph:
    """`MixError` where a step must know its rows on the host; `Outdated` when a tenant of the example leaves."""
    example = recipe.example(executable)
    try:
        return _make(gpu, grant, executable, recipe, example)
    except Exception as error:
        if example.is_outdated(executable):
            raise Outdated from error
        raise


def _make(gpu: Gpu, grant: Grant, executable: MergedExecutable, recipe: MergedRecipe, example: _Example) -> MergedGraph:
    """Once with all rows idle, which compiles kernels; then the capture; then a replay beside the eager lane."""
    stream = gpu.stream(grant.stream)
    layers = [layer for member in executable.members for layer in member.cohort.layers]
    version = version_of(layers)
    sizes = [num_words(bucket) if bucket else 0 for bucket in recipe.buckets]
    pinned = gpu.pinned(4 * sum(sizes)).view(torch.int32)
    on_host = pinned.split(sizes)
    with gpu.under(stream), torch.no_grad():
        words = gpu.upload(torch.zeros(pinned.shape, dtype=torch.int32))
        shares = _shares(gpu, executable, recipe, words.split(sizes), on_host)
        stacks = _addresses(executable, shares)
        rows, inputs = _by_member(executable, shares)
        spans = Spans(rows)  # kept until its copies have been made: to the end of this function
        executable.run_any(spans, inputs)
    late, outputs = LateSpans(rows), list[tuple[Any, ...]]()

    def function() -> None:
        with torch.no_grad():
            outputs.extend(executable.run_any(late, inputs))

    replayable, reads = recorded(gpu, stream, function)
    for share in shares:
        share.outputs = outputs[share.member]
    num_bytes = replayable.num_bytes + words.nbytes + sum(t.nbytes for share in shares for t in share.inputs)
    graph = MergedGraph(
        recipe.executable,
        grant,
        replayable,
        shares,
        words,
        pinned,
        [*reads, *late.held],
        layers,
        version,
        stacks,
        num_bytes,
    )
    with gpu.under(stream), torch.no_grad():
        late.write()
        wrong = _compared(graph, executable, example)
    if wrong is not None:
        raise GraphError("a replay of merged lanes answers otherwise than the lane", wrong, EAGERLY)
    return graph


def _compared(graph: MergedGraph, executable: MergedExecutable, example: _Example) -> str | None:
    """With what the lane answers eagerly, which launches the same together."""
    parts = {share.member: requests_of(share.inputs, example.counts[share.member]) for share in graph.shares}
    calls = [call for member in sorted(parts) for call in parts[member]]
    try:
        taken = executable.taken(example.lane, calls)
    except KeyError as error:
        raise Outdated from error
    reference = leaves_of(checked(executable.outcomes(example.lane, calls)))
    return problem(leaves_of(checked(graph.run(executable, taken, calls))), reference)


def _shares(
    gpu: Gpu, executable: MergedExecutable, recipe: MergedRecipe, words: Sequence[Tensor], pinned: Sequence[Tensor]
) -> tuple[_Share, ...]:
    found = []
    for member, bucket in enumerate(recipe.buckets):
        if bucket:
            own = executable.members[member]
            inputs = tuple([gpu.upload(tensor) for tensor in batch_of(recipe.shapes[member], bucket)])
            row_dims = own.cohort.fused.output_row_dims
            found.append(_Share(member, bucket, words[member], pinned[member], inputs, row_dims, looks_up(own)))
    return tuple(found)


def _by_member(
    executable: MergedExecutable, shares: Sequence[_Share]
) -> tuple[tuple[AnyRows | None, ...], list[tuple[Tensor, ...]]]:
    rows: list[AnyRows | None] = [None] * len(executable.members)
    inputs: list[tuple[Tensor, ...]] = [()] * len(executable.members)
    for share in shares:
        rows[share.member], inputs[share.member] = share.rows, share.inputs
    return tuple(rows), inputs


def _addresses(executable: MergedExecutable, shares: Sequence[_Share]) -> tuple[int, ...]:
    """Where the slabs are, and the tables of entries, which this brings up to date."""
    return tuple(
        address
        for share in shares
        for address in addresses_of(executable.members[share.member].cohort.layers, executable.kernels_of(share.member))
    )
