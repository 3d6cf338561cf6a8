"""Several devices: which tenant goes where, and what all of them do together. Studies and the command line import it.

Tenants of one architecture fuse, so they are kept together as long as their load fits on a device; a cohort with more
load than that is cut into equal parts, as few as possible. Placement is a pure function of predicted loads. Afterwards
the devices know nothing of each other: each is a simulation of its own, and the reports become one.

A tenant is on one device: one that asks for more than a device has is not replicated, it is late.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from spacetime.device import Device
from spacetime.errors import OptionError, RejectedError, SpacetimeError
from spacetime.ir import Program
from spacetime.scheduler.protocols import Policy
from spacetime.scheduler.registry import get_policy, policy_name
from spacetime.sim import architectures, devices
from spacetime.sim.oracle import OracleCosts
from spacetime.sim.report import Book, Report, Totals
from spacetime.sim.simulate import MAX_QUEUE, Simulation
from spacetime.values import Value
from spacetime.workload import Arrival, Resident, Workload

MOST_LOAD = 0.5  # of a device: loads are predicted for lanes as lean as they can be, which real ones are not
HEADROOM = 1.03  # over the mean load: with none at all the last cohorts would be cut into slivers
TYPICAL_ROWS = 8  # of a lane on a busy device: what a row costs is predicted for these

Progress = Callable[[int, int], None]  # devices done, devices in all


@dataclass(frozen=True, slots=True)
class Demand(Value):
    """What a tenant asks of the device it is placed on."""

    tenant: str
    cohort: str
    load: float  # device time per time: 1.0 is all that one device has
    weight_bytes: int = 0


Assignment = tuple[tuple[str, ...], ...]  # by device: its tenants


@dataclass(frozen=True, slots=True)
class ClusterReport(Value):
    """`report` is of all devices, as if they were one that has the units, the bandwidth and the power of all."""

    assignment: Assignment
    report: Report
    utilisations: tuple[float, ...]  # by device


# -- placement ----------------------------------------------------------------------------------------


def assign(
    demands: Sequence[Demand], num_devices: int, *, memory_bytes: int | None = None, most_load: float = MOST_LOAD
) -> Assignment:
    """Cohorts whole where they fit, the largest first, on the device with the least load.

    A device is full at `most_load`, or a little over the mean load if that is more: then no device can be spared.

    >>> many = [Demand(f"a{i}", "a", 0.2) for i in range(4)] + [Demand("b0", "b", 0.2), Demand("b1", "b", 0.1)]
    >>> assign(many, 3)
    (('a0', 'a2'), ('a1', 'a3'), ('b0', 'b1'))
    """
    if num_devices < 1:
        raise OptionError(
            f"tenants were to be placed on {num_devices} devices", "there must be at least one", "raise it"
        )
    if len({demand.tenant for demand in demands}) < len(demands):
        raise OptionError("a tenant is to be placed twice", f"{len(demands)} demands", "give one demand per tenant")
    cohorts: defaultdict[str, list[Demand]] = defaultdict(list)
    for demand in sorted(demands, key=lambda demand: (-demand.load, demand.tenant)):
        cohorts[demand.cohort].append(demand)
    full = max(most_load, HEADROOM * sum(demand.load for demand in demands) / num_devices)
    bins = [_Bin(index, full, memory_bytes) for index in range(num_devices)]
    for _, members in sorted(cohorts.items(), key=lambda item: (-_load(item[1]), item[0])):
        for part in _parts(members, full, memory_bytes):
            _put(part, bins)
    order = {demand.tenant: place for place, demand in enumerate(demands)}
    return tuple(tuple(sorted(each.tenants, key=order.__getitem__)) for each in bins)


class _Bin:
    """A device that is being filled."""

    def __init__(self, index: int, full: float, memory_bytes: int | None) -> None:
        self.index = index
        self.load = 0.0
        self.tenants: list[str] = []
        self._full = full
        self._free_bytes = memory_bytes

    def has_memory(self, part: Sequence[Demand]) -> bool:
        return self._free_bytes is None or sum(demand.weight_bytes for demand in part) <= self._free_bytes

    def fits(self, part: Sequence[Demand]) -> bool:
        return self.has_memory(part) and self.load + _load(part) <= self._full

    def add(self, part: Sequence[Demand]) -> None:
        self.load += _load(part)
        self.tenants += [demand.tenant for demand in part]
        if self._free_bytes is not None:
            self._free_bytes -= sum(demand.weight_bytes for demand in part)


def _load(part: Sequence[Demand]) -> float:
    return sum(demand.load for demand in part)


def _parts(members: Sequence[Demand], full: float, memory_bytes: int | None) -> list[list[Demand]]:
    """A cohort in as few equal parts as devices could hold."""
    num_bytes = sum(demand.weight_bytes for demand in members)
    by_load = -(-_load(members) // full)
    by_memory = -(-num_bytes // memory_bytes) if memory_bytes else 1
    num_parts = min(len(members), max(1, int(by_load), by_memory))
    parts: list[list[Demand]] = [[] for _ in range(num_parts)]
    for demand in members:  # the largest first, each where there is least
        min(parts, key=lambda part: (_load(part), len(part))).append(demand)
    return parts


def _put(part: list[Demand], bins: Sequence[_Bin]) -> None:
    """Whole, if it fits anywhere; else halved; a single tenant goes where there is memory, whatever the load."""
    device = min(bins, key=lambda each: (each.load, each.index))
    if not device.fits(part):
        fitting = [each for each in bins if each.fits(part)]
        if not fitting and len(part) > 1:
            _put(part[::2], bins)
            _put(part[1::2], bins)
            return
        if not fitting:
            fitting = [each for each in bins if each.has_memory(part)]
        if not fitting:
            facts = f"its weights are {part[0].weight_bytes / 1e9:.1f} GB; no device has so much left"
            raise OptionError(f"tenant {part[0].tenant!r} fits on none of {len(bins)} devices", facts, "use more")
        device = min(fitting, key=lambda each: (each.load, each.index))
    device.add(part)


def predict(workload: Workload, device: Device, programs: Mapping[str, Program] | None = None) -> tuple[Demand, ...]:
    """Every resident's load: its rows per second, by what a row costs in a fused lane of a busy device.

    That is unit-time, in the size of lane that takes the least: a small model on the whole device would seem to cost
    many times what it keeps others from.
    """
    span_us = workload.arrivals[-1].at_us if workload.arrivals else 0
    if workload.outstanding is not None or span_us == 0:
        raise OptionError("the load of a closed loop cannot be predicted", "it asks for all it gets", "give it rates")
    rows = Counter[str]()
    for arrival in workload.arrivals:
        rows[arrival.tenant] += arrival.rows
    cohort_of = {resident.name: _program(resident, programs) for resident in _residents(workload)}
    peers = Counter(program.signature for program in cohort_of.values())
    costs, row_us = OracleCosts(), dict[str, float]()
    for program in cohort_of.values():
        cohort = program.signature
        if cohort not in row_us:
            costs.register(cohort, program, device)
            tenants = min(peers[cohort], TYPICAL_ROWS)
            times = costs.kernel_times(cohort, tenants=tenants, rows=TYPICAL_ROWS)
            least_us = min(times.lane_us(atoms) * atoms for atoms in range(1, device.num_atoms + 1))
            row_us[cohort] = least_us / device.num_atoms / TYPICAL_ROWS
    return tuple(
        Demand(name, program.signature, rows[name] * row_us[program.signature] / span_us, program.bytes(rows=0))
        for name, program in cohort_of.items()
    )


def _residents(workload: Workload) -> Sequence[Resident]:
    return workload.residents or [Resident(name, name) for name in workload.tenants]


def _program(resident: Resident, programs: Mapping[str, Program] | None) -> Program:
    return (programs or {}).get(resident.model) or architectures.program(resident.model)


# -- all devices together -----------------------------------------------------------------------------


def simulate_cluster(
    workload: Workload,
    policy: str | Policy = "space_time",
    device: str | Device = "h200",
    num_devices: int = 1,
    seed: int = 0,
    *,
    programs: Mapping[str, Program] | None = None,
    assignment: Assignment | None = None,
    noise: float = 0.0,
    decision_us: int = 0,
    prepare_us: int = 0,
    warm_up_s: float = 0.0,
    max_queue: int = MAX_QUEUE,
    progress: Progress = lambda done, total: None,
) -> ClusterReport:
    """`simulate`, on several equal devices. `assignment`: by device, its tenants; otherwise by cohort (`assign`).

    The load is predicted from the workload itself, which a real placement could only guess from the past.
    """
    modelled = devices.find(device)
    if assignment is None:
        demands = predict(workload, modelled, programs)
        assignment = assign(demands, num_devices, memory_bytes=modelled.memory_bytes)
    _check(assignment, num_devices, workload)
    parts = _cut(workload, assignment)
    simulations: list[Simulation] = []
    reports: dict[int, Report] = {}
    for index, part in enumerate(parts):
        if part.arrivals:  # a device without requests is idle
            simulation = Simulation(
                part,
                policy,
                modelled,
                seed + index,
                programs=programs,
                noise=noise,
                decision_us=decision_us,
                prepare_us=prepare_us,
                warm_up_s=warm_up_s,
                max_queue=max_queue,
                trace_events=len(part.arrivals),  # all lanes: latencies are read from them
            )
            reports[index] = simulation.run()
            simulations.append(simulation)
        progress(index + 1, num_devices)
    name = policy_name(get_policy(policy))
    residents = {each.name: (each, _program(each, programs)) for each in _residents(workload)}
    book = Book(_all_of(modelled, num_devices), name, seed, residents, round(warm_up_s * 1e6))
    report = _sum_up(book, list(reports.values()), simulations, round(warm_up_s * 1e6))
    utilisations = tuple(reports[index].utilisation if index in reports else 0.0 for index in range(num_devices))
    return ClusterReport(assignment, report, utilisations)


def _check(assignment: Assignment, num_devices: int, workload: Workload) -> None:
    placed = [name for tenants in assignment for name in tenants]
    wanted = [resident.name for resident in _residents(workload)]
    if len(assignment) != num_devices or sorted(placed) != sorted(wanted):
        facts = f"{len(placed)} tenants on {len(assignment)} devices; there are {len(wanted)} and {num_devices}"
        raise OptionError("the assignment is not of this workload", facts, "place every tenant once")


def _cut(workload: Workload, assignment: Assignment) -> list[Workload]:
    """The workload of each device."""
    place = {name: index for index, tenants in enumerate(assignment) for name in tenants}
    arrivals: list[list[Arrival]] = [[] for _ in assignment]
    residents: list[list[Resident]] = [[] for _ in assignment]
    for resident in _residents(workload):
        residents[place[resident.name]].append(resident)
    for arrival in workload.arrivals:
        arrivals[place[arrival.tenant]].append(arrival)
    return [
        replace(workload, arrivals=tuple(its), residents=tuple(there))
        for its, there in zip(arrivals, residents, strict=True)
    ]


def _all_of(device: Device, num_devices: int) -> Device:
    """Equal devices as one, for the sums of a report."""
    if num_devices == 1:
        return device
    return replace(
        device,
        name=f"{num_devices} x {device.name}",
        num_units=num_devices * device.num_units,
        bytes_per_us=num_devices * device.bytes_per_us,
        num_groups=num_devices * device.num_groups,
        memory_bytes=None if device.memory_bytes is None else num_devices * device.memory_bytes,
        cache_bytes=num_devices * device.cache_bytes,
        idle_watts=num_devices * device.idle_watts,
        busy_watts=num_devices * device.busy_watts,
    )


# The book looks at their types only: what they said is in the reports of the devices.
_REJECTED = RejectedError("a request was rejected", "on one of the devices", "see the device's own report")
_FAILED = SpacetimeError("a request failed", "on one of the devices", "see the device's own report")


def _sum_up(book: Book, reports: Sequence[Report], simulations: Sequence[Simulation], warm_up_us: int) -> Report:
    """One report: requests are entered one by one, since quantiles do not add up."""
    book.open(Totals(0, 0.0, 0, 0, 0, 0, defaultdict(float)))
    for report, simulation in zip(reports, simulations, strict=True):
        for event in simulation.trace.events:
            for view in event.lane.requests if event.ok else ():
                if view.arrival_us >= warm_up_us:
                    book.enter(view.tenant, view.rows, event.end_us - view.arrival_us, None)
        for tenant in report.tenants:
            for number, error in ((tenant.rejected, _REJECTED), (tenant.failed, _FAILED)):
                for _ in range(number):
                    book.enter(tenant.name, 0, 0, error)
    totals = Totals(
        now_us=max((report.duration_us for report in reports), default=0),
        busy_unit_us=sum(each.utilisation * each.device.num_units * each.duration_us for each in reports),
        moved_bytes=round(sum(each.bandwidth_share * each.device.bytes_per_us * each.duration_us for each in reports)),
        num_kernels=sum(report.num_kernels for report in reports),
        num_lanes=sum(report.num_lanes for report in reports),
        num_decisions=sum(report.num_decisions for report in reports),
        device_us=defaultdict(float, {each.name: each.device_us for report in reports for each in report.tenants}),
    )
    first_error = next((report.first_error for report in reports if report.first_error), None)
    return replace(book.close(totals), first_error=first_error)
