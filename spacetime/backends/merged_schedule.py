"""What a merged lane calls, where its members' programs have the form for GPUs. Used by backends/merged.py.

Only products have a common launch on a GPU (kernels/bound/together*.py). Everything else runs member by member: plain
torch would have to copy the rows of several programs together first, which is a launch of its own and more memory than
the operation itself moves.

`capture.merge.schedule` asks in the words of the form for CPUs which calls are alike. So it is shown the steps under
names that say this, and is taken at its word by what the steps produce.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from spacetime.capture.cohort import Cohort
from spacetime.capture.fuse import FusedProgram, Ref, Step
from spacetime.capture.merge import Launch, Note, Schedule, Segment, schedule
from spacetime.merged import MergedProgram
from spacetime.merged import Step as MergedStep

_SHOWN_AS = {"gpu_linear": "linear", "gpu_conv": "conv"}
_FAULTS = "gpu_faults"
_NO_FORM = "no common launch on a GPU"

Steps = dict[str, Step]  # by what they produce


def merged_schedule(merged: MergedProgram, cohorts: Sequence[Cohort]) -> Schedule:
    """`cohorts` in the order of the merged program's members."""
    if not any(is_on_gpu(cohort) for cohort in cohorts):
        return schedule(merged, cohorts)
    own = [{step.out: step for step in cohort.fused.steps} for cohort in cohorts]
    found = schedule(merged, [_shown(cohort) for cohort in cohorts])
    items = tuple([_restored(item, own) for item in found.items])
    return replace(found, items=items, notes=tuple([_restored_note(note) for note in found.notes]))


def as_launched(merged: MergedProgram, cohorts: Sequence[Cohort]) -> MergedProgram:
    """The program with only those steps in common that have a common launch: what a cost model has to judge."""
    if not any(is_on_gpu(cohort) for cohort in cohorts):
        return merged
    joined = [_joinable(cohort) for cohort in cohorts]
    steps: list[MergedStep] = []
    for step in merged.steps:
        if all(part.kernel in joined[part.member] for part in step.parts):
            steps.append(step)
        else:
            steps.extend(MergedStep((part,), "alone") for part in step.parts)
    return MergedProgram(merged.programs, tuple(steps))


def _joinable(cohort: Cohort) -> set[int]:
    """Kernels that a common launch is known for."""
    nodes = {step.node for step in cohort.fused.steps if step.target in _SHOWN_AS}
    return {index for index, node in enumerate(cohort.captured.kernel_nodes) if node in nodes}


def is_on_gpu(cohort: Cohort) -> bool:
    """Is its program in the form for GPUs (capture/on_gpu.py)?"""
    return any(step.target == "gpu_owners" for step in cohort.fused.steps)


def _shown(cohort: Cohort) -> Cohort:
    shown = copy(cohort)
    shown.fused = replace(cohort.fused, steps=tuple([_shown_step(step, cohort.fused) for step in cohort.fused.steps]))
    return shown


def _shown_step(step: Step, program: FusedProgram) -> Step:
    if step.target == _FAULTS:  # looks at the marks of all lookups, so it comes behind what they lead to
        return replace(step, args=(*step.args, *(output for output in program.outputs if isinstance(output, Ref))))
    if step.target in _SHOWN_AS:  # calls are alike with a residual and without
        rest = {str(index): value for index, value in enumerate(step.args[2:])}
        return replace(step, target=_SHOWN_AS[step.target], args=step.args[:2], kwargs=rest)
    return replace(step, target=str(step.target))  # the name of a slot operation that no launch is known for


def _restored(item: Launch | Segment, own: Sequence[Steps]) -> Launch | Segment:
    if isinstance(item, Segment):
        return replace(item, steps=tuple([own[item.member][step.out] for step in item.steps]))
    calls = tuple([replace(call, step=own[call.member][call.step.out]) for call in item.calls])
    return replace(item, calls=calls)


def _restored_note(note: Note) -> Note:
    return replace(note, reason=_NO_FORM) if note.reason.endswith(" form") else note
