"""Convolutions, transposed ones. Used by profiler/onnx/ only."""

from __future__ import annotations

from collections.abc import Sequence

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


@op("Col2Im", 18, plain=(1, 2))
def _col2im(node: Node, x: Tensor, image: Numbers, block: Numbers) -> Tensor:
    """Windows that overlap, added up: what a convolution takes apart."""
    count = len(image.values)
    pads = list(node.attribute("pads") or [0] * 2 * count)
    if count != 2 or pads[:count] != pads[count:]:
        raise Unsupported("it is implemented for images, padded alike at both ends")
    dilations, strides = (list(node.attribute(name) or [1] * count) for name in ("dilations", "strides"))
    amounts = (tuple(each) for each in (image.values, block.values, dilations, pads[:count], strides))
    return functional.fold(x, *amounts)
