"""Tenants that slow down the lanes they share, by comparing lanes with and without them. Only the loop imports it.

Like is compared with like: lanes of the same arrangement (tenants, rows, units, where). A tenant is put apart when,
among the last WINDOW lanes of its cohort, those with it take longer than those without it: by more than SLOW in the
median, and beyond chance by a stratified rank test (van Elteren's), which does not care how times are distributed; and
this in several tests on end. Tenants that hardly ever run without each other cannot be told apart: nothing is
concluded then.

Apart, its own lanes are watched: it is readmitted when the median of the last ones is back under FAST, or, as there may
be nothing like them to compare with, on trial after TRIAL times as many. Every eviction doubles what the next one takes
to happen and to end: what always comes to nothing comes ever more rarely. No clock, no randomness: the same lanes give
the same verdicts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, log, sqrt
from operator import itemgetter
from statistics import median

WINDOW = 192  # lanes of a cohort that are remembered
CHECK_EVERY = 32  # lanes between two tests of a cohort
LEAST = 12  # lanes with, and as many without, that can be compared before anything is concluded
SLOW = 1.5  # the factor that makes a straggler
BEYOND_CHANCE = 5.0  # standard deviations of the rank sum: one in millions of tests of a healthy tenant
TOGETHER = 0.8  # two suspects that share so much of their lanes may cover for each other
TESTS = 3  # on end, the first time
MOST_TESTS = 64
FAST = 1.2  # its own lanes take what such lanes usually take
OWN_LANES = 8  # that must do so, the first time
MOST_OWN_LANES = 256
TRIAL = 16  # another chance after so many times the lanes that would have been needed

KNOWN_AFTER = 8  # lanes of an arrangement: then what its lanes usually take is known
SMALLEST_STEP = 0.01  # by which it follows a lane, in logarithms: a lasting change is forgotten in hundreds of lanes
MAX_ARRANGEMENTS = 512  # per cohort


class _Usual:
    """The median of a stream, in two numbers: it steps towards every value, by less and less."""

    __slots__ = ("_log_us", "_num_lanes")

    def __init__(self, us: float) -> None:
        self._log_us = log(us)
        self._num_lanes = 1

    @property
    def us(self) -> float | None:
        return exp(self._log_us) if self._num_lanes >= KNOWN_AFTER else None

    def follow(self, us: float) -> None:
        self._num_lanes += 1
        step = max(SMALLEST_STEP, 0.5 / self._num_lanes)
        distance = log(us) - self._log_us
        self._log_us += step if distance > step else -step if distance < -step else distance


@dataclass(slots=True)
class _Apart:
    factor: float  # by which it slowed its lanes down
    needed: int  # own lanes
    num_lanes: int = 0
    ratios: deque[float] = field(default_factory=deque)


Lane = tuple[float, frozenset[str]]  # what it took, and whose it was
Lanes = deque[tuple[Hashable, Lane]]  # with their arrangements


@dataclass(slots=True)
class _Cohort:
    lanes: Lanes = field(default_factory=lambda: deque(maxlen=WINDOW))
    usual: dict[Hashable, _Usual] = field(default_factory=dict)
    suspects: dict[str, int] = field(default_factory=dict)  # tests on end that they have failed
    since_test: int = 0


class Stragglers:
    """Feed it every undisturbed lane; it answers who changed sides."""

    def __init__(self) -> None:
        self._cohorts: dict[str, _Cohort] = {}
        self._apart: dict[str, _Apart] = {}
        self._evictions: dict[str, int] = {}

    def slowdown(self, tenant: str) -> float:
        """How many times longer lanes took because of it; 0 when it is not apart."""
        apart = self._apart.get(tenant)
        return 0.0 if apart is None else apart.factor

    def evictions(self, tenant: str) -> int:
        return self._evictions.get(tenant, 0)

    def forget(self, tenant: str) -> None:
        """It left, or became another program: its name means nothing any more."""
        self._apart.pop(tenant, None)
        self._evictions.pop(tenant, None)
        for known in self._cohorts.values():
            _drop(known, tenant)

    def forget_cohort(self, cohort: str) -> None:
        """Its last tenant has left."""
        self._cohorts.pop(cohort, None)

    def observe(
        self, cohort: str, arrangement: Hashable, tenants: Sequence[str], us: float, predicted_us: float | None = None
    ) -> str | None:
        """A lane of these tenants took so long. Who is put apart, or readmitted, because of it.

        `predicted_us`: for a straggler by itself, when no lanes like it are known.
        """
        known = self._cohorts.get(cohort)
        if known is None:
            known = self._cohorts[cohort] = _Cohort()
        us = max(us, 1.0)  # clocks count whole microseconds
        usual = known.usual.get(arrangement)
        outcasts = [tenant for tenant in tenants if tenant in self._apart] if self._apart else ()
        if outcasts:
            expected_us = (usual.us if usual else None) or predicted_us
            # Not a lane that began before the eviction, nor one of a policy that fuses it all the same.
            ratio = us / expected_us if len(tenants) == 1 and expected_us else None
            return outcasts[0] if self._keeps_up(outcasts[0], ratio) else None
        if usual is None:
            if len(known.usual) >= MAX_ARRANGEMENTS:
                del known.usual[next(iter(known.usual))]
            known.usual[arrangement] = _Usual(us)
        else:
            usual.follow(us)
        known.lanes.append((arrangement, (us, frozenset(tenants))))
        known.since_test += 1
        if known.since_test < CHECK_EVERY or len(known.lanes) < 2 * LEAST:
            return None
        known.since_test = 0
        return self._test(known)

    def _test(self, known: _Cohort) -> str | None:
        found = _slower(known.lanes)
        known.suspects = {tenant: known.suspects.get(tenant, 0) + 1 for tenant in found}
        guilty = [name for name, tests in known.suspects.items() if tests >= self._tests_needed(name)]
        if not guilty:
            return None
        tenant = max(guilty, key=lambda name: found[name])  # others may only have kept it company
        if any(_together(known.lanes, tenant, other) for other in found if other != tenant):
            return None
        times = self._evictions[tenant] = self._evictions.get(tenant, 0) + 1
        self._apart[tenant] = _Apart(found[tenant], min(OWN_LANES << (times - 1), MOST_OWN_LANES))
        known.suspects.clear()
        _drop(known, tenant)  # the others are judged by lanes without it from now on
        return tenant

    def _tests_needed(self, tenant: str) -> int:
        return min(TESTS << self._evictions.get(tenant, 0), MOST_TESTS)

    def _keeps_up(self, tenant: str, ratio: float | None) -> bool:
        apart = self._apart[tenant]
        apart.num_lanes += 1
        if ratio is not None:
            apart.ratios.append(ratio)
        if len(apart.ratios) > apart.needed:
            apart.ratios.popleft()
        recovered = len(apart.ratios) == apart.needed and median(apart.ratios) <= FAST
        if not recovered and apart.num_lanes < TRIAL * apart.needed:
            return False
        del self._apart[tenant]
        return True


def _drop(known: _Cohort, tenant: str) -> None:
    known.lanes = deque([lane for lane in known.lanes if tenant not in lane[1][1]], WINDOW)
    known.suspects.pop(tenant, None)


def _together(lanes: Lanes, one: str, other: str) -> bool:
    of_one = {index for index, (_, (_, tenants)) in enumerate(lanes) if one in tenants}
    of_other = {index for index, (_, (_, tenants)) in enumerate(lanes) if other in tenants}
    return len(of_one & of_other) >= TOGETHER * len(of_one | of_other)


class _Surplus:
    """How much later than by chance a tenant's lanes come when those of an arrangement are sorted by their times."""

    __slots__ = ("num_with", "num_without", "surplus", "variance")

    def __init__(self) -> None:
        self.num_with = self.num_without = 0
        self.surplus = self.variance = 0.0

    def add(self, count: int, num_lanes: int, rank_sum: int) -> None:
        others = num_lanes - count
        self.num_with += count
        self.num_without += others
        self.surplus += rank_sum / (num_lanes + 1) - count / 2
        self.variance += count * others / (12 * (num_lanes + 1))

    @property
    def is_beyond_chance(self) -> bool:
        enough = min(self.num_with, self.num_without) >= LEAST
        return enough and self.surplus > BEYOND_CHANCE * sqrt(self.variance)


