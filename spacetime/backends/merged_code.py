"""A schedule as something that runs: segments compiled like whole programs, common launches bound. Used by backends/.

Values of members are kept apart, by name, and dropped after their last use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spacetime.backends.compiler import Compiled, compile_program
from spacetime.capture.cohort import Cohort
from spacetime.capture.fuse import FusedProgram, Ref, Step
from spacetime.capture.merge import Call, Launch, Schedule, Segment
from spacetime.capture.merge_contents import Contents
from spacetime.kernels import RowMap, SlotKernel
from spacetime.kernels.together import Spans
from spacetime.kernels.together_table import TogetherKernel, bind_together

Values = dict[str, Any]  # of one member


@dataclass(frozen=True)
class _Piece:
    """Steps of one member, compiled."""

    member: int
    compiled: Compiled
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, rows: RowMap, values: Values) -> None:
        results = self.compiled.run(rows, *[values[name] for name in self.inputs])
        values.update(zip(self.outputs, results, strict=True))


@dataclass(frozen=True)
class _Common:
    """A launch of several calls, and each of them by itself for lanes in which the others have no rows."""

    calls: tuple[Call, ...]
    reads: tuple[tuple[str, ...], ...]
    kernel: TogetherKernel
    alone: tuple[_Piece, ...]


class MergedCode:
    """Reads its layers when it runs, so tenants may come and go."""

    def __init__(self, schedule: Schedule, cohorts: Sequence[Cohort], *, prepack: bool = False) -> None:
        self.schedule = schedule
        self.contents = Contents()
        self._cohorts = cohorts
        self._prepack = prepack
        self._items = [
            self._piece(item.member, item.steps, item.inputs, item.outputs)
            if isinstance(item, Segment)
            else self._common(item)
            for item in schedule.items
        ]

    def kernels_of(self, member: int) -> tuple[SlotKernel, ...]:
        """Slot kernels that run for this member alone."""
        pieces = [item for item in self._items if isinstance(item, _Piece) and item.member == member]
        return tuple([kernel for piece in pieces for kernel in piece.compiled.kernels])

    @property
    def commons(self) -> tuple[TogetherKernel, ...]:
        """The kernels of common launches."""
        return tuple([item.kernel for item in self._items if isinstance(item, _Common)])

    @property
    def apart(self) -> list[tuple[Call, str]]:
        """What these kernels have left to itself in the last lane, and why."""
        commons = [item for item in self._items if isinstance(item, _Common)]
        found = [(item.calls, getattr(item.kernel, "apart", {})) for item in commons]
        return [(calls[index], reason) for calls, apart in found for index, reason in apart.items()]

    def warm(self) -> None:
        """Compare the weights of all members now, not when a lane meets them first."""
        for cohort in self._cohorts:
            self.contents.warm(cohort.layers)

    def run(self, spans: Spans, inputs: Sequence[Sequence[Tensor]]) -> list[tuple[Any, ...]]:
        """Outputs by member; nothing for members without rows."""
        values: list[Values] = [
            dict(zip(cohort.fused.inputs, own, strict=True)) if rows is not None else {}
            for cohort, rows, own in zip(self._cohorts, spans.rows, inputs, strict=True)
        ]
        for item, dead in zip(self._items, self.schedule.dead, strict=True):
            if isinstance(item, _Piece):
                rows = spans.rows[item.member]
                if rows is not None:
                    item.run(rows, values[item.member])
            else:
                _run_common(item, spans, values)
            for member, name in dead:
                values[member].pop(name, None)
        return [
            ()
            if rows is None
            else tuple([own[out.name] if isinstance(out, Ref) else out for out in cohort.fused.outputs])
            for cohort, rows, own in zip(self._cohorts, spans.rows, values, strict=True)
        ]

    def _piece(self, member: int, steps: tuple[Step, ...], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> _Piece:
        cohort = self._cohorts[member]
        refs = tuple(map(Ref, outputs))
        part = FusedProgram(inputs, steps, refs, (None,) * len(refs), cohort.fused.operands)
        return _Piece(member, compile_program(part, cohort.layers, prepack=self._prepack), inputs, outputs)

    def _common(self, launch: Launch) -> _Common:
        kernel = bind_together(launch, [cohort.layers for cohort in self._cohorts], self.contents)
        alone = []
        for call in launch.calls:
            steps = (*call.gathers.values(), call.step)
            alone.append(self._piece(call.member, steps, tuple(call.reads), (call.step.out,)))
        return _Common(launch.calls, tuple(tuple(call.reads) for call in launch.calls), kernel, tuple(alone))


def _run_common(common: _Common, spans: Spans, values: list[Values]) -> None:
    parts = {index: rows for index, call in enumerate(common.calls) if (rows := spans.rows[call.member]) is not None}
    if len(parts) == 1:
        ((index, rows),) = parts.items()
        common.alone[index].run(rows, values[common.calls[index].member])
    elif parts:
        given = {index: [values[common.calls[index].member][name] for name in common.reads[index]] for index in parts}
        for index, result in common.kernel(spans, parts, given).items():
            call = common.calls[index]
            values[call.member][call.step.out] = result
