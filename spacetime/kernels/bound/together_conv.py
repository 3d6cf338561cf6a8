"""Equal convolutions of several programs in one launch, over the slabs of all. The GPU form of TogetherConv.

One kernel, once for each program (triton/stacked.py). What follows a convolution inside of the call is part of the
kernel here, so calls share a launch where that is equal, too: a BatchNorm, a residual, an activation. The others, and
what no kernel takes, are launched by themselves (conv.py), and `apart` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from spacetime.capture.fuse import Ref, Step
from spacetime.capture.layer import Layer
from spacetime.kernels.bound.conv import BoundConv
from spacetime.kernels.bound.operation import Engine
from spacetime.kernels.bound.owners import Owners
from spacetime.kernels.bound.stacking import run_stacked
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.together import Parts, Spans
from spacetime.kernels.triton import convolution
from spacetime.kernels.triton.choose import Plan, convolution_plan
from spacetime.kernels.triton.launch import Launch


class _Call:
    """One convolution of one program."""

    def __init__(self, step: Step, reads: Sequence[str], layers: list[Layer]) -> None:
        self.bound = BoundConv(step, layers)
        self._names = [arg.name for arg in step.args if isinstance(arg, Ref)]
        self._reads = tuple(reads)

    def given(self, rows: RowMap, values: Sequence[Any]) -> tuple[Any, ...]:
        """(rows, owners, x), and the residual if there is one."""
        known = dict(zip(self._reads, values, strict=True))
        return (rows, *(known[name] for name in self._names))

    def refusal(self, given: tuple[Any, ...]) -> str | None:
        owners: Owners = given[1]
        return owners.reason or self.bound.refusal(given[2])


class BoundTogetherConv:
    def __init__(self, steps: Sequence[Step], reads: Sequence[Sequence[str]], layers: Sequence[list[Layer]]) -> None:
        """By call; `layers` of the program that it belongs to."""
        self._calls = [_Call(*of_call) for of_call in zip(steps, reads, layers, strict=True)]
        self._plans: dict[convolution.Shape, Plan] = {}
        self.apart: dict[int, str] = {}  # calls that were launched by themselves the last time, and why
        self.num_together = 0  # calls in the last common launches

    def __call__(self, spans: Spans, parts: Parts, values: dict[int, Sequence[Any]]) -> dict[int, Tensor]:
        given = {part: self._calls[part].given(rows, values[part]) for part, rows in parts.items()}
        apart = {part: reason for part, own in given.items() if (reason := self._calls[part].refusal(own)) is not None}
        fit = {part: self._calls[part].bound.operands(*own) for part, own in given.items() if part not in apart}
        total = sum([described.rows for _, described in fit.values()])
        engines = {part: given[part][1].engine for part in fit}
        launches = {part: self._launch(*fit[part], total, engines[part]) for part in fit}
        apart |= dict.fromkeys(run_stacked(spans, launches), "no other call is like it")
        self.apart, self.num_together = apart, len(given) - len(apart)
        return {
            part: self._calls[part].bound(*own) if part in apart else self._calls[part].bound.result(fit[part][0].out)
            for part, own in given.items()
        }

    def _launch(
        self, operands: convolution.Operands, described: convolution.Shape, total: int, engine: Engine
    ) -> Launch:
        """Planned as one of all rows, or unlike numbers of rows would have unlike tiles."""
        like = replace(described, rows=total)
        plan = self._plans.get(like)
        if plan is None:
            plan = self._plans[like] = convolution_plan(like, engine.target, engine.table)
        launch: Launch = plan.kernel.launch(
            replace(plan.shape, rows=described.rows), plan.config, operands, engine.target
        )
        return launch
