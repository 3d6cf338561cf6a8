"""One CUDA graph for every mix of a cohort's tenants, up to so many rows. graphs.py keeps and finds them; nobody else.

Its kernels read who the rows belong to from words in device memory. Before a replay the host writes the mix into
pinned words, which one small copy brings to the device; the lane's inputs are joined in the graph's own, behind them
lie rows of earlier lanes, or the pattern that it was captured with: valid inputs, whose results nobody sees.

It holds the memory that it was captured with: slabs, and the table of entries. Where a cohort has grown out of either,
the graph knows nothing of the new tenants, so it is asked before each replay (`is_usable`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spacetime.backends.cuda.captured import Mix
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
from spacetime.capture.layer import Layer
from spacetime.capture.selfcheck import problem
from spacetime.kernels import AnyRows
from spacetime.kernels.rowmap import faults_in, fill, num_words
from spacetime.plan import Lane, RequestView
from spacetime.scheduler.protocols import Outcome


def bucket_of(num_rows: int) -> int:
    """Rows of the graph for a lane of so many.

    >>> [bucket_of(rows) for rows in (1, 2, 3, 4, 5, 64)]
    [1, 2, 4, 4, 8, 64]
    """
    return 1 << (num_rows - 1).bit_length()


@dataclass(frozen=True, slots=True)
class AnyRecipe:
    """What it takes to capture any mix of up to `bucket` rows, on any atoms. Keeps no cohort alive."""

    executable: weakref.ref[CohortExecutable]
    lane: Lane  # as one came; where and how it is planned
    bucket: int
    shapes: tuple[Tensor, ...]  # meta tensors of the inputs, without rows

    @staticmethod
    def of(mix: Mix, calls: Sequence[Call], bucket: int) -> AnyRecipe:
        return AnyRecipe(weakref.ref(mix.executable), mix.lane, bucket, shapes_of(calls[0]))

    def example(self, executable: CohortExecutable) -> Mix:
        """A mix of the tenants that are there, to compare a replay with: ragged, and short of the bucket."""
        rows_of = ragged(executable, self.bucket)
        calls = [Call((), (torch.empty(rows, device="meta"),)) for _, rows in rows_of]
        requests = [RequestView(index, name, rows, 0) for index, (name, rows) in enumerate(rows_of)]
        lane = Lane(self.lane.cohort, tuple(requests), self.lane.segments, fused=True)
        try:
            return Mix.of(executable, lane, calls)
        except KeyError as error:  # one of them has left by now
            raise Outdated from error


def shapes_of(call: Call) -> tuple[Tensor, ...]:
    """Meta tensors of a request's inputs, without rows."""
    return tuple([tensor[0].to("meta") for tensor in call.tensors])


def batch_of(shapes: Sequence[Tensor], num_rows: int) -> tuple[Tensor, ...]:
    """Inputs that any module accepts, on the host."""
    sizes = [(num_rows, *shape.shape) for shape in shapes]
    pairs = zip(sizes, shapes, strict=True)
    return tuple([pattern(torch.empty(size, dtype=shape.dtype, device="meta")) for size, shape in pairs])


def ragged(executable: CohortExecutable, bucket: int) -> list[tuple[str, int]]:
    """Tenants that are there and rows for each, fewer than the bucket has where that can be."""
    members = sorted(tuple(executable.cohort.members.values()), key=lambda member: member.slot)[:bucket]
    if not members:
        raise Outdated
    spare = (bucket - len(members) + 1) // 2
    return [(member.name, 1 + spare * (index == 0)) for index, member in enumerate(members)]


class OnSlabs:
    """A graph for whoever is there: it is good as long as the slabs that its kernels read stay where they are."""

    layers: list[Layer]
    version: int  # of the layers, when `stacks` were theirs
    stacks: tuple[int, ...]  # where the slabs and the tables of entries were

    def stacks_now(self) -> tuple[int, ...] | None:
        """Where they are; None when the executable has gone."""
        raise NotImplementedError

    def is_usable(self) -> bool:
        """Does it know the tenants that are there now? Brings their entries up to date if any came or went."""
        version = version_of(self.layers)  # first: what changes meanwhile shows next time
        if version == self.version:
            return True
        if self.stacks_now() != self.stacks:
            return False
        self.version = version
        return True

    @property
    def is_outgrown(self) -> bool:
        return not self.is_usable()


