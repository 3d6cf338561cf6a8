"""Study: every policy from two tenants to a thousand, and a thousand tenants on up to 64 devices. No torch.

How many requests a second does an H200 serve in time? For each policy and number of tenants that is the highest rate
at which 99% of the requests meet the objective, found by bisection on a grid of rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from spacetime import workload as workloads
from spacetime._version import __version__
from spacetime.scheduler.space_time import LANE_SHARE
from spacetime.sim import cluster, devices
from spacetime.sim.cluster import Assignment, simulate_cluster
from spacetime.sim.report import Report
from spacetime.sim.simulate import simulate
from spacetime.sim.studies.study import Cell, Claim, Column, Progress, Study, Table
from spacetime.values import Value
from spacetime.workload import Workload

DEVICE = "h200"
MODELS = ("resnet50", "bert", "mobilenet_v2", "gru", "resnet18", "mlp")
SLO_US = 25_000
POLICIES = ("time_slice", "streams", "static", "gslice", "krisp", "krisp_overlap", "space_time", "space_time_floating")

IN_TIME = 0.99  # of the requests, or a rate is too high
GRID = 1.05  # between one rate and the next
STRIDE = 8  # grid points at a time, until the border is passed
FIRST_PER_S, LOWEST_PER_S = 1500.0, 10.0
WARM_UP = 0.2  # of the time: cost models learn
COMMON_LOAD = 0.6  # of the rate that the best policy manages

NETFUSE = "NetFuse, 2020"
NETFUSE_GAIN, NETFUSE_MODEL, NETFUSE_TENANTS, NETFUSE_DEVICE = 3.6, "resnet50", 32, "v100"


@dataclass(frozen=True, slots=True)
class Sizes(Value):
    """How much is played."""

    tenants: tuple[int, ...]
    requests: int  # of a run on one device, at least
    seconds: float  # the same
    devices: tuple[int, ...]  # by bisection, besides one
    seconds_of_several: float  # of a run on these
    most_devices: int  # at one rate
    seconds_of_most: float
    loop_requests: int  # of each tenant, for the claim


FULL = Sizes((2, 16, 128, 1000), 1600, 16 * SLO_US / 1e6, (4, 16), 8 * SLO_US / 1e6, 64, 5 * SLO_US / 1e6, 30)
QUICK = Sizes((12,), 80, 2 * SLO_US / 1e6, (2,), SLO_US / 1e6, 3, SLO_US / 1e6, 2)


@dataclass(frozen=True, slots=True)
class Point(Value):
    """The highest rate that is served in time; None if there is none."""

    rate_per_s: float
    report: Report | None
    num_runs: int


@dataclass(frozen=True, slots=True)
class Placed(Value):
    """The same on several devices."""

    placement: str
    num_devices: int
    point: Point


def study(*, quick: bool, progress: Progress) -> Study:
    """Every policy from 2 to 1,000 tenants and up to 64 devices: requests in time, latency, utilisation, energy."""
    sizes = QUICK if quick else FULL
    steps = _Steps(progress, _num_steps(sizes))
    points: dict[tuple[int, str], Point] = {}
    common: dict[tuple[int, str], Report] = {}
    for tenants in sizes.tenants:
        for policy in POLICIES:
            steps.begin()
            guess = next((p.rate_per_s for (_, name), p in reversed(points.items()) if name == policy), FIRST_PER_S)
            points[tenants, policy] = highest_rate(partial(_one, tenants, policy, sizes), guess)
        best_per_s = max(points[tenants, policy].rate_per_s for policy in POLICIES)
        for policy in POLICIES:
            steps.begin()
            common[tenants, policy] = _one(tenants, policy, sizes, COMMON_LOAD * best_per_s)
    most_tenants = sizes.tenants[-1]
    alone_per_s = points[most_tenants, "space_time"].rate_per_s
    placed = []
    for num_devices in sizes.devices:
        for placement in PLACEMENTS:
            steps.begin()
            play = partial(_several, placement, "space_time", most_tenants, num_devices, sizes)
            point = highest_rate(play, alone_per_s * num_devices)
            placed.append(Placed(placement, num_devices, point))
    many = _many(sizes, common[most_tenants, "space_time"].requests_per_s * sizes.most_devices, steps)
    return Study(
        name="scale",
        title="From 2 tenants to 1,000, from 1 device to 64",
        device=DEVICE,
        version=__version__,
        is_quick=quick,
        question="How many requests a second are served in time as tenants get more, under each policy, at which "
        "latency and for how much energy; and does it matter where tenants are placed when there are many devices?",
        method=_method(sizes),
        claims=(_claim(sizes),),
        tables=(_points_table(points), _common_table(common), _placed_table(placed), _many_table(many, sizes)),
        notes=_notes(points, common, placed, many, sizes),
    )


# -- runs ---------------------------------------------------------------------------------------------


def highest_rate(play: Callable[[float], Report], guess_per_s: float) -> Point:
    """By strides until the border between in time and late lies between two rates, then by halves."""
    reports: dict[int, Report] = {}

    def is_in_time(index: int) -> bool:
        if index not in reports:
            reports[index] = play(guess_per_s * GRID**index)
        return in_time(reports[index]) >= IN_TIME

    good = bad = 0
    if is_in_time(0):
        while is_in_time(bad := good + STRIDE):
            good = bad
    else:
        while not is_in_time(good := bad - STRIDE):
            bad = good
            if guess_per_s * GRID**bad < LOWEST_PER_S:
                return Point(0.0, None, len(reports))
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_in_time(middle) else (good, middle)
    return Point(guess_per_s * GRID**good, reports[good], len(reports))


def in_time(report: Report) -> float:
    """The part of the requests that met their objective."""
    submitted = num_submitted(report)
    return 1 - report.violations / submitted if submitted else 1.0


def num_submitted(report: Report) -> int:
    return sum(tenant.submitted for tenant in report.tenants)


def load(num_tenants: int, rate_per_s: float, seconds: float) -> Workload:
    """Poisson, the same rate for all; the models take turns."""
    rates = [(f"tenant {index}", rate_per_s / num_tenants) for index in range(num_tenants)]
    return workloads.poisson(rates, seconds, models=MODELS, slo_us=SLO_US)


def _one(num_tenants: int, policy: str, sizes: Sizes, rate_per_s: float) -> Report:
    seconds = max(sizes.requests / rate_per_s, sizes.seconds)
    return simulate(load(num_tenants, rate_per_s, seconds), policy, DEVICE, warm_up_s=WARM_UP * seconds)


def _several(
    placement: str, policy: str, num_tenants: int, num_devices: int, sizes: Sizes, rate_per_s: float
) -> Report:
    seconds = sizes.seconds_of_most if num_devices == sizes.most_devices else sizes.seconds_of_several
    played = load(num_tenants, rate_per_s, seconds)
    assignment = PLACEMENTS[placement](played, num_devices)
    warm_up_s = WARM_UP * seconds
    return simulate_cluster(played, policy, DEVICE, num_devices, assignment=assignment, warm_up_s=warm_up_s).report


def _by_cohort(played: Workload, num_devices: int) -> Assignment:
    device = devices.find(DEVICE)
    return cluster.assign(cluster.predict(played, device), num_devices, memory_bytes=device.memory_bytes)


def _in_turn(played: Workload, num_devices: int) -> Assignment:
    """As one deals cards: every device gets some of everything."""
    # The models take turns too: by blocks, or with an even number of devices each would see a few models only.
    names = sorted((resident.model, index, resident.name) for index, resident in enumerate(played.residents))
    return tuple(tuple(name for _, _, name in names[first::num_devices]) for first in range(num_devices))


PLACEMENTS: Mapping[str, Callable[[Workload, int], Assignment]] = {"by cohort": _by_cohort, "in turn": _in_turn}


def _many(sizes: Sizes, rate_per_s: float, steps: _Steps) -> dict[tuple[str, str], Report]:
    """By policy and placement, all at one rate."""
    found: dict[tuple[str, str], Report] = {}
    for policy in POLICIES:
        for placement in PLACEMENTS if policy == "space_time" else ["by cohort"]:
            steps.begin()
            tenants, most = sizes.tenants[-1], sizes.most_devices
            found[policy, placement] = _several(placement, policy, tenants, most, sizes, rate_per_s)
    return found


def _claim(sizes: Sizes) -> Claim:
    """Closed loop, one request of each tenant outstanding."""
    names = [f"tenant {index}" for index in range(NETFUSE_TENANTS)]
    loop = workloads.closed_loop(names, sizes.loop_requests, models=[NETFUSE_MODEL])
    rates = {policy: simulate(loop, policy, NETFUSE_DEVICE).requests_per_s for policy in ("space_time", "time_slice")}
    name = f"{NETFUSE_TENANTS} {NETFUSE_MODEL} on {NETFUSE_DEVICE}, requests/s, space_time over time_slice (at most)"
    return Claim(name, NETFUSE_GAIN, rates["space_time"] / rates["time_slice"], NETFUSE)


class _Steps:
    """Counts what is begun."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def begin(self) -> None:
        self._progress(self._done, self._total)
        self._done += 1


