"""Study: GSLICE's questions (Dhakal et al., SoCC 2020), loads that change and partitions that follow. No torch.

Four tenants on a V100. First every policy serves the same mean load: steady, in bursts, in waves. Then the load of one
tenant steps up, and GSLICE's self-tuning follows it in several ways of resizing: by swapping executables, with the old
one serving while the new one is prepared (the shadow), and by a restart during which the tenant is down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import pi, sin

from spacetime import workload as workloads
from spacetime._version import __version__
from spacetime.arrivals import Phase
from spacetime.plan import Plan, Snapshot
from spacetime.scheduler.gslice import gslice
from spacetime.scheduler.protocols import CostModel, Policy
from spacetime.sim import devices
from spacetime.sim.report import Report
from spacetime.sim.simulate import Simulation, simulate
from spacetime.sim.studies.study import Claim, Column, Progress, Study, Table
from spacetime.trace import Trace
from spacetime.values import Value
from spacetime.workload import Workload

DEVICE = "v100"
SLO_US = 50_000
MEAN_PER_S: Mapping[str, float] = {"mobilenet_v2": 150, "resnet50": 110, "alexnet": 90, "vgg19": 30}
POLICIES = ("time_slice", "streams", "static", "gslice", "space_time", "space_time_floating")

BURSTS = ((0.4, 3.0), (2.2, 1.5))  # parts of the mean rate, and for how many seconds on average
WAVE_S = 10.0
WAVE_HEIGHT = 0.8  # of the mean rate

STEP_TENANT = "resnet50"
BEFORE_PER_S: Mapping[str, float] = {"mobilenet_v2": 150, "resnet50": 80, "alexnet": 60, "vgg19": 30}
AFTER_PER_S: Mapping[str, float] = {**BEFORE_PER_S, STEP_TENANT: 200}
PATIENCE_US = 30_000_000  # an operator who restarts a tenant does not do so again for so long

TOLERABLE = 0.05  # of a second's requests may be late, or the tenant has not settled
OUTAGE_US = 100_000  # a tenant that waits is not served for so long: less is a queue
LOOP_OUTSTANDING = 64
PAPER = "GSLICE, 2020"


@dataclass(frozen=True, slots=True)
class Lengths(Value):
    """In seconds of simulated time."""

    load_s: float
    step_at_s: float
    end_s: float
    prepare_s: float  # how long a resize by shadow or restart takes
    loop_requests: int  # of each tenant, in the closed loop


FULL = Lengths(load_s=20.0, step_at_s=20.0, end_s=60.0, prepare_s=10.0, loop_requests=1000)
QUICK = Lengths(load_s=0.5, step_at_s=3.0, end_s=5.0, prepare_s=0.5, loop_requests=200)


@dataclass(frozen=True, slots=True)
class Outage(Value):
    """A tenant's requests waited, and no lane of it ran."""

    tenant: str
    start_us: int
    end_us: int

    @property
    def us(self) -> int:
        return self.end_us - self.start_us


@dataclass(frozen=True, slots=True)
class StepRun(Value):
    """What became of a load step."""

    way: str
    report: Report
    resizes: int
    late: int  # of the tenant that stepped, after the step
    late_of_others: int  # after the step
    settled_s: float | None  # after the step; None: not before the end
    longest_outage_us: int  # of any tenant
    outage_us: int  # of all tenants

    @property
    def all_late(self) -> int:
        return self.late + self.late_of_others


def study(*, quick: bool, progress: Progress) -> Study:
    """GSLICE's questions: loads that change, promises broken, and a resize against a 10 s restart, on a V100."""
    lengths = QUICK if quick else FULL
    loads = {"steady": steady(lengths.load_s), "bursts": bursts(lengths.load_s), "waves": waves(lengths.load_s)}
    ways = resize_ways(lengths)
    total, done = len(loads) * len(POLICIES) + len(ways) + 2, 0
    reports: dict[tuple[str, str], Report] = {}
    for load, played in loads.items():
        for policy in POLICIES:
            progress(done, total)
            reports[load, policy] = simulate(played, policy, DEVICE)
            done += 1
    runs = []
    for way in ways:
        progress(done, total)
        runs.append(step_run(way, lengths))
        done += 1
    rates = {}
    for policy in ("gslice", "streams"):
        progress(done, total)
        rates[policy] = _loop_rate(policy, lengths.loop_requests)
        done += 1
    claim = Claim(
        "requests/s, gslice over streams, the least of 2 to 13", 2.0, rates["gslice"] / rates["streams"], PAPER
    )
    return Study(
        name="gslice",
        title="GSLICE's questions",
        device=DEVICE,
        version=__version__,
        is_quick=quick,
        question="When the load of tenants changes, who keeps the promises, how fast do GSLICE's shares follow, and "
        "what does it cost to resize a tenant by a restart instead of preparing its new size while the old one serves?",
        method=_method(lengths, reports, runs),
        claims=(claim,),
        tables=(_loads_table(reports), _steps_table(runs)),
        notes=_notes(reports, runs, lengths),
    )


