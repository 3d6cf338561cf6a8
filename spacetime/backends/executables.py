"""What lanes run: a cohort's fused program, or plain modules. Eager torch calls, on whichever thread calls.

Used by the runtime, which hands them to a backend lane by lane. A failure inside a fused batch is pinned on
its request by running the others again without it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spacetime.backends.compiler import compile_program
from spacetime.capture.cohort import Cohort
from spacetime.capture.layer import Layer
from spacetime.errors import CaptureError
from spacetime.kernels import AnyRows, RowMap, SlotKernel
from spacetime.kernels.vector.host import host
from spacetime.kernels.whole.program import WholeProgram
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Outcome

_ROW_MAPS = 512  # mixes of tenants and rows that are remembered


@dataclass(frozen=True, slots=True)
class Call:
    """The payload of a request: the arguments as given, and the tensors in them."""

    args: tuple[Any, ...]
    tensors: tuple[Tensor, ...]

    @staticmethod
    def of(args: tuple[Any, ...]) -> Call:
        return Call(args, tuple([leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]))


def run_module(tenant: str, module: nn.Module, args: tuple[Any, ...]) -> Any:
    """Whoever holds the module may have put it in training mode since, in which a dropout would spoil its results."""
    if module.training and not isinstance(module, fx.GraphModule):  # torch.export's say so whatever they are
        raise CaptureError(
            f"tenant {tenant!r}: the module was put in training mode",
            "a runtime serves inference",
            f"call module.eval(), or remove({tenant!r}) before it is trained",
        )
    return module(*args)


class PlainExecutable:
    """Unmodified modules, one request after another. Serves opaque tenants and policies that do not fuse."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules

    def run(self, lane: Lane, payloads: Sequence[Call]) -> list[Outcome]:
        with torch.no_grad():
            return [
                _attempt(partial(run_module, request.tenant, self._modules[request.tenant], call.args))
                for request, call in zip(lane.requests, payloads, strict=True)
            ]