def _num_steps(sizes: Sizes) -> int:
    return 2 * len(sizes.tenants) * len(POLICIES) + len(sizes.devices) * len(PLACEMENTS) + len(POLICIES) + 1


# -- words --------------------------------------------------------------------------------------------

FIGURES = (
    Column("requests", "d"),
    Column("p50 ms", ".1f"),
    Column("p99 ms", ".1f"),
    Column("units busy", ".0%"),
    Column("mJ/request", ".0f"),
)


def _figures(report: Report | None) -> tuple[Cell, ...]:
    if report is None:
        return (None,) * len(FIGURES)
    latencies_ms = report.p50_us / 1e3, report.p99_us / 1e3
    return num_submitted(report), *latencies_ms, report.utilisation, report.joules_per_request * 1e3


def _points_table(points: Mapping[tuple[int, str], Point]) -> Table:
    columns = (
        Column("tenants", "d"),
        Column("policy"),
        Column("requests/s in time", ".0f"),
        Column("over time_slice", ".2f"),
        *FIGURES,
        Column("runs", "d"),
    )
    rows = []
    for (tenants, policy), point in points.items():
        base = points[tenants, "time_slice"].rate_per_s
        gain = point.rate_per_s / base if base else None
        rows.append((tenants, policy, point.rate_per_s, gain, *_figures(point.report), point.num_runs))
    return Table("The highest rate in time, one device", columns, tuple(rows))


