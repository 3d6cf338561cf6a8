"""Fused program -> script, or the reason why not: the program is run once on one row that has no memory.

What shares its (missing) memory with an argument is a view, and costs nothing. Everything else must be a product, a
norm, or an operation of functions.py; the copies that concatenations and outputs ask for are pointwise, too.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from spacetime.capture.families import op_name
from spacetime.capture.fuse import FusedProgram, OperandRef, Ref, RowCount, Step
from spacetime.capture.layer import Layer
from spacetime.kernels.vector.emitter import FLOAT_BYTES
from spacetime.kernels.whole.functions import FUNCTIONS
from spacetime.kernels.whole.grouping import Draft, grouped
from spacetime.kernels.whole.pointwise import pass_of
from spacetime.kernels.whole.script import (
    Along,
    Buffer,
    Lookup,
    Operation,
    Place,
    Pointwise,
    Product,
    Script,
    Stage,
    View,
)

MOST_STEPS = 2_000  # of a program: code grows with it


class NotWhole(Exception):
    """The program cannot be one native call; the message says why."""


def read(program: FusedProgram, layers: Sequence[Layer], like: Sequence[Tensor]) -> Script:
    """The script for inputs like these; `NotWhole` where there is none."""
    if len(program.steps) > MOST_STEPS:
        raise NotWhole(f"{len(program.steps)} steps are too many")
    reader = _Reader(program, layers)
    for name, tensor in zip(program.inputs, like, strict=True):
        reader.add_input(name, tensor)
    for step in program.steps:
        reader.read(step)
    for value, row_dim in zip(program.outputs, program.output_row_dims, strict=True):
        reader.add_output(value, row_dim)
    return reader.script()


@dataclass
class _Reader:
    program: FusedProgram
    layers: Sequence[Layer]
    values: dict[str, Any] = field(default_factory=dict)  # tensors without memory, or lists of them
    buffers: dict[int, Buffer] = field(default_factory=dict)  # by the identity of what would be their memory
    numbers: dict[int, int] = field(default_factory=dict)  # of operands of the fused program, in the script
    operands: dict[int, Tensor] = field(default_factory=dict)
    drafts: list[Draft | Stage] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    held: list[Tensor] = field(
        default_factory=list
    )  # what has an entry in `buffers`: identities are those of the living
    num_scratch: int = 0

    # -- values ---------------------------------------------------------------------------------------

    def add_input(self, name: str, like: Tensor) -> None:
        value = torch.empty((1, *like.shape[1:]), dtype=like.dtype, device="meta")
        num_floats = value.nbytes // FLOAT_BYTES
        self.values[name] = self._hold(value, Buffer(Place.INPUT, len(self.inputs), num_floats))
        self.inputs.append(num_floats)

    def add_output(self, value: Any, row_dim: int | None) -> None:
        if not isinstance(value, Ref) or row_dim != 0:
            raise NotWhole("an output is not one value per row")
        tensor = self.values[value.name]
        shape = tuple(tensor.shape[1:])
        buffer = Buffer(Place.OUTPUT, len(self.outputs), prod(shape))
        self.outputs.append(shape)
        dense = torch.empty(tensor.shape, dtype=torch.float32, device="meta")
        self._copy(tensor, View.of(buffer, 0, tuple(dense.shape), tuple(map(int, dense.stride()))))

    def script(self) -> Script:
        stages, scratch_floats = grouped(self.drafts)
        if any(isinstance(stage, Pointwise) and pass_of(stage) is None for stage in stages):
            raise NotWhole("neighbours in a pointwise operation are not neighbours in memory")
        return Script(tuple(self.inputs), tuple(self.outputs), tuple(self.numbers), stages, scratch_floats)

    def _view(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> View:
        if tensor.dtype != dtype:
            raise NotWhole(f"it computes in {tensor.dtype}")
        if not tensor.numel():
            raise NotWhole("it computes with tensors without entries")
        return View.of(
            self.buffers[_memory(tensor)], int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())
        )

    def _new(self, shape: Sequence[int]) -> Tensor:
        """Memory for a result."""
        tensor = torch.empty(tuple(shape), dtype=torch.float32, device="meta")
        self.num_scratch += 1
        return self._hold(tensor, Buffer(Place.SCRATCH, self.num_scratch, tensor.numel()))

    def _hold(self, tensor: Tensor, buffer: Buffer) -> Tensor:
        self.held.append(tensor)
        self.buffers[_memory(tensor)] = buffer
        return tensor

    def _copy(self, source: Tensor, to: View) -> None:
        self.drafts.append(Draft(Operation("copy", (self._view(source),)), to))

    # -- steps ----------------------------------------------------------------------------------------

    def read(self, step: Step) -> None:
        slot_steps = {
            "linear": self._linear,
            "affine": self._affine,
            "gather": self._weight,
            "layer_norm": self._norm,
            "embedding": self._embedding,
        }
        if not step.is_slot:
            self.values[step.out] = self._call(step.target, step.args, step.kwargs)
        elif step.target == "per_tenant":
            its = step.attributes
            self.values[step.out] = self._call(its["call"], its["args"], its["kwargs"])
        elif step.target in slot_steps:
            self.values[step.out] = slot_steps[step.target](step)
        else:
            raise NotWhole(f"{step.target} is not among its operations")

    def _linear(self, step: Step) -> Tensor:
        weight, bias = step.operands
        assert weight is not None
        number = None if bias is None else self._number(bias)
        return self._product(self._resolve(step.args[0]), self._operand(weight), self._number(weight), number)

    def _product(self, x: Tensor, weight: Tensor, operand: int | None = None, bias: int | None = None) -> Tensor:
        """x @ weight.T; the weight is this operand, or a value."""
        x, positions, position_step = self._vectors(x)
        num_outputs, num_inputs = weight.shape
        y = self._new((*x.shape[:-1], num_outputs))
        place = self._view(weight) if operand is None else operand
        sizes = (positions, position_step, num_inputs, num_outputs, int(weight.stride(0)))
        self.drafts.append(Product(self._view(x), self._view(y), place, bias, *sizes))
        return y

    def _embedding(self, step: Step) -> Tensor:
        [table] = step.operands
        assert table is not None
        return self._look_up(self._operand(table), self._resolve(step.args[0]))

    def _look_up(self, source: Tensor, indices: Tensor) -> Tensor:
        """source[indices], of two dimensions."""
        found = _positions(indices.unsqueeze(-1))
        if found is None or not source.is_contiguous():
            raise NotWhole("a lookup's indices or entries are not neighbours in memory")
        y = self._new((*indices.shape, source.shape[1]))
        views = self._view(source), self._view(indices, torch.int64), self._view(y)
        self.drafts.append(Lookup(*views, source.shape[0], source.shape[1], *found))
        return y

    def _pick(self, x: Tensor, dim: int, indices: Tensor) -> Tensor:
        """index_select, along the first dimension that is larger than 1."""
        dim %= x.ndim
        if prod(x.shape[:dim]) != 1 or indices.ndim != 1:
            raise NotWhole("index_select behind other dimensions is not among its operations")
        y = self._look_up(x.reshape(x.shape[dim], -1), indices)
        return y.view(*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :])

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Two values, of one matrix each."""
        if prod(a.shape[:-2]) != 1 or b.ndim < 2 or prod(b.shape[:-2]) != 1:
            raise NotWhole("a product of several matrices per row is not among its operations")
        transposed = b.reshape(b.shape[-2:]).t()
        if transposed.stride(1) != 1 and transposed.shape[1] > 1:
            transposed = self._dense(transposed)
        return self._product(a, transposed)

    def _affine(self, step: Step) -> Tensor:
        x = self._resolve(step.args[0])
        scale, shift = (
            self._operand(operand).view(-1, *[1] * (x.ndim - 2)) for operand in step.operands if operand is not None
        )
        return self._apply("add", [self._apply("mul", [x, scale]), shift])

    def _weight(self, step: Step) -> Tensor:
        """Shaped as it broadcasts against values of one row."""
        [operand] = step.operands
        assert operand is not None
        return self._operand(operand)

    def _norm(self, step: Step) -> Tensor:
        x, shape = self._resolve(step.args[0]), step.attributes["shape"]
        if len(shape) != 1:
            raise NotWhole("a norm over several dimensions is not among its operations")
        y = self._along("layer_norm", x, step.attributes["eps"])
        for name, operand in zip(("mul", "add"), step.operands, strict=True):
            if operand is not None:
                y = self._apply(name, [y, self._operand(operand)])
        return y

    def _along(self, kind: str, x: Tensor, epsilon: float = 0.0) -> Tensor:
        x, positions, position_step = self._vectors(x)
        y = self._new(x.shape)
        size = x.shape[-1]
        self.drafts.append(Along(kind, self._view(x), self._view(y), positions, position_step, size, epsilon))
        return y

    def _vectors(self, x: Tensor) -> tuple[Tensor, int, int]:
        """x as vectors at equal distances, copied where it is not; how many, and the distance in floats."""
        found = None if x.stride(-1) != 1 and x.shape[-1] > 1 else _positions(x)
        if found is None:
            x = self._dense(x)
            found = _positions(x)
            assert found is not None
        return x, *found

    def _number(self, operand: OperandRef) -> int:
        return self.numbers.setdefault(operand.index, len(self.numbers))

    def _operand(self, operand: OperandRef) -> Tensor:
        """A tenant's own, as a value of each of its rows."""
        stack = self.layers[operand.index].stack
        if (
            stack.dtype not in (torch.float32, torch.int64)
            or stack.device.type != "cpu"
            or not stack[0].is_contiguous()
        ):
            raise NotWhole("its weights are not plain floats on a CPU")
        number = self._number(operand)
        if number not in self.operands:
            tensor = torch.empty(stack.shape[1:], dtype=stack.dtype, device="meta")
            self.operands[number] = self._hold(tensor, Buffer(Place.OPERAND, number, tensor.nbytes // FLOAT_BYTES))
        return self.operands[number]

    def _call(self, target: Any, given: Any, named: Any) -> Any:
        args = [self._resolve(arg) for arg in given]
        kwargs = {key: self._resolve(value) for key, value in named.items()}
        if target is operator.getitem:
            return args[0][args[1]]
        name = op_name(target)
        try:
            result = _TARGETS.get(name, target)(*args, **kwargs)
        except Exception as error:  # it has no form without memory
            raise NotWhole(f"{name} is not among its operations") from error
        known = {_memory(tensor) for tensor in _tensors([*args, *kwargs.values()])}
        if all(_memory(tensor) in known for tensor in _tensors([result])):
            return result
        if not isinstance(result, Tensor):
            raise NotWhole(f"{name} is not among its operations")
        if result.dtype != torch.float32:
            raise NotWhole(f"it computes in {result.dtype}")
        return self._compute(name, args, kwargs, result)

    def _compute(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Tensor:
        if name in ("softmax", "_softmax") and args[1] in (-1, result.ndim - 1):
            return self._along("softmax", args[0])
        if name == "layer_norm" and len(args[1]) == 1 and all(value is None for value in args[2:4]):
            return self._along("layer_norm", args[0], args[4] if len(args) > 4 else 1e-5)
        if name == "index_select":
            return self._pick(*args)
        if name in ("bmm", "matmul", "mm"):
            return self._multiply(*args)
        if name not in (*_FILLS, *_JOINS, *_COPIES):
            return self._pointwise(name, args, kwargs)
        y = self._new(result.shape)
        if name in _FILLS:
            self.drafts.append(Draft(Operation("copy", (_FILLS[name],)), self._view(y)))
        elif name in _JOINS:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            parts = y.unbind(dim) if name == "stack" else y.split([part.shape[dim] for part in args[0]], dim)
            for part, source in zip(parts, args[0], strict=True):
                self._copy(source, self._view(part))
        else:
            self._copy(args[0], self._view(y.view(args[0].shape)))
        return y

    def _pointwise(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
        function = FUNCTIONS.get(name)
        arguments = None if function is None else function.arguments(args, kwargs)
        if function is None or arguments is None:
            raise NotWhole(f"{name} is not among its operations")
        return self._apply(name, arguments)

    def _apply(self, name: str, arguments: Sequence[Tensor | float]) -> Tensor:
        shapes = [value.shape for value in arguments if isinstance(value, Tensor)]
        y = self._new(torch.broadcast_shapes(*shapes))
        sources = tuple(
            [self._view(value.expand(y.shape)) if isinstance(value, Tensor) else float(value) for value in arguments]
        )
        self.drafts.append(Draft(Operation(name, sources), self._view(y)))
        return y

    def _dense(self, x: Tensor) -> Tensor:
        y = self._new(x.shape)
        self._copy(x, self._view(y))
        return y

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values[value.name]
        if isinstance(value, RowCount):
            return value.multiple
        if isinstance(value, OperandRef):
            return self._operand(value)
        if isinstance(value, (list, tuple)):
            return [self._resolve(item) for item in value]
        if isinstance(value, Tensor):
            raise NotWhole("it has constants")
        return value


# Strides between steps may differ from the exported ones, so a view may need a copy.
_TARGETS = {"view": torch.reshape, "_unsafe_view": torch.reshape, "reshape": torch.reshape}
_FILLS = {"zeros": 0.0, "ones": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros_like": 0.0, "ones_like": 1.0}

_JOINS = ("cat", "concat", "stack")
_COPIES = ("view", "reshape", "_unsafe_view", "flatten", "contiguous")


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _positions(x: Tensor) -> tuple[int, int] | None:
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
