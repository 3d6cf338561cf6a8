"""Where the values of a row lie: tensors without memory, whose sizes and steps are true. The reader keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from spacetime.kernels.vector.emitter import FLOAT_BYTES
from spacetime.kernels.whole.constants import is_known
from spacetime.kernels.whole.grouping import Draft
from spacetime.kernels.whole.script import Buffer, Flags, Operation, Place, Stage, Steps, View


class NotWhole(Exception):
    """The program cannot be one native call; the message says why."""


@dataclass
class Layout:
    """Which buffer would be a tensor's memory, and what has been drafted so far."""

    buffers: dict[int, Buffer] = field(default_factory=dict)  # by the identity of what would be their memory
    held: list[Tensor] = field(default_factory=list)  # what has an entry in `buffers`: identities are of the living
    drafts: list[Draft | Stage] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)  # with content
    num_scratch: int = 0

    def view(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> View:
        tensor = self.constant(tensor)
        buffer = self.buffers[memory(tensor)]
        has_floats = buffer.place in (Place.SCRATCH, Place.CONSTANT)
        is_flags = dtype == torch.float32 and tensor.dtype == torch.bool and has_floats
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

    def constant(self, tensor: Tensor) -> Tensor:
        """Without its content, which is kept, if it has any."""
        if not is_known(tensor):
            return tensor
        if tensor.dtype not in (torch.float32, torch.bool, torch.int64) or tensor.device.type != "cpu":
            raise NotWhole(f"it has constants in {tensor.dtype} on {tensor.device.type}")
        once = tensor[tuple([slice(0, 1) if step == 0 else slice(None) for step in tensor.stride()])]
        content = once.to(torch.float32 if tensor.dtype == torch.bool else tensor.dtype).contiguous().clone()
        self.constants.append(content)
        twin = torch.empty(once.shape, dtype=tensor.dtype, device="meta")
        buffer = Buffer(Place.CONSTANT, len(self.constants) - 1, content.nbytes // FLOAT_BYTES)
        return self.hold(twin, buffer).expand(tensor.shape)

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
        y = self.new(x.shape, torch.bool if x.dtype == torch.bool else torch.float32)
        self.copy(x, self.view(y))
        return y

    def converted(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Integers as flags, and flags as floats."""
        if x.dtype == torch.int64 and dtype == torch.bool:
            found = vectors_of(x.unsqueeze(-1))
            if found is None:
                raise NotWhole("integers that are not neighbours in memory are flags")
            y = self.new(x.shape, dtype)
            self.drafts.append(Flags(self.view(x, torch.int64), self.view(y), *found))
            return y
        if x.dtype not in (torch.bool, torch.float32) or dtype != torch.float32:
            raise NotWhole(f"it turns {x.dtype} into {dtype}")
        return self.dense(x)

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