def _common_table(common: Mapping[tuple[int, str], Report]) -> Table:
    columns = (
        Column("tenants", "d"),
        Column("policy"),
        Column("in time", ".1%"),
        Column("requests/s", ".0f"),
        *FIGURES,
        Column("lanes/request", ".2f"),
    )
    rows = tuple(
        (
            tenants,
            policy,
            in_time(report),
            report.requests_per_s,
            *_figures(report),
            report.num_lanes / report.completed,
        )
        for (tenants, policy), report in common.items()
    )
    return Table(f"The same load for all, {COMMON_LOAD:.0%} of the best policy's rate", columns, rows)


def _placed_table(placed: Sequence[Placed]) -> Table:
    columns = (
        Column("devices", "d"),
        Column("placement"),
        Column("requests/s in time", ".0f"),
        Column("per device", ".0f"),
        *FIGURES,
        Column("runs", "d"),
    )
    rows = tuple(
        (
            each.num_devices,
            each.placement,
            each.point.rate_per_s,
            each.point.rate_per_s / each.num_devices,
            *_figures(each.point.report),
            each.point.num_runs,
        )
        for each in placed
    )
    return Table("Several devices, space_time", columns, rows)


def _many_table(many: Mapping[tuple[str, str], Report], sizes: Sizes) -> Table:
    columns = (
        Column("policy"),
        Column("placement"),
        Column("in time", ".1%"),
        Column("requests/s", ".0f"),
        *FIGURES,
        Column("lanes/request", ".2f"),
    )
    rows = tuple(
        (policy, where, in_time(report), report.requests_per_s, *_figures(report), report.num_lanes / report.completed)
        for (policy, where), report in many.items()
    )
    return Table(f"{sizes.tenants[-1]} tenants on {sizes.most_devices} devices, the same load for all", columns, rows)


