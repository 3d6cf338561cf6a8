"""Operations along axes: sums, means, extremes, running sums, the k best. Used by profiler/onnx/ only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spacetime.profiler.onnx.graph import Node, Numbers
from spacetime.profiler.onnx.registry import op


def _axes(node: Node, x: Tensor, axes: Numbers | None) -> list[int]:
    """An input since opset 13 or 18, an attribute before; none means all, or nothing at all if the node says so."""
    given = list(axes.values) if axes is not None else list(node.attribute("axes") or ())
    if not given and not node.attribute("noop_with_empty_axes", 0):
        return list(range(x.ndim))
    return [axis % x.ndim for axis in given]


# Integers keep their type; torch takes no means, roots and logarithms of them, and wider types for sums.
_OF_ANY_TYPE = ("ReduceMax", "ReduceMin", "ReduceSum")
_BY_FRACTIONS = ("ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp")


def _reduce(name: str, versions: tuple[int, ...], function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    @op(name, *versions, plain=(1,))
    def run(node: Node, x: Tensor, axes: Numbers | None = None) -> Tensor:
        dims = _axes(node, x, axes)
        if not dims:
            return _of_nothing(name, x)
        keep = bool(node.attribute("keepdims", 1))
        if x.is_floating_point() or name in _OF_ANY_TYPE:
            return function(x, dims, keep)
        return function(x.double() if name in _BY_FRACTIONS else x, dims, keep).to(x.dtype)


def _of_nothing(name: str, x: Tensor) -> Tensor:
    """A reduction over no axis still does what comes before and after the sum."""
    if name in ("ReduceL1", "ReduceL2"):
        return x.abs()
    if name == "ReduceSumSquare":
        return x.square()
    return x.log() if name == "ReduceLogSum" else x


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


for _name, _versions, _function in (
    ("ReduceMean", (13, 18), lambda x, dims, keep: x.mean(dims, keepdim=keep)),
    ("ReduceSum", (13,), lambda x, dims, keep: x.sum(dims, keepdim=keep, dtype=x.dtype)),
    ("ReduceMax", (13, 18, 20), lambda x, dims, keep: x.amax(dims, keepdim=keep)),
    ("ReduceMin", (13, 18, 20), lambda x, dims, keep: x.amin(dims, keepdim=keep)),
    ("ReduceProd", (13, 18), _prod),
    ("ReduceL1", (13, 18), lambda x, dims, keep: x.abs().sum(dims, keepdim=keep)),
    ("ReduceL2", (13, 18), lambda x, dims, keep: torch.linalg.vector_norm(x, 2, dims, keepdim=keep)),
    ("ReduceLogSum", (13, 18, 28), lambda x, dims, keep: x.sum(dims, keepdim=keep).log()),
    ("ReduceLogSumExp", (13, 18, 28), lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep)),
    ("ReduceSumSquare", (13, 18), lambda x, dims, keep: x.square().sum(dims, keepdim=keep)),
):
    _reduce(_name, _versions, _function)


def _extreme(x: Tensor, node: Node, find: Callable[..., Tensor]) -> Any:
    axis, keep = node.attribute("axis", 0), bool(node.attribute("keepdims", 1))
    if not node.attribute("select_last_index", 0):
        return find(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)


@op("ArgMax", 13)
def _argmax(node: Node, x: Tensor) -> Any:
    return _extreme(x, node, torch.argmax)


@op("ArgMin", 13)
def _argmin(node: Node, x: Tensor) -> Any:
    return _extreme(x, node, torch.argmin)


@op("CumSum", 11, 14, plain=(1,))
def _cumsum(node: Node, x: Tensor, axis: Numbers) -> Tensor:
    return _running(node, x, axis.scalar(), torch.cumsum, torch.zeros_like)


@op("CumProd", 26, plain=(1,))
def _cumprod(node: Node, x: Tensor, axis: Numbers) -> Tensor:
    return _running(node, x, axis.scalar(), torch.cumprod, torch.ones_like)


def _running(node: Node, x: Tensor, dim: int, run: Callable[..., Tensor], start: Callable[..., Tensor]) -> Tensor:
    backwards = node.attribute("reverse", 0)
    x = x.flip(dim) if backwards else x
    total = run(x, dim, dtype=x.dtype)
    if node.attribute("exclusive", 0):
        total = torch.cat([start(x.narrow(dim, 0, 1)), total.narrow(dim, 0, x.shape[dim] - 1)], dim)
    return total.flip(dim) if backwards else total


@op("TopK", 11, 24, plain=(1,))
def _topk(node: Node, x: Tensor, k: Numbers) -> Any:
    """Of equal entries torch may take any, ONNX the first: the values are the same."""
    values, indices = torch.topk(
        x, k.scalar(), node.attribute("axis", -1), bool(node.attribute("largest", 1)), bool(node.attribute("sorted", 1))
    )
    return values, indices
