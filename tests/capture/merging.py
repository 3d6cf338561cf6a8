"""What the tests of merged execution share: executables of the zoo made once, random but valid merged programs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.merged import MergedExecutable
from spacetime.capture.cohort import Cohort
from spacetime.capture.program import Captured
from spacetime.capture.selfcheck import magnitude, problem
from spacetime.device import Partition
from spacetime.ir import Program
from spacetime.merged import Form, MergedProgram, Part, Step, dtype_of, is_same_work
from spacetime.merging.align import align
from spacetime.plan import Lane, RequestView, Segment
from spacetime.scheduler.protocols import Outcome
from spacetime.zoo import build, example
from tests.capture.tenants import capture, weights_of, zoo_capture

Inputs = tuple[Tensor, ...]
Request = tuple[str, Inputs]

TENANTS_EACH = 2


def executable_of(captured: Captured, modules: dict[str, nn.Module]) -> CohortExecutable:
    executable = CohortExecutable(Cohort(captured), modules)
    for name, module in modules.items():
        executable.join(name, weights_of(captured, module))
    return executable


def captured_executable(inputs: Inputs, **modules: nn.Module) -> CohortExecutable:
    return executable_of(capture(next(iter(modules.values())), inputs), modules)


@cache
def zoo_modules(name: str) -> dict[str, nn.Module]:
    return {f"{name}.{seed}": build(name, seed) for seed in range(TENANTS_EACH)}


@cache
def zoo_executable(name: str) -> CohortExecutable:
    return executable_of(zoo_capture(name), zoo_modules(name))


def zoo_inputs(tenant: str, rows: int, seed: int) -> Inputs:
    return example(tenant.partition(".")[0], rows, seed)


def aligned(*members: CohortExecutable) -> MergedExecutable:
    by_signature = {member.cohort.program.signature: member for member in members}
    merged = align([member.cohort.program for member in members])
    return MergedExecutable(merged, [by_signature[program.signature] for program in merged.programs])


def merged_of(random: Random, *members: CohortExecutable) -> MergedExecutable:
    return MergedExecutable(random_merge([member.cohort.program for member in members], random), members)


def random_merge(programs: Sequence[Program], random: Random) -> MergedProgram:
    """Any order that dependencies allow; of the kernels that could join a step, any do."""
    missing = {(m, k.index): len(k.deps) for m, program in enumerate(programs) for k in program.kernels}
    readers: dict[tuple[int, int], list[tuple[int, int]]] = {place: [] for place in missing}
    for member, index in missing:
        for dep in programs[member].kernels[index].deps:
            readers[member, dep].append((member, index))
    ready = sorted(place for place, number in missing.items() if number == 0)
    steps = []
    while ready:
        first = random.choice(ready)
        one = programs[first[0]].kernels[first[1]]
        others = [(p, programs[p[0]].kernels[p[1]]) for p in ready if p != first]
        same = [p for p, kernel in others if is_same_work(one, kernel)]
        alike = [p for p, kernel in others if (kernel.op, dtype_of(kernel)) == (one.op, dtype_of(one))]
        form: Form = random.choice(["shared", "shared", "grouped", "alone"])
        joined = {"shared": same, "grouped": alike, "alone": []}[form]
        parts = sorted([first, *(p for p in joined if random.random() < 0.9)])
        steps.append(Step(tuple(Part(*p) for p in parts), form if len(parts) > 1 else "alone"))
        for place in parts:
            ready.remove(place)
            for reader in readers[place]:
                missing[reader] -= 1
                if missing[reader] == 0:
                    ready.append(reader)
    return MergedProgram(tuple(programs), tuple(steps))


def run(executable: MergedExecutable, requests: Sequence[Request], *, fused: bool = True) -> list[Outcome]:
    views = tuple(RequestView(i, name, args[0].shape[0], 0) for i, (name, args) in enumerate(requests))
    lane = Lane("merged", views, (Segment(Partition(1, 1, 1)),), fused)
    return executable.run(lane, [Call(args, args) for _, args in requests])


def trouble(module: nn.Module, args: Inputs, outcome: Outcome, usual: Inputs) -> str | None:
    """How a result breaks the contract. `usual`: rows enough to tell how large the module's outputs are."""
    if outcome.error is not None:
        return repr(outcome.error)
    with torch.no_grad():
        leaves, spec = pytree.tree_flatten(module(*args))
        scales: list[Any] = [magnitude(leaf) for leaf in pytree.tree_leaves(module(*usual))]
    results, found = pytree.tree_flatten(outcome.value)
    return problem(results, leaves, scales) if found == spec else f"{found} is not {spec}"
