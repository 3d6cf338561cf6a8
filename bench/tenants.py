"""Case `tenants`: tenants of several architectures with SLOs under open-loop traffic, policy by policy.

What a policy is asked: how much traffic it serves in time, whom it serves late at a rate that all are given, and how
evenly it serves when everybody wants more than there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench import mlperf
from bench.cases import Scale
from bench.results import Figure, Measurement, distribution
from bench.sides import Remote, Unavailable
from bench.traffic import (
    BURST_RATE,
    BURST_S,
    QUIET_RATE,
    QUIET_S,
    Played,
    Served,
    capabilities_of,
    capacity_per_s,
    highest,
    jain,
    lone_latencies_us,
    mix_of,
    nearest_rank,
    open_traffic,
    policies,
    residents,
    with_slos,
)
from spacetime.workload import Resident, Workload

SLO_TIMES, SLO_FLOOR = 10.0, 2.0
WEIGHTS = (1.0, 2.0)
COMMON_LOAD = 0.3  # of what calls one after another can do
FAIR_OUTSTANDING = 4
LONE_CALLS = 30
MOST_STRETCH = 4.0  # a point of a slow rate may take so many times as long, for there to be requests
ENOUGH_REQUESTS = 200

TENANTS = (
    "tenants of the mix take turns over its models, one row per request, every tenant sends as often as the others, "
    f"independently; weights {WEIGHTS[0]:.0f} and {WEIGHTS[1]:.0f} take turns over the rounds of models; a policy has "
    "a process of its own with its tenants and who sends to them, one policy after the other"
)
SLOS = (
    f"an SLO is {SLO_TIMES:.0f} times the lone latency of the tenant's model (one at a time through a runtime that "
    f"does nothing else), but at least {SLO_FLOOR:.0f} times the slowest one of the mix, for nobody interrupts a lane"
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
    "last was sent count as late; found by doubling or halving from the common rate, then bisecting by geometric "
    f"means; the number of points and each one's time are in the note; {SLOS}; {TENANTS}; {BURSTS}",
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
    searched: tuple[str, ...]  # kinds of arrivals for which the goodput is looked for
    arrivals: tuple[str, ...]
    num_points: int
    point_s: float
    num_repeats: int  # of the fixed rate, and of the search
    fixed_s: float
    warm_up_s: float
    ready_limit_s: float
    few_policies: bool = False
    only: tuple[str, ...] = ()  # none: all

    @classmethod
    def of(cls, scale: Scale) -> Sizes:
        if scale.smoke:
            return cls(
                ("mlp",), (2,), ("poisson",), ("poisson",), 2, 0.2, 1, 0.2, 0.1, 60, only=("time_slice", "space_time")
            )
        models, both = mix_of(scale.device), ("poisson", "bursts")
        if scale.quick:
            return cls(models, (8,), ("poisson",), both, 6, 1.0, 1, 1.5, 1.0, 120, few_policies=True)
        return cls(models, (2, 8, 32, 64), both, both, 9, 2.0, 3, 5.0, 3.0, 300)


def run(scale: Scale) -> Iterator[Measurement]:
    sizes = Sizes.of(scale)
    capabilities = capabilities_of(scale.device)
    lone_us = lone_latencies_us(scale.device, sizes.models, LONE_CALLS)
    names = [
        (name, why)
        for name, why in policies(capabilities, few=sizes.few_policies)
        if not sizes.only or name in sizes.only
    ]
    for policy, why in names:
        if why is not None:
            yield GOODPUT.unavailable(policy, why, {"policy": policy})
    for count in sizes.counts:
        for policy, why in names:
            if why is None:
                yield from Bout(scale.device, sizes, policy, count, lone_us).run()


@dataclass(slots=True)
class Bout:
    """One policy with so many tenants."""

    device: str
    sizes: Sizes
    policy: str
    count: int
    lone_us: Mapping[str, float]
    tenants: tuple[Resident, ...] = field(init=False)
    common_per_s: float = field(init=False)

    def __post_init__(self) -> None:
        bare = residents(self.sizes.models, self.count, WEIGHTS)
        self.tenants = tuple(with_slos(bare, self.lone_us, SLO_TIMES, SLO_FLOOR))
        self.common_per_s = COMMON_LOAD * capacity_per_s(self.tenants, self.lone_us)

    def run(self) -> Iterator[Measurement]:
        with Remote(Served, self.device, self.policy, self.tenants) as served:
            reason = served.why_not(self.sizes.ready_limit_s)
            try:
                if reason is not None:
                    raise Unavailable(reason)
                served.call("warm_up", self.sizes.warm_up_s)
                for arrivals in self.sizes.arrivals:
                    yield from self._at_common_rate(served, arrivals)
                yield from self._fairness(served)
                for arrivals in self.sizes.searched:
                    yield self._goodput(served, arrivals)
                yield from self._harness(served)
            except Unavailable as why:  # what it measured before stays
                yield GOODPUT.unavailable(self._subject(""), str(why), self._axes(""))

    # -- open loop ---------------------------------------------------------------------------------------------------

    def _at_common_rate(self, served: Remote, arrivals: str) -> Iterator[Measurement]:
        played = [
            self._play(served, self.common_per_s, self.sizes.fixed_s, arrivals, seed)
            for seed in range(self.sizes.num_repeats)
        ]
        subject, axes = self._subject(arrivals), self._axes(arrivals)
        total = sum(len(its.all_us) for its in played)
        if not total:
            yield VIOLATIONS.unavailable(subject, f"no request came in {self.sizes.fixed_s:g} s", axes)
            return
        note = f"{self.common_per_s:.4g} requests/s; {self._slo_note()}"
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
                yield figure.of(subject, found_ms, f"{note}; {total} requests", axes, of_all.get(figure.metric))

    def _goodput(self, served: Remote, arrivals: str) -> Measurement:
        sizes, found, failed = self.sizes, [], []
        for repeat in range(sizes.num_repeats):

            def passes(rate: float, seed: int = 100 + repeat) -> bool:
                parts = self._play(served, rate, sizes.point_s, arrivals, seed).over_slo(self.tenants)
                return bool(parts) and nearest_rank(parts, 0.99) <= 1

            good, bad = highest(passes, self.common_per_s, sizes.num_points)
            if good is not None:
                found.append(good)
            if bad is not None:
                failed.append(bad)
        note = f"{sizes.num_points} points of {sizes.point_s:g} s, longer for slow rates; {self._slo_note()}"
        if failed:
            note += f"; failed from {min(failed):.4g} on"
        subject, axes = self._subject(arrivals), self._axes(arrivals)
        if not found:
            return GOODPUT.unavailable(subject, f"no rate passed, down to {min(failed):.4g} requests/s; {note}", axes)
        if len(found) < sizes.num_repeats:
            note += f"; {sizes.num_repeats - len(found)} of {sizes.num_repeats} searches found no rate that passes"
        return GOODPUT.of(subject, found, note, axes)

    def _play(self, served: Remote, rate_per_s: float, point_s: float, arrivals: str, seed: int) -> Played:
        duration_s = duration_of(rate_per_s, point_s)
        workload: Workload = open_traffic(self.tenants, rate_per_s, duration_s, arrivals, seed)
        played: Played = served.call("play", workload, duration_s / 2)
        return played

    # -- saturated ---------------------------------------------------------------------------------------------------

    def _fairness(self, served: Remote) -> Iterator[Measurement]:
        names, seconds = tuple(tenant.name for tenant in self.tenants), self.sizes.fixed_s
        counts = [served.call("saturate", names, seconds, FAIR_OUTSTANDING) for _ in range(self.sizes.num_repeats)]
        rate = sum(sum(its.values()) for its in counts) / seconds / len(counts)
        starved = sum(min(its.values()) == 0 for its in counts)
        note = f"{rate:.4g} requests/s in all" + (f"; somebody was served nothing in {starved} runs" if starved else "")
        subject, axes = self._subject("saturated"), self._axes("saturated")
        yield FAIR_REQUESTS.of(subject, [jain(self._shares(its, {})) for its in counts], note, axes)
        yield FAIR_SERVICE.of(subject, [jain(self._shares(its, self.lone_us)) for its in counts], note, axes)

    def _shares(self, counts: Mapping[str, int], cost_us: Mapping[str, float]) -> list[float]:
        return [counts[t.name] * cost_us.get(t.model, 1.0) / t.weight for t in self.tenants]

    # -- somebody else's harness -------------------------------------------------------------------------------------

    def _harness(self, served: Remote) -> Iterator[Measurement]:
        missing = mlperf.why_not()
        limit_us = max(tenant.slo_us or 0 for tenant in self.tenants)
        for scenario in mlperf.SCENARIOS:
            subject, axes = self._subject(f"loadgen {scenario}"), self._axes(f"loadgen {scenario}")
            figures = SERVER if scenario == mlperf.SERVER else MULTI_STREAM
            if missing is not None:
                yield figures["p99"].unavailable(subject, missing, axes)
                continue
            what = mlperf.Drive(scenario, self.sizes.fixed_s, self.common_per_s, limit_us)
            try:
                found: mlperf.Driven = served.call("harnessed", what, limit_s=30 + 20 * self.sizes.fixed_s)
            except Unavailable as why:  # the next scenario gets the reason, too: its process may have ended
                yield figures["p99"].unavailable(subject, str(why), axes)
                missing = f"after {scenario}: {why}"
                continue
            note = f"{found.num_queries} queries" + (f", {found.num_failed} failed" if found.num_failed else "")
            yield figures["p50"].of(subject, [found.p50_us / 1e3], note, axes)
            yield figures["p99"].of(subject, [found.p99_us / 1e3], note, axes)
            if found.completed_per_s is not None:
                asked = f"{note}; asked for {self.common_per_s:.4g}"
                yield figures["completed"].of(subject, [found.completed_per_s], asked, axes)

    # -- words -------------------------------------------------------------------------------------------------------

    def _subject(self, traffic: str) -> str:
        return " ".join(filter(None, (f"{self.policy}, {self.count} tenants", traffic)))

    def _axes(self, traffic: str) -> dict[str, str | int | float]:
        mix = "+".join(self.sizes.models)
        return {"policy": self.policy, "tenants": self.count, "traffic": traffic, "mix": mix}

    def _slo_note(self) -> str:
        slo_us = {tenant.model: tenant.slo_us or 0 for tenant in self.tenants}
        return "SLO " + ", ".join(f"{model} {us / 1e3:.3g} ms" for model, us in slo_us.items())


def duration_of(rate_per_s: float, point_s: float) -> float:
    """Slow rates take longer, for there to be a p99 to speak of."""
    return min(max(point_s, ENOUGH_REQUESTS / rate_per_s), MOST_STRETCH * point_s)


def share_late(parts_of_slo: Sequence[float]) -> float:
    return sum(part > 1 for part in parts_of_slo) / len(parts_of_slo) if parts_of_slo else 0.0
