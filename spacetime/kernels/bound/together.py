"""Linear layers of several programs in one launch, over the slabs of all. The GPU form of TogetherLinear.

Equal layers of few rows are the same kernel once for each program (triton/stacked.py). All others are tiles of one
grouped_linear, whatever their shapes. A table says where each program's rows, weights, biases and results lie; who the
rows belong to is read from the owners of each program, so a captured launch serves any mix. Which tiles there are
depends on shapes alone: that table is made once for numbers of rows up to a power of two, and stays on the device.
Where all rows of each program use the same weights, as of a frozen backbone, they are one row with the rows of x of
all. So programs that share them (owners.py) read them in one place, in one launch, once for each tile of rows.
Calls that neither takes are launched by themselves (linear.py), and `apart` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spacetime.capture.fuse import Ref, Step
from spacetime.capture.layer import Layer
from spacetime.kernels.bound.linear import BoundLinear
from spacetime.kernels.bound.operation import Engine, attributes_of, operands_of, refusal, rows_first
from spacetime.kernels.bound.owners import Owners
from spacetime.kernels.bound.stacking import run_stacked
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.together import Parts, Spans
from spacetime.kernels.triton import grouped_linear, slot_gemv, slot_linear
from spacetime.kernels.triton.blocks import power_of_two
from spacetime.kernels.triton.choose import Plan, config_for, linear_plan
from spacetime.kernels.triton.launch import ITEM_BYTES, NAMES

# A lane's partition confines the launch already; several programs on a unit hide each other's waiting for memory.
PROGRAMS_PER_UNIT = 4
MOST_TABLES = 256  # of tiles, that are kept; they are never dropped, a lane may be reading them
TILES = 16  # come in multiples of so many
WIDTH_BYTES = 16  # of every load


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """What one call gets in a lane. `flat`: its input as [rows, M, K]."""

    rows: RowMap
    owners: Owners
    x: Tensor
    flat: Tensor
    residual: Tensor | None


class _Call:
    """One linear layer of one program."""

    def __init__(self, step: Step, reads: Sequence[str], layers: list[Layer]) -> None:
        self.alone = BoundLinear(step, layers)
        weight, self._bias = operands_of(step, layers)
        assert weight is not None
        self._weight = weight
        self._row_dim, self.activation = attributes_of(step, "row_dim", "epilogue")
        self._names = [arg.name for arg in step.args if isinstance(arg, Ref)]
        self._reads = tuple(reads)

    def given(self, rows: RowMap, values: Sequence[Any]) -> _Given:
        known = dict(zip(self._reads, values, strict=True))
        owners, x, *residual = [known[name] for name in self._names]
        first = rows_first(x, self._row_dim)
        flat = first.reshape(rows.total, -1, first.shape[-1]).contiguous()
        return _Given(rows, owners, x, flat, residual[0] if residual else None)

    def by_itself(self, given: _Given) -> Tensor:
        extra = () if given.residual is None else (given.residual,)
        return self.alone(given.rows, given.owners, given.x, *extra)

    def refusal(self, given: _Given) -> str | None:
        """Why no kernel takes it."""
        stack = self._weight.layer.stack
        reason = given.owners.reason or refusal(given.flat, stack)
        if reason is not None:
            return reason
        if stack.stride(2) != 1 or stack.stride(1) != stack.shape[2]:
            return "the weights lie transposed in memory"
        return None

    def too_narrow(self, given: _Given) -> str | None:
        """Why grouped_linear does not take it."""
        stack, x = self._weight.layer.stack, given.flat
        if x.shape[2] * ITEM_BYTES[NAMES[x.dtype]] % WIDTH_BYTES:
            return f"{x.shape[2]} columns of {NAMES[x.dtype]} are no multiple of {WIDTH_BYTES} bytes"
        if x.data_ptr() % WIDTH_BYTES or stack.data_ptr() % WIDTH_BYTES:
            return f"its rows or weights do not start at a multiple of {WIDTH_BYTES} bytes"
        return None

    def operands(self, given: _Given) -> slot_linear.Operands:
        owners, flat = given.owners, given.flat
        weight = owners.slotted(self._weight)
        out = flat.new_empty(*flat.shape[:2], weight.stack.shape[1])
        residual = None
        if given.residual is not None:
            residual = rows_first(given.residual, self._row_dim).reshape(out.shape).contiguous()
        bias = None if self._bias is None else owners.slotted(self._bias)
        return slot_linear.Operands(flat, weight, owners.num_active, out, bias, residual)

    def is_one(self, given: _Given) -> bool:
        """Do few rows of x, of all rows, meet the same weights?"""
        is_single = given.owners.are_single(self._weight, self._bias)
        return is_single and given.flat.shape[1] <= slot_linear.FEW

    def result(self, given: _Given, out: Tensor) -> Tensor:
        first = rows_first(given.x, self._row_dim)
        y = out.view(*first.shape[:-1], out.shape[2])
        return y.movedim(0, self._row_dim) if self._row_dim else y


class BoundTogetherLinear:
    """y = activation(x @ W[slot].T + b[slot] + residual) of every call, each with its own activation and residual."""

    def __init__(self, steps: Sequence[Step], reads: Sequence[Sequence[str]], layers: Sequence[list[Layer]]) -> None:
        """By call; `layers` of the program that it belongs to."""
        self._calls = [_Call(*of_call) for of_call in zip(steps, reads, layers, strict=True)]
        self._plans: dict[slot_linear.Shape, Plan] = {}
        self._tiles: dict[grouped_linear.Shape, Tensor] = {}
        self.apart: dict[int, str] = {}  # calls that were launched by themselves the last time, and why
        self.num_together = 0  # calls in the last common launches

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> dict[int, Tensor]:
        given = {part: self._calls[part].given(rows, values[part]) for part, rows in parts.items()}
        apart = {part: reason for part, own in given.items() if (reason := self._calls[part].refusal(own)) is not None}
        operands = {part: self._calls[part].operands(own) for part, own in given.items() if part not in apart}
        if all(self._calls[part].is_one(given[part]) for part in operands):  # one alone would not be like the others
            operands = {part: slot_linear.folded(own) for part, own in operands.items()}
        left = self._stacked(spans, given, operands)
        apart |= {part: reason for part in left if (reason := self._calls[part].too_narrow(given[part])) is not None}
        fit = [part for part in left if part not in apart]
        if len(fit) == 1:
            apart[fit.pop()] = "no other call fits with it"
        if fit:
            self._grouped(spans, given, {part: operands[part] for part in fit})
        self.apart, self.num_together = apart, len(given) - len(apart)
        return {
            part: self._calls[part].by_itself(own)
            if part in apart
            else self._calls[part].result(own, operands[part].out)
            for part, own in given.items()
        }

    def _stacked(self, spans: Spans, given: dict[int, _Given], operands: dict[int, slot_linear.Operands]) -> list[int]:
        """Launch what is alike and served best without tensor cores. Which calls are left."""
        launches = {}
        total = sum([own.x.shape[0] for own in operands.values()])
        for part, own in operands.items():
            engine = _engine(given[part])
            described = slot_linear.describe(own, self._calls[part].activation)
            like = replace(described, rows=total)  # unlike numbers of rows would have unlike tiles
            plan = self._plans.get(like)
            if plan is None:
                plan = self._plans[like] = linear_plan(like, engine.target, engine.table)
            if plan.kernel is slot_gemv:
                shape = replace(plan.shape, rows=described.rows)
                launches[part] = slot_gemv.launch(shape, plan.config, own, engine.target)
        left = set(run_stacked(spans, launches))
        return [part for part in operands if part not in launches or part in left]

    def _grouped(self, spans: Spans, given: dict[int, _Given], of_calls: dict[int, slot_linear.Operands]) -> None:
        engine = _engine(given[next(iter(of_calls))])
        operands = grouped_linear.Operands(tuple(of_calls.values()))
        activations = [self._calls[part].activation for part in of_calls]
        shape = grouped_linear.describe(operands, activations, PROGRAMS_PER_UNIT * engine.target.num_units)
        problems = spans.upload(grouped_linear.problem_table(shape, operands), operands.layers[0].x.device)
        like = replace(shape, layers=tuple(map(_rounded, shape.layers)))
        config = config_for(grouped_linear, like, engine.target, engine.table)
        tables = grouped_linear.Tables(problems, self._tiles_of(like, config, spans, problems.device))
        grouped_linear.launch(like, config, replace(operands, tables=tables), engine.target).run()

    def _tiles_of(
        self, like: grouped_linear.Shape, config: grouped_linear.Config, spans: Spans, device: torch.device
    ) -> Tensor:
        """Made by the first lane of so many rows; a capture comes after lanes, and finds it there."""
        tiles = self._tiles.get(like)
        if tiles is not None:
            spans.hold(tiles)
            return tiles
        table = grouped_linear.tile_table(like, config, TILES)
        if spans.is_late or len(self._tiles) >= MOST_TABLES:
            return spans.upload(table, device)
        # Waits for the copy: lanes on other streams read it from now on.
        tiles = self._tiles[like] = torch.empty_like(table, device=device).copy_(table)
        return tiles


def _rounded(layer: slot_linear.Shape) -> slot_linear.Shape:
    """For tables of tiles: there are few of them, and tiles of rows that are not there do nothing."""
    if layer.rows == 1:  # perhaps it is the rows of all
        return replace(layer, m=power_of_two(layer.m))
    return replace(layer, rows=power_of_two(layer.rows))


def _engine(given: _Given) -> Engine:
    engine = given.owners.engine
    assert isinstance(engine, Engine)
    return engine
