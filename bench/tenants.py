"""Case `tenants`: tenants of several architectures with SLOs under open-loop traffic, policy beside policy.

What a policy is asked: how much traffic it serves in time, whom it serves late at a rate that all are given, and how
evenly it serves when everybody wants more than there is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from bench import mlperf
from bench.cases import Scale
from bench.models_stand import available_bytes
from bench.models_subjects import weight_bytes
from bench.results import Figure, Measurement, distribution
from bench.sides import Remote, Unavailable
from bench.tenants_rates import ALONE_REQUESTS, Ladder, Lone, Search, lone_of
from bench.traffic import (
    BURST_RATE,
    BURST_S,
    QUIET_RATE,
    QUIET_S,
    Played,
    Served,
    capabilities_of,
    capacity_per_s,
    mix_of,
    nearest_rank,
    open_traffic,
    policies,
    residents,
    with_slos,
)
from spacetime.sim.report import jain
from spacetime.workload import Resident, Workload

SLO_TIMES, SLO_FLOOR = 5.0, 2.0
WEIGHTS = (1.0, 2.0)
COMMON_LOAD = 0.3  # of what calls one after another can do
FAIR_OUTSTANDING = 4
MOST_STRETCH = 4.0  # a point of a slow rate may take so many times as long, for there to be requests
ENOUGH_REQUESTS = 200
BASE_BYTES = 400 << 20  # of a process
COPIES = 2.5  # times the weights: slabs are copies for as long as they grow
MOST_OF_MEMORY = 0.8

TENANTS = (
    "tenants of the mix take turns over its models, one row per request, every tenant sends as often as the others, "
    f"independently; weights {WEIGHTS[0]:.0f} and {WEIGHTS[1]:.0f} take turns over the rounds of models; a policy has "
    "a process of its own with its tenants and who sends to them; policies take turns, seed by seed and rate by rate, "
    "with the same arrivals for all; a sample is a seed"
)
SLOS = (
    f"an SLO is {SLO_TIMES:.0f} times what a request of the tenant's model takes alone, but at least {SLO_FLOOR:.0f} "
    "times the slowest of the mix, for nobody interrupts a lane; alone: the median of "
    f"{ALONE_REQUESTS} requests, sent and timed as the traffic is, before it and with gaps, models taking turns"
)
BURSTS = (
    f"bursts: each tenant by itself goes between {BURST_RATE:g} times its mean rate, for {BURST_S * 1e3:.0f} ms on "
    f"average, and {QUIET_RATE:g} times, for {QUIET_S * 1e3:.0f} ms"
)
COMMON = f"at {COMMON_LOAD:.0%} of the rate that lone calls one after another would sustain"

GOODPUT = Figure(
    "tenants",
    "goodput: highest rate with p99 within the SLO",
    "requests/s",
    "of all tenants' requests at least 99 % end within their own SLO, those cancelled half a point's time after the "
    "last was sent count as late; found by bisection on rates in steps of equal ratio, the same for all policies and "
    "seeds, each with the seed's arrivals in proportion; a seed for which no rate passes counts as 0; the rates and "
    f"how many requests a point has are in the note; {SLOS}; {TENANTS}; {BURSTS}",
)
VIOLATIONS = Figure("tenants", "SLO violations", "%", f"{COMMON}; {SLOS}; {TENANTS}; {BURSTS}")
P50 = Figure("tenants", "latency p50", "ms", f"of all tenants' requests, {COMMON}; {TENANTS}; {BURSTS}")
P99 = Figure("tenants", "latency p99", "ms", f"of all tenants' requests, {COMMON}; {TENANTS}; {BURSTS}")
FAIR_METHOD = f"a closed loop of {FAIR_OUTSTANDING} requests of each tenant at any time; 1 is even; {TENANTS}"
FAIR_REQUESTS = Figure(
    "tenants", "fairness of throughput", "Jain index", f"of requests per second over weight; {FAIR_METHOD}"
)
FAIR_SERVICE = Figure(
    "tenants",
    "fairness of service",
    "Jain index",
    f"of requests per second times the model's lone latency over weight: the work that was done; {FAIR_METHOD}",
)
HARNESS = (
    "load and clock of mlcommons-loadgen, which waits busily on a core of this host; its rules for results are not "
    f"kept and its models are not used, so this is no MLPerf result; {TENANTS}"
)
SERVER = {
    name: Figure("tenants", f"loadgen Server {name}", unit, f"single requests of random tenants, {COMMON}; {HARNESS}")
    for name, unit in (("p50", "ms"), ("p99", "ms"), ("completed", "requests/s"))
}
MULTI_STREAM = {
    name: Figure(
        "tenants",
        f"loadgen MultiStream {name}",
        "ms",
        f"queries of as many requests as there are tenants, the next when the last is complete; {HARNESS}",
    )
    for name in ("p50", "p99")
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of it."""

    models: tuple[str, ...]
    counts: tuple[int, ...]
    searched: tuple[str, ...]  # kinds of arrivals for which the goodput is looked for, some of:
    arrivals: tuple[str, ...]
    num_below: int  # rates that are tried below the common one ...
    num_above: int  # ... and above it
    steps_per_doubling: int
    point_s: float
    num_repeats: int  # seeds: of the fixed rate, and of the search
    fixed_s: float
    warm_up_s: float
    ready_limit_s: float
    few_policies: bool = False
    only: tuple[str, ...] = ()  # none: all

    @classmethod
    def of(cls, scale: Scale) -> Sizes:
        if scale.smoke:
            only, poisson = ("time_slice", "space_time"), ("poisson",)
            return cls(("mlp",), (2,), poisson, poisson, 1, 1, 1, 0.1, 1, 0.1, 0.1, 60, only=only)
        models, both = mix_of(scale.device), ("poisson", "bursts")
        if scale.quick:
            return cls(models, (8,), both[:1], both, 4, 7, 3, 1.0, 3, 1.0, 1.0, 120, few_policies=True)
        return cls(models, (2, 8, 32, 64), both, both, 12, 19, 6, 2.0, 5, 4.0, 3.0, 300)


