"""Convolutions, transposed ones, resizing. Used by profiler/onnx/ only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Numbers, Unsupported
from spacetime.profiler.onnx.registry import op

_CONVS = (torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


def window(node: Node, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, padding before and padding after, one of each per spatial dimension."""
    count = len(kernel)
    strides = list(node.attribute("strides") or [1] * count)
    dilations = list(node.attribute("dilations") or [1] * count)
    mode = node.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = list(node.attribute("pads") or [0] * 2 * count)
        return strides, dilations, pads[:count], pads[count:]
    if mode == "VALID":
        return strides, dilations, [0] * count, [0] * count
    before, after = [], []
    for size, span, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (span - 1) * dilation + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        before.append(smaller if mode == "SAME_UPPER" else larger)
        after.append(larger if mode == "SAME_UPPER" else smaller)
    return strides, dilations, before, after


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Explicit padding of the spatial dimensions."""
    amounts = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
    return functional.pad(x, amounts, value=value) if any(amounts) else x


@op("Conv", 11, 22)
def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = weight.ndim - 2
    if not 1 <= count <= 3:
        raise Unsupported(f"{count} spatial dimensions are not implemented")
    strides, dilations, before, after = window(node, x, weight.shape[2:])
    if before != after or min(before) < 0:
        x, before = pad(x, before, after), [0] * count
    result: Tensor = _CONVS[count - 1](x, weight, bias, strides, before, dilations, node.attribute("group", 1))
    return result


@op("ConvTranspose", 11, 22)
def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = weight.ndim - 2
    if not 1 <= count <= 3:
        raise Unsupported(f"{count} spatial dimensions are not implemented")
    strides = list(node.attribute("strides") or [1] * count)
    dilations = list(node.attribute("dilations") or [1] * count)
    extra = list(node.attribute("output_padding") or [0] * count)
    before, after = _cut(node, x, weight.shape[2:], strides, dilations, extra)
    both = [max(min(pair), 0) for pair in zip(before, after, strict=True)]
    group = node.attribute("group", 1)
    y: Tensor = _TRANSPOSED[count - 1](x, weight, bias, strides, both, extra, group, dilations)
    if both == before == after:
        return y
    return pad(
        y,
        [own - other for own, other in zip(both, before, strict=True)],
        [own - other for own, other in zip(both, after, strict=True)],
    )


def _cut(
    node: Node, x: Tensor, kernel: Sequence[int], strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """How much of the full result goes at both ends; from `output_shape` or `auto_pad` where the node has one."""
    count = len(kernel)
    mode, shape = node.attribute("auto_pad", "NOTSET"), node.attribute("output_shape")
    if shape is None and mode in ("NOTSET", "VALID"):
        pads = list(node.attribute("pads") or [0] * 2 * count) if mode == "NOTSET" else [0] * 2 * count
        return pads[:count], pads[count:]
    wanted = list(shape)[-count:] if shape is not None else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    before, after = [], []
    for index, size in enumerate(x.shape[2:]):
        full = strides[index] * (size - 1) + extra[index] + (kernel[index] - 1) * dilations[index] + 1
        total = full - wanted[index]
        larger, smaller = total - total // 2, total // 2
        before.append(smaller if mode == "SAME_UPPER" else larger)
        after.append(larger if mode == "SAME_UPPER" else smaller)
    return before, after


@op("Resize", 13, 18, 19, plain=(1, 2, 3))
def _resize(
    node: Node, x: Tensor, region: Any = None, scales: Numbers | None = None, sizes: Numbers | None = None
) -> Tensor:
    """The modes that functional.interpolate has: what both exporters write for it."""
    node.refuse_all_but(antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch")
    axes = [axis % x.ndim for axis in node.attribute("axes") or range(x.ndim)]
    given = {axis: value for axis, value in zip(axes, _resize_amounts(scales, sizes), strict=True)}
    if any(given.get(dim, 1 if _has(scales) else x.shape[dim]) not in (1, x.shape[dim]) for dim in (0, 1)):
        raise Unsupported("resizes rows or channels")
    spatial = range(2, x.ndim)
    mode, corners = _interpolation(node, len(spatial))
    if _has(scales):
        factors = [float(given.get(dim, 1.0)) for dim in spatial]
        return functional.interpolate(x, scale_factor=factors, mode=mode, align_corners=corners)
    targets = [given.get(dim, x.shape[dim]) for dim in spatial]
    return functional.interpolate(x, size=targets, mode=mode, align_corners=corners)


def _has(numbers: Numbers | None) -> bool:
    return numbers is not None and len(numbers.values) > 0


def _resize_amounts(scales: Numbers | None, sizes: Numbers | None) -> tuple[Any, ...]:
    amounts = scales if _has(scales) else sizes
    if amounts is None or not amounts.values:
        raise Unsupported("neither scales nor sizes are given")
    return amounts.values


def _interpolation(node: Node, count: int) -> tuple[str, bool | None]:
    mode = node.attribute("mode", "nearest")
    place = node.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = node.attribute("nearest_mode", "round_prefer_floor")
    if mode == "nearest":
        if place == "asymmetric" and rounding == "floor":
            return "nearest", None
        if place == "half_pixel" and rounding == "round_prefer_floor":
            return "nearest-exact", None
        raise Unsupported(f"nearest with {place} and {rounding} is not implemented")
    if place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise Unsupported(f"{mode} with {place} is not implemented")
    if mode == "cubic":
        if count != 2 or abs(node.attribute("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
            raise Unsupported("cubic is implemented for images and a coefficient of -0.75 only")
        return "bicubic", place == "align_corners"
    return ("linear", "bilinear", "trilinear")[count - 1], place == "align_corners"
