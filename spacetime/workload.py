"""Traffic as data: who asks for how many rows, when. Bottom layer, no torch; every generator is seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Literal

from spacetime.arrivals import Phase, counted_times, gamma_times, mmpp_times, poisson_times, read_functions
from spacetime.errors import OptionError
from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class Arrival(Value):
    """One request of a workload."""

    at_us: int
    tenant: str
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Resident(Value):
    """A tenant of a workload: what it runs, and what it was promised."""

    name: str
    model: str  # a name that whoever plays the workload can make a model of
    slo_us: int | None = None
    weight: float = 1.0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Workload(Value):
    """Arrivals in order of time, or, in a closed loop, each tenant's requests in order."""

    arrivals: tuple[Arrival, ...]
    residents: tuple[Resident, ...] = ()  # empty: whoever plays it knows the tenants by name
    outstanding: int | None = None  # closed loop: so many requests of each tenant wait or run at any time

    @property
    def tenants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(arrival.tenant for arrival in self.arrivals))

    @property
    def num_rows(self) -> int:
        return sum(arrival.rows for arrival in self.arrivals)


def closed_loop(
    tenants: Sequence[str],
    num_requests: int,
    rows: Sequence[int] = (1,),
    seed: int = 0,
    *,
    models: Sequence[str] = (),
    slo_us: int | None = None,
) -> Workload:
    """`num_requests` per tenant, all due at once: each tenant sends its next request when the last one ends.

    As everywhere here: a request has one of `rows` rows, all equally likely; the `models` take turns over the tenants.
    """
    rng = random.Random(seed)
    order = [(round_, tenant) for round_ in range(num_requests) for tenant in tenants]
    arrivals = tuple(Arrival(0, tenant, rng.choice(rows)) for _, tenant in order)
    return Workload(arrivals, _residents(tenants, models, slo_us), outstanding=1)


def poisson(
    rates_per_s: Sequence[tuple[str, float]],
    duration_s: float,
    rows: Sequence[int] = (1,),
    seed: int = 0,
    *,
    models: Sequence[str] = (),
    slo_us: int | None = None,
) -> Workload:
    """Independent Poisson streams, one per tenant."""
    _check_rates(rates_per_s)
    streams = [(tenant, partial(poisson_times, rate, duration_s)) for tenant, rate in rates_per_s]
    return _open_loop(streams, duration_s, rows, seed, models, slo_us)


def gamma(
    rates_per_s: Sequence[tuple[str, float]],
    duration_s: float,
    cv: float,
    rows: Sequence[int] = (1,),
    seed: int = 0,
    *,
    models: Sequence[str] = (),
    slo_us: int | None = None,
) -> Workload:
    """Gaps of a gamma distribution: `cv`, standard deviation over mean, above 1 makes bursts, below 1 a steady beat."""
    _check_rates(rates_per_s)
    _check_positive("cv", cv)
    streams = [(tenant, partial(gamma_times, rate, cv, duration_s)) for tenant, rate in rates_per_s]
    return _open_loop(streams, duration_s, rows, seed, models, slo_us)


def mmpp(
    phases: Sequence[tuple[str, Sequence[Phase]]],
    duration_s: float,
    rows: Sequence[int] = (1,),
    seed: int = 0,
    *,
    models: Sequence[str] = (),
    slo_us: int | None = None,
) -> Workload:
    """Markov-modulated Poisson: each tenant is in one of its phases, stays for a random while, goes on to another."""
    for tenant, its in phases:
        if len(its) < 2 or all(phase.rate_per_s == 0 for phase in its):
            facts = f"{len(its)} phases, rates {[phase.rate_per_s for phase in its]}"
            raise OptionError(f"tenant {tenant!r} has no phases to go between", facts, "give two, one with a rate")
        for phase in its:
            _check_positive("mean_dwell_s", phase.mean_dwell_s)
            if phase.rate_per_s < 0:
                _check_positive("rate_per_s", phase.rate_per_s)
    streams = [(tenant, partial(mmpp_times, tuple(its), duration_s)) for tenant, its in phases]
    return _open_loop(streams, duration_s, rows, seed, models, slo_us)


