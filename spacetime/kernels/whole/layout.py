"""Where the values of a row lie: tensors without memory, whose sizes and steps are true. The reader keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from spacetime.kernels.whole.grouping import Draft
from spacetime.kernels.whole.script import Buffer, Operation, Place, Stage, Steps, View


class NotWhole(Exception):
    """The program cannot be one native call; the message says why."""


@dataclass
class Layout:
    """Which buffer would be a tensor's memory, and what has been drafted so far."""

    buffers: dict[int, Buffer] = field(default_factory=dict)  # by the identity of what would be their memory
    held: list[Tensor] = field(default_factory=list)  # what has an entry in `buffers`: identities are of the living
    drafts: list[Draft | Stage] = field(default_factory=list)
    num_scratch: int = 0

    def view(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> View:
        buffer = self.buffers[memory(tensor)]
        is_flags = dtype == torch.float32 and tensor.dtype == torch.bool and buffer.place is Place.SCRATCH
        if tensor.dtype != dtype and not is_flags:
            raise NotWhole(f"it computes in {tensor.dtype}")
        if not tensor.numel():
            raise NotWhole("it computes with tensors without entries")
        return View.of(buffer, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))

    def new(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for a result."""
        tensor = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self.num_scratch += 1
        return self.hold(tensor, Buffer(Place.SCRATCH, self.num_scratch, tensor.numel()))

    def hold(self, tensor: Tensor, buffer: Buffer) -> Tensor:
        self.held.append(tensor)
        self.buffers[memory(tensor)] = buffer
        return tensor

    def vectors(self, x: Tensor) -> tuple[Tensor, int, int]:
        """x as vectors at equal distances, copied where it is not; how many, and the distance in floats."""
        found = None if x.stride(-1) != 1 and x.shape[-1] > 1 else vectors_of(x)
        if found is None:
            x = self.dense(x)
            found = vectors_of(x)
            assert found is not None
        return x, *found

    def heads(self, x: Tensor) -> tuple[Tensor, Steps]:
        """x [.., vectors, size] as matrices at equal distances, copied where it is not."""
        found = None if x.stride(-1) != 1 and x.shape[-1] > 1 else vectors_of(x.select(-2, 0))
        if found is None:
            x = self.dense(x)
            found = vectors_of(x.select(-2, 0))
            assert found is not None
        return x, Steps(found[1], x.stride(-2))

    def new_heads(self, shape: Sequence[int]) -> Tensor:
        """As others want to read them: the heads of a vector side by side."""
        *outer, heads, vectors, size = shape
        if prod(outer) != 1:
            return self.new(shape)
        return self.new((*outer, vectors, heads, size)).transpose(-2, -3)

    def dense(self, x: Tensor) -> Tensor:
        y = self.new(x.shape)
        self.copy(x, self.view(y))
        return y

    def copy(self, source: Tensor, to: View) -> None:
        self.drafts.append(Draft(Operation("copy", (self.view(source),)), to))


def memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


def vectors_of(x: Tensor) -> tuple[int, int] | None:
    """How many vectors x holds, and the step from one to the next; None where there is no such step."""
    sizes = [(size, step) for size, step in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size != 1]
    if not sizes:
        return 1, 0
    total, step = sizes[-1]
    for size, outer in reversed(sizes[:-1]):
        if outer != total * step:
            return None
        total *= size
    return total, step
