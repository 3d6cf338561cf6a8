"""Resizing: torch's own interpolation where it is the same, else entry by entry. Used by profiler/onnx/ only.

ONNX has five ways to place the new entries among the old ones and four to round to the nearest; torch has some of
them. The others, which exporters of TensorFlow and hand-written files use, pick entries or multiply by a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Numbers, Unsupported
from spacetime.profiler.onnx.registry import op

_PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
_TORCH_PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners")
_TORCH_CUBIC = -0.75
_TORCH_CUBIC_ANTIALIAS = -0.5


@op("Resize", 13, 18, 19, plain=(1, 2, 3))
def _resize(
    node: Node, x: Tensor, region: Any = None, scales: Numbers | None = None, sizes: Numbers | None = None
) -> Tensor:
    node.refuse_all_but(keep_aspect_ratio_policy="stretch")
    axes = [axis % x.ndim for axis in node.attribute("axes") or range(x.ndim)]
    factors, targets = _amounts(node, x, axes, scales, sizes)
    place, mode = node.attribute("coordinate_transformation_mode", "half_pixel"), node.attribute("mode", "nearest")
    if place not in _PLACES:
        raise Unsupported(f"coordinate_transformation_mode={place!r} is not implemented")
    changed = [dim for dim in range(1, x.ndim) if factors[dim] != 1 or not _same(targets[dim], x.shape[dim])]
    if not changed:
        return x
    native = _native(node, x, place, factors, targets) if 1 not in changed and _can_interpolate(x) else None
    if native is not None:
        name, corners, antialias = native
        amount: dict[str, Any] = {"size": targets[2:]}
        if sizes is None or not sizes.values:
            amount = {"scale_factor": factors[2:]}
        return functional.interpolate(x, mode=name, align_corners=corners, antialias=antialias, **amount)
    if node.attribute("antialias", 0):
        raise Unsupported("antialias=1 is implemented as torch has it: images, exclude_outside=1, cubic_coeff_a=-0.5")
    if mode == "nearest" and place == "half_pixel_symmetric":
        raise Unsupported("nearest with half_pixel_symmetric is not implemented")
    for dim in changed:
        places = _places(place, x.shape[dim], targets[dim], factors[dim])
        x = _nearest(node, x, dim, places) if mode == "nearest" else _weighted(node, x, dim, places)
    return x


def _amounts(
    node: Node, x: Tensor, axes: Sequence[int], scales: Numbers | None, sizes: Numbers | None
) -> tuple[list[float], list[Any]]:
    """Of every dimension: the factor, and the size that it gets."""
    factors, targets = [1.0] * x.ndim, list(x.shape)
    if scales is not None and scales.values:
        for axis, factor in zip(axes, scales.values, strict=True):
            factors[axis] = float(factor)
            if factor != 1:
                targets[axis] = math.floor(_known(x.shape[axis]) * factor)
    elif sizes is not None and sizes.values:
        for axis, size in zip(axes, sizes.values, strict=True):
            targets[axis] = size
            if not _same(size, x.shape[axis]):
                factors[axis] = size / _known(x.shape[axis])
    else:
        raise Unsupported("neither scales nor sizes are given")
    if factors[0] != 1 or not _same(targets[0], x.shape[0]):
        raise Unsupported("resizes rows")
    return factors, targets


def _can_interpolate(x: Tensor) -> bool:
    return x.ndim in (3, 4, 5) and x.is_floating_point()


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)


def _known(size: Any) -> int:
    if not isinstance(size, int):
        raise Unsupported("resizes rows, or a dimension that depends on them")
    return size


# -- as torch does it -------------------------------------------------------------------------------------------------


def _native(
    node: Node, x: Tensor, place: str, factors: Sequence[float], targets: Sequence[int]
) -> tuple[str, bool | None, bool] | None:
    """Mode, align_corners and antialias of the interpolation that gives the same."""
    mode, count = node.attribute("mode", "nearest"), x.ndim - 2
    if mode == "nearest":
        for name, shift in (("nearest", 0.0), ("nearest-exact", 0.5)):
            if all(_is_torchs(node, x, place, shift, dim, factors, targets) for dim in range(2, x.ndim)):
                return name, None, False
        return None
    corners, antialias = place == "align_corners", bool(node.attribute("antialias", 0))
    # torch leaves out what lies outside where it smooths, and only there.
    if place not in _TORCH_PLACES or bool(node.attribute("exclude_outside", 0)) != antialias:
        return None
    if place == "half_pixel" and 1 in targets[2:] and not antialias and mode == "cubic":
        return None
    if antialias and (count != 2 or corners):
        return None
    if mode == "linear":
        return ("linear", "bilinear", "trilinear")[count - 1], corners, antialias
    own = _TORCH_CUBIC_ANTIALIAS if antialias else _TORCH_CUBIC
    is_same = count == 2 and abs(node.attribute("cubic_coeff_a", -0.75) - own) < 1e-6
    return ("bicubic", corners, antialias) if is_same else None


def _is_torchs(
    node: Node, x: Tensor, place: str, shift: float, dim: int, factors: Sequence[float], targets: Sequence[int]
) -> bool:
    """Does rounding (entry + shift) / factor down pick the entries that the node asks for?"""
    size, target = x.shape[dim], targets[dim]
    asked = _rounded(node, _places(place, size, target, factors[dim]), size)
    return asked == [min(math.floor((entry + shift) / factors[dim]), size - 1) for entry in range(target)]


# -- as ONNX says it --------------------------------------------------------------------------------------------------


def _places(place: str, size: int, target: int, factor: float) -> list[float]:
    """Where every new entry lies among the old ones; in single precision, which decides where two are equally near."""
    entries, scale, half = np.arange(target, dtype=np.float32), np.float32(factor), np.float32(0.5)
    if place == "align_corners":
        found = entries * np.float32(size - 1) / np.float32(max(target - 1, 1))
    elif place == "asymmetric":
        found = entries / scale
    elif place == "pytorch_half_pixel" and target == 1:
        found = np.zeros_like(entries)
    else:
        found = (entries + half) / scale - half
    if place == "half_pixel_symmetric":
        found = found + np.float32(size / 2 * (1 - target / (factor * size)))
    return [float(each) for each in found]


def _rounded(node: Node, places: Sequence[float], size: int) -> list[int]:
    mode = node.attribute("nearest_mode", "round_prefer_floor")
    rounding = {
        "round_prefer_floor": lambda place: math.ceil(place - 0.5),
        "round_prefer_ceil": lambda place: math.floor(place + 0.5),
        "floor": math.floor,
        "ceil": math.ceil,
    }[mode]
    return [min(max(rounding(place), 0), size - 1) for place in places]


def _nearest(node: Node, x: Tensor, dim: int, places: Sequence[float]) -> Tensor:
    picked = _rounded(node, places, x.shape[dim])
    return x.index_select(dim, torch.tensor(picked, dtype=torch.int64, device=x.device))


def _weighted(node: Node, x: Tensor, dim: int, places: Sequence[float]) -> Tensor:
    """Every new entry is a weighted sum of the old ones around it."""
    size = x.shape[dim]
    rows = [[0.0] * size for _ in places]
    cubic = node.attribute("mode") == "cubic"
    for row, unbounded in zip(rows, places, strict=True):
        place = unbounded if cubic else min(max(unbounded, 0.0), size - 1.0)
        first = math.floor(place)
        weights = _cubic(node, place - first) if cubic else [1 - (place - first), place - first]
        around = range(first - 1, first + 3) if cubic else range(first, first + 2)
        if node.attribute("exclude_outside", 0):
            weights = [weight if 0 <= old < size else 0.0 for old, weight in zip(around, weights, strict=True)]
            weights = [weight / sum(weights) for weight in weights]
        for old, weight in zip(around, weights, strict=True):
            row[min(max(old, 0), size - 1)] += weight
    matrix = torch.tensor(rows, dtype=x.dtype, device=x.device)
    return functional.linear(x.transpose(dim, -1), matrix).transpose(dim, -1)


def _cubic(node: Node, part: float) -> list[float]:
    a = float(node.attribute("cubic_coeff_a", -0.75))

    def near(t: float) -> float:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: float) -> float:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return [far(1 + part), near(part), near(1 - part), far(2 - part)]


@op("GridSample", 16, 20, 22)
def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(asked := node.attribute("mode", "linear"), asked)
    padding, corners = node.attribute("padding_mode", "zeros"), bool(node.attribute("align_corners", 0))
    return functional.grid_sample(x, grid, mode, padding, corners)
