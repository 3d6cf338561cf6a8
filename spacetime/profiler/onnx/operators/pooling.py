"""Pooling: largest and mean of windows, with every kind of padding and rounding. Used by profiler/onnx/ only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Unsupported
from spacetime.profiler.onnx.operators.convolution import pad, window
from spacetime.profiler.onnx.registry import op

_MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_MEAN = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
_ADAPTIVE = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)


def _check(node: Node, kernel: Sequence[int]) -> int:
    count = len(kernel)
    if not 1 <= count <= 3:
        raise Unsupported(f"{count} spatial dimensions are not implemented")
    node.refuse_all_but(storage_order=0)
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Unsupported("the indices of the largest entries are not implemented")
    return count


def _overhang(
    node: Node,
    x: Tensor,
    kernel: Sequence[int],
    strides: list[int],
    dilations: list[int],
    before: list[int],
    after: list[int],
) -> list[int]:
    """Entries behind the padding that the last window covers with ceil_mode; windows start inside input and padding."""
    if not node.attribute("ceil_mode", 0):
        return [0] * len(kernel)
    found = []
    for index, size in enumerate(x.shape[2:]):
        span = (kernel[index] - 1) * dilations[index] + 1
        padded = size + before[index] + after[index]
        windows = -(-(padded - span) // strides[index]) + 1
        if (windows - 1) * strides[index] >= size + before[index]:
            windows -= 1
        found.append(max((windows - 1) * strides[index] + span - padded, 0))
    return found


@op("MaxPool", 12, 22)
def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = list(node.attributes["kernel_shape"])
    count = _check(node, kernel)
    strides, dilations, before, after = window(node, x, kernel)
    run = _MAX[count - 1]
    if before == after and all(2 * own <= span for own, span in zip(before, kernel, strict=True)):
        return run(x, kernel, strides, before, dilations, bool(node.attribute("ceil_mode", 0)))
    extra = _overhang(node, x, kernel, strides, dilations, before, after)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = pad(x, before, [own + more for own, more in zip(after, extra, strict=True)], lowest)
    return run(padded, kernel, strides, 0, dilations)


def _ones(x: Tensor, *sizes: int) -> Tensor:
    """Not new_ones: reading x, they would seem to depend on the rows."""
    return torch.ones(sizes, dtype=x.dtype, device=x.device)


@op("AveragePool", 11, 19, 22)
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = list(node.attributes["kernel_shape"])
    count = _check(node, kernel)
    strides, dilations, before, after = window(node, x, kernel)
    counts_padding = bool(node.attribute("count_include_pad", 0))
    run = _MEAN[count - 1]
    if any(dilation != 1 for dilation in dilations):
        return _dilated_mean(node, x, kernel, (strides, dilations, before, after))
    if before == after and all(2 * own <= span for own, span in zip(before, kernel, strict=True)):
        return run(x, kernel, strides, before, bool(node.attribute("ceil_mode", 0)), counts_padding)
    extra = _overhang(node, x, kernel, strides, dilations, before, after)
    nothing = [0] * count
    inside = _ones(x, 1, 1, *x.shape[2:])
    if counts_padding:
        inside = pad(inside, before, after, 1.0)
        share = run(pad(inside, nothing, extra), kernel, strides)
    else:
        share = run(pad(pad(inside, before, after), nothing, extra), kernel, strides)
    return run(pad(pad(x, before, after), nothing, extra), kernel, strides) / share


def _dilated_mean(node: Node, x: Tensor, kernel: list[int], places: tuple[list[int], ...]) -> Tensor:
    """As a convolution of every channel with ones; torch's own pooling has no dilation."""
    strides, dilations, before, after = places
    extra = _overhang(node, x, kernel, strides, dilations, before, after)
    after_all = [own + more for own, more in zip(after, extra, strict=True)]
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    channels = x.shape[1]
    total = run(pad(x, before, after_all), _ones(x, channels, 1, *kernel), None, strides, 0, dilations, channels)
    inside = _ones(x, 1, 1, *x.shape[2:])
    if node.attribute("count_include_pad", 0):
        inside = pad(pad(inside, before, after, 1.0), [0] * len(kernel), extra)
    else:
        inside = pad(inside, before, after_all)
    return total / run(inside, _ones(x, 1, 1, *kernel), None, strides, 0, dilations)


@op("GlobalAveragePool", 1, 22)
def _global_average_pool(node: Node, x: Tensor) -> Tensor:
    count = x.ndim - 2
    if not 1 <= count <= 3:
        return x.mean(list(range(2, x.ndim)), keepdim=True)
    sizes: Any = 1 if count == 1 else (1,) * count
    return _ADAPTIVE[count - 1](x, sizes)


@op("GlobalMaxPool", 1, 22)
def _global_max_pool(node: Node, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)
