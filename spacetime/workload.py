"""Traffic as data: who asks for how many rows, when. Bottom layer, no torch; every generator is seeded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

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


def closed_loop(tenants: Sequence[str], num_requests: int, rows: Sequence[int] = (1,), seed: int = 0) -> Workload:
    """`num_requests` per tenant, all due at once: each tenant sends its next request when the last one ends."""
    rng = random.Random(seed)
    order = [(round_, tenant) for round_ in range(num_requests) for tenant in tenants]
    return Workload(tuple(Arrival(0, tenant, rng.choice(rows)) for _, tenant in order))


def poisson(
    rates_per_s: Sequence[tuple[str, float]], duration_s: float, rows: Sequence[int] = (1,), seed: int = 0
) -> Workload:
    """Independent Poisson streams, one per tenant."""
    if duration_s <= 0:
        raise OptionError(f"a workload of {duration_s} s was asked for", "duration_s must be positive")
    arrivals = []
    for index, (tenant, rate) in enumerate(rates_per_s):
        if rate <= 0:
            raise OptionError(f"tenant {tenant!r} has a rate of {rate} requests per second", "rates must be positive")
        rng = random.Random(f"{seed}/{index}")
        at_s = rng.expovariate(rate)
        while at_s < duration_s:
            arrivals.append(Arrival(int(at_s * 1e6), tenant, rng.choice(rows)))
            at_s += rng.expovariate(rate)
    return Workload(tuple(sorted(arrivals, key=lambda arrival: (arrival.at_us, arrival.tenant))))
