"""Study: how far a tenant that floods the device moves the latency of those beside it. No torch.

The baseline is the same victims with the same arrivals beside the same neighbour at a modest rate. Then the neighbour
asks for far more than it should, and nothing else is different.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spacetime import workload as workloads
from spacetime._version import __version__
from spacetime.scheduler.arrangements import lane_units
from spacetime.scheduler.space_time import LANE_SHARE
from spacetime.sim import architectures, devices
from spacetime.sim.oracle import OracleCosts
from spacetime.sim.report import Report, TenantReport
from spacetime.sim.simulate import simulate
from spacetime.sim.studies.study import Cell, Column, Progress, Study, Table
from spacetime.values import Value
from spacetime.workload import Workload

POLICY = "space_time_reserved"
DEFAULT_POLICY = "space_time"  # for comparison
SLO_US = 20_000
GOAL = 1.2  # of the baseline's p99
MODEST_PER_S = 20.0  # the neighbour in the baseline
BURST_CV = 3.0
MAX_QUEUE = 512
HEAVY_PER_S = 2000.0  # much, but less than the device has
FLOOD = "neighbour"
SEED = 1


@dataclass(frozen=True, slots=True)
class Case(Value):
    """Victims of one model beside one neighbour. `victims_per_s`: of all victims together."""

    device: str
    victim: str
    num_victims: int
    victims_per_s: float
    neighbour: str
    flood_per_s: float
    bursts: bool = False


@dataclass(frozen=True, slots=True)
class Lengths(Value):
    """In seconds of simulated time."""

    load_s: float
    warm_up_s: float  # the flood is on from the start: what is reported is a flood that goes on


FULL = Lengths(load_s=2.5, warm_up_s=0.5)
QUICK = Lengths(load_s=0.1, warm_up_s=0.03)

BASE_CASE = Case("h200", "resnet50", 1, 200.0, "resnet50", 8000.0)
CASES = (
    BASE_CASE,
    Case("h200", "resnet50", 7, 200.0, "resnet50", 8000.0),
    Case("h200", "resnet50", 1, 200.0, "resnet50", 8000.0, bursts=True),
    Case("h200", "resnet18", 1, 200.0, "resnet50", 8000.0),
    Case("h200", "bert", 1, 200.0, "resnet50", 8000.0),
    Case("h200", "bert", 7, 200.0, "resnet50", 8000.0),
    Case("h200", "resnet50", 1, 200.0, "bert", 8000.0),
    Case("h200", "resnet18", 1, 200.0, "resnet18", 20_000.0),
    Case("h200", "resnet50", 1, 200.0, "resnet50", HEAVY_PER_S),
    Case("h200", "bert", 1, 200.0, "mlp", 8000.0),
    Case("h200", "bert", 1, 200.0, "gru", 8000.0),
    Case("mi50", "mobilenet_v2", 1, 80.0, "resnet50", 3000.0),
    Case("mi50", "resnet50", 1, 40.0, "resnet50", 3000.0),
    Case("mi50", "resnet50", 7, 40.0, "resnet50", 3000.0),
    Case("mi50", "bert", 1, 20.0, "resnet50", 3000.0),
)


@dataclass(frozen=True, slots=True)
class Found(Value):
    """Without the flood, and with it."""

    case: Case
    modest: Report
    flooded: Report

    @property
    def ratio(self) -> float:
        """Of the victims' p99: the worst of them over the worst of them."""
        return worst_us(self.flooded) / worst_us(self.modest)