def _method(sizes: Sizes) -> tuple[str, ...]:
    return (
        f"Tenants run {', '.join(MODELS)} in turn, all at the same rate, Poisson, one row per request; everybody's "
        f"objective is {SLO_US // 1000} ms.",
        f"A rate is served in time when {IN_TIME:.0%} of the requests meet it. Rates lie on a grid of {GRID - 1:.0%}: "
        "the table has the highest that is, and the next one is too high. Other figures of a row are at that rate.",
        f"A run on one device has at least {sizes.requests} requests and {sizes.seconds:.3g} s; on "
        f"{' and '.join(map(str, sizes.devices))} devices {sizes.seconds_of_several:.3g} s, on {sizes.most_devices} "
        f"devices {sizes.seconds_of_most:.3g} s. The first {WARM_UP:.0%} of the time are warm-up; how many requests "
        "are left to stand on is in the tables.",
        f"So short a run sees no overload below {SLO_US / 1e6 / sizes.seconds:.0%}, on several devices none below "
        f"{SLO_US / 1e6 / sizes.seconds_of_several:.0%}, since a queue takes time to grow as long as the objective. "
        "Rates in one table compare with each other, those of different tables do not. gslice's shares, which follow "
        "averages over a second, are still near their first size, the knee.",
        "Placement by cohort: tenants of one model together as long as their predicted load fits, devices filled "
        "evenly (spacetime/sim/cluster.py). In turn: every device has the same mix of models. The simulations of the "
        "devices are independent; figures are of all requests together.",
        "Energy is a proxy: idle power all the time, the rest in proportion to the busy units.",
        f"The claim: {NETFUSE_TENANTS} tenants in a closed loop, {sizes.loop_requests} requests each, one outstanding.",
    )


def _notes(
    points: Mapping[tuple[int, str], Point],
    common: Mapping[tuple[int, str], Report],
    placed: Sequence[Placed],
    many: Mapping[tuple[str, str], Report],
    sizes: Sizes,
) -> tuple[str, ...]:
    notes = []
    for tenants in sizes.tenants:
        ranked = sorted(POLICIES, key=lambda policy: -points[tenants, policy].rate_per_s)
        words = ", ".join(f"{policy} {points[tenants, policy].rate_per_s:.0f}" for policy in ranked[:3])
        place = ranked.index("space_time") + 1
        own = (
            "" if place <= 3 else f"; space_time is number {place} with {points[tenants, 'space_time'].rate_per_s:.0f}"
        )
        notes.append(f"{tenants} tenants, requests/s in time: {words}{own}.")
    tails = []
    for tenants in sizes.tenants:
        best = min(POLICIES, key=lambda policy: common[tenants, policy].p99_us)
        own_ms, best_ms = common[tenants, "space_time"].p99_us / 1e3, common[tenants, best].p99_us / 1e3
        tails.append(f"{tenants} tenants: {own_ms:.1f} ms against {best_ms:.1f} ms of {best}")
    notes.append(f"p99 of space_time at the same load, against the lowest of all policies: {'; '.join(tails)}.")
    by_cohort, in_turn = (many["space_time", placement] for placement in PLACEMENTS)
    rates = [
        f"{one.num_devices} devices {one.point.rate_per_s / max(other.point.rate_per_s, 1.0) - 1:+.0%}"
        for one, other in zip(placed[::2], placed[1::2], strict=True)
    ]
    notes.append(
        f"Placing by cohort instead of in turn changes space_time's requests/s in time by: {', '.join(rates)}. On "
        f"{sizes.most_devices} devices at one load p99 is {by_cohort.p99_us / 1e3:.1f} ms instead of "
        f"{in_turn.p99_us / 1e3:.1f} ms, with {by_cohort.num_lanes / by_cohort.completed:.2f} lanes per request "
        f"instead of {in_turn.num_lanes / in_turn.completed:.2f}."
    )
    return (
        *notes,
        "`streams` and the policies that let lanes overlap profit from a model in which kernels share units almost "
        f"perfectly: neighbours cost {devices.find(DEVICE).interference:.0%}, and the cache is shared. Beyond "
        f"{devices.find(DEVICE).hardware_queues} lanes, which share hardware queues, they wait for each other. Real "
        "devices often do not overlap streams at all, which is not modelled.",
        "Why space_time loses where it does: a lane keeps its units from its first kernel to its last, also through "
        "kernels that need fewer. Where few tenants of each model ask at the same time there is little to fuse either. "
        "Then policies that give units back between kernels (krisp, krisp_overlap, space_time_floating) or share them "
        "(streams) use more of the device. They need a device that places kernels itself: GPUs as they are do not. It "
        "also takes the least unit-time that meets the deadline instead of the least latency, hence its longer p99; "
        f"what it buys is energy. And no lane may take longer than {LANE_SHARE:.0%} of the tightest objective of "
        "those who may ask meanwhile: that protects them from a flood, and costs the largest batches.",
        "Decisions take no simulated time, and a lane's launches are counted, but not Python's part of them.",
        f"The claim compares with one tenant after the other. {NETFUSE} gives the gain as a maximum over its models, "
        "measured without waiting for requests to come.",
    )