@dataclass(slots=True, eq=False)
class AnyGraph(OnSlabs):
    """Static buffers around the program. `busy`: a lane is on it; `retired`: nobody will find it again."""

    executable: weakref.ref[CohortExecutable]
    grant: Grant  # of the stream that it was captured on; keeps its context
    bucket: int
    replayable: Replayable | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Any, ...]
    row_dims: tuple[int | None, ...]  # of the outputs
    words: Tensor | None  # who the rows belong to
    pinned: Tensor | None  # the same on the host, for the next replay
    marks_faults: bool
    reads: list[Tensor]  # weights, tables, constants: what its kernels read beside its inputs
    layers: list[Layer]
    version: int
    stacks: tuple[int, ...]
    num_bytes: int
    busy: bool = False
    retired: bool = False

    @property
    def tenants(self) -> tuple[str, ...]:
        """Whom its memory is for: all of the cohort."""
        executable = self.executable()
        return () if executable is None else tuple(executable.cohort.members)

    def stacks_now(self) -> tuple[int, ...] | None:
        executable = self.executable()
        return None if executable is None else addresses(executable)

    def serve(self, mix: Mix, calls: Sequence[Call]) -> tuple[Outcome, ...]:
        """On the current stream. One outcome per request, as they were planned."""
        slots = [member.slot for member in mix.members]
        return mix.unsort(self.run(mix.executable, slots, mix.sort(calls)))

    def run(self, executable: CohortExecutable, slots: Sequence[int], calls: Sequence[Call]) -> list[Outcome]:
        """Requests in the order of their slots; results are copies in memory of their own."""
        assert self.replayable is not None and self.words is not None and self.pinned is not None, "it was dropped"
        counts = [int(call.tensors[0].shape[0]) for call in calls]
        total = sum(counts)
        with torch.no_grad():
            load(self.inputs, calls, total)
            fill(self.pinned, slots, counts)  # no copy of them is under way: one lane at a time is on a graph
            self.words.copy_(self.pinned, non_blocking=True)
            self.replayable.replay()
            results = executable.results(cut(self.outputs, self.row_dims, total), counts)
            failed = faulty(faults_in(self.words), counts) if self.marks_faults else set()
        return [
            Outcome(error=fault(counts[index])) if index in failed else Outcome(value)
            for index, value in enumerate(results)
        ]

    def drop(self) -> None:
        """Give its memory back. In the background: it may wait for the device."""
        self.replayable = self.words = self.pinned = None
        self.inputs, self.outputs = (), ()
        self.reads, self.layers = [], []


def load(inputs: Sequence[Tensor], calls: Sequence[Call], total: int) -> None:
    """The rows of all requests, one behind another, into a graph's inputs."""
    for static, column in zip(inputs, zip(*[call.tensors for call in calls], strict=True), strict=True):
        if len(column) == 1:
            static[:total].copy_(column[0])
        else:
            torch.cat(column, out=static[:total])


def cut(outputs: Sequence[Any], row_dims: Sequence[int | None], total: int) -> list[Any]:
    """What belongs to the lane's rows. Outputs without rows are the graph's, and the next replay's: copied."""
    return [
        output
        if not isinstance(output, Tensor)
        else output.clone()
        if row_dim is None
        else output.narrow(row_dim, 0, total)
        for output, row_dim in zip(outputs, row_dims, strict=True)
    ]


def capture_any(gpu: Gpu, grant: Grant, executable: CohortExecutable, recipe: AnyRecipe) -> AnyGraph:
    """`MixError` where a step must know its rows on the host; `Outdated` when a tenant of the example leaves."""
    mix = recipe.example(executable)
    try:
        return _make(gpu, grant, executable, recipe, mix)
    except Exception as error:
        known = executable.cohort.members
        if any(known.get(member.name) is not member for member in mix.members):
            raise Outdated from error
        raise


def _make(gpu: Gpu, grant: Grant, executable: CohortExecutable, recipe: AnyRecipe, mix: Mix) -> AnyGraph:
    """Once with all rows idle, which compiles kernels; then the capture; then a replay beside the eager lane."""
    stream, size, layers = gpu.stream(grant.stream), num_words(recipe.bucket), executable.cohort.layers
    version = version_of(layers)
    pinned = gpu.pinned(4 * size).view(torch.int32)
    with gpu.under(stream), torch.no_grad():
        stacks = addresses(executable)
        words = gpu.upload(torch.zeros(size, dtype=torch.int32))
        inputs = tuple([gpu.upload(tensor) for tensor in batch_of(recipe.shapes, recipe.bucket)])
        rows = AnyRows(recipe.bucket, words)
        executable.run_any(rows, inputs)
    outputs = list[Any]()

    def function() -> None:
        with torch.no_grad():
            outputs.extend(executable.run_any(rows, inputs))

    replayable, reads = recorded(gpu, stream, function)
    graph = AnyGraph(
        recipe.executable,
        grant,
        recipe.bucket,
        replayable,
        inputs,
        tuple(outputs),
        executable.cohort.fused.output_row_dims,
        words,
        pinned,
        looks_up(executable),
        reads,
        list(layers),
        version,
        stacks,
        replayable.num_bytes + words.nbytes + sum(tensor.nbytes for tensor in inputs),
    )
    with gpu.under(stream), torch.no_grad():
        own = requests_of(inputs, [count for _, count in mix.parts])
        reference = leaves_of(checked(outcomes_of(executable, mix.lane, own)))
        slots = [member.slot for member in mix.members]
        wrong = problem(leaves_of(checked(graph.run(executable, slots, own))), reference)
    if wrong is not None:
        raise GraphError("a replay for any mix answers otherwise than the lane", wrong, EAGERLY)
    return graph


def requests_of(inputs: Sequence[Tensor], counts: list[int]) -> list[Call]:
    """Requests with rows of these inputs, one after the other."""
    columns = [[part.clone() for part in tensor[: sum(counts)].split(counts)] for tensor in inputs]
    return [Call((), tensors) for tensors in zip(*columns, strict=True)]


def version_of(layers: Sequence[Layer]) -> int:
    """Changes when a tenant joins or leaves."""
    return sum([layer.version for layer in layers])
