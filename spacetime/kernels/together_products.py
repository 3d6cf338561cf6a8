"""Products of several programs in one launch: linears and convolutions, of equal shapes or of unlike ones.

Plain torch, which makes one call for every group of the launch's table (together.py). What follows a product inside of
the call (a folded BatchNorm, an activation) may differ from program to program, and is applied to each one's own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.capture.merge_contents import Contents
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_broadcast import per_channel
from spacetime.kernels.slot_conv import CONVOLUTIONS
from spacetime.kernels.together import Group, Parts, Piece, Spans, Weighted, by_group

Operands = Sequence[Sequence[Layer | None]]
Results = dict[int, Tensor]


class TogetherLinear(Weighted):
    """y[row] = x[row] @ W.T + b, written in place: no result is joined or split, unless weights are equal."""

    def __init__(self, steps: Sequence[Step], operands: Operands, alike: Sequence[int], contents: Contents) -> None:
        super().__init__(operands, alike, contents)
        self._row_dims = [step.attributes["row_dim"] for step in steps]

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> Results:
        firsts = {part: _first(values[part][0], self._row_dims[part]) for part in parts}
        flats = {part: x.reshape(-1, x.shape[-1]) for part, x in firsts.items()}
        results = {part: flat.new_empty(flat.shape[0], self._width(part)) for part, flat in flats.items()}
        for group in spans.table(self, parts):
            weight, bias = self.weights(group)
            assert weight is not None
            xs = [_lines(flats[piece.part], piece, parts) for piece in group.pieces]
            ys = [_lines(results[piece.part], piece, parts) for piece in group.pieces]
            if len(xs) == 1:
                _multiply(xs[0], weight, bias, ys[0])
            else:
                together = F.linear(torch.cat(xs), weight, bias)
                for y, own in zip(ys, together.split([len(x) for x in xs]), strict=True):
                    y.copy_(own)
        return {part: _back(y.view(*firsts[part].shape[:-1], -1), self._row_dims[part]) for part, y in results.items()}

    def _width(self, part: int) -> int:
        weight = self.operands[part][0]
        assert weight is not None
        return weight.stack.shape[1]


class TogetherConv(Weighted):
    """The convolutions of the groups, then each call's own epilogue."""

    def __init__(self, steps: Sequence[Step], operands: Operands, alike: Sequence[int], contents: Contents) -> None:
        # A bias joins the product, where there is no BatchNorm that has taken it in.
        super().__init__([layers[:2] for layers in operands], alike, contents)
        self._epilogues = [layers[2:] for layers in operands]
        self._attributes = [step.attributes for step in steps]
        self._channels_last = steps[0].attributes["name"] == "conv2d"
        self._convolve = CONVOLUTIONS[steps[0].attributes["name"]]

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> Results:
        xs: dict[int, Tensor] = {part: values[part][0] for part in parts}
        if self._channels_last:
            xs = {part: x.contiguous(memory_format=torch.channels_last) for part, x in xs.items()}
        results = by_group(spans.table(self, parts), parts, xs, 0, self._one)
        return {part: self._finished(part, rows, results[part]) for part, rows in parts.items()}

    def _one(self, group: Group, x: Tensor) -> Tensor:
        weight, bias = self.weights(group)
        assert weight is not None
        a = self._attributes[group.owner]
        return self._convolve(x, weight, bias, a["stride"], a["padding"], a["dilation"], a["groups"])

    def _finished(self, part: int, rows: RowMap, y: Tensor) -> Tensor:
        """In place: y is nobody else's."""
        multiple = y.shape[0] // rows.total
        scale, shift = self._epilogues[part]
        if scale is not None and shift is not None:
            values = [per_channel(rows, layer, y.ndim, multiple) for layer in (shift, scale)]
            torch.addcmul(values[0], y, values[1], out=y)
        activation = self._attributes[part]["activation"]
        if activation is None:
            return y
        low, high = activation[1]
        return y.relu_() if high == float("inf") else y.clamp_(low, high)


def _first(x: Tensor, row_dim: int) -> Tensor:
    return x.movedim(row_dim, 0) if row_dim else x


def _back(y: Tensor, row_dim: int) -> Tensor:
    return y.movedim(0, row_dim) if row_dim else y


def _lines(flat: Tensor, piece: Piece, parts: Parts) -> Tensor:
    per_row = flat.shape[0] // parts[piece.part].total
    return flat[piece.start * per_row : (piece.start + piece.count) * per_row]


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=y)
    else:
        torch.addmm(bias, x, weight.t(), out=y)
