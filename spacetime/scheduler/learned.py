"""What lanes of one cohort have taken, and what others of it are therefore expected to take. Only costs.py imports it.

What is asked for is kept until an observation changes it: a decision looks at dozens of arrangements, a lane changes
what is known of one. The same observations give the same answers, in whatever order one asks.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, nan

import numpy as np

from spacetime.device import Device
from spacetime.ir import Program
from spacetime.scheduler.prior import MAX_LANES, MAX_TABLES, Prior
from spacetime.scheduler.tables import KernelTimes, LaneSize, LatencyTable

SAMPLES = 15  # the median of so many lanes shrugs off a few disturbed ones
OPTIMISM = 0.5  # an estimate from n samples is lowered by this part over (1 + n)
COLD = 0.3  # what a first lane took is priced at this part, and no higher than before: it is tried a second time
EXPLORE_FORM = 0.25  # lanes fused, or plain, when none such was ever measured, are priced at this part
EXPLORE_SIZE = 0.25  # lanes on about so many units, when none such was ever measured, are priced at this part
EXPLORE = 0.8  # an arrangement never measured is priced at this part of its calibrated prior
FORGET_AFTER = 200  # observations elsewhere in the cohort that halve the confidence in an arrangement ...
FORGET_AT_MOST_AFTER = 32 * FORGET_AFTER  # ... twice as many each time that it was tried again and was not kept
RECALIBRATE_EVERY = 16  # observations
MOST_MENDED = 8  # estimates of a bucket; more are worked out again when they are asked for
STALE_SAMPLES = 31  # the median of so many lanes ...
STALE_FACTOR = 1.5  # ... is off by more than this factor, either way
TABLE_SLACK = 2.0  # what handing lanes over may add to a measured table before the table is wrong

Arrangement = LaneSize  # buckets of them share what they learn
Kind = tuple[bool, int]  # fused, units


@dataclass(slots=True, eq=False)
class Measured:
    """What lanes of one arrangement took, over their priors."""

    samples: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)  # the same, the least first: their median is read off
    is_cold: bool = True  # the first lane allocates and loads what later ones find: it is forgotten with the second
    over_prior: float = 1.0
    factor: float = nan  # the same with the optimism that so few samples deserve
    confidence: int = 0  # how many samples it is based on; fewer when they are old
    reference: float | None = None  # over_prior when there were enough samples for the first time
    seen_at: int = 0  # the cohort's observation count then
    forget_after: int = FORGET_AFTER

    def add(self, ratio: float, now: int) -> None:
        samples, ordered = self.samples, self.ordered
        self.seen_at = now
        if samples and self.is_cold:
            self.forget()
            self.is_cold = False
        elif len(samples) == SAMPLES:
            del ordered[bisect_left(ordered, samples.popleft())]
        samples.append(ratio)
        insort(ordered, ratio)
        self.over_prior = ordered[(len(ordered) - 1) // 2]  # as `_median` has it
        self.trust(len(ordered))
        if self.confidence == SAMPLES:
            self.forget_after = FORGET_AFTER

    def confidence_at(self, now: int) -> int:
        """The older, the less; with none it is as if it had never been measured."""
        return len(self.samples) >> (now - self.seen_at) // self.forget_after

    def trust(self, confidence: int) -> None:
        self.confidence = confidence
        self.factor = self.over_prior * (COLD if self.is_cold else 1 - OPTIMISM / (1 + confidence))

    @property
    def hope(self) -> float:
        """The same when all of it is forgotten: what was good once may still be."""
        return self.over_prior * (1 - OPTIMISM)

    def begin_again(self) -> None:
        """Forgotten, it is tried once more. If it is given up again, then for longer."""
        self.forget()
        self.forget_after = min(2 * self.forget_after, FORGET_AT_MOST_AFTER)

    def forget(self) -> None:
        """The next lane is a first one again: others have run since."""
        self.samples.clear()
        self.ordered.clear()
        self.is_cold = True


@dataclass(slots=True)
class _Times:
    """Kernel times, and what scaled them."""

    factors: list[float]
    times: KernelTimes
    is_current: bool = True  # no factor can have changed since


class Drift:
    """Observed over expected, of the last lanes. That their median is off is counted, not looked up."""

    def __init__(self) -> None:
        self.ratios: deque[float] = deque()
        self._num_slow = self._num_quick = 0

    def add(self, ratio: float) -> None:
        if len(self.ratios) == STALE_SAMPLES:
            self._count(self.ratios.popleft(), -1)
        self.ratios.append(ratio)
        self._count(ratio, 1)

    @property
    def is_off(self) -> bool:
        """Whether the median of enough lanes is out of bounds."""
        least = STALE_SAMPLES - (STALE_SAMPLES - 1) // 2  # slow ones that make the median slow, as it is the lower
        num_lanes = len(self.ratios)
        return num_lanes == STALE_SAMPLES and (self._num_slow >= least or self._num_quick > num_lanes - least)

    def _count(self, ratio: float, by: int) -> None:
        if ratio > STALE_FACTOR:
            self._num_slow += by
        elif ratio < 1 / STALE_FACTOR:
            self._num_quick += by


class LearnedCohort:
    def __init__(self, program: Program | None, device: Device, table: LatencyTable | None) -> None:
        self.prior = Prior(program, device, table)
        self.table = table
        self.estimates: dict[Arrangement, float] = {}  # valid until an observation changes what they rest on
        self.num_observed = 0
        self.stale_since: int | None = None
        self.drift = Drift()
        self._priced: dict[Arrangement, tuple[float, Arrangement]] = {}  # the prior and the bucket of arrangements
        self._estimated: dict[Arrangement, dict[Arrangement, float]] = {}  # keys of `estimates` by bucket; their priors
        self._measured: dict[Arrangement, Measured] = {}
        self._remembered: dict[Arrangement, Measured] = {}  # those that anything rests on
        self._calibrations: dict[Kind, float] = {}
        self.times: dict[tuple[int, int, bool], _Times] = {}
        buckets = [bucket_of(int(units)) for units in self.prior.sizes]
        self._size_buckets = list(dict.fromkeys(buckets))
        self._size_index = np.searchsorted(self._size_buckets, buckets)

    def estimate_us(self, arrangement: Arrangement) -> float:
        """Worked out anew, and kept in `estimates`."""
        prior_us, bucket = self._priced.get(arrangement) or self._price(arrangement)
        estimate = self.estimates[arrangement] = prior_us * self._factor(bucket)
        self._estimated.setdefault(bucket, {})[arrangement] = prior_us
        return estimate

    def kernel_times(self, tenants: int, rows: int, fused: bool) -> KernelTimes:
        """The prior's, every column scaled as lanes of its size are. Made anew only when a scale has changed."""
        key = (tenants, rows, fused)
        kept = self.times.get(key)
        lane = (bucket_of(tenants), bucket_of(rows))
        factors = [self._factor((*lane, units, fused)) for units in self._size_buckets]
        if kept is not None and kept.factors == factors:
            kept.is_current = True
            return kept.times
        times = KernelTimes(self.prior.kernels_us(tenants, rows, fused) * np.array(factors)[self._size_index])
        if kept is None and len(self.times) >= MAX_TABLES:
            del self.times[next(iter(self.times))]
        self.times[key] = _Times(factors, times)
        return times

    def observe(self, arrangement: Arrangement, duration_us: float) -> None:
        prior_us, bucket = self._priced.get(arrangement) or self._price(arrangement)
        ratio = max(duration_us, 1) / prior_us  # clocks count whole microseconds
        expected = self._factor(bucket)
        measured = self._remembered.get(bucket) or self._begin(bucket)
        factor = measured.factor
        self.num_observed = now = self.num_observed + 1
        measured.add(ratio, now)
        if measured.is_cold:
            measured.factor = min(measured.factor, expected)
        if measured.confidence == 1 or now % RECALIBRATE_EVERY == 0:
            self._settle()
        if measured.factor != factor:
            self._change(bucket, measured.factor)
        self._watch(measured, ratio)

    def _price(self, arrangement: Arrangement) -> tuple[float, Arrangement]:
        tenants, rows, units, fused = arrangement
        if len(self._priced) >= MAX_LANES:
            self._priced.clear()
            self._forget_estimates()
        priced = (self.prior.lane_us(*arrangement), (bucket_of(tenants), bucket_of(rows), bucket_of(units), fused))
        self._priced[arrangement] = priced
        return priced

    def _begin(self, bucket: Arrangement) -> Measured:
        """What was forgotten must not outvote what is seen from now on."""
        measured = self._measured.get(bucket)
        if measured is None:
            measured = self._measured[bucket] = Measured()
        else:
            measured.begin_again()
        measured.factor = nan
        self._remembered[bucket] = measured
        return measured

    def _change(self, bucket: Arrangement, factor: float) -> None:
        """Estimates of this bucket are out of date. A few are mended: most likely they are asked for next."""
        for kept in self.times.values():
            kept.is_current = False
        estimated = self._estimated.get(bucket)
        if estimated is None:
            return
        if len(estimated) <= MOST_MENDED:
            for arrangement, prior_us in estimated.items():
                self.estimates[arrangement] = prior_us * factor
            return
        for arrangement in self._estimated.pop(bucket):
            del self.estimates[arrangement]

    def _forget_estimates(self) -> None:
        self.estimates.clear()
        self._estimated.clear()

    def _factor(self, bucket: Arrangement) -> float:
        """By what to multiply the prior of an arrangement in this bucket."""
        measured = self._remembered.get(bucket)
        if measured is not None:
            return measured.factor
        _, _, units, fused = bucket
        hope, forgotten = self._hope(fused, units), self._measured.get(bucket)
        return hope if forgotten is None else min(hope, forgotten.hope)

    def fused_us(self, tenants: int, rows: int, units: int) -> tuple[float, float]:
        """A fused lane's prior, and what it is expected to take without any optimism."""
        prior_us = self.prior.lane_us(tenants, rows, units, True)
        measured = self._remembered.get((bucket_of(tenants), bucket_of(rows), bucket_of(units), True))
        if measured is not None:
            return prior_us, prior_us * measured.over_prior
        nearest = self._nearest(True, bucket_of(units))
        return prior_us, prior_us * (self._best() if nearest is None else nearest)

    def _nearest(self, fused: bool, units: int) -> float | None:
        """Measured over prior for arrangements of this kind, or of this form on about as many units."""
        sizes = [(max(size, units) / min(size, units), -size) for form, size in self._calibrations if form == fused]
        return self._calibrations[fused, -min(sizes)[1]] if sizes else None

    def _best(self) -> float:
        """Where nothing is known of a form."""
        return min(self._calibrations.values(), default=1.0)

    def _hope(self, fused: bool, units: int) -> float:
        """By what to multiply the prior of an arrangement never measured: it looks so good that it is tried.

        A size is not given up because its neighbour disappoints, where the other form does well on it.
        """
        known = self._calibrations.get((fused, units))
        if known is not None:
            return known * EXPLORE
        nearest, other_form = self._nearest(fused, units), self._calibrations.get((not fused, units), inf)
        hope = EXPLORE_FORM * self._best() if nearest is None else EXPLORE_SIZE * nearest
        return min(hope, EXPLORE_FORM * other_form)

    def _settle(self) -> None:
        """Forget, and calibrate: for every kind the median over the arrangements that are remembered.

        Estimates are kept where neither makes a difference, as when all lanes take what they always took.
        """
        now, differs = self.num_observed, False
        forgotten: list[Arrangement] = []
        ratios: dict[Kind, list[float]] = {}
        for bucket, measured in self._remembered.items():
            confidence = measured.confidence_at(now)
            if confidence != measured.confidence:
                differs = True
                measured.trust(confidence)
            if confidence:
                ratios.setdefault((bucket[3], bucket[2]), []).append(measured.over_prior)
            else:
                forgotten.append(bucket)
        for bucket in forgotten:
            del self._remembered[bucket]
        calibrations = {kind: median(values) for kind, values in ratios.items()}
        if differs or calibrations != self._calibrations:
            self._calibrations = calibrations
            self._forget_estimates()
            for kept in self.times.values():
                kept.is_current = False

    def _watch(self, measured: Measured, ratio: float) -> None:
        """Does the prior still fit as it did when this arrangement was new?"""
        if measured.reference is None:
            if len(measured.samples) == SAMPLES:
                measured.reference = measured.over_prior
                if self.table is not None:  # a table says what it means: only so much is put down to other things
                    measured.reference = min(max(measured.over_prior, 1 / TABLE_SLACK), TABLE_SLACK)
            return
        self.drift.add(ratio / measured.reference)
        if not self.drift.is_off:
            if len(self.drift.ratios) == STALE_SAMPLES:
                self.stale_since = None
        elif self.stale_since is None:
            self.stale_since = self.num_observed


def bucket_of(count: int) -> int:
    """Small counts matter one by one, large ones by their order of magnitude."""
    return count if count <= 8 else 1 << (count - 1).bit_length()


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]  # the lower of two: optimistic