def _slower(lanes: Lanes) -> dict[str, float]:
    """Tenants whose lanes are slower than the others' beyond doubt, and by what factor."""
    strata = _strata(lanes)
    if sum([_num_odd(stratum) for stratum in strata]) < LEAST // 2:
        return {}  # half of a straggler's lanes at least are far from the usual, or from them the others
    totals: dict[str, _Surplus] = {}
    for stratum in strata:
        ranks: dict[str, list[int]] = {}
        for rank, (_, tenants) in enumerate(stratum, 1):
            for tenant in tenants:
                ranks.setdefault(tenant, []).append(rank)
        for tenant, its in ranks.items():
            if len(its) < len(stratum):  # where it always is there is nothing to compare with
                totals.setdefault(tenant, _Surplus()).add(len(its), len(stratum), sum(its))
    suspects = [tenant for tenant, total in totals.items() if total.is_beyond_chance]
    factors = {tenant: _factor(strata, tenant) for tenant in suspects}
    return {tenant: factor for tenant, factor in factors.items() if factor > SLOW}


def _strata(lanes: Lanes) -> list[list[Lane]]:
    """Lanes of one arrangement, fastest first; without those of which the tenants are always the same."""
    strata: dict[Hashable, list[Lane]] = {}
    for arrangement, lane in lanes:
        strata.setdefault(arrangement, []).append(lane)
    telling = [stratum for stratum in strata.values() if len({tenants for _, tenants in stratum}) > 1]
    for stratum in telling:
        stratum.sort(key=itemgetter(0))
    return telling


def _num_odd(stratum: Sequence[Lane]) -> int:
    """How many lanes are slower, or faster, than the median one by more than what makes a straggler."""
    usual_us = stratum[len(stratum) // 2][0]
    slower = len(stratum) - bisect_right(stratum, usual_us * SLOW, key=itemgetter(0))
    return slower + bisect_left(stratum, usual_us / SLOW, key=itemgetter(0))


def _factor(strata: Iterable[Sequence[Lane]], tenant: str) -> float:
    """The median of its lanes over the median of those like them without it."""
    ratios = []
    for stratum in strata:
        without = [us for us, tenants in stratum if tenant not in tenants]
        if without:
            usual_us = median(without)
            ratios += [us / usual_us for us, tenants in stratum if tenant in tenants]
    return median(ratios)
