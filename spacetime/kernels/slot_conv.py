"""Convolution with the weights of each row's tenant; BatchNorm and activation ride along. Plain torch and oneDNN.

`Epilogue` order: convolution (+ bias), then * scale + shift (a folded BatchNorm), then the activation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_broadcast import per_channel

CONVOLUTIONS = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}


class SlotConv:
    """One convolution of a fused program; the geometry is fixed, the weights are found per run."""

    def __init__(
        self,
        weight: Layer,
        bias: Layer | None,
        scale: Layer | None,
        shift: Layer | None,
        *,
        name: str,
        stride: list[int],
        padding: Any,
        dilation: list[int],
        groups: int,
        activation: tuple[str, tuple[float, float]] | None,
    ) -> None:
        self.weight, self.bias, self.scale, self.shift = weight, bias, scale, shift
        self.convolve = CONVOLUTIONS[name]
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.bounds = activation[1] if activation else None
        self.channels_last = name == "conv2d"

    def __call__(self, rows: RowMap, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        multiple = x.shape[0] // rows.total
        # Asked once: a tenant that joins meanwhile may renumber the layers.
        inner_bias = self.bias if self.bias is not None and self.bias.sharing == self.weight.sharing else None
        y = self._convolved(rows, x, multiple, inner_bias)
        if self.scale is not None and self.shift is not None:
            scale, shift = (per_channel(rows, layer, y.ndim, multiple) for layer in (self.scale, self.shift))
            torch.addcmul(shift, y, scale, out=y)
        elif self.bias is not None and inner_bias is None:
            y.add_(per_channel(rows, self.bias, y.ndim, multiple))
        if self.bounds is not None:
            low, high = self.bounds
            return y.relu_() if high == float("inf") else y.clamp_(low, high)
        return y

    def _convolved(self, rows: RowMap, x: Tensor, multiple: int, bias: Layer | None) -> Tensor:
        runs = rows.layout(self.weight).runs
        if len(runs) == 1:
            return self._one(x, runs[0].entry, bias)
        parts = x.split([run.count * multiple for run in runs])
        return torch.cat([self._one(part, run.entry, bias) for part, run in zip(parts, runs, strict=True)])

    def _one(self, x: Tensor, entry: int, bias: Layer | None) -> Tensor:
        own_bias = None if bias is None else bias.entry(entry)
        return self.convolve(
            x, self.weight.entry(entry), own_bias, self.stride, self.padding, self.dilation, self.groups
        )
