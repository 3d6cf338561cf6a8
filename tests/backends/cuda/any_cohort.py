"""A cohort whose program reads the owners of its rows from device tables, in plain torch: one graph for any mix.

It stands for programs in the form for GPUs (capture/on_gpu.py), whose kernels a CPU has not. Idle rows get NaN.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spacetime.backends.compiler import Compiled
from spacetime.capture.fuse import FusedProgram, Step
from spacetime.capture.layer import Layer
from spacetime.kernels import MixError, RowMap
from spacetime.kernels.bound.owners import MakeOwners
from spacetime.kernels.rowmap import faults_in, slots_in
from tests.backends.cuda.lanes import Cohort

TOO_LARGE = 100.0  # an input beyond this asks for what does not exist


class AnyProgram:
    """The program of `tiny` modules. `ran`: the rows of all batches whose owners the host did not know."""

    def __init__(self, fused: FusedProgram, layers: list[Layer], *, needs_mix: bool = False) -> None:
        assert [step.node for step in fused.steps if step.node] == ["linear", "relu", "linear_1"]
        self.layers = layers
        self.owners = MakeOwners(layers)
        self.needs_mix = needs_mix
        self.ran: list[int] = []
        self.compiled = Compiled(self.run, (self.owners,))

    def run(self, rows: RowMap, x: Tensor) -> tuple[Tensor, ...]:
        if rows.any_mix:
            self.ran.append(rows.total)
            if self.needs_mix:
                raise MixError("step 'fc' has no kernel for any mix of tenants", "conv9d", "capture each mix alone")
        words, table = rows.words(torch.device("cpu")), self.owners.table.current()
        slots = slots_in(words)[: rows.total]
        entries = table.index_select(1, slots.clamp_min(0)).clamp_min(0)
        faults_in(words)[: rows.total].copy_((x[:, 0] > TOO_LARGE) & (slots >= 0))
        y = self._linear(torch.relu(self._linear(x, entries, 0)), entries, 2)
        return (torch.where((slots < 0).unsqueeze(1), float("nan"), y),)

    def _linear(self, x: Tensor, entries: Tensor, index: int) -> Tensor:
        weight, bias = (layer.stack for layer in self.layers[index : index + 2])
        own = weight.index_select(0, entries[index])
        return torch.bmm(own, x.unsqueeze(2)).squeeze(2) + bias.index_select(0, entries[index + 1])


def in_gpu_form(fused: FusedProgram) -> FusedProgram:
    """With the steps that tell such a program from others."""
    steps = (Step("__owners", "gpu_owners"), *fused.steps, Step("__faults", "gpu_faults"))
    return replace(fused, steps=steps)


class AnyCohort(Cohort):
    def __init__(self, names: str = "abc", *, needs_mix: bool = False) -> None:
        super().__init__(names)
        cohort = self.executable.cohort
        cohort.fused = in_gpu_form(cohort.fused)
        program = self.program = AnyProgram(cohort.fused, cohort.layers, needs_mix=needs_mix)
        self.executable._program = program.compiled
        self.table, self.ran = program.owners.table, program.ran