def run(scale: Scale) -> Iterator[Measurement]:
    sizes = Sizes.of(scale)
    capabilities = capabilities_of(scale.device)
    lone = lone_of(scale.device, sizes.models)
    names = [
        (name, why)
        for name, why in policies(capabilities, few=sizes.few_policies)
        if not sizes.only or name in sizes.only
    ]
    for policy, why in names:
        if why is not None:
            yield GOODPUT.unavailable(policy, why, {"policy": policy})
    able = [policy for policy, why in names if why is None]
    for count in sizes.counts:
        for group in in_memory(able, needed_bytes(sizes.models, count), available_bytes(scale.device)):
            yield from Contest(scale.device, sizes, group, count, lone).run()


def needed_bytes(models: Sequence[str], count: int) -> float:
    """Of a policy's process, with so many tenants of the mix."""
    weights = sum(weight_bytes(tenant.model, "float32") for tenant in residents(models, count))
    return BASE_BYTES + COPIES * weights


def in_memory(policies: Sequence[str], needed: float, free: float) -> list[tuple[str, ...]]:
    """As many at a time as the memory holds, one at least, in groups that differ by one at most.

    >>> in_memory("abcde", 2.0, 10.0)
    [('a', 'c', 'e'), ('b', 'd')]
    """
    most = max(1, int(MOST_OF_MEMORY * free / needed))
    number = math.ceil(len(policies) / most)
    return [tuple(policies[first::number]) for first in range(number)]


@dataclass(slots=True)
class Found:
    """What one policy did, a value per seed."""

    at_common: defaultdict[str, list[Played]] = field(default_factory=lambda: defaultdict(list))  # by arrivals
    searches: defaultdict[str, list[Search]] = field(default_factory=lambda: defaultdict(list))
    counts: list[dict[str, int]] = field(default_factory=list)  # what everybody was served when all wanted more


