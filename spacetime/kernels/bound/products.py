"""Linear layers by other means than slot kernels, where that is measured to be faster. Used by bound/linear.py only."""

from __future__ import annotations

from spacetime.kernels import batched_gemm
from spacetime.kernels.bound.operation import Engine, Operand
from spacetime.kernels.bound.owners import Owners
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.triton import ways
from spacetime.kernels.triton.products import (
    BADDBMM,
    BATCHED,
    GROUPED,
    SLOT,
    UNMEASURED,
    WAYS,
    Decision,
    Shape,
    decide,
    decide_any,
    refusal,
)
from spacetime.kernels.triton.slot_linear import Operands
from spacetime.kernels.triton.slot_linear import Shape as Linear


class Products:
    """The choices for one layer: by shape, mix and size of the slab."""

    def __init__(self, weight: Operand, bias: Operand | None) -> None:
        self._weight = weight
        self._bias = bias
        self._decisions: dict[tuple[Linear, int, int, bool], Decision] = {}

    def decide(self, rows: RowMap, engine: Engine, shape: Linear, *, is_placed: bool) -> Decision:
        """`is_placed`: are its weights found by address?"""
        if not engine.has_products:
            return UNMEASURED
        slots, num_entries = self._num_in_block(rows), self._weight.layer.stack.shape[0]
        known = (shape, slots, num_entries, is_placed)
        decision = self._decisions.get(known)
        if decision is None:
            usable = [way for way in WAYS if _refusal(way, shape, engine, num_entries) is None]
            if is_placed:  # the others count entries of the slab, and some may lie elsewhere; the block lies in it
                usable = [way for way in usable if way in (SLOT, BADDBMM)]
            decision = (
                decide(Shape(shape, slots), usable, engine.target, engine.table)
                if slots
                else decide_any(shape, usable, engine.target, engine.table)
            )
            self._decisions[known] = decision
        return decision

    def run(self, way: str, rows: RowMap, owners: Owners, operands: Operands, activation: str) -> None:
        """One of the ways that are no slot kernels; it leaves its result in `operands.out`."""
        if way == BADDBMM:
            runs = rows.layout(self._weight.layer).runs
            first_bias = 0 if self._bias is None else rows.layout(self._bias.layer).first.entry
            ways.baddbmm(operands, activation, runs[0].entry, len(runs), first_bias)
            return
        of_bias = None if self._bias is None else owners.index(self._bias)
        if way == GROUPED:
            ways.grouped_mm(operands, activation, owners.by_entry, self._weight.index, of_bias)
        else:
            assert way == BATCHED, way
            ways.cublas_batched(operands, activation, of_bias)

    def _num_in_block(self, rows: RowMap) -> int:
        """How many entries the rows use, in equal parts and in their order in memory; 0 where that is not so.

        Only then is a part of the slab, as it lies there, the weights of the batch.
        """
        if rows.any_mix:
            return 0
        counts = set[int]()
        for operand in filter(None, (self._weight, self._bias)):
            layout = rows.layout(operand.layer)
            number = len(layout.runs)
            is_block = number > 1 and layout.block and operand.layer.is_stacked(layout.first.entry, number)
            counts.add(number if is_block else 0)
        return counts.pop() if len(counts) == 1 else 0


def _refusal(way: str, shape: Linear, engine: Engine, num_entries: int) -> str | None:
    return batched_gemm.missing() if way == BATCHED else refusal(way, shape, engine.target, num_entries)
