"""Fused program -> script, or the reason why not: the program is run once on one row that has no memory.

What shares its (missing) memory with an argument is a view, and costs nothing. Everything else must be a product, a
norm, attention, or an operation of functions.py; the copies that concatenations and outputs ask for are pointwise, too.
A bool is a float that is 0 or 1 here.
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
from spacetime.kernels.whole.constants import CONJUNCTIONS, other_than_true, repeats, takes_all_in_order
from spacetime.kernels.whole.functions import FUNCTIONS
from spacetime.kernels.whole.grouping import Draft, grouped
from spacetime.kernels.whole.layout import Layout, NotWhole, memory, tensors_in, vectors_of
from spacetime.kernels.whole.pointwise import pass_of
from spacetime.kernels.whole.script import (
    Along,
    Attention,
    Buffer,
    Heads,
    Lookup,
    Mask,
    Operation,
    Place,
    Pointwise,
    Product,
    Script,
    Steps,
    View,
)

MOST_STEPS = 2_000  # of a program: code grows with it


def read(program: FusedProgram, layers: Sequence[Layer], like: Sequence[Tensor]) -> tuple[Script, list[Tensor]]:
    """The script for inputs like these, and its constants; `NotWhole` where there is none."""
    if len(program.steps) > MOST_STEPS:
        raise NotWhole(f"{len(program.steps)} steps are too many")
    reader = _Reader(program=program, layers=layers)
    for name, tensor in zip(program.inputs, like, strict=True):
        reader.add_input(name, tensor)
    for step in program.steps:
        reader.read(step)
    for value, row_dim in zip(program.outputs, program.output_row_dims, strict=True):
        reader.add_output(value, row_dim)
    return reader.script(), reader.constants


@dataclass(kw_only=True)
class _Reader(Layout):
    program: FusedProgram
    layers: Sequence[Layer]
    values: dict[str, Any] = field(default_factory=dict)  # tensors without memory, or lists of them
    numbers: dict[int, int] = field(default_factory=dict)  # of operands of the fused program, in the script
    operands: dict[int, Tensor] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[tuple[int, ...]] = field(default_factory=list)

    # -- values ---------------------------------------------------------------------------------------

    def add_input(self, name: str, like: Tensor) -> None:
        value = torch.empty((1, *like.shape[1:]), dtype=like.dtype, device="meta")
        num_floats = value.nbytes // FLOAT_BYTES
        self.values[name] = self.hold(value, Buffer(Place.INPUT, len(self.inputs), num_floats))
        self.inputs.append(num_floats)

    def add_output(self, value: Any, row_dim: int | None) -> None:
        if not isinstance(value, Ref) or row_dim != 0:
            raise NotWhole("an output is not one value per row")
        tensor = self.values[value.name]
        if tensor.dtype != torch.float32:
            raise NotWhole(f"an output is in {tensor.dtype}")
        shape = tuple(tensor.shape[1:])
        buffer = Buffer(Place.OUTPUT, len(self.outputs), prod(shape))
        self.outputs.append(shape)
        dense = torch.empty(tensor.shape, dtype=torch.float32, device="meta")
        self.copy(tensor, View.of(buffer, 0, tuple(dense.shape), tuple(map(int, dense.stride()))))

    def script(self) -> Script:
        stages, scratch_floats = grouped(self.drafts)
        if any(isinstance(stage, Pointwise) and pass_of(stage) is None for stage in stages):
            raise NotWhole("neighbours in a pointwise operation are not neighbours in memory")
        names = tuple(self.inputs), tuple(self.outputs), tuple(self.numbers)
        return Script(*names, stages, scratch_floats, len(self.constants))

    # -- steps ----------------------------------------------------------------------------------------

    def read(self, step: Step) -> None:
        slot_steps = {
            "linear": self._linear,
            "affine": self._affine,
            "conv": self._patches,
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

    def _patches(self, step: Step) -> Tensor:
        """A convolution whose windows lie side by side, as a product for each of them."""
        x, its = self._resolve(step.args[0]), step.attributes
        weight, bias, *affine = step.operands
        assert weight is not None
        entry = self.layers[weight.index].stack[0]
        window = list(entry.shape[2:])
        fits = all(size % side == 0 for size, side in zip(x.shape[2:], window, strict=True))
        plain = {
            "name": "conv2d",
            "stride": window,
            "padding": [0, 0],
            "dilation": [1, 1],
            "groups": 1,
            "activation": None,
        }
        if its != plain or any(affine) or not fits or entry.dtype != torch.float32:
            raise NotWhole("a convolution whose windows overlap is not among its operations")
        tiles = x.unflatten(3, (-1, window[1])).unflatten(2, (-1, window[0]))
        is_last = entry.permute(0, 2, 3, 1).is_contiguous()  # the channel, of a weight
        windows = self.dense(tiles.permute(0, 2, 4, 3, 5, 1) if is_last else tiles.permute(0, 2, 4, 1, 3, 5)).flatten(3)
        vectors = torch.empty(entry.shape[0], windows.shape[-1], device="meta")
        number = None if bias is None else self._number(bias)
        return self._product(windows, vectors, self._number(weight), number).permute(0, 3, 1, 2)

    def _product(self, x: Tensor, weight: Tensor, operand: int | None = None, bias: int | None = None) -> Tensor:
        """x @ weight.T; the weight is this operand, or a value."""
        x, positions, position_step = self.vectors(x)
        num_outputs, num_inputs = weight.shape
        y = self.new((*x.shape[:-1], num_outputs))
        place = self.view(weight) if operand is None else operand
        sizes = (positions, position_step, num_inputs, num_outputs, int(weight.stride(0)))
        self.drafts.append(Product(self.view(x), self.view(y), place, bias, *sizes))
        return y

    def _embedding(self, step: Step) -> Tensor:
        [table] = step.operands
        assert table is not None
        return self._look_up(self._operand(table), self._resolve(step.args[0]))

    def _look_up(self, source: Tensor, indices: Tensor) -> Tensor:
        """source[indices], of two dimensions."""
        found = vectors_of(indices.unsqueeze(-1))
        if found is None or not source.is_contiguous():
            raise NotWhole("a lookup's indices or entries are not neighbours in memory")
        y = self.new((*indices.shape, source.shape[1]))
        views = self.view(source), self.view(indices, torch.int64), self.view(y)
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
            transposed = self.dense(transposed)
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
        x, positions, position_step = self.vectors(x)
        y = self.new(x.shape)
        size = x.shape[-1]
        self.drafts.append(Along(kind, self.view(x), self.view(y), positions, position_step, size, epsilon))
        return y

    def _attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """PyTorch's scaled_dot_product_attention, without dropout."""
        lead, num_queries, size = queries.shape[:-2], *queries.shape[-2:]
        if dropout_p or enable_gqa or not keys.shape[:-2] == values.shape[:-2] == lead:
            raise NotWhole("attention whose queries, keys and values are not as many is not among its operations")
        kind, mask, masks = None, None, Steps(0, 0)
        if attn_mask is not None:
            kind = Mask.FLAGS if attn_mask.dtype == torch.bool else Mask.ADDED
            mask, masks = self.heads(attn_mask.expand(*lead, num_queries, keys.shape[-2]))
        (queries, of_queries), (keys, of_keys), (values, of_values) = map(self.heads, (queries, keys, values))
        y = self.new_heads((*lead, num_queries, values.shape[-1]))
        y, of_y = self.heads(y)
        heads = Heads(
            *(prod(lead), num_queries, keys.shape[-2], size, values.shape[-1]),
            *(size**-0.5 if scale is None else scale, kind, is_causal),
            *(of_queries, of_keys, of_values, masks, of_y),
        )
        scores = self.view(self.new((heads.num_heads, heads.num_queries, heads.num_keys)))
        seen = None if mask is None else self.view(mask)
        views = self.view(queries), self.view(keys), self.view(values), seen, self.view(y), scores
        self.drafts.append(Attention(*views, heads))
        return y

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
            self.operands[number] = self.hold(tensor, Buffer(Place.OPERAND, number, tensor.nbytes // FLOAT_BYTES))
        return self.operands[number]

    def _call(self, target: Any, given: Any, named: Any) -> Any:
        args = [self._resolve(arg) for arg in given]
        kwargs = {key: self._resolve(value) for key, value in named.items()}
        if target is operator.getitem:
            return args[0][args[1]]
        name = op_name(target)
        if not any(tensor.device.type == "meta" for tensor in tensors_in([*args, *kwargs.values()])):
            if not (name in _FILLS and kwargs.get("dtype") in (None, torch.float32)):
                return self._evaluate(name, target, args, kwargs)
        elif (simple := self._simplified(name, args)) is not None:
            return simple
        args = self._without_content(args)
        kwargs = {key: self._without_content(value) for key, value in kwargs.items() if key not in _WHERE}
        try:
            result = _TARGETS.get(name, target)(*args, **kwargs)
        except Exception as error:  # it has no form without memory
            raise NotWhole(f"{name} is not among its operations") from error
        known = {memory(tensor) for tensor in tensors_in([*args, *kwargs.values()])}
        if all(memory(tensor) in known for tensor in tensors_in([result])):
            return result
        if not isinstance(result, Tensor):
            raise NotWhole(f"{name} is not among its operations")
        if name == "_to_copy":
            return self.converted(args[0], result.dtype)
        if result.dtype != torch.float32:
            raise NotWhole(f"it computes in {result.dtype}")
        return self._compute(name, args, kwargs, result)

    def _evaluate(self, name: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """What depends on constants alone is one: in a program whose rows do not see each other, whatever the row."""
        if not repeats(target):
            raise NotWhole(f"{name} is not among its operations")
        return target(*args, **kwargs)

    def _simplified(self, name: str, args: list[Any]) -> Tensor | None:
        """Where constants leave a value as it is."""
        if name == "index" and takes_all_in_order(*args[:2]):
            x = args[0] if args[0].is_contiguous() else self.dense(args[0])
            return x.view(torch.broadcast_shapes(*[index.shape for index in args[1]]))
        if name in CONJUNCTIONS and (flags := other_than_true(args)) is not None:
            return flags.expand(torch.broadcast_shapes(*[each.shape for each in args]))
        return None

    def _without_content(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._without_content(item) for item in value]
        return self.constant(value) if isinstance(value, Tensor) else value

    def _compute(self, name: str, args: list[Any], kwargs: dict[str, Any], result: Tensor) -> Tensor:
        if name in ("softmax", "_softmax") and args[1] in (-1, result.ndim - 1):
            return self._along("softmax", args[0])
        if name == "layer_norm" and len(args[1]) == 1 and all(value is None for value in args[2:4]):
            return self._along("layer_norm", args[0], args[4] if len(args) > 4 else 1e-5)
        if name == "scaled_dot_product_attention":
            return self._attend(*args, **kwargs)
        if name == "index_select":
            return self._pick(*args)
        if name in ("bmm", "matmul", "mm"):
            return self._multiply(*args)
        if name not in (*_FILLS, *_JOINS, *_COPIES):
            return self._pointwise(name, args, kwargs)
        y = self.new(result.shape)
        if name in _FILLS:
            self.drafts.append(Draft(Operation("copy", (_FILLS[name],)), self.view(y)))
        elif name in _JOINS:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            parts = y.unbind(dim) if name == "stack" else y.split([part.shape[dim] for part in args[0]], dim)
            for part, source in zip(parts, args[0], strict=True):
                self.copy(source, self.view(part))
        else:
            self.copy(args[0], self.view(y.view(args[0].shape)))
        return y

    def _pointwise(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
        function = FUNCTIONS.get(name)
        arguments = None if function is None else function.arguments(args, kwargs)
        if function is None or arguments is None:
            raise NotWhole(f"{name} is not among its operations")
        return self._apply(name, arguments)

    def _apply(self, name: str, arguments: Sequence[Tensor | float]) -> Tensor:
        shapes = [value.shape for value in arguments if isinstance(value, Tensor)]
        y = self.new(torch.broadcast_shapes(*shapes))
        sources = tuple(
            [self.view(value.expand(y.shape)) if isinstance(value, Tensor) else float(value) for value in arguments]
        )
        self.drafts.append(Draft(Operation(name, sources), self.view(y)))
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
        return value


def _as_it_is(x: Tensor, **_: Any) -> Tensor:
    return x


# Strides between steps may differ from the exported ones, so a view may need a copy; for the same reason nobody needs
# one for its order. Nor for itself: nothing is written to twice.
_TARGETS = {
    "view": torch.reshape,
    "_unsafe_view": torch.reshape,
    "reshape": torch.reshape,
    "clone": _as_it_is,
    "contiguous": _as_it_is,
}
_WHERE = ("device", "layout", "pin_memory")  # on a CPU, and dense; asked for as everywhere in the exported program
_FILLS = {"zeros": 0.0, "ones": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros_like": 0.0, "ones_like": 1.0}

_JOINS = ("cat", "concat", "stack")
_COPIES = ("view", "reshape", "_unsafe_view", "flatten")