def azure_functions(
    path: str | Path,
    num_tenants: int,
    rows: Sequence[int] = (1,),
    seed: int = 0,
    *,
    choose: Literal["busiest", "random"] = "busiest",
    minutes: tuple[int, int | None] = (0, None),
    spread: Literal["even", "poisson"] = "poisson",
    speed: float = 1.0,
    models: Sequence[str] = (),
    slo_us: int | None = None,
) -> Workload:
    """A day of Azure Functions (2019 schema, `invocations_per_function_md.anon.d*.csv`): functions become tenants.

    `minutes`: from the first, up to before the second. Within a minute the invocations come at equal distances
    ("even") or independently ("poisson"). `speed` 60 plays an hour in a minute.
    """
    _check_positive("num_tenants", num_tenants)
    _check_positive("speed", speed)
    _check_choice("choose", choose, ("busiest", "random"))
    _check_choice("spread", spread, ("even", "poisson"))
    functions = read_functions(path, num_tenants, choose, minutes, random.Random(seed))
    streams = [(each.name, partial(counted_times, each.counts, spread, speed)) for each in functions]
    return _open_loop(streams, len(functions[0].counts) * 60 / speed, rows, seed, models, slo_us)


def merge(*workloads: Workload) -> Workload:
    """Several open-loop workloads at once: a flood beside steady tenants. Tenants of one name become one."""
    if any(workload.outstanding is not None for workload in workloads):
        raise OptionError("a closed loop cannot be merged", "its requests have no times", "merge open loops")
    residents: dict[str, Resident] = {}
    for resident in (resident for workload in workloads for resident in workload.residents):
        if residents.setdefault(resident.name, resident) != resident:
            facts = f"{residents[resident.name]} and {resident}"
            raise OptionError(f"tenant {resident.name!r} differs between workloads", facts, "give them other names")
    return Workload(
        _in_order(arrival for workload in workloads for arrival in workload.arrivals), (*residents.values(),)
    )


Stream = tuple[str, Callable[[random.Random], Iterator[float]]]


def _open_loop(
    streams: Sequence[Stream],
    duration_s: float,
    rows: Sequence[int],
    seed: int,
    models: Sequence[str],
    slo_us: int | None,
) -> Workload:
    """Every tenant has a generator of its own: what one does moves no other."""
    if not 0 < duration_s < inf:
        what = f"a workload of {duration_s} s was asked for"
        raise OptionError(what, "duration_s must be positive and finite", "correct it")
    arrivals = []
    for index, (tenant, times) in enumerate(streams):
        rng = random.Random(f"{seed}/{index}")
        arrivals += [Arrival(int(at_s * 1e6), tenant, rng.choice(rows)) for at_s in times(rng)]
    return Workload(_in_order(arrivals), _residents([tenant for tenant, _ in streams], models, slo_us))


def _in_order(arrivals: Iterable[Arrival]) -> tuple[Arrival, ...]:
    return tuple(sorted(arrivals, key=lambda arrival: (arrival.at_us, arrival.tenant)))


def _residents(tenants: Sequence[str], models: Sequence[str], slo_us: int | None) -> tuple[Resident, ...]:
    if not models:
        if slo_us is not None:
            facts = "an objective is a resident's, and who is resident follows from the models"
            raise OptionError(f"slo_us={slo_us} was given without models", facts, "say what the tenants run: models=")
        return ()
    return tuple(Resident(tenant, models[i % len(models)], slo_us) for i, tenant in enumerate(tenants))


def _check_rates(rates_per_s: Sequence[tuple[str, float]]) -> None:
    for tenant, rate in rates_per_s:
        if not 0 < rate < inf:
            what = f"tenant {tenant!r} has a rate of {rate} requests per second"
            raise OptionError(what, "rates must be positive and finite", "correct it, or leave the tenant out")


def _check_positive(option: str, value: float) -> None:
    if not 0 < value < inf:
        raise OptionError(f"{option} is {value}", "it must be positive and finite", "correct it")


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{option} {value!r} does not exist", f"known: {', '.join(known)}", "name one of these")