@dataclass(slots=True)
class Contest:
    """Policies with so many tenants each. What the machine does meanwhile hits all alike: they take turns."""

    device: str
    sizes: Sizes
    policies: Sequence[str]
    count: int
    lone: Lone
    tenants: tuple[Resident, ...] = field(init=False)
    ladder: Ladder = field(init=False)
    served: dict[str, Remote] = field(init=False, default_factory=dict)
    lost: dict[str, str] = field(init=False, default_factory=dict)  # policies that cannot go on, and why
    found: dict[str, Found] = field(init=False, default_factory=dict)
    turn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        bare = residents(self.sizes.models, self.count, WEIGHTS)
        self.tenants = tuple(with_slos(bare, self.lone.alone_us, SLO_TIMES, SLO_FLOOR))
        common_per_s = COMMON_LOAD * capacity_per_s(self.tenants, self.lone.busy_us)
        steps = (self.sizes.num_below, self.sizes.num_above, self.sizes.steps_per_doubling)
        self.ladder = Ladder(common_per_s, *steps)
        self.found = {policy: Found() for policy in self.policies}

    def run(self) -> Iterator[Measurement]:
        with ExitStack() as stack:
            for policy in self.policies:  # tenants are added while nothing else runs
                self.served[policy] = stack.enter_context(Remote(Served, self.device, policy, self.tenants))
                reason = self.served[policy].why_not(self.sizes.ready_limit_s)
                if reason is not None:
                    self.lost[policy] = reason
            self._in_turns(lambda policy: self.served[policy].call("warm_up", self.sizes.warm_up_s))
            for seed in range(self.sizes.num_repeats):
                for arrivals in self.sizes.arrivals:
                    self._in_turns(partial(self._play_common, arrivals, seed))
                self._in_turns(self._saturate)
            for policy in self.policies:
                yield from self._common_figures(policy)
            for arrivals in self.sizes.searched:
                for seed in range(self.sizes.num_repeats):
                    self._search(arrivals, seed)
                yield from (self._goodput(policy, arrivals) for policy in self.policies if policy not in self.lost)
            for policy in self.policies:
                if policy not in self.lost:
                    yield from self._harness(policy)
            for policy, why in self.lost.items():  # what was measured before stays
                yield GOODPUT.unavailable(self._subject(policy, ""), why, self._axes(policy, ""))

    # -- turns -------------------------------------------------------------------------------------------------------

    def _in_turns(self, act: Callable[[str], object]) -> None:
        """Every policy that can go on; who is first changes from turn to turn."""
        first, self.turn = self.turn % len(self.policies), self.turn + 1
        for policy in (*self.policies[first:], *self.policies[:first]):
            if policy not in self.lost:
                try:
                    act(policy)
                except Unavailable as why:
                    self.lost[policy] = str(why)

    def _play_common(self, arrivals: str, seed: int, policy: str) -> None:
        played = self._play(policy, self.ladder.common_per_s, self.sizes.fixed_s, arrivals, seed)
        self.found[policy].at_common[arrivals].append(played)

    def _saturate(self, policy: str) -> None:
        names = tuple(tenant.name for tenant in self.tenants)
        counts = self.served[policy].call("saturate", names, self.sizes.fixed_s, FAIR_OUTSTANDING)
        self.found[policy].counts.append(counts)

    def _search(self, arrivals: str, seed: int) -> None:
        """Of one seed, all policies. What they did at the common rate counts."""
        for policy in self.policies:
            if policy not in self.lost:
                search = Search(self.ladder)
                search.saw(self._passes(self.found[policy].at_common[arrivals][seed]))
                self.found[policy].searches[arrivals].append(search)
        while any(self._next_rate(policy, arrivals) is not None for policy in self.policies):
            self._in_turns(partial(self._try_next, arrivals, seed))

    def _next_rate(self, policy: str, arrivals: str) -> float | None:
        return None if policy in self.lost else self.found[policy].searches[arrivals][-1].rate_per_s

    def _try_next(self, arrivals: str, seed: int, policy: str) -> None:
        rate_per_s = self._next_rate(policy, arrivals)
        if rate_per_s is not None:
            played = self._play(policy, rate_per_s, self.sizes.point_s, arrivals, seed)
            self.found[policy].searches[arrivals][-1].saw(self._passes(played))

    def _passes(self, played: Played) -> bool:
        parts = played.over_slo(self.tenants)
        return bool(parts) and nearest_rank(parts, 0.99) <= 1

    def _play(self, policy: str, rate_per_s: float, point_s: float, arrivals: str, seed: int) -> Played:
        duration_s = duration_of(rate_per_s, point_s)
        workload: Workload = open_traffic(self.tenants, rate_per_s, duration_s, arrivals, seed)
        played: Played = self.served[policy].call("play", workload, duration_s / 2)
        return played

    # -- figures -----------------------------------------------------------------------------------------------------

    def _common_figures(self, policy: str) -> Iterator[Measurement]:
        for arrivals, played in self.found[policy].at_common.items():
            yield from self._at_common_rate(policy, arrivals, played)
        if self.found[policy].counts:
            yield from self._fairness(policy, self.found[policy].counts)

    def _at_common_rate(self, policy: str, arrivals: str, played: Sequence[Played]) -> Iterator[Measurement]:
        subject, axes = self._subject(policy, arrivals), self._axes(policy, arrivals)
        fewest, total = min(len(its.all_us) for its in played), sum(len(its.all_us) for its in played)
        if not fewest:
            yield VIOLATIONS.unavailable(subject, f"no request came in {self.sizes.fixed_s:g} s", axes)
            return
        note = f"{self.ladder.common_per_s:.4g} requests/s; {self._slo_note()}; {fewest} requests or more a seed"
        late = [100 * share_late(its.over_slo(self.tenants)) for its in played]
        yield VIOLATIONS.of(subject, late, note, axes)
        of_all = {P50.metric: distribution([us / 1e3 for its in played for us in its.all_us])}
        for figure, fraction in ((P50, 0.5), (P99, 0.99)):
            found_ms = [nearest_rank(its.all_us, fraction) / 1e3 for its in played]
            if any(map(math.isinf, found_ms)):
                share = sum(math.isinf(us) for its in played for us in its.all_us) / total
                why = f"{share:.1%} of the requests were not served: the policy is overloaded"
                yield figure.unavailable(subject, why, axes)
            else:
                yield figure.of(subject, found_ms, f"{note}; {total} in all", axes, of_all.get(figure.metric))

    def _goodput(self, policy: str, arrivals: str) -> Measurement:
        searches = self.found[policy].searches[arrivals]
        passed = [search.passed_per_s for search in searches]
        note = f"{self._ladder_note()}; {self._slo_note()}"
        subject, axes = self._subject(policy, arrivals), self._axes(policy, arrivals)
        if not any(passed):
            lowest = self.ladder.rates_per_s[0]
            return GOODPUT.unavailable(subject, f"no rate passed, down to {lowest:.4g} requests/s; {note}", axes)
        failed = [search.failed_per_s for search in searches if search.failed_per_s is not None]
        if failed:
            note += f"; failed from {min(failed):.4g} on"
        if passed.count(None):
            note += f"; {passed.count(None)} of {len(passed)} seeds found no rate that passes"
        if len(failed) < len(searches):
            note += f"; {len(searches) - len(failed)} of {len(searches)} seeds passed at every rate: there may be more"
        return GOODPUT.of(subject, [rate or 0.0 for rate in passed], note, axes)

    def _fairness(self, policy: str, counts: Sequence[Mapping[str, int]]) -> Iterator[Measurement]:
        rate = sum(sum(its.values()) for its in counts) / self.sizes.fixed_s / len(counts)
        starved = sum(min(its.values()) == 0 for its in counts)
        note = f"{rate:.4g} requests/s in all" + (f"; somebody was served nothing in {starved} runs" if starved else "")
        subject, axes = self._subject(policy, "saturated"), self._axes(policy, "saturated")
        yield FAIR_REQUESTS.of(subject, [jain(self._shares(its, {})) for its in counts], note, axes)
        yield FAIR_SERVICE.of(subject, [jain(self._shares(its, self.lone.busy_us)) for its in counts], note, axes)

    def _shares(self, counts: Mapping[str, int], cost_us: Mapping[str, float]) -> list[float]:
        return [counts[t.name] * cost_us.get(t.model, 1.0) / t.weight for t in self.tenants]

    # -- somebody else's harness -------------------------------------------------------------------------------------

    def _harness(self, policy: str) -> Iterator[Measurement]:
        missing = mlperf.why_not()
        limit_us = max(tenant.slo_us or 0 for tenant in self.tenants)
        for scenario in mlperf.SCENARIOS:
            traffic = f"loadgen {scenario}"
            subject, axes = self._subject(policy, traffic), self._axes(policy, traffic)
            figures = SERVER if scenario == mlperf.SERVER else MULTI_STREAM
            if missing is not None:
                yield figures["p99"].unavailable(subject, missing, axes)
                continue
            what = mlperf.Drive(scenario, self.sizes.fixed_s, self.ladder.common_per_s, limit_us)
            try:
                found: mlperf.Driven = self.served[policy].call("harnessed", what, limit_s=30 + 20 * self.sizes.fixed_s)
            except Unavailable as why:  # the next scenario gets the reason, too: its process may have ended
                yield figures["p99"].unavailable(subject, str(why), axes)
                missing = f"after {scenario}: {why}"
                continue
            note = f"{found.num_queries} queries" + (f", {found.num_failed} failed" if found.num_failed else "")
            yield figures["p50"].of(subject, [found.p50_us / 1e3], note, axes)
            yield figures["p99"].of(subject, [found.p99_us / 1e3], note, axes)
            if found.completed_per_s is not None:
                asked = f"{note}; asked for {self.ladder.common_per_s:.4g}"
                yield figures["completed"].of(subject, [found.completed_per_s], asked, axes)

    # -- words -------------------------------------------------------------------------------------------------------

    def _subject(self, policy: str, traffic: str) -> str:
        return " ".join(filter(None, (f"{policy}, {self.count} tenants", traffic)))

    def _axes(self, policy: str, traffic: str) -> dict[str, str | int | float]:
        mix = "+".join(self.sizes.models)
        return {"policy": policy, "tenants": self.count, "traffic": traffic, "mix": mix}

    def _slo_note(self) -> str:
        slo_us = {tenant.model: tenant.slo_us or 0 for tenant in self.tenants}
        return "SLO " + ", ".join(f"{model} {us / 1e3:.3g} ms" for model, us in slo_us.items())

    def _ladder_note(self) -> str:
        rates_per_s = self.ladder.rates_per_s
        fewest = min(round(rate * duration_of(rate, self.sizes.point_s)) for rate in rates_per_s)
        between = f"{rates_per_s[0]:.4g} and {rates_per_s[-1]:.4g}"
        return f"rates between {between}, steps of {rates_per_s[1] / rates_per_s[0] - 1:.0%}, {fewest} requests or more"


def duration_of(rate_per_s: float, point_s: float) -> float:
    """Slow rates take longer, for there to be a p99 to speak of."""
    return min(max(point_s, ENOUGH_REQUESTS / rate_per_s), MOST_STRETCH * point_s)


def share_late(parts_of_slo: Sequence[float]) -> float:
    return sum(part > 1 for part in parts_of_slo) / len(parts_of_slo) if parts_of_slo else 0.0
