"""What a merged lane runs: requests of tenants of several cohorts, common launches where the merged program has them.

Plain torch: the reference for devices. Members stay apart in everything but launches. When the batch fails, every
member runs by itself, where a failure is pinned on its request: the others get their results. `fault` tells of a
failure that did not come back so; then it is the merged program that is broken, and its owner should give it up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable, split_rows
from spacetime.backends.merged_code import MergedCode
from spacetime.backends.merged_schedule import as_launched, merged_schedule
from spacetime.capture.cohort import Cohort
from spacetime.capture.merge import Schedule
from spacetime.capture.selfcheck import problem
from spacetime.errors import RejectedError, SpacetimeError
from spacetime.kernels import AnyRows, MixError, RowMap, SlotKernel
from spacetime.kernels.rowmap import num_words
from spacetime.kernels.together import Spans
from spacetime.kernels.together_table import TogetherKernel
from spacetime.merged import MergedProgram
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Outcome

_SPANS = 256  # mixes of tenants and rows that are remembered


@dataclass(frozen=True, slots=True)
class Taken:
    """The requests of one member, in the order of their slots."""

    indices: tuple[int, ...]  # in the lane
    slots: tuple[int, ...]
    counts: tuple[int, ...]


Watch = Callable[["MergedExecutable", Lane], None]


class MergedExecutable:
    """`members` in the order of the merged program's. They stay what they are, and may run by themselves meanwhile."""

    def __init__(self, merged: MergedProgram, members: Sequence[CohortExecutable], *, prepack: bool = False) -> None:
        self.merged = merged
        self.members = tuple(members)
        self.fault = ""
        self.watch: Watch = _unwatched  # told of every lane that has run, eagerly or as a graph
        self._prepack = prepack
        cohorts = [member.cohort for member in members]
        self._code = MergedCode(merged_schedule(merged, cohorts), cohorts, prepack=prepack)
        self._code.warm()
        self._spans: OrderedDict[tuple[Any, ...], Spans] = OrderedDict()

    @property
    def schedule(self) -> Schedule:
        """What is launched together, what is not and why."""
        return self._code.schedule

    @property
    def launched(self) -> MergedProgram:
        """The merged program with only those steps in common that this device launches together."""
        return as_launched(self.merged, [member.cohort for member in self.members])

    @property
    def apart(self) -> tuple[str, ...]:
        """Calls that the kernel of a common launch has left to themselves in the last lane, and why."""
        named = [(self.members[call.member].cohort, call, reason) for call, reason in self._code.apart]
        return tuple([f"{cohort.program.signature}.{call.step.node}: {reason}" for cohort, call, reason in named])

    def joined(self) -> None:
        """A tenant has joined a member: compare its weights with the others' now, not in its first lane."""
        self._code.warm()

    @property
    def name(self) -> str:
        return " + ".join(member.cohort.program.signature for member in self.members)

    def active(self, lane: Lane) -> tuple[int, ...]:
        """Members that have rows in a lane, in order."""
        found = {self._member_of(request.tenant) for request in lane.requests}
        return tuple([member for member in range(len(self.members)) if member in found])

    def without(self, member: int) -> MergedExecutable:
        """The same launches for the other members."""
        kept = [index for index in range(len(self.members)) if index != member]
        members = [self.members[index] for index in kept]
        return MergedExecutable(self.merged.restrict(kept), members, prepack=self._prepack)

    def run(self, lane: Lane, payloads: Sequence[Call]) -> list[Outcome]:
        outcomes = self.outcomes(lane, payloads)
        self.watch(self, lane)
        return outcomes

    def outcomes(self, lane: Lane, payloads: Sequence[Call]) -> list[Outcome]:
        """What `run` answers; nobody is told."""
        outcomes: list[Outcome | None] = [None] * len(payloads)
        indices: list[list[int]] = [[] for _ in self.members]
        for index, request in enumerate(lane.requests):
            member = self._member_of(request.tenant)
            if member is None:
                outcomes[index] = Outcome(error=_gone(request.tenant))
            else:
                indices[member].append(index)
        if lane.fused and sum(map(bool, indices)) > 1:
            results, error = self._attempt(lane, payloads, indices)
        else:
            results, error = self._apart(lane, payloads, indices), None
        for index, outcome in results.items():
            outcomes[index] = outcome
        ended = [outcome or Outcome(error=_gone(lane.requests[i].tenant)) for i, outcome in enumerate(outcomes)]
        if error is not None and all(results[index].error is None for index in results):
            self.fault = f"{type(error).__name__}: {error}"
        return ended

    def check(self, calls: Mapping[str, Call]) -> dict[str, str]:
        """Merged results beside those of each cohort by itself, of all these tenants at once: who deviates, and how."""
        found, alone = {}, {}
        by_member: list[list[str]] = [[] for _ in self.members]
        for name, call in calls.items():
            member = self._member_of(name)
            if member is None:
                found[name] = str(_gone(name))
                continue
            by_member[member].append(name)
            with self._on_its_device():  # a thread that the runtime has made is on the first one
                alone[name] = self.members[member].flat_outputs(name, call.tensors)
        names = list(alone)
        indices = [[names.index(name) for name in own] for own in by_member]
        try:
            with self._on_its_device():
                merged = self._batch([calls[name] for name in names], names, indices)
        except Exception as error:
            return found | dict.fromkeys(names, f"{type(error).__name__}: {error}")
        for index, name in enumerate(names):
            trouble = problem(pytree.tree_leaves(merged[index]), alone[name])
            if trouble is not None:
                found[name] = trouble
        return found

    def _on_its_device(self) -> AbstractContextManager[Any]:
        devices = {layer.stack.device for member in self.members for layer in member.cohort.layers}
        found = next((device for device in devices if device.type == "cuda"), None)
        return nullcontext() if found is None else torch.cuda.device(found)

    def warm(self, calls: Mapping[str, Call], row_counts: Iterable[int]) -> None:
        """Compile kernels for lanes of so many rows of every member, before lanes would. Nothing to do on a CPU.

        All rows are idle, so it is quick. `calls`: of one tenant of each member, or more.
        """
        if not any(member.is_on_gpu for member in self.members):
            return
        by_member = {self._member_of(name): call.tensors for name, call in calls.items()}
        device = next(iter(calls.values())).tensors[0].device
        for count in row_counts:
            words = [torch.zeros(num_words(count), dtype=torch.int32, device=device) for _ in self.members]
            spans = Spans(tuple([AnyRows(count, own) for own in words]))
            inputs = [
                [tensor[:1].expand(count, *tensor.shape[1:]).contiguous() for tensor in by_member[member]]
                for member in range(len(self.members))
            ]
            try:
                with self._on_its_device(), torch.no_grad():
                    self._code.run(spans, inputs)
            except (torch.OutOfMemoryError, MixError):  # nor will lanes have the memory; or kernels are plain torch
                return

    # -- for graphs of any mix --------------------------------------------------------------------------

    def taken(self, lane: Lane, calls: Sequence[Call]) -> tuple[Taken, ...]:
        """A lane's requests by member. KeyError when a tenant is not there (any more)."""
        names = [request.tenant for request in lane.requests]
        indices: list[list[int]] = [[] for _ in self.members]
        for index, name in enumerate(names):
            member = self._member_of(name)
            if member is None:
                raise KeyError(name)
            indices[member].append(index)
        return tuple([self._take(member, calls, names, own) for member, own in enumerate(indices)])

    def run_any(self, spans: Spans, inputs: Sequence[Sequence[Tensor]]) -> list[tuple[Any, ...]]:
        """The merged program on batches whose owners are in device memory; outputs by member.

        `MixError` where a step must know them here.
        """
        return self._code.run(spans, inputs)

    def kernels_of(self, member: int) -> tuple[SlotKernel, ...]:
        """Slot kernels that run for this member alone; the first makes the owners of its rows."""
        return self._code.kernels_of(member)

    @property
    def common_kernels(self) -> tuple[TogetherKernel, ...]:
        return self._code.commons

    # -- the merged way -------------------------------------------------------------------------------

    def _attempt(
        self, lane: Lane, payloads: Sequence[Call], indices: list[list[int]]
    ) -> tuple[dict[int, Outcome], Exception | None]:
        names = [request.tenant for request in lane.requests]
        try:
            return {index: Outcome(value) for index, value in self._batch(payloads, names, indices).items()}, None
        except Exception as error:
            return self._apart(lane, payloads, indices), error

    def _batch(self, calls: Sequence[Call], names: Sequence[str], indices: list[list[int]]) -> dict[int, Any]:
        taken = [self._take(member, calls, names, own) for member, own in enumerate(indices)]
        spans = self._spans_of(taken)
        inputs = [
            [torch.cat(column) for column in zip(*(calls[i].tensors for i in own.indices), strict=True)]
            if len(own.indices) > 1
            else [tensor for i in own.indices for tensor in calls[i].tensors]
            for own in taken
        ]
        results: dict[int, Any] = {}
        with torch.no_grad():
            outputs = self._code.run(spans, inputs)
            for member, own in enumerate(taken):
                cohort = self.members[member].cohort
                # Who has no rows has no outputs either.
                requests = split_rows(cohort, outputs[member], own.counts) if own.indices else []
                for index, leaves in zip(own.indices, requests, strict=True):
                    results[index] = _rebuilt(cohort, leaves)
        return results

    def _take(self, member: int, calls: Sequence[Call], names: Sequence[str], indices: list[int]) -> Taken:
        known = self.members[member].cohort.members
        found = sorted((known[names[index]].slot, index) for index in indices)
        order = tuple([index for _, index in found])
        return Taken(order, tuple([slot for slot, _ in found]), tuple([calls[i].tensors[0].shape[0] for i in order]))

    def _spans_of(self, taken: Sequence[Taken]) -> Spans:
        key = tuple([(own.slots, own.counts) for own in taken])
        spans = self._spans.get(key)
        if spans is None:
            spans = self._spans[key] = Spans(tuple([_row_map(own) for own in taken]))
            while len(self._spans) > _SPANS:
                self._spans.popitem(last=False)
        return spans

    # -- apart ----------------------------------------------------------------------------------------

    def _apart(self, lane: Lane, payloads: Sequence[Call], indices: list[list[int]]) -> dict[int, Outcome]:
        """Every member as if it had a lane of its own."""
        results: dict[int, Outcome] = {}
        for member, own in zip(self.members, indices, strict=True):
            if not own:
                continue
            part = replace(lane, requests=tuple([lane.requests[index] for index in own]))
            try:
                outcomes = member.run(part, [payloads[index] for index in own])
            except Exception as error:  # a broken member breaks its own requests
                outcomes = [Outcome(error=error)] * len(own)
            results.update(zip(own, outcomes, strict=True))
        return results

    def _member_of(self, tenant: str) -> int | None:
        for index, member in enumerate(self.members):
            if tenant in member.cohort.members:
                return index
        return None


def _unwatched(executable: MergedExecutable, lane: Lane) -> None:
    pass


def _gone(tenant: str) -> SpacetimeError:
    return RejectedError(f"tenant {tenant!r} was removed", "its lane had been planned", "add the tenant again")


def _row_map(taken: Taken) -> RowMap | None:
    """Several requests of one tenant are one run of rows."""
    rows: dict[int, int] = {}
    for slot, count in zip(taken.slots, taken.counts, strict=True):
        rows[slot] = rows.get(slot, 0) + count
    return RowMap(tuple(rows), tuple(rows.values())) if rows else None


def _rebuilt(cohort: Cohort, leaves: list[Any]) -> Any:
    """The module's output structure."""
    out_spec = cohort.captured.exported.out_spec
    return leaves[0] if out_spec.is_leaf() else pytree.tree_unflatten(leaves, out_spec)