class CohortExecutable:
    """The fused program of a cohort: rows of all requests of a lane go through it together."""

    def __init__(self, cohort: Cohort, modules: Mapping[str, nn.Module], *, prepack: bool = False) -> None:
        self.cohort = cohort
        self.prepack = prepack
        self._plain = PlainExecutable(modules)
        self._outgrown: dict[int, list[Tensor]] = {}  # by thread that runs plain modules: see join()
        self._program = compile_program(cohort.fused, cohort.layers, prepack=prepack)
        self._row_maps: OrderedDict[tuple[Any, ...], RowMap] = OrderedDict()
        self._whole: WholeProgram | str | None = None
        self._is_dense = tuple([_is_dense(output) for output in cohort.captured.exported.outputs])

    def join(self, name: str, weights: Sequence[Sequence[Tensor]]) -> None:
        """Take a tenant into the cohort while others run.

        A slab that grows moves everybody's parameters. A module that is running would read memory that nobody
        holds any more, so the lanes that run now hold it until they end.
        """
        before = [layer.stack for layer in self.cohort.layers] if self.cohort.members else list[Tensor]()
        self.cohort.join(name, weights)
        self.hold(before)

    def hold(self, replaced: Iterable[Tensor]) -> None:
        """Memory that parameters of its tenants have moved out of: the lanes that run now keep it until they end."""
        for outgrown in list(self._outgrown.values()):
            outgrown.extend(replaced)

    def run(self, lane: Lane, payloads: Sequence[Call]) -> list[Outcome]:
        if not lane.fused:
            return self._run_plain(lane, payloads)
        slots = [self.cohort.members[request.tenant].slot for request in lane.requests]
        with torch.no_grad():
            try:
                return [Outcome(value) for value in self._batch(slots, payloads)]
            except Exception as error:
                if len(payloads) == 1:
                    return [Outcome(error=error)]
            # Not in the handler: their errors would hold this one, which holds everybody's rows.
            return [
                _attempt(lambda slot=slot, call=call: self._batch([slot], [call])[0])  # type: ignore[misc]
                for slot, call in zip(slots, payloads, strict=True)
            ]

    def _run_plain(self, lane: Lane, payloads: Sequence[Call]) -> list[Outcome]:
        thread = threading.get_ident()
        self._outgrown[thread] = []
        try:
            outcomes = self._plain.run(lane, payloads)
        finally:
            del self._outgrown[thread]
        if not self.cohort.reorders:
            return outcomes
        return [outcome if outcome.error else Outcome(self._dense(outcome.value)) for outcome in outcomes]

    def _dense(self, value: Any) -> Any:
        """A plain module's result, as it was before its weights had another order in memory."""
        with torch.no_grad():
            leaves, spec = pytree.tree_flatten(value)
            return pytree.tree_unflatten(self._in_order(leaves), spec)

    @property
    def resident_bytes(self) -> int:
        """Weights of all members, shared content once, and the copies that kernels keep of them."""
        return self.cohort.resident_bytes() + self._program.prepacked_bytes

    @property
    def packed(self) -> tuple[tuple[Layer, int], ...]:
        """The weights, entries of layers, that kernels keep copies of; each is made at its first use."""
        return self._program.prepacked_entries

    @property
    def kernels(self) -> tuple[SlotKernel, ...]:
        """The slot kernels of its program, in order; see kernels/bound for what they tell."""
        return self._program.kernels

    @property
    def whole(self) -> WholeProgram | str:
        """Its program as one native call, for requests of few rows; or why there is none. It must have a member."""
        if self._whole is None and self.is_on_gpu:
            self._whole = "it runs on a GPU, where graphs are that"
        elif self._whole is None:
            like = [node.meta["val"] for node in self.cohort.captured.exported.inputs]
            self._whole = WholeProgram.of(self.cohort.fused, self.cohort.layers, like, host())
        return self._whole

    @property
    def is_on_gpu(self) -> bool:
        """Is its program in the form for GPUs (capture/on_gpu.py)?"""
        return any(step.target == "gpu_owners" for step in self.cohort.fused.steps)

    def warm(self, tensors: Sequence[Tensor], row_counts: Iterable[int]) -> None:
        """Compile what its kernels need for batches of so many rows, before lanes would. Nothing to do on a CPU."""
        if not self.is_on_gpu:
            return
        from spacetime.kernels.bound import warm  # nobody else waits for its import

        for count in row_counts:
            try:
                warm(self._program.run, tensors, [count])
            except torch.OutOfMemoryError:  # nor will such a lane have the memory
                return

    def run_any(self, rows: AnyRows, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """The program on a batch whose owners are in device memory; `MixError` where a step must know them here."""
        return self._program.run(rows, *inputs)

    def results(self, outputs: Sequence[Any], counts: list[int]) -> list[Any]:
        """The program's outputs for requests of so many rows each, in memory of their own."""
        return [self._rebuild(leaves) for leaves in split_rows(self.cohort, outputs, counts)]

    def flat_outputs(self, name: str, tensors: Sequence[Tensor]) -> list[Any]:
        """One tenant's results as a flat list, for the self-check."""
        with torch.no_grad():
            rows = self._row_map((self.cohort.members[name].slot,), (tensors[0].shape[0],))
            return list(self._program.run(rows, *tensors))

    def outputs_beside(
        self, peer: str, its_tensors: Sequence[Tensor], name: str, tensors: Sequence[Tensor]
    ) -> list[Any]:
        """The results of `name` from a batch that has rows of another tenant as well."""
        given = {self.cohort.members[peer].slot: its_tensors, self.cohort.members[name].slot: tensors}
        slots = sorted(given)
        counts = [given[slot][0].shape[0] for slot in slots]
        with torch.no_grad():
            inputs = [torch.cat(column) for column in zip(*(given[slot] for slot in slots), strict=True)]
            outputs = self._program.run(self._merged_row_map(slots, counts), *inputs)
        return split_rows(self.cohort, outputs, counts)[slots.index(self.cohort.members[name].slot)]

    def whole_outputs(self, name: str, tensors: Sequence[Tensor]) -> list[Any] | None:
        """The same from the native call, if there is one."""
        whole = self.whole
        results = None if isinstance(whole, str) else whole.run([self.cohort.members[name].slot], [tensors])
        return None if results is None else list(results[0])

    def _batch(self, slots: Sequence[int], calls: Sequence[Call]) -> list[Any]:
        whole = self.whole
        if not isinstance(whole, str) and whole.takes(max([call.tensors[0].shape[0] for call in calls])):
            at_once = whole.run(slots, [call.tensors for call in calls])
            if at_once is not None:  # else whoever asks for what does not exist is told below
                return [self._rebuild(leaves) for leaves in at_once]
        if len(calls) == 1:
            tensors = calls[0].tensors
            outputs = self._program.run(self._row_map((slots[0],), (tensors[0].shape[0],)), *tensors)
            return [self._rebuild(self._in_order(outputs))]
        order = sorted(range(len(calls)), key=slots.__getitem__)
        counts = [calls[index].tensors[0].shape[0] for index in order]
        inputs = [torch.cat(column) for column in zip(*(calls[index].tensors for index in order), strict=True)]
        outputs = self._program.run(self._merged_row_map([slots[index] for index in order], counts), *inputs)
        results: list[Any] = [None] * len(calls)
        for index, leaves in zip(order, split_rows(self.cohort, outputs, counts), strict=True):
            results[index] = self._rebuild(leaves)
        return results

    def _in_order(self, outputs: Sequence[Any]) -> list[Any]:
        """Dense where the module's own are, whatever order kernels prefer: users call view() on them."""
        pairs = zip(outputs, self._is_dense, strict=True)
        return [output.contiguous() if is_dense else output for output, is_dense in pairs]

    def _rebuild(self, leaves: list[Any]) -> Any:
        """The module's output structure."""
        out_spec = self.cohort.captured.exported.out_spec
        return leaves[0] if out_spec.is_leaf() else pytree.tree_unflatten(leaves, out_spec)

    def _merged_row_map(self, slots: Sequence[int], counts: Sequence[int]) -> RowMap:
        """Several requests of one tenant are one run of rows."""
        merged: dict[int, int] = {}
        for slot, count in zip(slots, counts, strict=True):
            merged[slot] = merged.get(slot, 0) + count
        return self._row_map(tuple(merged), tuple(merged.values()))

    def _row_map(self, slots: tuple[int, ...], rows: tuple[int, ...]) -> RowMap:
        key = (slots, rows)
        row_map = self._row_maps.get(key)
        if row_map is None:
            row_map = self._row_maps[key] = RowMap(slots, rows)
            while len(self._row_maps) > _ROW_MAPS:
                self._row_maps.popitem(last=False)
        return row_map


def split_rows(cohort: Cohort, outputs: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Every request gets memory of its own: a slice would show its neighbours' rows to whoever asks its storage."""
    columns: list[Sequence[Any]] = []
    for output, row_dim in zip(outputs, cohort.fused.output_row_dims, strict=True):
        if row_dim is None:
            columns.append([output] * len(counts))
        else:
            parts: Any = torch.ops.aten.split_with_sizes_copy.default(output, list(counts), row_dim)
            columns.append(parts)
    return [list(leaves) for leaves in zip(*columns, strict=True)]


def _is_dense(output: Any) -> bool:
    """Is it a tensor in the usual order, as the module makes it?"""
    value = output.meta.get("val") if isinstance(output, fx.Node) else None
    return isinstance(value, Tensor) and value.layout is torch.strided and value.is_contiguous()


def _attempt(call: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(call())
    except Exception as error:
        return Outcome(error=error)
