"""A merged lane whose members read the owners of their rows from device tables, in plain torch: one graph for any mix.

It stands for merged programs in the form for GPUs. Their common launches read tables that are uploaded; so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spacetime.backends.merged import MergedExecutable
from spacetime.capture.merge import Schedule
from spacetime.ir import Program
from spacetime.kernels import SlotKernel
from spacetime.kernels.together import Spans
from spacetime.merged import MergedProgram, Part, Step
from tests.backends.cuda.any_cohort import AnyCohort, AnyProgram
from tests.backends.cuda.lanes import Cohort

THIRDS = torch.full((3,), 1 / 3)


class AnyCode:
    """In the place of MergedCode."""

    def __init__(self, programs: Sequence[AnyProgram], schedule: Schedule) -> None:
        self.programs = programs
        self.schedule = schedule
        self.commons = ()

    def warm(self) -> None:
        pass

    def kernels_of(self, member: int) -> tuple[SlotKernel, ...]:
        return (self.programs[member].owners,)

    def run(self, spans: Spans, inputs: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
        found: list[tuple[Tensor, ...]] = []
        for program, rows, own in zip(self.programs, spans.rows, inputs, strict=True):
            if rows is None:
                found.append(())
                continue
            one = spans.upload(THIRDS, torch.device("cpu")).sum()
            found.append(tuple([y * one for y in program.run(rows, *own)]))
        return found


def _in_turn(programs: Sequence[Program]) -> MergedProgram:
    """Which launches are common is the code's business."""
    parts = [Part(member, kernel.index) for member, program in enumerate(programs) for kernel in program.kernels]
    return MergedProgram(tuple(programs), tuple([Step((part,), "alone") for part in parts]))


class AnyMerged(Cohort):
    """Two cohorts: tenants a, b, c and d, e."""

    def __init__(self) -> None:
        self.cohorts = (AnyCohort("abc"), AnyCohort("de"))
        members = [cohort.executable for cohort in self.cohorts]
        merged = MergedExecutable(_in_turn([member.cohort.program for member in members]), members)
        programs = [cohort.program for cohort in self.cohorts]
        code: Any = AnyCode(programs, merged.schedule)
        merged._code = code
        self.executable: Any = merged

    @property
    def modules(self) -> dict[str, nn.Module]:  # type: ignore[override]
        return {name: module for cohort in self.cohorts for name, module in cohort.modules.items()}
