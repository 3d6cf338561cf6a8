"""Merged executions in explain(): who shares launches across architectures, what that saves, why not. Runtime only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spacetime.backends.merged import MergedExecutable
from spacetime.merging import KernelFate, explain
from spacetime.merging.explain import WHY
from spacetime.plan import MergedView
from spacetime.profiler.figures import print_op, shorten
from spacetime.trace import Trace
from spacetime.values import Value

MOST_LINES = 12  # of a report: operations beyond these are added up


@dataclass(frozen=True, slots=True)
class MemberReport(Value):
    cohort: str
    tenants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MergedReport(Value):
    """A merged execution. `kernels` says of each with whom it is launched, or why with nobody; it prints in short."""

    id: str
    members: tuple[MemberReport, ...]
    kernels: tuple[KernelFate, ...]
    num_alone: int  # launches of the members by themselves, as the programs have them ...
    num_launches: int  # ... and merged
    num_alone_executed: int  # the same of what is called: a kernel that another one has absorbed is no launch
    num_launches_executed: int
    num_products_alone: int  # of `num_alone`: matrix products, convolutions, attention, where the time goes ...
    num_products: int  # ... and merged
    apart: tuple[str, ...]  # what is called apart all the same, and why
    num_lanes: int  # merged ones among those in the trace

    @property
    def saved(self) -> float:
        return 1 - self.num_launches / self.num_alone if self.num_alone else 0.0

    @property
    def saved_executed(self) -> float:
        return 1 - self.num_launches_executed / self.num_alone_executed if self.num_alone_executed else 0.0

    @property
    def products_spared(self) -> int:
        return self.num_products_alone - self.num_products

    @property
    def products_saved(self) -> float:
        return 1 - self.num_products / self.num_products_alone if self.num_products_alone else 0.0

    def __str__(self) -> str:
        lines = [
            f"merged {' + '.join(member.cohort for member in self.members)}: {self.num_alone_executed} launches in "
            f"{self.num_launches_executed} ({self.saved_executed:.1%} saved; by kernels {self.num_alone} in "
            f"{self.num_launches}, {self.saved:.1%}; of matrix products {self.num_products_alone} in "
            f"{self.num_products}, {self.products_saved:.1%}), {self.num_lanes} of the last lanes",
            *(f"  member {member.cohort}: {', '.join(member.tenants)}" for member in self.members),
            f"  {'op':<30} {'kernels':>7} {'shared':>6} {'grouped':>7} {'alone':>5}  why alone",
            *_operation_lines(self.kernels),
        ]
        given = dict.fromkeys(kernel.reason for kernel in self.kernels if kernel.reason)
        lines += [f"  {reason}: {WHY[reason]}" for reason in given]
        reasons = Counter(note.rpartition(": ")[2] for note in self.apart)
        lines += [f"  {count} called apart all the same: {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines)


def merged_report(
    view: MergedView, executable: MergedExecutable, tenants: Sequence[Sequence[str]], trace: Trace
) -> MergedReport:
    """`tenants` by member."""
    merged, schedule = executable.merged, executable.schedule
    told = explain(merged, names=view.cohorts)
    notes = [f"{view.cohorts[note.member]}.{note.node}: {note.reason}" for note in schedule.notes]
    members = tuple([MemberReport(cohort, tuple(its)) for cohort, its in zip(view.cohorts, tenants, strict=True)])
    return MergedReport(
        id=view.id,
        members=members,
        kernels=told.kernels,
        num_alone=merged.num_alone,
        num_launches=merged.num_launches,
        num_alone_executed=schedule.num_alone,
        num_launches_executed=schedule.num_launches,
        num_products_alone=merged.num_products_alone,
        num_products=merged.num_products,
        apart=(*notes, *executable.apart),
        num_lanes=sum(event.lane.cohort == view.id for event in trace.events),
    )


def _operation_lines(kernels: Sequence[KernelFate]) -> list[str]:
    by_op: dict[str, list[KernelFate]] = {}
    for kernel in kernels:
        by_op.setdefault(kernel.op, []).append(kernel)
    rows = sorted(by_op.items(), key=lambda item: -len(item[1]))
    shown, rest = rows[:MOST_LINES], rows[MOST_LINES:]
    if rest:
        shown.append((f"{len(rest)} others", [kernel for _, its in rest for kernel in its]))
    return [_operation_line(op, its) for op, its in shown]


def _operation_line(op: str, kernels: Sequence[KernelFate]) -> str:
    forms = Counter(kernel.form for kernel in kernels)
    reasons = Counter(kernel.reason for kernel in kernels if kernel.reason)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    counts = f"{forms['shared']:>6} {forms['grouped']:>7} {forms['alone']:>5}"
    return f"  {shorten(print_op(op), 30):<30} {len(kernels):>7} {counts}  {why}".rstrip()