def study(*, quick: bool, progress: Progress) -> Study:
    """A flood beside victims: how far it moves their p99, by model, number, device, and kind of arrivals."""
    lengths, cases = (QUICK, CASES[:2]) if quick else (FULL, CASES)
    found: dict[str, list[Found]] = {POLICY: [], DEFAULT_POLICY: []}
    for index, case in enumerate(cases):
        for policy, results in found.items():
            progress(2 * index + (policy == DEFAULT_POLICY), 2 * len(cases))
            results.append(play(case, lengths, policy))
    return Study(
        name="flood",
        title="Beside a flood",
        device=" and ".join(dict.fromkeys(case.device for case in cases)),
        version=__version__,
        is_quick=quick,
        question=f"By how much does a tenant that asks for more than the device has move others' p99 under {POLICY}? "
        f"The goal is {GOAL - 1:.0%} at most, over the same victims with the same arrivals beside the same neighbour "
        f"that asks {MODEST_PER_S:.0f} times a second.",
        method=_method(lengths),
        claims=(),
        tables=tuple(_table(policy, results) for policy, results in found.items()),
        notes=_notes(found[POLICY], found[DEFAULT_POLICY]),
    )


def play(case: Case, lengths: Lengths, policy: str = POLICY) -> Found:
    modest, flooded = (_run(case, rate, lengths, policy) for rate in (MODEST_PER_S, case.flood_per_s))
    return Found(case, modest, flooded)


def load(case: Case, neighbour_per_s: float, seconds: float) -> Workload:
    """The victims' arrivals are the same whatever the neighbour does."""
    rates = [(f"victim {index}", case.victims_per_s / case.num_victims) for index in range(case.num_victims)]
    victims = workloads.poisson(rates, seconds, seed=SEED, models=[case.victim], slo_us=SLO_US)
    stream, models = [(FLOOD, neighbour_per_s)], [case.neighbour]
    if case.bursts:
        flood = workloads.gamma(stream, seconds, BURST_CV, seed=SEED + 1, models=models, slo_us=SLO_US)
    else:
        flood = workloads.poisson(stream, seconds, seed=SEED + 1, models=models, slo_us=SLO_US)
    return workloads.merge(victims, flood)


def victims(report: Report) -> list[TenantReport]:
    return [tenant for tenant in report.tenants if tenant.name != FLOOD]


def worst_us(report: Report) -> int:
    """The largest p99 among the victims."""
    return max(tenant.p99_us for tenant in victims(report))


def _run(case: Case, neighbour_per_s: float, lengths: Lengths, policy: str) -> Report:
    return simulate(
        load(case, neighbour_per_s, lengths.load_s),
        policy,
        case.device,
        warm_up_s=lengths.warm_up_s,
        max_queue=MAX_QUEUE,
        oracle_costs=True,
    )


# -- words --------------------------------------------------------------------------------------------


def _table(policy: str, found: Sequence[Found]) -> Table:
    columns = (
        Column("device"),
        Column("victims"),
        Column("neighbour"),
        Column("its requests/s", ".0f"),
        Column("served/s", ".0f"),
        Column("p50 ms without", ".2f"),
        Column("p50 ms with", ".2f"),
        Column("p99 ms without", ".2f"),
        Column("p99 ms with", ".2f"),
        Column("with / without", ".2f"),
        Column("victims' requests", "d"),
    )
    rows: list[tuple[Cell, ...]] = []
    for each in found:
        case = each.case
        served = next(tenant.requests_per_s for tenant in each.flooded.tenants if tenant.name == FLOOD)
        medians = [max(tenant.p50_us for tenant in victims(report)) / 1e3 for report in (each.modest, each.flooded)]
        tails = [worst_us(report) / 1e3 for report in (each.modest, each.flooded)]
        neighbour = f"{case.neighbour}{', bursts' if case.bursts else ''}"
        num_requests = sum(tenant.submitted for tenant in victims(each.flooded))
        who = f"{case.num_victims} x {case.victim}"
        rows.append((case.device, who, neighbour, case.flood_per_s, served, *medians, *tails, each.ratio, num_requests))
    return Table(f"`{policy}`: victims' latency with and without the flood", columns, tuple(rows))


