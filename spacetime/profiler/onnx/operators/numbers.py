"""The same operations on numbers: shape arithmetic in Python, some of it symbolic. Used by profiler/onnx/ only.

Every function answers None for what has no form as a scalar or a list: the operation then runs on tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spacetime.profiler.onnx.graph import Node, Numbers, Unsupported
from spacetime.profiler.onnx.operators.indexing import backward
from spacetime.profiler.onnx.operators.shapes import split_sizes, torch_dtype
from spacetime.profiler.onnx.registry import on_numbers

Answer = Numbers | None


def _broadcast(parts: Sequence[Numbers]) -> list[tuple[Any, ...]] | None:
    size = max(len(part.values) for part in parts)
    if any(len(part.values) not in (1, size) for part in parts):
        return None
    return [part.values if len(part.values) == size else part.values * size for part in parts]


def _elementwise(function: Callable[..., Any], dtype: torch.dtype | None = None) -> Callable[..., Answer]:
    def run(node: Node, *parts: Numbers) -> Answer:
        columns = _broadcast(parts)
        if columns is None:
            return None
        values = tuple(function(*entries) for entries in zip(*columns, strict=True))
        return Numbers(values, dtype or parts[0].dtype, all(part.is_scalar for part in parts))

    return run


def _divide(x: Any, y: Any) -> Any:
    if isinstance(x, (float, torch.SymFloat)) or isinstance(y, (float, torch.SymFloat)):
        return x / y
    return x // y if x >= 0 and y > 0 else math.trunc(x / y)


_ARITHMETIC: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("Add", operator.add),
    ("Sub", operator.sub),
    ("Mul", operator.mul),
    ("Div", _divide),
    ("Pow", operator.pow),
    ("Neg", operator.neg),
    ("Abs", abs),
    ("Max", lambda *values: max(values)),
    ("Min", lambda *values: min(values)),
)
_COMPARISONS: tuple[tuple[str, Callable[..., bool]], ...] = (
    ("Equal", lambda x, y: bool(x == y)),
    ("Greater", lambda x, y: bool(x > y)),
    ("Less", lambda x, y: bool(x < y)),
    ("GreaterOrEqual", lambda x, y: bool(x >= y)),
    ("LessOrEqual", lambda x, y: bool(x <= y)),
    ("And", lambda x, y: bool(x and y)),
    ("Or", lambda x, y: bool(x or y)),
    ("Not", lambda x: not x),
)
for _name, _function in _ARITHMETIC:
    on_numbers(_name)(_elementwise(_function))
for _name, _function in _COMPARISONS:
    on_numbers(_name)(_elementwise(_function, torch.bool))


@on_numbers("Mod")
def _mod(node: Node, x: Numbers, y: Numbers) -> Answer:
    return None if node.attribute("fmod", 0) else _elementwise(operator.mod)(node, x, y)


@on_numbers("Sqrt")
def _sqrt(node: Node, x: Numbers) -> Answer:
    return _elementwise(torch.sym_sqrt)(node, x)


@on_numbers("Where")
def _where(node: Node, condition: Numbers, x: Numbers, y: Numbers) -> Answer:
    return _elementwise(lambda each, one, other: one if each else other, x.dtype)(node, condition, x, y)


@on_numbers("Cast")
def _cast(node: Node, x: Numbers) -> Answer:
    return _converted(x, torch_dtype(node.attributes["to"]))


@on_numbers("CastLike")
def _cast_like(node: Node, x: Numbers, target: Numbers) -> Answer:
    return _converted(x, target.dtype)


def _converted(x: Numbers, dtype: torch.dtype) -> Numbers:
    if x.are_known:
        return Numbers(tuple(x.tensor().to(dtype).reshape(-1).tolist()), dtype, x.is_scalar)
    if dtype.is_floating_point:
        return Numbers(tuple(torch.sym_float(value) for value in x.values), dtype, x.is_scalar)
    if dtype == torch.bool:
        return Numbers(tuple(bool(value != 0) for value in x.values), dtype, x.is_scalar)
    return Numbers(tuple(torch.sym_int(value) for value in x.values), dtype, x.is_scalar)


@on_numbers("Identity")
def _identity(node: Node, x: Numbers) -> Answer:
    return x


@on_numbers("Shape")
def _shape(node: Node, x: Numbers) -> Answer:
    sizes: tuple[int, ...] = () if x.is_scalar else (len(x.values),)
    return Numbers(sizes[slice(node.attribute("start", 0), node.attribute("end"))])


@on_numbers("Size")
def _size(node: Node, x: Numbers) -> Answer:
    return Numbers((len(x.values),), is_scalar=True)


@on_numbers("Concat")
def _concat(node: Node, *parts: Numbers) -> Answer:
    return Numbers(tuple(value for part in parts for value in part.values), parts[0].dtype)


@on_numbers("Gather")
def _gather(node: Node, x: Numbers, indices: Numbers) -> Answer:
    if not indices.are_known:
        return None
    return Numbers(tuple(x.values[index] for index in indices.values), x.dtype, indices.is_scalar)


@on_numbers("Slice")
def _slice(
    node: Node, x: Numbers, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Answer:
    start, end = starts.scalar(), ends.scalar()
    step = 1 if steps is None else steps.scalar()
    if not isinstance(start, int) or not isinstance(end, int):
        raise Unsupported("bounds that depend on the number of rows")
    picked = slice(start, end, step) if step > 0 else backward(start, end, len(x.values), step)
    return Numbers(x.values[picked], x.dtype)


@on_numbers("Squeeze")
def _squeeze(node: Node, x: Numbers, axes: Numbers | None = None) -> Answer:
    is_scalar = len(x.values) == 1 and (axes is None or len(axes.values) == 1)
    return Numbers(x.values, x.dtype, x.is_scalar or is_scalar)


@on_numbers("Unsqueeze")
def _unsqueeze(node: Node, x: Numbers, axes: Numbers) -> Answer:
    return Numbers(x.values, x.dtype) if x.is_scalar and len(axes.values) == 1 else None


@on_numbers("Reshape")
def _reshape(node: Node, x: Numbers, shape: Numbers) -> Answer:
    if len(shape.values) == 0:
        return Numbers((x.scalar(),), x.dtype, is_scalar=True)
    return Numbers(x.values, x.dtype) if len(shape.values) == 1 else None


@on_numbers("Split")
def _split(node: Node, x: Numbers, sizes: Numbers | None = None) -> Any:
    parts, start = [], 0
    for size in split_sizes(node, len(x.values), sizes):
        parts.append(Numbers(x.values[start : start + size], x.dtype))
        start += size
    return parts


@on_numbers("ReduceProd")
def _product(node: Node, x: Numbers, axes: Numbers | None = None) -> Answer:
    return Numbers((math.prod(x.values),), x.dtype, is_scalar=not node.attribute("keepdims", 1))


@on_numbers("ReduceSum")
def _sum(node: Node, x: Numbers, axes: Numbers | None = None) -> Answer:
    return Numbers((sum(x.values),), x.dtype, is_scalar=not node.attribute("keepdims", 1))


@on_numbers("Expand")
def _expand(node: Node, x: Numbers, shape: Numbers) -> Answer:
    if len(shape.values) != 1 or not isinstance(shape.values[0], int) or len(x.values) not in (1, shape.values[0]):
        return None
    return Numbers(x.values * (shape.values[0] // len(x.values)), x.dtype)
