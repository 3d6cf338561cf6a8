"""Operations that pick entries or put them: slices, lookups, gathers, scatters. Used by profiler/onnx/ only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Numbers, Unsupported
from spacetime.profiler.onnx.registry import INTERNAL, op

_ENDS = (2**31 - 1, 2**63 - 1)  # "to the end", in either direction


@op("Slice", 13, plain=(1, 2, 3, 4))
def _slice(
    node: Node, x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Tensor:
    dims = range(len(starts.values)) if axes is None else axes.values
    strides = [1] * len(starts.values) if steps is None else steps.values
    for start, end, dim, step in zip(starts.values, ends.values, dims, strides, strict=True):
        x = _slice_one(x, start, end, dim % x.ndim, step)
    return x


def _slice_one(x: Tensor, start: Any, end: Any, dim: int, step: int) -> Tensor:
    if step < 0:
        size = x.shape[dim]
        if not isinstance(size, int):
            raise Unsupported("goes backwards through the rows")
        picked = list(range(size)[backward(start, end, size, step)])
        return x.index_select(dim, torch.tensor(picked, dtype=torch.int64, device=x.device))
    to_the_end = isinstance(end, int) and end >= _ENDS[0]
    if to_the_end and isinstance(start, int) and start == 0 and step == 1:
        return x
    return x[(slice(None),) * dim + (slice(start, None if to_the_end else end, step),)]


def backward(start: int, end: int, size: int, step: int) -> slice:
    """A Python slice with the bounds of ONNX: an end before the first entry includes it, "to the end" as well."""
    first = max(min(start + size if start < 0 else start, size - 1), 0)
    last = end + size if end < 0 else end
    return slice(first, None, step) if last < 0 or end in _ENDS else slice(first, last, step)


@op("Gather", 13, either=(1,))
def _gather(node: Node, x: Tensor, indices: Tensor | Numbers) -> Tensor:
    """A lookup in a table does not wrap negative indices, as nn.Embedding does not."""
    axis = node.attribute("axis", 0) % x.ndim
    if isinstance(indices, Numbers):
        if indices.are_known:
            return _take(x, axis, indices)
        indices = indices.tensor(x.device)
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return functional.embedding(indices, x)
    return x[(slice(None),) * axis + (indices,)]


def _take(x: Tensor, axis: int, indices: Numbers) -> Tensor:
    """The entry, the slice or the entries that known indices name."""
    if indices.is_scalar:
        return x.select(axis, indices.scalar())
    size = x.shape[axis]
    picked = [index + size if index < 0 else index for index in indices.values]
    if picked and picked == list(range(picked[0], picked[0] + len(picked))):
        return x[(slice(None),) * axis + (slice(picked[0], picked[0] + len(picked)),)]
    return x.index_select(axis, torch.tensor(picked, dtype=torch.int64, device=x.device))


@op("GatherElements", 13)
def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.attribute("axis", 0) % x.ndim
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def _wrapped(indices: Tensor, size: Any) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


@op("GatherND", 13)
def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    batch_dims = node.attribute("batch_dims", 0)
    if batch_dims == 0:
        return x[tuple(indices.unbind(-1))]
    wanted = indices.shape[batch_dims:-1]
    end = batch_dims + indices.shape[-1]
    flat = _flat(indices, x.shape[batch_dims:end]).reshape(*indices.shape[:batch_dims], math.prod(wanted))
    rest = x.shape[end:]
    x = x.flatten(batch_dims, end - 1)
    picked = x.gather(batch_dims, flat[(...,) + (None,) * len(rest)].expand(*flat.shape, *rest))
    return picked.reshape(*indices.shape[:-1], *rest)


def _flat(indices: Tensor, sizes: Sequence[Any]) -> Tensor:
    """One index, into the dimensions as one, in place of one for each of them."""
    columns = [_wrapped(column, size) for column, size in zip(indices.unbind(-1), sizes, strict=True)]
    flat = columns[0]
    for column, size in zip(columns[1:], sizes[1:], strict=True):
        flat = flat * size + column
    return flat


@op("Index", domain=INTERNAL)
def _index(node: Node, x: Tensor, *indices: Tensor) -> Tensor:
    """x[i, j]: GatherND with the columns of its indices apart, or Gather with `merged` dimensions."""
    picked = x[indices]
    if not node.attribute("merged", False):
        return picked
    rest = x.ndim - len(indices)
    return picked.unsqueeze(-1) if rest == 0 else picked.flatten(picked.ndim - rest)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _reduction(node: Node) -> str | None:
    name = node.attribute("reduction", "none")
    if name != "none" and name not in _REDUCTIONS:
        raise Unsupported(f"reduction={name!r} is not implemented")
    return _REDUCTIONS.get(name)


@op("ScatterElements", 13, 16, 18)
def _scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = node.attribute("axis", 0) % x.ndim
    indices, reduction = _wrapped(indices, x.shape[axis]), _reduction(node)
    if reduction is None:
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, reduction)


@op("ScatterND", 13, 16, 18)
def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    reduction = _reduction(node)
    if reduction in (None, "sum"):
        return x.index_put(tuple(indices.unbind(-1)), updates, accumulate=reduction is not None)
    count = indices.shape[-1]
    rest = x.shape[count:]
    flat = _flat(indices, x.shape[:count]).flatten()
    flat = flat[(...,) + (None,) * len(rest)].expand(*flat.shape, *rest)
    return x.flatten(0, count - 1).scatter_reduce(0, flat, updates.reshape(flat.shape), reduction).reshape(x.shape)


@op("OneHot", 11, 28, plain=(1,))
def _one_hot(node: Node, indices: Tensor, depth: Numbers, values: Tensor) -> Tensor:
    axis = node.attribute("axis", -1) % (indices.ndim + 1)
    count = int(depth.scalar())
    classes = torch.arange(count, device=indices.device).reshape(_along(axis, indices.ndim + 1, count))
    hot = _wrapped(indices, count).unsqueeze(axis) == classes
    return torch.where(hot, values[1], values[0])


def _along(axis: int, rank: int, size: int) -> Sequence[int]:
    return [size if dim == axis else 1 for dim in range(rank)]
