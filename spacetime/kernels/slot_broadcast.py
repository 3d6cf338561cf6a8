"""Small weights laid out row by row: gathers, affines, norms. Plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.kernels.rowmap import RowMap


def gather(rows: RowMap, layer: Layer, rank: int, row_dim: int, multiple: int = 1) -> Tensor:
    """The weights of every row, shaped to broadcast against a tensor of `rank` with rows in `row_dim`."""
    runs = rows.layout(layer).runs
    if len(runs) == 1:
        return layer.entry(runs[0].entry)
    return spread(layer.stack.index_select(0, rows.entry_per_row(layer, multiple)), rank, row_dim)


def spread(values: Tensor, rank: int, row_dim: int) -> Tensor:
    """Weights [rows, ...] shaped to broadcast against a tensor of `rank` with rows in `row_dim`."""
    after = rank - row_dim - 1  # dimensions behind the rows
    own = values.ndim - 1
    if own <= after:
        return values.view(values.shape[0], *(1,) * (after - own), *values.shape[1:])
    at = own - after - 1  # the weight has a dimension of size 1 where the rows are
    return values.squeeze(at + 1).movedim(0, at)


def add_rowwise(rows: RowMap, y: Tensor, bias: Layer) -> Tensor:
    """y[row] += bias[slot of row], in place; y has rows first."""
    return y.add_(gather(rows, bias, y.ndim, 0, y.shape[0] // rows.total))


def affine(rows: RowMap, x: Tensor, scale: Layer, shift: Layer) -> Tensor:
    """x * scale + shift over channels (dimension 1): a BatchNorm at inference. Rows are dimension 0."""
    multiple = x.shape[0] // rows.total
    return torch.addcmul(per_channel(rows, shift, x.ndim, multiple), x, per_channel(rows, scale, x.ndim, multiple))


def per_channel(rows: RowMap, layer: Layer, rank: int, multiple: int = 1) -> Tensor:
    """[rows or 1, channels, 1, ...]"""
    values = gather(rows, layer, 2, 0, multiple)
    return values.view(-1, values.shape[-1], *(1,) * (rank - 2))


def layer_norm(
    rows: RowMap, x: Tensor, weight: Layer | None, bias: Layer | None, shape: list[int], eps: float, row_dim: int
) -> Tensor:
    """One normalisation for all rows; the affine of a single run goes into the same call."""
    single = all(layer is None or len(rows.layout(layer).runs) == 1 for layer in (weight, bias))
    if single:
        w = None if weight is None else weight.entry(rows.layout(weight).first.entry)
        b = None if bias is None else bias.entry(rows.layout(bias).first.entry)
        return F.layer_norm(x, shape, w, b, eps)
    y = F.layer_norm(x, shape, None, None, eps)
    multiple = x.shape[row_dim] // rows.total
    if weight is not None:
        y.mul_(gather(rows, weight, x.ndim, row_dim, multiple))
    if bias is not None:
        y.add_(gather(rows, bias, x.ndim, row_dim, multiple))
    return y
