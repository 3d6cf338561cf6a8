"""A linear layer with its residual and activation in one launch: slot_gemv or slot_linear, or plain torch.

Where something else is measured to be faster for the shape and the mix (products.py), that runs instead.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.kernels.bound.operation import (
    ONE_FOR_ALL,
    Bound,
    Engine,
    attributes_of,
    operands_of,
    refusal,
    rows_first,
)
from spacetime.kernels.bound.owners import Owners
from spacetime.kernels.bound.products import Products
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_linear import slot_linear
from spacetime.kernels.triton import slot_linear as wrapper
from spacetime.kernels.triton.choose import linear_plan
from spacetime.kernels.triton.launch import activated
from spacetime.kernels.triton.products import BADDBMM, SLOT


class BoundLinear(Bound):
    """y = activation(x @ W[slot].T + b[slot] + residual)"""

    def __init__(self, step: Step, layers: list[Layer]) -> None:
        weight, self._bias = operands = operands_of(step, layers)
        super().__init__(step, operands)
        assert weight is not None
        self._weight = weight
        self._row_dim, self._activation = attributes_of(step, "row_dim", "epilogue")
        self._plans: dict[wrapper.Shape, Any] = {}
        self._products = Products(weight, self._bias)

    def __call__(self, rows: RowMap, owners: Owners, x: Tensor, residual: Tensor | None = None) -> Tensor:
        reason = owners.reason or self._refusal(x) or (ONE_FOR_ALL if self._is_one_for_all(rows) else None)
        if reason is None:
            return self._launch(rows, owners, x, residual)
        self._chose_plain(rows, reason)
        bias = None if self._bias is None else self._bias.layer
        y = slot_linear(rows, x, self._weight.layer, bias, self._row_dim)
        return activated(y if residual is None else y.add_(residual), self._activation)

    def _refusal(self, x: Tensor) -> str | None:
        stack = self._weight.layer.stack
        is_dense = stack.stride(2) == 1 and stack.stride(1) == stack.shape[2]
        return refusal(x, stack) or (None if is_dense else "the weights lie transposed in memory")

    def _launch(self, rows: RowMap, owners: Owners, x: Tensor, residual: Tensor | None) -> Tensor:
        engine = owners.engine
        assert isinstance(engine, Engine)
        first = rows_first(x, self._row_dim)
        flat = first.reshape(rows.total, -1, first.shape[-1]).contiguous()
        weight = owners.slotted(self._weight)
        out = flat.new_empty(rows.total, flat.shape[1], weight.stack.shape[1])
        operands = wrapper.Operands(
            flat,
            weight,
            owners.num_active,
            out,
            None if self._bias is None else owners.slotted(self._bias),
            None if residual is None else rows_first(residual, self._row_dim).reshape(out.shape).contiguous(),
        )
        if flat.shape[1] <= wrapper.FEW and owners.are_single(self._weight, self._bias):  # rows of any mix
            operands = wrapper.folded(operands)
        described = wrapper.describe(operands, self._activation)
        decision = self._products.decide(rows, engine, described, is_placed=weight.places is not None)
        if decision.way != SLOT:
            self._chose(decision.way, decision.reason)
            self._products.run(decision.way, rows, owners, operands, self._activation)
            if decision.way == BADDBMM:
                self.whole_rows.add(rows.total)
        else:
            plan = self._plans.get(described)
            if plan is None:
                plan = self._plans[described] = linear_plan(described, engine.target, engine.table)
            self._chose(plan.kernel.NAME, decision.reason)
            plan.launch(operands, engine.target, owners.workspace).run()
        y = out.view(*first.shape[:-1], out.shape[2])
        return y.movedim(0, self._row_dim) if self._row_dim else y
