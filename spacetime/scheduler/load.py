"""How much of a device is asked for: what the loop measures of it, and what a policy pays for units because of it.

The price is that of a queue. Where everybody has u of the device's units, there are k = U/u servers, and so many
requests wait on average (Sakasegawa 1977, exact for k = 1): r^q / (1 - r), where r is the load and q = sqrt(2 (k + 1)).
A lane that takes a little more unit-time makes that a little longer: by the derivative, the waiting time that all
others pay together for the time of a whole device. Nothing on an idle device, without bound on a full one.

Who waits for a lane of its own cohort shares the next one, however many they are: they wait for its end, and not for
the unit-time that it took. So a cohort pays for the load of the others (docs/decisions/012).

Only the loop and the parts of `space_time` import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, sqrt

LOAD_US = 250_000  # the time constant: long beside lanes, short beside what users call a load
PARTS_US = LOAD_US // 10  # so often the cohorts' parts are worked out
LEAST_PART = 0.05  # of the load: cohorts below that are left out, so that a snapshot of a thousand is not longer for it
MOST_LOAD = 0.98  # what is measured is never sure enough for a price beyond that of this load: 2,500
DIGITS = 2  # of a load: prices are kept, and nobody knows it any better

Parts = tuple[tuple[str, float], ...]  # cohort, part of the load


class DeviceLoad:
    """The part of its unit-time that lanes took of late; or the part of it whose requests came while others ran.

    The lesser of the two: whoever calls one tenant after another, or one of them again and again, keeps a device busy,
    but nobody else waits for it. Requests that come by themselves find the device in use as often as it is.
    """

    __slots__ = ("_at_us", "_cohorts_us", "_met_us", "_parts_at_us", "_work_us", "parts")

    def __init__(self) -> None:
        self.parts: Parts = ()  # of the cohorts that took most of it
        self._at_us = 0
        self._work_us = 0.0  # time of the whole device, as lanes ended; it fades
        self._met_us = 0.0  # of that, for requests that came while another lane ran
        self._cohorts_us: dict[str, float] = {}  # the same by cohort, since the parts were last worked out
        self._parts_at_us = 0

    def lane_ended(self, at_us: int, work_us: float, met: float, cohorts: Sequence[str]) -> None:
        """`work_us`: its time on the whole device. `met`: the part of its requests that came while others ran.

        `cohorts`: its own, or that of each of its requests.
        """
        if at_us > self._at_us:
            decay = exp((self._at_us - at_us) / LOAD_US)
            self._work_us *= decay
            self._met_us *= decay
            self._at_us = at_us
        self._work_us += work_us
        self._met_us += work_us * met
        for cohort in cohorts:
            self._cohorts_us[cohort] = self._cohorts_us.get(cohort, 0.0) + work_us / len(cohorts)
        if at_us - self._parts_at_us >= PARTS_US:
            self._settle(at_us)

    def at(self, now_us: int) -> float:
        """0: idle, or nobody waits for anybody; 1: full."""
        if not self._met_us:
            return 0.0
        taken = self._work_us * exp(min(0, self._at_us - now_us) / LOAD_US) / LOAD_US
        return _told(min(taken, self._met_us / self._work_us, 1.0))

    def _settle(self, at_us: int) -> None:
        """What each cohort took, old times fading as above, but in steps."""
        fade = exp((self._parts_at_us - at_us) / LOAD_US)
        total_us = sum(self._cohorts_us.values())
        large = {cohort: us for cohort, us in self._cohorts_us.items() if us >= LEAST_PART * total_us > 0}
        self.parts = tuple([(cohort, _told(us / total_us)) for cohort, us in large.items()])
        self._cohorts_us = {cohort: us * fade for cohort, us in large.items()}
        self._parts_at_us = at_us


def load_beside(cohort: str, fusible: bool, load: float, parts: dict[str, float]) -> float:
    """What all others ask for; requests that are never fused wait for each other, too."""
    return _told(load * (1 - parts[cohort])) if fusible and cohort in parts else load


@lru_cache(maxsize=4096)
def price(load: float, num_servers: float) -> float:
    """What others lose by the time of a whole device, where so many lanes as large as this one fit on it.

    >>> [round(price(load, 1), 2) for load in (0.0, 0.1, 0.5, 0.9)]
    [0.0, 0.23, 3.0, 99.0]
    >>> [round(price(load, 16), 2) for load in (0.0, 0.1, 0.5, 0.9)]
    [0.0, 0.0, 0.48, 89.15]
    """
    if load <= 0:
        return 0.0
    load = min(load, MOST_LOAD)
    power, idle = sqrt(2 * (num_servers + 1)), 1 - load
    return float(load ** (power - 1) * (power * idle + load) / idle**2)


def _told(load: float) -> float:
    return round(load, DIGITS)
