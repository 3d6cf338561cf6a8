"""y[row] = x[row] @ W[slot of row].T + b[slot of row]: the reference in plain torch, fast where it pays on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.kernels.rowmap import Layout, RowMap
from spacetime.kernels.slot_broadcast import add_rowwise


def slot_linear(rows: RowMap, x: Tensor, weight: Layer, bias: Layer | None, row_dim: int = 0) -> Tensor:
    """Rows that share an entry are one GEMM; equal runs over consecutive entries are one batched GEMM."""
    if row_dim:
        return slot_linear(rows, x.movedim(row_dim, 0), weight, bias).movedim(0, row_dim)
    layout = rows.layout(weight)
    shared_bias = bias if bias is not None and bias.sharing == weight.sharing else None
    if len(layout.runs) == 1:
        entry = layout.first.entry
        y = F.linear(x, weight.entry(entry), None if shared_bias is None else shared_bias.entry(entry))
    else:
        flat = x.flatten(0, -2)
        is_block = layout.block and weight.is_stacked(layout.first.entry, len(layout.runs))
        multiply = _batched if is_block else _one_by_one
        y = multiply(layout, flat, weight, shared_bias, flat.shape[0] // rows.total)
        y = y.view(*x.shape[:-1], weight.stack.shape[1])
    if bias is not None and shared_bias is None:
        add_rowwise(rows, y, bias)
    return y


def _batched(layout: Layout, x: Tensor, weight: Layer, bias: Layer | None, per_row: int) -> Tensor:
    first, number = layout.first.entry, len(layout.runs)
    x = x.view(number, x.shape[0] // number, x.shape[-1])
    w = weight.stack[first : first + number].transpose(1, 2)
    if bias is None:
        return torch.bmm(x, w)
    return torch.baddbmm(bias.stack[first : first + number].unsqueeze(1), x, w)


def _one_by_one(layout: Layout, x: Tensor, weight: Layer, bias: Layer | None, per_row: int) -> Tensor:
    y = x.new_empty(x.shape[0], weight.stack.shape[1])
    for run in layout.runs:
        rows = slice(run.start * per_row, (run.start + run.count) * per_row)
        if bias is None:
            torch.mm(x[rows], weight.entry(run.entry).t(), out=y[rows])
        else:
            torch.addmm(bias.entry(run.entry), x[rows], weight.entry(run.entry).t(), out=y[rows])
    return y