# -- loads --------------------------------------------------------------------------------------------


def steady(seconds: float) -> Workload:
    """Poisson at the mean rates."""
    return _poisson(MEAN_PER_S, seconds, seed=0)


def bursts(seconds: float) -> Workload:
    """Each tenant goes between little and much by itself; the mean of the rate is the mean."""
    phases = [(name, [Phase(part * mean, dwell_s) for part, dwell_s in BURSTS]) for name, mean in MEAN_PER_S.items()]
    return workloads.mmpp(phases, seconds, models=tuple(MEAN_PER_S), slo_us=SLO_US)


def waves(seconds: float) -> Workload:
    """Each tenant rises and falls as by day and night, one a quarter of the time after the other."""
    parts, step_s = [], min(0.5, seconds)
    for index in range(round(seconds / step_s)):
        rates = {}
        for place, (name, mean) in enumerate(MEAN_PER_S.items()):
            angle = 2 * pi * (index * step_s / WAVE_S + place / len(MEAN_PER_S))
            rates[name] = mean * (1 + WAVE_HEIGHT * sin(angle))
        parts.append((step_s, rates))
    return in_turn(parts)


def in_turn(parts: Sequence[tuple[float, Mapping[str, float]]]) -> Workload:
    """Poisson streams whose rates change: so many seconds at these rates, then at those."""
    played, start_us = [], 0
    for seed, (seconds, rates) in enumerate(parts):
        part = _poisson(rates, seconds, seed)
        later = tuple([replace(arrival, at_us=arrival.at_us + start_us) for arrival in part.arrivals])
        played.append(replace(part, arrivals=later))
        start_us += round(seconds * 1e6)
    return workloads.merge(*played)


def _poisson(rates: Mapping[str, float], seconds: float, seed: int) -> Workload:
    return workloads.poisson(list(rates.items()), seconds, seed=seed, models=tuple(rates), slo_us=SLO_US)


# -- resizing -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """How a tenant gets another size."""

    name: str
    policy: str | Policy
    prepare_us: int


def resize_ways(lengths: Lengths) -> tuple[Way, ...]:
    prepare_us, seconds = round(lengths.prepare_s * 1e6), f"{lengths.prepare_s:g} s"
    return (
        Way("never: static", "static", 0),
        Way("swap, executables are there", "gslice", 0),
        Way(f"shadow, ready after {seconds}", "gslice", prepare_us),
        Way(f"restart, down for {seconds}", restarting, prepare_us),
        Way("the same, at most every 30 s", restarting_seldom, prepare_us),
    )


def restarting(snapshot: Snapshot, costs: CostModel) -> Plan:
    """`gslice` where a tenant that is being resized is down: its process has ended, its requests queue up.

    The size that a tenant starts with is no resize: until then it is served at its knee, as by `gslice`.
    """
    up = tuple([tenant for tenant in snapshot.tenants if not (tenant.resizing and tenant.share_units is not None)])
    if not up:
        return Plan(wake_at_us=snapshot.now_us + OUTAGE_US)
    return gslice(replace(snapshot, tenants=up), costs)


def restarting_seldom(snapshot: Snapshot, costs: CostModel) -> Plan:
    """The same, under an operator who has a tenant keep its size for PATIENCE_US."""
    plan = restarting(snapshot, costs)
    since_us = {t.name: t.share_since_us for t in snapshot.tenants if t.share_units is not None}
    due_us = snapshot.now_us - PATIENCE_US
    return replace(plan, resizes=tuple([r for r in plan.resizes if since_us.get(r.tenant, due_us) <= due_us]))


