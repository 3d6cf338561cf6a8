"""Operations that look at shapes, change them, or make new tensors. Used by profiler/onnx/ only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Numbers, Unsupported, Value
from spacetime.profiler.onnx.registry import op

VIEWS = (13, 21, 23, 24, 25)  # the versions differ in the types they allow


@op("Identity", 13, 14, 16, 19, 21, 23, 24, 25)
def _identity(node: Node, x: Tensor) -> Tensor:
    return x


@op("Shape", 13, 15, 19, 21, 23, 24, 25)
def _shape(node: Node, x: Tensor) -> Numbers:
    return Numbers(tuple(x.shape)[slice(node.attribute("start", 0), node.attribute("end"))])


@op("Size", 13, 19, 21, 23, 24, 25)
def _size(node: Node, x: Tensor) -> Numbers:
    return Numbers((math.prod(x.shape),), is_scalar=True)


@op("Reshape", 13, 14, 19, 21, 23, 24, 25, plain=(1,))
def _reshape(node: Node, x: Tensor, shape: Numbers) -> Tensor:
    sizes = list(shape.values)
    if not node.attribute("allowzero", 0):
        sizes = [x.shape[dim] if isinstance(size, int) and size == 0 else size for dim, size in enumerate(sizes)]
    return x.reshape(sizes)


@op("Flatten", *VIEWS)
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.attribute("axis", 1)
    axis = axis if axis >= 0 else axis + x.ndim
    if axis == 1 and x.ndim >= 2:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Transpose", *VIEWS)
def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.attribute("perm") or list(range(x.ndim))[::-1])


@op("Squeeze", *VIEWS, plain=(1,))
def _squeeze(node: Node, x: Tensor, axes: Numbers | None = None) -> Tensor:
    if axes is None:
        dims = [dim for dim, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    else:
        dims = [dim % x.ndim for dim in axes.values]
        wrong = [dim for dim in dims if isinstance(x.shape[dim], int) and x.shape[dim] != 1]
        if wrong:
            raise Unsupported(f"dimension {wrong[0]} of {tuple(x.shape)} is not 1")
    return x.squeeze(dims) if dims else x


@op("Unsqueeze", *VIEWS, plain=(1,))
def _unsqueeze(node: Node, x: Tensor, axes: Numbers) -> Tensor:
    rank = x.ndim + len(axes.values)
    for dim in sorted(axis % rank for axis in axes.values):
        x = x.unsqueeze(dim)
    return x


@op("Concat", 13)
def _concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, node.attributes["axis"])


@op("Split", 13, 18, plain=(1,))
def _split(node: Node, x: Tensor, sizes: Numbers | None = None) -> list[Tensor]:
    return list(x.split(split_sizes(node, x.shape[node.attribute("axis", 0)], sizes), node.attribute("axis", 0)))


def split_sizes(node: Node, total: Any, sizes: Numbers | None) -> list[Any]:
    """Given, or as equal as possible with the last one smaller."""
    if sizes is not None:
        return list(sizes.values)
    if not isinstance(total, int):
        raise Unsupported("splits the rows")
    parts = node.attribute("num_outputs", len(node.outputs))
    each = -(-total // parts)
    return [each] * (parts - 1) + [total - each * (parts - 1)]


@op("Expand", 13, plain=(1,))
def _expand(node: Node, x: Tensor, shape: Numbers) -> Tensor:
    """Broadcast both ways; a dimension that has its size already is left alone, so that rows stay rows."""
    sizes, own = list(shape.values), list(x.shape)
    sizes = [1] * (len(own) - len(sizes)) + sizes
    new = len(sizes) - len(own)
    kept = [index >= new and not (_is(own[index - new], 1) and not _is(size, 1)) for index, size in enumerate(sizes)]
    for index, size in enumerate(sizes):
        if kept[index] and not _is(size, 1) and isinstance(size, int) and isinstance(own[index - new], int):
            _check_equal(size, own[index - new])
    return x.expand([-1 if keep else size for keep, size in zip(kept, sizes, strict=True)])


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def _check_equal(size: int, own: int) -> None:
    if size != own:
        raise Unsupported(f"a dimension of {own} cannot be expanded to {size}")


@op("Tile", 13, plain=(1,))
def _tile(node: Node, x: Tensor, repeats: Numbers) -> Tensor:
    return x.repeat(list(repeats.values))


_PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


@op("Pad", 13, 18, 19, 21, 23, 24, 25, plain=(1, 3), scalars=(2,))
def _pad(node: Node, x: Tensor, pads: Numbers, value: Any = 0, axes: Numbers | None = None) -> Tensor:
    dims = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.values]
    count = len(dims)
    around = {dim: (pads.values[index], pads.values[index + count]) for index, dim in enumerate(dims)}
    first = min((dim for dim, pair in around.items() if pair != (0, 0)), default=x.ndim)
    if first == x.ndim:
        return x
    amounts = [amount for dim in range(x.ndim - 1, first - 1, -1) for amount in around.get(dim, (0, 0))]
    mode = node.attribute("mode", "constant")
    if mode not in _PAD_MODES:
        raise Unsupported(f"mode={mode!r} is not implemented")
    if mode != "constant" and min(min(pair) for pair in around.values()) < 0:  # cut first, as onnxruntime does
        for dim, (before, after) in around.items():
            x = x.narrow(dim, max(-before, 0), x.shape[dim] + min(before, 0) + min(after, 0)) if dim else x
        around = {dim: (max(before, 0), max(after, 0)) for dim, (before, after) in around.items()}
        amounts = [max(amount, 0) for amount in amounts]
    if mode == "constant":
        return functional.pad(x, amounts, value=0 if value is None else value)
    if first == 0:
        raise Unsupported("pads the rows")
    if first == 1:  # torch pads the dimensions behind it only
        for dim, (before, after) in around.items():
            picked = _picked(mode, x.shape[dim], before, after) if (before, after) != (0, 0) else None
            x = x if picked is None else x.index_select(dim, torch.tensor(picked, device=x.device))
        return x
    amounts += [0, 0] * (x.ndim - 2 - len(amounts) // 2)  # torch wants all dimensions behind the second
    return functional.pad(x, amounts, mode=_PAD_MODES[mode])


def _picked(mode: str, size: int, before: int, after: int) -> list[int]:
    """The old entries in the places of the new ones."""
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "wrap":
        return [place % size for place in places]
    period = 2 * (size - 1)
    return [min(place % period, period - place % period) if period else 0 for place in places]


@op("Range", 11, 27, plain=(0, 1, 2), makes=True)
def _range(node: Node, start: Numbers, limit: Numbers, delta: Numbers, device: torch.device | None) -> Tensor:
    return torch.arange(start.scalar(), limit.scalar(), delta.scalar(), dtype=start.dtype, device=device)


@op("ConstantOfShape", 9, 20, 21, 23, 24, 25, plain=(0,), makes=True)
def _constant_of_shape(node: Node, shape: Numbers, device: torch.device | None) -> Tensor:
    value = node.attribute("value", torch.zeros(1))
    return torch.full(list(shape.values), value.item(), dtype=value.dtype, device=device)


@op("EyeLike", 9, 22)
def _eye_like(node: Node, x: Tensor) -> Tensor:
    dtype = torch_dtype(node.attributes["dtype"]) if "dtype" in node.attributes else x.dtype
    offset = node.attribute("k", 0)
    return torch.ones_like(x, dtype=dtype).triu(offset).tril(offset)


@op("Trilu", 14, plain=(1,))
def _trilu(node: Node, x: Tensor, k: Numbers | None = None) -> Tensor:
    diagonal = 0 if k is None else k.scalar()
    return x.triu(diagonal) if node.attribute("upper", 1) else x.tril(diagonal)


# TensorProto.DataType. Types of less than a byte, of eight-bit floats and of strings have no arithmetic in torch.
_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}


def torch_dtype(code: int) -> torch.dtype:
    """The torch type of an ONNX element type."""
    if code not in _DTYPES:
        raise Unsupported(f"element type {code} is not implemented")
    return _DTYPES[code]


@op("Cast", 13, 19, 21, 23, 24, 25, 28)
def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(torch_dtype(node.attributes["to"]))


@op("CastLike", 15, 19, 21, 23, 24, 25)
def _cast_like(node: Node, x: Tensor, target: Value) -> Tensor:
    return x.to(target.dtype)


@op("DepthToSpace", 13, 28)
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = node.attributes["blocksize"]
    if node.attribute("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    rows, channels, height, width = x.shape
    blocks = x.reshape(rows, block, block, channels // block**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(rows, channels // block**2, height * block, width * block)


@op("SpaceToDepth", 13, 28)
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block = node.attributes["blocksize"]
    rows, channels, height, width = x.shape
    blocks = x.reshape(rows, channels, height // block, block, width // block, block)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(rows, channels * block**2, height // block, width // block)
