"""Calls a whole program: the requests' own inputs are read where they are, every result gets memory of its own."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spacetime.capture.fuse import FusedProgram
from spacetime.capture.layer import Layer
from spacetime.kernels.vector.emitter import FLOAT_BYTES
from spacetime.kernels.vector.host import Host
from spacetime.kernels.vector.library import Kernel
from spacetime.kernels.whole.compiled import LONG_STAGE, compiled
from spacetime.kernels.whole.layout import NotWhole
from spacetime.kernels.whole.reader import read
from spacetime.kernels.whole.script import Script

MOST_VECTORS = 128  # of a request, per product: with more, BLAS has the better products (measured: beyond 128)
_FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")  # new_empty() of it costs half of torch.empty()
_MIXES = 512  # of tenants, whose weights are remembered


class WholeProgram:
    """`layers` hold the operands, by their number in the fused program; their entries are looked up at every call."""

    def __init__(self, script: Script, kernel: Kernel, layers: Sequence[Layer], constants: Sequence[Tensor]) -> None:
        self.script = script
        self._kernel = kernel
        self._layers = [layers[number] for number in script.operands]
        self._constants = list(constants)
        self._slabs = [layer.slab for layer in self._layers]
        self.most_rows = _most_rows(script)
        self._may_fault = script.may_fault
        self._is_long = script.work_per_stage >= LONG_STAGE
        self._mixes: OrderedDict[tuple[int, ...], _Weights] = OrderedDict()
        self._forms: dict[int, _Form] = {}  # by number of rows
        self._backwards = 0  # every other call: the weights that a thread has read last are those it reads first

    @staticmethod
    def of(
        program: FusedProgram, layers: Sequence[Layer], like: Sequence[Tensor], on: Host | None
    ) -> WholeProgram | str:
        """For inputs like these, on this processor; or why there is none. The layers must have content."""
        if on is None:
            return "vector kernels have no form for this processor"
        try:
            script, constants = read(program, layers, like)
        except NotWhole as why:
            return str(why)
        if not _most_rows(script):
            met = f"its weights meet {script.vectors_per_row:.0f} vectors of a row"
            return f"{met}, and BLAS is better with more than {MOST_VECTORS}"
        return WholeProgram(script, compiled(on, script), layers, constants)

    def takes(self, num_rows: int) -> bool:
        """Is it the better way for requests of so many rows?"""
        return num_rows <= self.most_rows

    def run(self, slots: Sequence[int], requests: Sequence[Sequence[Tensor]]) -> list[list[Tensor]] | None:
        """The outputs of each request, whose tenant is in this slot.

        None where one asks for what does not exist, or is not like the example: memory is read by address here.
        """
        script = self.script
        # Names for all memory that the function reads: a tenant that joins meanwhile may move the weights.
        stacks = [slab.stack for slab in self._slabs]
        weights = self._weights(tuple(slots), stacks)
        counts = [tensors[0].shape[0] for tensors in requests]
        scratch = _FLOATS.new_empty(sum(counts) * script.scratch_floats)
        place, row_bytes = scratch.data_ptr(), script.scratch_floats * FLOAT_BYTES
        words: list[int] = []
        held: list[Tensor] = []
        results: list[list[Tensor]] = []
        for count, tensors in zip(counts, requests, strict=True):  # plain loops: a comprehension for two costs more
            form = self._forms.get(count) or self._new_form(count)
            if len(tensors) != len(form.input_bytes):
                return None
            words += (count, place, 0)
            for tensor, num_bytes in zip(tensors, form.input_bytes, strict=True):
                if tensor.nbytes != num_bytes:
                    return None
                if tensor.is_contiguous():
                    words.append(tensor.data_ptr())
                else:
                    held.append(tensor.contiguous())
                    words.append(held[-1].data_ptr())
            outputs: list[Tensor] = []
            for like in form.outputs:
                output = torch.empty_like(like)
                words.append(output.data_ptr())
                outputs.append(output)
            results.append(outputs)
            place += count * row_bytes
        table = array("q", words)
        num_requests, self._backwards = len(requests), 1 - self._backwards
        tables = table.buffer_info()[0], weights.table.data_ptr()
        self._kernel(num_requests, self._num_threads(num_requests), self._backwards, *tables)
        if self._may_fault and any(table[2 :: script.request_words]):
            return None
        return results

    def _new_form(self, count: int) -> _Form:
        input_bytes = tuple([count * floats * FLOAT_BYTES for floats in self.script.inputs])
        outputs = tuple([_FLOATS.new_empty((count, *shape)) for shape in self.script.outputs])
        form = _Form(input_bytes, outputs)
        if count <= self.most_rows:
            self._forms[count] = form
        return form

    def _num_threads(self, num_requests: int) -> int:
        """All of the lane's, or one: where the others sleep, to wake them takes longer than a lone request saves.

        A worker's sleep at once where the main thread has a team of its own, as it has when it has run a lane.
        """
        if num_requests == 1 and not self._is_long and threading.get_ident() != threading.main_thread().ident:
            return 1
        return torch.get_num_threads()

    def _weights(self, slots: tuple[int, ...], stacks: Sequence[Tensor]) -> _Weights:
        versions = [layer.version for layer in self._layers]
        places = [stack.data_ptr() for stack in stacks]
        known = self._mixes.get(slots)
        if known is not None and known.versions == versions and known.places == places:
            return known
        found = self._find(slots, versions, places)
        if all([layer.is_stacked() for layer in self._layers]):  # contents in other slabs move without our knowing
            # Not what it holds: the stacks have names in every call, and memory that weights leave is to go.
            self._mixes[slots] = replace(found, held=[])
            while len(self._mixes) > _MIXES:
                self._mixes.popitem(last=False)
        return found

    def _find(self, slots: tuple[int, ...], versions: list[int], places: list[int]) -> _Weights:
        found = [[layer.of_slot(slot) for layer in self._layers] for slot in slots]
        rows = [[*operands, *self._constants] for operands in found]
        table = torch.tensor([[tensor.data_ptr() for tensor in row] for row in rows], device="cpu")
        return _Weights(versions, places, table, found)


def _most_rows(script: Script) -> int:
    return int(MOST_VECTORS / script.vectors_per_row)


@dataclass(frozen=True, slots=True)
class _Form:
    """Of a request of so many rows. A result made like another one takes half as long as one made by its shape."""

    input_bytes: tuple[int, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Weights:
    """Where the operands of a mix of tenants lie, as long as their layers have not changed since."""

    versions: list[int]
    places: list[int]
    table: Tensor
    held: list[list[Tensor]]  # names for the memory, as long as a call reads it
