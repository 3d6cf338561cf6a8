"""What bench/tenants.py derives rates and objectives from, and how it looks for the highest rate. It imports this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.sides import Remote
from bench.traffic import Played, residents, serving
from spacetime.workload import Arrival, Resident, Workload

BUSY_CALLS, ALONE_REQUESTS = 30, 15  # of each model
LEAST_GAP_US, GAP_TIMES = 20_000, 3  # between requests that are alone, and in slowest calls


@dataclass(frozen=True, slots=True)
class Lone:
    """How long a model's request takes in a runtime that has nothing else to do, by model."""

    busy_us: dict[str, float]  # the median of calls that follow each other: what the device is kept for by one
    alone_us: dict[str, float]  # the median of requests from time to time: what a user sees whom nobody disturbs


def lone_of(device: str, models: Sequence[str]) -> Lone:
    """One tenant of each model, under `space_time`."""
    tenants = residents(models, len(models))
    with serving(device, "space_time", tenants) as served:
        served.require()
        for tenant in tenants:  # to warm up
            served.call("lone_us", tenant.name, BUSY_CALLS)
        busy_us = {tenant.model: served.call("lone_us", tenant.name, BUSY_CALLS) for tenant in tenants}
        return Lone(busy_us, _alone_us(served, tenants, busy_us))


def _alone_us(served: Remote, tenants: Sequence[Resident], busy_us: dict[str, float]) -> dict[str, float]:
    """They are sent and timed as all traffic is."""
    played: Played = served.call("play", one_by_one(tenants, gap_us(busy_us)), 1.0)
    return {tenant.model: median(played.latencies_us[tenant.name]) for tenant in tenants}


def gap_us(busy_us: dict[str, float]) -> int:
    """Long enough for a request to be over when the next one comes."""
    return max(LEAST_GAP_US, round(GAP_TIMES * max(busy_us.values())))


def one_by_one(tenants: Sequence[Resident], gap_us: int) -> Workload:
    """Requests at equal distances, of one tenant after another."""
    names = [tenant.name for _ in range(ALONE_REQUESTS) for tenant in tenants]
    return Workload(tuple(Arrival(place * gap_us, name) for place, name in enumerate(names, 1)))


# -- the highest rate ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ladder:
    """Rates that all policies are asked for: steps of equal ratio around one of them, the common one."""

    common_per_s: float
    num_below: int
    num_above: int
    steps_per_doubling: int

    @property
    def rates_per_s(self) -> tuple[float, ...]:
        """
        >>> Ladder(100.0, 1, 2, 1).rates_per_s
        (50.0, 100.0, 200.0, 400.0)
        """
        steps = range(-self.num_below, self.num_above + 1)
        return tuple(self.common_per_s * 2 ** (step / self.steps_per_doubling) for step in steps)


class Search:
    """The highest rung that passes, by bisection: a rate that passes is taken to mean that all lower ones do.

    The first rung to try is that of the common rate, which is measured anyway.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._rates_per_s = ladder.rates_per_s
        self._passed, self._failed = -1, len(self._rates_per_s)  # the highest and the lowest rung of either kind
        self._next = ladder.num_below
        self.num_tried = 0

    @property
    def rate_per_s(self) -> float | None:
        """To be tried next; None when the answer is known."""
        return None if self._failed - self._passed == 1 else self._rates_per_s[self._next]

    def saw(self, passed: bool) -> None:
        """Whether the rate that was to be tried passed."""
        if passed:
            self._passed = self._next
        else:
            self._failed = self._next
        self.num_tried += 1
        self._next = (self._passed + self._failed) // 2

    @property
    def passed_per_s(self) -> float | None:
        """The highest rate that passed; None: not one."""
        return None if self._passed < 0 else self._rates_per_s[self._passed]

    @property
    def failed_per_s(self) -> float | None:
        """The lowest rate that failed; None: not one."""
        return None if self._failed == len(self._rates_per_s) else self._rates_per_s[self._failed]
