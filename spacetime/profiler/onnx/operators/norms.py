"""Normalisations. Used by profiler/onnx/ only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spacetime.profiler.onnx.graph import Node, Unsupported
from spacetime.profiler.onnx.registry import op


@op("BatchNormalization", 9, 14, 15)
def _batch_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.attribute("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        raise Unsupported("training_mode is on; export the module in eval mode")
    return functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, node.attribute("epsilon", 1e-5))


def _from_axis(node: Node, x: Tensor) -> list[int]:
    return list(x.shape[node.attribute("axis", -1) % x.ndim :])


@op("LayerNormalization", 17)
def _layer_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    if any(node.outputs[1:]):
        raise Unsupported("mean and deviation as outputs are not implemented")
    shape, epsilon = _from_axis(node, x), node.attribute("epsilon", 1e-5)
    fits = list(scale.shape) == shape and (shift is None or list(shift.shape) == shape)
    if fits:
        return functional.layer_norm(x, shape, scale, shift, epsilon)
    normed = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return normed if shift is None else normed + shift


@op("RMSNormalization", 23)
def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    shape, epsilon = _from_axis(node, x), node.attribute("epsilon", 1e-5)
    if list(scale.shape) == shape:
        return functional.rms_norm(x, shape, scale, epsilon)
    return functional.rms_norm(x, shape, None, epsilon) * scale


@op("InstanceNormalization", 6, 22)
def _instance_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """As a group norm of one channel each: torch's instance_norm merges rows and channels."""
    return functional.group_norm(x, x.shape[1], scale, shift, node.attribute("epsilon", 1e-5))


@op("GroupNormalization", 18, 21)
def _group_norm(node: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift are one for each group in version 18, one for each channel since."""
    groups = node.attributes["num_groups"]
    if node.version < 21:
        each = x.shape[1] // groups
        scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, shift, node.attribute("epsilon", 1e-5))


@op("MeanVarianceNormalization", 13)
def _mean_variance_norm(node: Node, x: Tensor) -> Tensor:
    """Without an epsilon: ONNX adds 1e-9 to the deviation."""
    axes = list(node.attribute("axes") or (0, 2, 3))
    if 0 in [axis % x.ndim for axis in axes]:
        raise Unsupported("normalises over the rows")
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@op("LpNormalization", 1, 22)
def _lp_norm(node: Node, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, node.attribute("p", 2), node.attribute("axis", -1), keepdim=True)
    return torch.where(norm == 0, norm, x / norm)


@op("LRN", 13)
def _local_response_norm(node: Node, x: Tensor) -> Tensor:
    if node.attributes["size"] % 2 == 0:
        raise Unsupported("an even size is not implemented: torch counts the middle differently")
    alpha, beta, bias = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75), node.attribute("bias", 1.0)
    return functional.local_response_norm(x, node.attributes["size"], alpha, beta, bias)
