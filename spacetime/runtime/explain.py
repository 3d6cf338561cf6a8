"""Who shares what with whom, and why not: values that print as a table. Made by Runtime.explain()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spacetime.backends.executables import CohortExecutable
from spacetime.backends.families import LengthsExecutable
from spacetime.backends.intercepted import InterceptedExecutable
from spacetime.capture.cohort import Cohort
from spacetime.merged import is_product
from spacetime.profiler.figures import print_op, shorten
from spacetime.runtime.memory import NO_MEMORY, MemoryReport, memory_lines
from spacetime.runtime.merged_report import MergedReport
from spacetime.runtime.prepare import Prepared
from spacetime.runtime.written_report import WrittenReport
from spacetime.scheduler.costs import Staleness
from spacetime.trace import LaneEvent, Trace
from spacetime.values import Value

WHY = {
    "all rows": "no weights: one launch for the rows of all tenants",
    "slot": "one launch for all; every row uses the weights of its tenant",
    "per tenant": "the operation has no slot form: one launch per tenant, inside the lane",
    "folded": "computed by the kernel before it",
}


@dataclass(frozen=True, slots=True)
class KernelReport(Value):
    """How one kernel of a cohort runs when several tenants are active."""

    index: int
    name: str
    op: str
    form: str  # a key of WHY
    weight_bytes: int  # of all tenants together, shared content once
    sharing_tenants: int  # tenants whose weights for it are somebody else's as well
    kernel: str = ""  # what it ran as the last time, where a GPU has a choice
    plain_because: str = ""  # why that is plain torch
    is_product: bool = False  # a matrix product, a convolution, attention: where the time goes

    @property
    def why(self) -> str:
        return WHY[self.form]


@dataclass(frozen=True, slots=True)
class LaneReport(Value):
    """The last lane of a cohort."""

    tenants: int
    rows: int
    asked_units: int
    granted_units: int
    fused: bool
    duration_us: int


@dataclass(frozen=True, slots=True)
class SharedReport(Value):
    """Weights that a cohort has in common with another, and that lie in the slabs of that one."""

    cohort: str
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class CohortReport(Value):
    signature: str
    tenants: tuple[str, ...]
    kernels: tuple[KernelReport, ...]
    resident_bytes: int  # slabs, shared content once, and prepacked copies
    last_lane: LaneReport | None
    shared_with: tuple[SharedReport, ...] = ()  # weights that lie in other cohorts' slabs
    one_call_rows: int = 0  # requests of up to so many rows go through the whole program in one native call ...
    no_one_call: str = ""  # ... or why they do not
    keeps_order: bool = False  # the modules' code takes weights only in their own order, not in that of fast kernels

    @property
    def fused_kernels(self) -> int:
        return sum(kernel.form != "per tenant" for kernel in self.kernels)


@dataclass(frozen=True, slots=True)
class OpaqueReport(Value):
    """A tenant that could not be captured, and why. `meets`: whose calls may be launched with its own."""

    tenant: str
    reason: str
    last_lane: LaneReport | None
    meets: tuple[str, ...] = ()
    calls_saved: int = 0  # of all of them together, since they are tenants

    def __str__(self) -> str:
        how = "runs alone, unmodified"
        if self.meets:
            how = (
                f"runs unmodified, its calls meet those of {', '.join(self.meets)} ({self.calls_saved} launches saved)"
            )
        return f"opaque {self.tenant}: {how}: {self.reason}{_lane(self.last_lane)}"


@dataclass(frozen=True, slots=True)
class LengthsReport(Value):
    """Tenants of a cohort whose inputs vary in length, and the lengths that have a program."""

    signature: str
    tenants: tuple[str, ...]
    least: int
    most: int
    programs: tuple[int, ...]
    is_padded: bool  # other lengths run in the next program up, padded; if not, unmodified
    reason: str  # why not, and why a length has no program

    def __str__(self) -> str:
        how = "padded to the next of them" if self.is_padded else "run unmodified"
        return (
            f"lengths {', '.join(map(str, self.programs))} of cohort {self.signature} ({', '.join(self.tenants)}): "
            f"a program each; others from {self.least} to {self.most} are {how}"
            + (f": {self.reason}" if self.reason else "")
        )


@dataclass(frozen=True, slots=True)
class ApartReport(Value):
    """A tenant of a cohort that shares no lanes for now, because it slowed them down."""

    tenant: str
    factor: float  # how many times longer its lanes took


@dataclass(frozen=True, slots=True)
class LaunchReport(Value):
    """Launches for one request of each fused tenant, by the kernels of their programs; how many of them are products.

    A kernel of a program counts as one wherever it runs, also where a device needs none for it.
    """

    tenants: int
    alone: int  # every tenant by itself
    in_cohorts: int
    merged: int  # with what cohorts have in common; as `in_cohorts` where nothing is merged
    products_alone: int
    products_in_cohorts: int
    products_merged: int

    def __str__(self) -> str:
        return (
            f"launches for one request of each of {self.tenants} tenants: "
            f"{_saved(self.alone, self.in_cohorts, self.merged)}; of these matrix products: "
            f"{_saved(self.products_alone, self.products_in_cohorts, self.products_merged)}"
        )


@dataclass(frozen=True, slots=True)
class Explanation(Value):
    """Who shares what with whom, and why not. Print it; or read its fields, which to_json() has, too."""

    device: str
    num_units: int
    policy: str
    cohorts: tuple[CohortReport, ...]
    opaque: tuple[OpaqueReport, ...]
    apart: tuple[ApartReport, ...] = ()
    varying: tuple[LengthsReport, ...] = ()
    memory: MemoryReport = NO_MEMORY
    unconfined: str = ""  # why a GPU's lanes are not confined to partitions
    eager: tuple[str, ...] = ()  # lanes that cannot become CUDA graphs, and why
    merged: tuple[MergedReport, ...] = ()  # launches that unlike architectures share
    unmerged: tuple[str, ...] = ()  # what could share none, and why
    stale: tuple[Staleness, ...] = ()  # cohorts that have come to take longer or less long than they did
    written: tuple[WrittenReport, ...] = ()  # tenants whose weights are not what they were

    @property
    def launches(self) -> LaunchReport | None:
        """What sharing saves; None where nobody has anybody to share with."""
        return launch_report(self.cohorts, self.merged)

    def __str__(self) -> str:
        lines = [f"{self.device}: {self.num_units} units, policy {self.policy}"]
        if self.unconfined:
            lines.append(f"lanes are not confined to partitions: {self.unconfined}")
        lines += [str(self.launches)] if self.launches is not None else []
        for cohort in self.cohorts:
            lines += _cohort_lines(cohort)
        forms = {kernel.form for cohort in self.cohorts for kernel in cohort.kernels}
        lines += ["", *(f"{form}: {why}" for form, why in WHY.items() if form in forms)] if forms else []
        lines += [f"\n{report}" for report in (*self.merged, *self.varying, *self.opaque)]
        lines += [f"\nnot merged: {reason}" for reason in self.unmerged]
        for straggler in self.apart:
            lines.append(
                f"\napart {straggler.tenant}: lanes with it took {straggler.factor:.1f}x as long as those without; "
                "it shares lanes again when its own keep up"
            )
        lines += [f"\nstale {staleness}" for staleness in self.stale]
        lines += [f"\n{report}" for report in self.written]
        lines += [f"\nno CUDA graph: {reason}" for reason in self.eager]
        if self.memory.tenants:
            lines += ["", *memory_lines(self.memory)]
        return "\n".join(lines)


def cohort_report(executable: CohortExecutable, trace: Trace) -> CohortReport:
    cohort = executable.cohort
    forms, chosen = _forms(cohort), _chosen(executable)
    whole = executable.whole
    return CohortReport(
        signature=cohort.program.signature,
        tenants=tuple(cohort.members),
        kernels=tuple(
            KernelReport(
                kernel.index,
                kernel.name,
                kernel.op,
                forms.get(cohort.captured.kernel_nodes[kernel.index], "folded"),
                *_weights(cohort, kernel.weights),
                *chosen.get(cohort.captured.kernel_nodes[kernel.index], ("", "")),
                is_product(kernel),
            )
            for kernel in cohort.program.kernels
        ),
        resident_bytes=executable.resident_bytes,
        last_lane=last_lane(cohort.program.signature, trace),
        shared_with=tuple([SharedReport(*found) for found in sorted(cohort.guest_bytes().items())]),
        one_call_rows=0 if isinstance(whole, str) else whole.most_rows,
        no_one_call=whole if isinstance(whole, str) else "",
        keeps_order=cohort.keeps_order,
    )


def launch_report(cohorts: Sequence[CohortReport], merged: Sequence[MergedReport]) -> LaunchReport | None:
    """Of merged executions the one that saves most: others are of some of its members."""
    tenants = [len(cohort.tenants) for cohort in cohorts]
    if sum(tenants) < 2:
        return None
    counts = []
    for kernels in ([cohort.kernels for cohort in cohorts], [_products_of(cohort) for cohort in cohorts]):
        pairs = list(zip(tenants, kernels, strict=True))
        alone = sum(number * len(its) for number, its in pairs)
        fused = sum(number if kernel.form == "per tenant" else 1 for number, its in pairs for kernel in its)
        counts.append((alone, fused))
    (alone, in_cohorts), (products_alone, products) = counts
    best = max(merged, key=lambda one: one.num_alone - one.num_launches, default=None)
    spared, spared_products = (0, 0) if best is None else (best.num_alone - best.num_launches, best.products_spared)
    return LaunchReport(
        sum(tenants), alone, in_cohorts, in_cohorts - spared, products_alone, products, products - spared_products
    )


def lengths_report(executable: LengthsExecutable) -> LengthsReport:
    lengths, programs = executable.lengths, executable.programs
    reasons = [f"length {step} has none: {reason}" for step, reason in executable.reasons.items()]
    if executable.cut is None:
        reasons.insert(0, executable.why_not_padded)
    return LengthsReport(
        executable.main.cohort.program.signature,
        executable.names,
        lengths.least,
        lengths.most,
        tuple(sorted(programs)),
        executable.cut is not None,
        "; ".join(reasons),
    )


def opaque_report(name: str, cohort: str, prepared: Prepared, trace: Trace) -> OpaqueReport:
    executable, lane = prepared.executable, last_lane(cohort, trace)
    if not isinstance(executable, InterceptedExecutable):
        return OpaqueReport(name, prepared.reason, lane)
    peers = tuple([peer for peer in executable.arena.names if peer != name])
    return OpaqueReport(name, prepared.reason, lane, peers, executable.num_calls_saved)


def last_lane(cohort: str, trace: Trace) -> LaneReport | None:
    event: LaneEvent | None = next((e for e in reversed(trace.events) if e.lane.cohort == cohort), None)
    if event is None:
        return None
    lane = event.lane
    asked = max(segment.partition.asked_units for segment in lane.segments)
    duration_us = event.end_us - event.start_us
    return LaneReport(len(lane.tenants), lane.num_rows, asked, lane.units, lane.fused, duration_us)


def _forms(cohort: Cohort) -> dict[str, str]:
    """How the steps of each node run; a node without a step is folded into its neighbour."""
    forms: dict[str, str] = {}
    for step in cohort.fused.steps:
        form = "per tenant" if step.target == "per_tenant" else "slot" if step.is_slot else "all rows"
        if forms.get(step.node) != "slot":
            forms[step.node] = form
    return forms


def _chosen(executable: CohortExecutable) -> dict[str, tuple[str, str]]:
    """By node: the kernel that ran, and why none did."""
    if not executable.is_on_gpu:
        return {}
    from spacetime.kernels.bound import choices  # on a CPU nobody waits for its import

    return {choice.node: (choice.kernel, choice.reason) for choice in choices(executable.kernels)}


def _weights(cohort: Cohort, weights: tuple[int, ...]) -> tuple[int, int]:
    layers = [
        layer
        for layer, operand in zip(cohort.layers, cohort.fused.operands, strict=True)
        if operand.weight in weights and operand.weight is not None
    ]
    total = sum(layer.slab.num_entries * layer.slab.entry_bytes for layer in layers)
    sharing = sum(any(layer.is_shared(member.slot) for layer in layers) for member in cohort.members.values())
    return total, sharing


def _cohort_lines(cohort: CohortReport) -> list[str]:
    megabytes = cohort.resident_bytes / 1e6
    lines = [
        f"\ncohort {cohort.signature}: {_counted(len(cohort.tenants), 'tenant')}, {megabytes:.1f} MB of weights, "
        f"{cohort.fused_kernels}/{len(cohort.kernels)} kernels shared{_lane(cohort.last_lane)}",
        f"  tenants: {', '.join(cohort.tenants)}",
        f"  one native call for the whole program: {_one_call(cohort)}",
        *(["  convolution weights in the modules' own order: their code takes no other"] if cohort.keeps_order else []),
        *(
            f"  {shared.weight_bytes / 1e6:.1f} MB more are shared with cohort {shared.cohort}"
            for shared in cohort.shared_with
        ),
        f"  {'kernel':<6} {'op':<30} {'form':<10} {'bytes':>12} {'shared by':>9}  name",
    ]
    for kernel in cohort.kernels:
        lines.append(
            f"  {kernel.index:<6} {shorten(print_op(kernel.op), 30):<30} {kernel.form:<10} {kernel.weight_bytes:>12} "
            f"{kernel.sharing_tenants:>9}  {kernel.name}{_ran(kernel)}"
        )
    return lines


def _one_call(cohort: CohortReport) -> str:
    if cohort.one_call_rows:
        return f"where requests have at most {cohort.one_call_rows} rows"
    return f"no, {cohort.no_one_call}"


def _products_of(cohort: CohortReport) -> tuple[KernelReport, ...]:
    return tuple([kernel for kernel in cohort.kernels if kernel.is_product])


def _saved(alone: int, in_cohorts: int, merged: int) -> str:
    told = f"{alone} alone, {in_cohorts} in lanes of cohorts ({1 - in_cohorts / max(alone, 1):.1%} saved)"
    return told if merged == in_cohorts else f"{told}, {merged} where cohorts merge ({1 - merged / max(alone, 1):.1%})"


def _ran(kernel: KernelReport) -> str:
    if not kernel.kernel:
        return ""
    return f" -> {kernel.kernel}" + (f": {kernel.plain_because}" if kernel.plain_because else "")


def _lane(lane: LaneReport | None) -> str:
    if lane is None:
        return ""
    how = "fused" if lane.fused else "plain"
    return (
        f"; last lane {how}: {_counted(lane.tenants, 'tenant')}, {_counted(lane.rows, 'row')}, "
        f"{_counted(lane.granted_units, 'unit')} (asked {lane.asked_units}), {lane.duration_us} us"
    )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
