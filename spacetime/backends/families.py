"""Tenants whose inputs vary in length: a program per length, one set of weights. Used by the runtime.

A fused lane holds requests of any lengths. Those that round up to the same length go through its program together,
padded; one after another the programs of a lane make one launch per layer and length instead of one per request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture.cohort import Cohort
from spacetime.capture.export import Unfusible
from spacetime.capture.lengths import Cut, Lengths
from spacetime.capture.program import Captured
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Outcome


class LengthsExecutable:
    """`main` has the program of the longest inputs, and the weights. Plain lanes run modules as they are."""

    def __init__(self, main: CohortExecutable, lengths: Lengths, modules: Mapping[str, nn.Module]) -> None:
        self.main = main
        self.lengths = lengths
        self.programs: dict[int, CohortExecutable] = {lengths.most: main}
        self.reasons: dict[int, str] = {}  # why a length has no program
        self.cut: Cut | None = None  # None: padding changes results, or was never tried
        self.why_not_padded = ""
        self._modules = modules
        self._names: dict[str, None] = {}  # in order

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add_program(self, length: int, captured: Captured) -> None:
        """`Unfusible` where the program does not have the weights of the main one."""
        mains = [(weight.name, tuple(weight.tensor.shape)) for weight in self.main.cohort.captured.weights]
        if [(weight.name, tuple(weight.tensor.shape)) for weight in captured.weights] != mains:
            raise Unfusible("at this length the module uses other weights")
        founder = next(iter(self.main.cohort.members.values()))
        brought = [index for index, tensors in enumerate(founder.weights) if tensors]
        cohort = Cohort(captured.without_contents(brought), main=self.main.cohort)
        self.programs[length] = CohortExecutable(cohort, self._modules, prepack=self.main.prepack)

    def join(self, name: str) -> None:
        """A tenant that has joined the main cohort."""
        self._names[name] = None
        for executable in self._others():
            executable.cohort.follow(self.main.cohort.members[name])

    def leave(self, name: str) -> None:
        """Before it leaves the main cohort."""
        self._names.pop(name, None)
        for executable in self._others():
            executable.cohort.unfollow(name)

    @property
    def is_empty(self) -> bool:
        return not self._names

    def run(self, lane: Lane, payloads: Sequence[Call]) -> Sequence[Outcome]:
        if not lane.fused:
            return self.main.run(lane, payloads)
        outcomes: list[Outcome] = [Outcome()] * len(payloads)
        for step, indices in self._by_step(payloads).items():
            requests = tuple([lane.requests[index] for index in indices])
            calls = [payloads[index] for index in indices]
            for index, outcome in zip(indices, self._run(step, replace(lane, requests=requests), calls), strict=True):
                outcomes[index] = outcome
        return outcomes

    def answer(self, name: str, call: Call) -> Outcome:
        """One tenant's result by the programs, for the self-check."""
        step = self.lengths.step(self.lengths.of_args(call.args))
        executable = self.programs[step]
        padded = self._padded(call, step)
        leaves = executable.flat_outputs(name, padded.tensors)
        spec = executable.cohort.captured.exported.out_spec
        value = leaves[0] if spec.is_leaf() else pytree.tree_unflatten(leaves, spec)
        return Outcome(self._shortened(value, call))

    def _by_step(self, payloads: Sequence[Call]) -> dict[int | None, list[int]]:
        """None: lengths without a program, or whose padding would change the result."""
        groups: dict[int | None, list[int]] = {}
        for index, call in enumerate(payloads):
            length = self.lengths.of_args(call.args)
            step: int | None = self.lengths.step(length)
            if step not in self.programs or (step != length and self.cut is None):
                step = None
            groups.setdefault(step, []).append(index)
        return groups

    def _run(self, step: int | None, lane: Lane, calls: Sequence[Call]) -> Sequence[Outcome]:
        if step is None:
            return self.main.run(replace(lane, fused=False), calls)
        outcomes = self.programs[step].run(lane, [self._padded(call, step) for call in calls])
        return [
            outcome if outcome.error is not None else Outcome(self._shortened(outcome.value, call))
            for outcome, call in zip(outcomes, calls, strict=True)
        ]

    def _padded(self, call: Call, step: int) -> Call:
        if self.lengths.of_args(call.args) == step:
            return call
        return Call.of(self.lengths.padded(call.args, step))

    def _shortened(self, value: object, call: Call) -> object:
        length = self.lengths.of_args(call.args)
        if self.cut is None or length in self.programs:
            return value
        with torch.no_grad():
            return self.cut(value, length)

    def _others(self) -> list[CohortExecutable]:
        return [executable for executable in self.programs.values() if executable is not self.main]
