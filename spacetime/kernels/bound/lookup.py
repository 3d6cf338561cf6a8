"""Embeddings, norms, and weights laid out row by row: slot_embedding and slot_layernorm, or plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.kernels import slot_broadcast
from spacetime.kernels.bound.operation import (
    ONE_FOR_ALL,
    PLAIN,
    Bound,
    Engine,
    Operand,
    attributes_of,
    operands_of,
    refusal,
    rows_first,
)
from spacetime.kernels.bound.owners import Owners
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_embedding import slot_embedding
from spacetime.kernels.triton import slot_embedding as lookup
from spacetime.kernels.triton import slot_layernorm as norm
from spacetime.kernels.triton.choose import config_for
from spacetime.kernels.triton.launch import NAMES

BY_INDEX = "no product: weights are gathered row by row"


class BoundEmbedding(Bound):
    """y[row] = table[slot of row][indices[row]]. Never plain by choice: there a wrong index breaks the device."""

    def __init__(self, step: Step, layers: list[Layer]) -> None:
        (table,) = operands = operands_of(step, layers)
        super().__init__(step, operands)
        assert table is not None
        self._table = table
        (self._row_dim,) = attributes_of(step, "row_dim")

    def __call__(self, rows: RowMap, owners: Owners, indices: Tensor) -> Tensor:
        reason = owners.reason or self._refusal(indices)
        if reason is not None:
            self._chose_plain(rows, reason)
            return slot_embedding(rows, indices, self._table.layer, self._row_dim)
        engine = owners.engine
        assert isinstance(engine, Engine)
        first = rows_first(indices, self._row_dim)
        flat = first.reshape(rows.total, -1).contiguous()
        weight = owners.slotted(self._table)
        out = weight.stack.new_empty(*flat.shape, weight.stack.shape[2])
        operands = lookup.Operands(flat, weight, owners.num_active, out, owners.faults)
        shape = lookup.describe(operands)
        owners.has_lookups = True
        self._chose(lookup.NAME)
        lookup.launch(shape, config_for(lookup, shape, engine.target, engine.table), operands, engine.target).run()
        y = out.view(*first.shape, out.shape[2])
        return y.movedim(0, self._row_dim) if self._row_dim else y

    def _refusal(self, indices: Tensor) -> str | None:
        stack = self._table.layer.stack
        if indices.dtype not in (torch.int32, torch.int64):
            return f"indices of {indices.dtype}"
        if stack.dtype not in NAMES or not stack[0].is_contiguous():
            return f"a table of {stack.dtype}, strides {stack.stride()}"
        return None if indices.numel() else "there is nothing to look up"


class BoundLayerNorm(Bound):
    """A norm over the last dimension, then each row's own affine."""

    def __init__(self, step: Step, layers: list[Layer]) -> None:
        operands = operands_of(step, layers)
        super().__init__(step, operands)
        self._weight, self._bias = operands
        self._shape, self._epsilon, self._row_dim = attributes_of(step, "shape", "eps", "row_dim")

    def __call__(self, rows: RowMap, owners: Owners, x: Tensor) -> Tensor:
        reason = owners.reason or self._refusal(x) or (ONE_FOR_ALL if self._is_one_for_all(rows) else None)
        if reason is not None:
            self._chose_plain(rows, reason)
            weight_layer, bias_layer = (None if each is None else each.layer for each in (self._weight, self._bias))
            rest = (self._shape, self._epsilon, self._row_dim)
            return slot_broadcast.layer_norm(rows, x, weight_layer, bias_layer, *rest)
        engine = owners.engine
        assert isinstance(engine, Engine)
        first = rows_first(x, self._row_dim)
        flat = first.reshape(rows.total, -1, first.shape[-1]).contiguous()
        weight, bias = (None if operand is None else owners.slotted(operand) for operand in (self._weight, self._bias))
        owner = self._weight or self._bias
        assert owner is not None, "a norm without an affine is no slot operation"
        out = torch.empty_like(flat)
        operands = norm.Operands(flat, owners.entries(owner), owners.num_active, out, weight, bias)
        shape = norm.describe(operands, self._epsilon)
        self._chose(norm.NAME)
        norm.launch(shape, config_for(norm, shape, engine.target, engine.table), operands, engine.target).run()
        y = out.view(first.shape)
        return y.movedim(0, self._row_dim) if self._row_dim else y

    def _refusal(self, x: Tensor) -> str | None:
        if len(self._shape) != 1:
            return f"a norm over {len(self._shape)} dimensions; the kernel does the last one"
        if self._shape[0] > norm.MOST_COLUMNS:
            return f"{self._shape[0]} columns; a program of the kernel keeps at most {norm.MOST_COLUMNS}"
        if self._row_dim == x.ndim - 1:
            return "rows are in the dimension that is normalised"
        return refusal(x)


class BoundGather(Bound):
    """The weights of every row, shaped to broadcast against a tensor of `rank` with rows in `row_dim`."""

    def __init__(self, step: Step, layers: list[Layer]) -> None:
        (operand,) = operands = operands_of(step, layers)
        super().__init__(step, operands)
        assert operand is not None
        self._operand = operand
        self._rank, self._row_dim, self._multiple = attributes_of(step, "rank", "row_dim", "multiple")

    def __call__(self, rows: RowMap, owners: Owners) -> Tensor:
        if owners.reason is not None or self._is_one_for_all(rows):
            self._chose_plain(rows, owners.reason or ONE_FOR_ALL)
            return slot_broadcast.gather(rows, self._operand.layer, self._rank, self._row_dim, self._multiple)
        self._chose(PLAIN, BY_INDEX)
        return slot_broadcast.spread(_gathered(owners, self._operand, self._multiple), self._rank, self._row_dim)


class BoundAffine(Bound):
    """x * scale + shift over channels: a BatchNorm with no convolution before it."""

    def __init__(self, step: Step, layers: list[Layer]) -> None:
        scale, shift = operands = operands_of(step, layers)
        super().__init__(step, operands)
        assert scale is not None and shift is not None
        self._scale, self._shift = scale, shift

    def __call__(self, rows: RowMap, owners: Owners, x: Tensor) -> Tensor:
        if owners.reason is not None or self._is_one_for_all(rows):
            self._chose_plain(rows, owners.reason or ONE_FOR_ALL)
            return slot_broadcast.affine(rows, x, self._scale.layer, self._shift.layer)
        self._chose(PLAIN, BY_INDEX)
        multiple = x.shape[0] // rows.total
        scale, shift = (
            _gathered(owners, operand, multiple).view(x.shape[0], -1, *(1,) * (x.ndim - 2))
            for operand in (self._scale, self._shift)
        )
        return torch.addcmul(shift, x, scale)


def _gathered(owners: Owners, operand: Operand, multiple: int) -> Tensor:
    values = operand.layer.stack.index_select(0, owners.index(operand))
    if multiple == 1:
        return values
    return values.repeat_interleave(multiple, 0, output_size=values.shape[0] * multiple)