def _method(lengths: Lengths) -> tuple[str, ...]:
    return (
        f"Everybody sends requests of one row with an objective of {SLO_US // 1000} ms and equal weight: victims "
        f"Poisson, the neighbour Poisson or in bursts (gamma, cv {BURST_CV:.0f}). Its queue holds {MAX_QUEUE}.",
        f"A run has {lengths.load_s:g} s, the first {lengths.warm_up_s:g} s are not reported: figures are of a flood "
        "that goes on, not of its first moments. Predictions are exact (oracle costs): what learning them costs is "
        "noise here, and moves single requests of the baseline as well.",
        "Of several victims the one with the largest p50 or p99 counts, each column by itself.",
    )


def _notes(found: Sequence[Found], by_default: Sequence[Found]) -> tuple[str, ...]:
    kept = [each for each in found if each.ratio <= GOAL]
    missed = [each for each in found if each.ratio > GOAL]
    notes = [f"{len(kept)} of {len(found)} cases keep to {GOAL:.2f} under {POLICY}."]
    if missed:
        words = ", ".join(f"{_name(each.case)} {each.ratio:.2f}" for each in missed)
        notes.append(f"Beyond it: {words}.")
    worst = max(by_default, key=lambda each: each.ratio)
    in_time = sum(worst_us(each.flooded) <= SLO_US for each in by_default)
    notes.append(
        f"Under {DEFAULT_POLICY} {sum(each.ratio <= GOAL for each in by_default)} of {len(by_default)} cases keep to "
        f"it, and the worst is {_name(worst.case)} with {worst.ratio:.2f}; in {in_time} of {len(by_default)} the "
        "victims' p99 stays within their objective, which is what it is for: it serves several times as much of the "
        "flood."
    )
    notes.append(
        "A neighbour that asks for less than the device has is no flood (mlp and gru at this rate, resnet50 at 2,000 "
        "requests/s): nothing is reserved against it, or the device would stand idle for fear of it. Small ones do no "
        f"harm all the same: under {POLICY} a lane leaves the atoms from which it gains nothing, and who comes while "
        "others hold most of the device waits for more of it where that is sooner."
    )
    notes.append(_why_not(next(case for case in CASES if case.flood_per_s == HEAVY_PER_S)))
    notes.append(
        "The flood pays for it: it has the few atoms that are not reserved, also while no victim is there, until "
        "everybody else has been quiet for a second. What those need who do not wait is not known to the policy, so a "
        "fixed share is kept for them, more than a small model would need."
    )
    return tuple(notes)


def _why_not(case: Case) -> str:
    """What both would need at once, where the neighbour is heavy but no flood."""
    device, costs = devices.find(case.device), OracleCosts()
    for model in (case.neighbour, case.victim):
        costs.register(model, architectures.program(model), device)
    sizes, most_us = range(1, device.num_atoms + 1), LANE_SHARE * SLO_US
    lanes = [(rows, atoms) for rows in (1, 2, 4, 8, 16, 32, 64) for atoms in sizes]
    prices = [
        (costs.lane_us(case.neighbour, tenants=1, rows=rows, units=lane_units(atoms, device)), rows, atoms)
        for rows, atoms in lanes
    ]
    row_us = min(lane_us * atoms / rows for lane_us, rows, atoms in prices if lane_us <= most_us)
    knee = costs.kernel_times(case.victim, tenants=1, rows=1).knee()
    return (
        f"{case.neighbour} at {case.flood_per_s:,.0f} requests/s is heavy, but no flood. In lanes of at most "
        f"{most_us / 1e3:g} ms a row takes {row_us / 1e3:.1f} ms of one atom at best, so it needs "
        f"{row_us * case.flood_per_s / 1e6:.0f} of the {device.num_atoms} atoms all the time, and the victim's lane "
        f"needs {knee} for its best latency. Both cannot be had at once, and lanes are not interrupted: the victim "
        "waits, or runs on what is left, unless the neighbour is served less than it may ask for."
    )


def _name(case: Case) -> str:
    return f"{case.num_victims} x {case.victim} beside {case.neighbour} at {case.flood_per_s:.0f}/s on {case.device}"