def step_run(way: Way, lengths: Lengths) -> StepRun:
    """The load step, resized this way."""
    parts = ((lengths.step_at_s, BEFORE_PER_S), (lengths.end_s - lengths.step_at_s, AFTER_PER_S))
    played = in_turn(parts)
    simulation = Simulation(played, way.policy, DEVICE, prepare_us=way.prepare_us, trace_events=len(played.arrivals))
    report = simulation.run()
    step_at_us = round(lengths.step_at_s * 1e6)
    late = late_after(simulation.trace, step_at_us)
    gaps = [gap for gap in outages(simulation.trace) if gap.us >= OUTAGE_US]
    return StepRun(
        way=way.name,
        report=report,
        resizes=sum(int(stats["resizes"]) for stats in simulation.scheduler.stats().values()),
        late=late.get(STEP_TENANT, 0),
        late_of_others=sum(late.values()) - late.get(STEP_TENANT, 0),
        settled_s=settled_s(simulation.trace, STEP_TENANT, step_at_us, round(lengths.end_s * 1e6)),
        longest_outage_us=max((gap.us for gap in gaps), default=0),
        outage_us=sum(gap.us for gap in gaps),
    )


def late_after(trace: Trace, from_us: int) -> dict[str, int]:
    """By tenant: requests that came since and ended late."""
    late: defaultdict[str, int] = defaultdict(int)
    for event in trace.events:
        for view in event.lane.requests:
            if view.arrival_us >= from_us and view.deadline_us is not None and event.end_us > view.deadline_us:
                late[view.tenant] += 1
    return dict(late)


def settled_s(trace: Trace, tenant: str, from_us: int, until_us: int) -> float | None:
    """How long until no second has too many late requests any more; None if the last one still has."""
    num_seconds = (until_us - from_us) // 1_000_000
    asked, late = [0] * num_seconds, [0] * num_seconds
    for event in trace.events:
        for view in event.lane.requests:
            second = (view.arrival_us - from_us) // 1_000_000
            if view.tenant == tenant and 0 <= second < num_seconds:
                asked[second] += 1
                late[second] += view.deadline_us is not None and event.end_us > view.deadline_us
    bad = [second for second in range(num_seconds) if late[second] > TOLERABLE * asked[second]]
    if not bad:
        return 0.0
    return None if bad[-1] == num_seconds - 1 else bad[-1] + 1.0


def outages(trace: Trace) -> list[Outage]:
    """Whenever requests of a tenant waited while no lane of it ran."""
    lanes: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)  # start, end, oldest arrival
    for event in trace.events:
        oldest_us: dict[str, int] = {}
        for view in event.lane.requests:
            oldest_us[view.tenant] = min(view.arrival_us, oldest_us.get(view.tenant, view.arrival_us))
        for name, arrival_us in oldest_us.items():
            lanes[name].append((event.start_us, event.end_us, arrival_us))
    found = []
    for name, its in lanes.items():
        served_until_us = 0
        for start_us, end_us, arrival_us in sorted(its):
            from_us = max(served_until_us, arrival_us)
            if start_us > from_us:
                found.append(Outage(name, from_us, start_us))
            served_until_us = max(served_until_us, end_us)
    return found


def _loop_rate(policy: str, num_requests: int) -> float:
    """Requests per second when there is always something to do, and to batch."""
    loop = workloads.closed_loop(list(MEAN_PER_S), num_requests, models=tuple(MEAN_PER_S))
    return simulate(replace(loop, outstanding=LOOP_OUTSTANDING), policy, DEVICE).requests_per_s


# -- words --------------------------------------------------------------------------------------------


def _loads_table(reports: Mapping[tuple[str, str], Report]) -> Table:
    columns = (
        Column("load"),
        Column("policy"),
        Column("requests", "d"),
        Column("promises broken", ".2%"),
        Column("p50 ms", ".1f"),
        Column("p99 ms", ".1f"),
        Column("units busy", ".0%"),
        Column("mJ/request", ".0f"),
    )
    rows = []
    for (load, policy), report in reports.items():
        broken = report.violations / _num_submitted(report)
        latencies = report.p50_us / 1e3, report.p99_us / 1e3
        energy = report.joules_per_request * 1e3
        rows.append((load, policy, _num_submitted(report), broken, *latencies, report.utilisation, energy))
    return Table("Loads that change", columns, tuple(rows))


def _num_submitted(report: Report) -> int:
    return sum(tenant.submitted for tenant in report.tenants)


def _steps_table(runs: Sequence[StepRun]) -> Table:
    columns = (
        Column("way of resizing"),
        Column("requests", "d"),
        Column("resizes", "d"),
        Column(f"late, {STEP_TENANT}", "d"),
        Column("late, others", "d"),
        Column("settled after s", ".0f"),
        Column("longest outage s", ".2f"),
        Column("outages, sum s", ".1f"),
        Column("units busy", ".0%"),
    )
    rows = tuple(
        (
            run.way,
            _num_submitted(run.report),
            run.resizes,
            run.late,
            run.late_of_others,
            run.settled_s,
            run.longest_outage_us / 1e6,
            run.outage_us / 1e6,
            run.report.utilisation,
        )
        for run in runs
    )
    return Table(f"A load step of {STEP_TENANT}", columns, rows)


