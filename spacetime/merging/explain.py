"""Why every kernel runs as it does in a merged program: with whom, what that saves, or why with nobody; no torch.

Values for people. Runtimes print them; nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from spacetime.errors import OptionError
from spacetime.merged import Form, MergedProgram
from spacetime.merging.align import EVERY_LAUNCH
from spacetime.merging.gains import Weights
from spacetime.merging.graph import Kinds, keyed
from spacetime.values import Value

Reason = Literal["", "no partner", "cost", "dependency"]

WHY = {
    "no partner": "no other kernel does this work",
    "cost": "a launch fewer gains nothing here",
    "dependency": "those that do the same work come before or after it, or are in another launch of its member",
}


@dataclass(frozen=True, slots=True)
class KernelFate(Value):
    """One kernel of one member. `reason` says why it runs by itself, if it does."""

    member: str
    kernel: str
    op: str
    step: int
    form: Form
    partners: tuple[str, ...]  # "member.kernel"
    saved_launches: float  # its share of the launches that the step spares: they add up over the kernels
    reason: Reason


@dataclass(frozen=True, slots=True)
class MergeExplanation(Value):
    """All kernels by member, and the totals. It prints as a table."""

    kernels: tuple[KernelFate, ...]
    num_launches: int
    num_alone: int

    @property
    def saved(self) -> float:
        return 1 - self.num_launches / self.num_alone if self.num_alone else 0.0

    def reasons(self) -> dict[str, int]:
        """How many kernels run by themselves, by reason."""
        return {reason: sum(fate.reason == reason for fate in self.kernels) for reason in get_args(Reason) if reason}

    def __str__(self) -> str:
        header = ("member", "kernel", "operation", "step", "form", "saved", "with, or why not")
        rows = [header, *(_cells(fate) for fate in self.kernels)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
        lines = [f"{self.num_alone} launches in {self.num_launches} ({self.saved:.1%} saved)"]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*cells, row[-1]]).rstrip())
        lines += [f"{count} alone: {WHY[reason]}" for reason, count in self.reasons().items() if count]
        return "\n".join(lines)


def explain(merged: MergedProgram, weights: Weights = EVERY_LAUNCH, names: Sequence[str] = ()) -> MergeExplanation:
    """`weights` are those it was aligned with; `names` of the members, by default their signatures."""
    if names and len(names) != len(merged.programs):
        raise OptionError(
            f"{len(names)} names do not fit a merged program",
            f"it has {len(merged.programs)} members",
            "name every member, in the order of MergedProgram.programs",
        )
    members = tuple(names) or tuple(program.signature for program in merged.programs)
    keys, kinds = keyed(merged.programs, weights)
    counts = np.bincount(np.concatenate(keys), minlength=len(kinds.kernels))
    fates = []
    for member, program in enumerate(merged.programs):
        for kernel in program.kernels:
            index = merged.steps_of[member][kernel.index]
            step = merged.steps[index]
            partners = [p for p in step.parts if (p.member, p.kernel) != (member, kernel.index)]
            fates.append(
                KernelFate(
                    member=members[member],
                    kernel=kernel.name,
                    op=kernel.op,
                    step=index,
                    form=step.form,
                    partners=tuple([f"{members[p.member]}.{merged.kernel(p).name}" for p in partners]),
                    saved_launches=len(partners) / len(step.parts),
                    reason="" if partners else _reason(keys[member][kernel.index], counts, kinds),
                )
            )
    return MergeExplanation(tuple(fates), merged.num_launches, merged.num_alone)


def _reason(key: int, counts: np.ndarray[tuple[int], np.dtype[np.intp]], kinds: Kinds) -> Reason:
    """Aligning leaves no two kernels apart that could be joined and gain by it."""
    gains = kinds.gains_with(key)
    others = counts.copy()
    others[key] -= 1
    if ((gains > 0) & (others > 0)).any():
        return "dependency"
    return "cost" if others[key] or (kinds.alike(key) & (others > 0)).any() else "no partner"


def _cells(fate: KernelFate) -> tuple[str, ...]:
    why = ", ".join(fate.partners) or fate.reason
    return (fate.member, fate.kernel, fate.op, str(fate.step), fate.form, f"{fate.saved_launches:.2f}", why)