def _method(lengths: Lengths, reports: Mapping[tuple[str, str], Report], runs: Sequence[StepRun]) -> tuple[str, ...]:
    rates = ", ".join(f"{name} {mean:.0f}/s" for name, mean in MEAN_PER_S.items())
    sizes = {load: _num_submitted(report) for (load, _), report in reports.items()}
    parts = " and ".join(f"{part:.0%} for {dwell_s} s" for part, dwell_s in BURSTS)
    return (
        f"Tenants, one request of one row at a time: {rates}. Everybody's objective is {SLO_US // 1000} ms. The rates "
        "and the objective are ours, not the paper's: its mechanism is compared, not its figures.",
        f"Loads of {lengths.load_s:g} s: Poisson (steady); {parts} of the mean on average (bursts); rates that rise "
        f"and fall by {WAVE_HEIGHT:.0%} every {WAVE_S:.0f} s, one tenant after the other (waves). Every policy serves "
        f"the same arrivals: {', '.join(f'{count} in {load}' for load, count in sizes.items())}.",
        f"The load step: {STEP_TENANT} goes from {BEFORE_PER_S[STEP_TENANT]:.0f}/s to "
        f"{AFTER_PER_S[STEP_TENANT]:.0f}/s after {lengths.step_at_s:.0f} s of {lengths.end_s:.0f} s, "
        f"{_num_submitted(runs[0].report)} requests in all. Late are those that came after the step. Settled is the "
        f"tenant after the last second in which more than {TOLERABLE:.0%} of its requests were late. An outage is a "
        f"time of at least {OUTAGE_US // 1000} ms in which requests of a tenant waited and no lane of it ran.",
        f"Shadow: the simulated backend takes {lengths.prepare_s:g} s to make executables for the new size, while "
        "lanes of the old one go on; the swap itself is an assignment between two plans and takes no simulated time. "
        f"Restart: the same {lengths.prepare_s:g} s, but the tenant is hidden from the policy meanwhile, so that its "
        "requests queue up. The policy is the same in all of them.",
        f"The claim: a closed loop, {LOOP_OUTSTANDING} requests of each tenant outstanding, {lengths.loop_requests} of "
        "each in all, no objective.",
    )


def _notes(reports: Mapping[tuple[str, str], Report], runs: Sequence[StepRun], lengths: Lengths) -> tuple[str, ...]:
    _, swap, shadow, restart, seldom = runs
    loads = dict.fromkeys(load for load, _ in reports)
    best = [
        f"{load}: {min(POLICIES, key=lambda policy: (reports[load, policy].violations, reports[load, policy].p99_us))}"
        for load in loads
    ]
    return (
        f"The fewest promises were broken, and among equals the p99 was lowest, under: {', '.join(best)}.",
        "A resize by swapping or by a shadow stops nobody: the longest outage was "
        f"{swap.longest_outage_us / 1e6:.2f} s and {shadow.longest_outage_us / 1e6:.2f} s. By restart it was "
        f"{restart.longest_outage_us / 1e6:.2f} s, and {restart.all_late} requests were late after the step instead of "
        f"{shadow.all_late}. An operator who waits 30 s between restarts still has {seldom.all_late}.",
        f"Self-tuning finds a size step by step, so that quick resizes are many: {swap.resizes} by swapping and "
        f"{shadow.resizes} by shadow in {lengths.end_s:.0f} s. A size that is found sooner is also left sooner: "
        "shares shrink as soon as averages allow, and what a tenant gave up is missing when its next burst comes. Late "
        f"after the step were {swap.all_late} by swapping, {shadow.all_late} by shadow.",
        "Requests for a tenant that is down wait for it here. Clients of a real one would be refused, and its "
        "neighbours would not see its backlog afterwards.",
        "Averages of recent rates and latencies have a time constant of 1 s, and shares are judged no faster: what "
        "changes within a second is met by batches, not by sizes.",
        "`streams` shares the device almost perfectly in the model: neighbours on the same units cost "
        f"{devices.find(DEVICE).interference:.0%}, and the cache is shared. Whatever keeps kernels of "
        "different streams from overlapping on a real device is not modelled, so that its "
        "latencies here are the least that it could have, and the claim's ratio is too small.",
    )
