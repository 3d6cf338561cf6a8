"""How long will a lane take: a prior at first (prior.py), what was measured later. Policies ask it, the loop feeds it.

What is learned are ratios: what a lane took over its prior. An estimate is the prior of exactly these tenants, rows and
units times the median ratio of lanes about as large, so that the waves of the prior survive the learning. It is
optimistic where it knows little, so that an alternative is tried a few times before it is given up, and it forgets
what it has not seen for long, so that the alternative is tried again. It has no clock: time is counted in observations
of a cohort, and the same observations give the same answers.

What is learned adapts; whether the prior fits does not. The first ratios of an arrangement are kept as its reference,
and a cohort whose later lanes keep differing from theirs is `stale`: its profile, or the device, is no longer the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merged import MergedProgram
from spacetime.scheduler.merged_prior import Loads, MergedPrior
from spacetime.scheduler.prior import MAX_TABLES, Prior
from spacetime.scheduler.tables import KernelTimes, LatencyTable
from spacetime.values import Value

SAMPLES = 15  # the median of so many lanes shrugs off a few disturbed ones
OPTIMISM = 0.5  # an estimate from n samples is lowered by this part over (1 + n)
EXPLORE_FORM = 0.25  # lanes fused, or plain, when none such was ever measured, are priced at this part
EXPLORE_SIZE = 0.25  # lanes on about so many units, when none such was ever measured, are priced at this part
EXPLORE = 0.8  # an arrangement never measured is priced at this part of its calibrated prior
FORGET_AFTER = 200  # observations elsewhere in the cohort that halve the confidence in an arrangement
RECALIBRATE_EVERY = 16  # observations
STALE_SAMPLES = 31  # the median of so many lanes ...
STALE_FACTOR = 1.5  # ... is off by more than this factor, either way
TABLE_SLACK = 2.0  # what handing lanes over may add to a measured table before the table is wrong

Arrangement = tuple[int, int, int, bool]  # tenants, rows, units, fused; buckets of them share what they learn
Kind = tuple[bool, int]  # fused, units


@dataclass(frozen=True, slots=True)
class Staleness(Value):
    """A cohort whose lanes no longer take what its prior, once calibrated, says."""

    cohort: str
    ratio: float  # observed over expected: the median of the last samples
    samples: int
    since: int  # the cohort's observation count when it became stale

    def __str__(self) -> str:
        return (
            f"cohort {self.cohort}: lanes take {self.ratio:.2f}x of what its profile says "
            f"(median of {self.samples} lanes, since lane {self.since}); profile it again"
        )


@dataclass(slots=True)
class _Measured:
    """What lanes of one arrangement took, over their priors."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    is_warm: bool = False  # the first lane allocates and loads what later ones find: it is forgotten with the second
    over_prior: float = 1.0
    reference: float | None = None  # over_prior when there were enough samples for the first time
    seen_at: int = 0  # the cohort's observation count then

    def add(self, ratio: float, now: int) -> None:
        self.seen_at = now
        if self.samples and not self.is_warm:
            self.is_warm = True
            self.samples.clear()
        self.samples.append(ratio)
        self.over_prior = _median(self.samples)


@dataclass(slots=True)
class _Times:
    """Kernel times as they were when `seen` lanes had been observed, and what scaled them."""

    seen: int
    factors: NDArray[np.float64]
    times: KernelTimes


class _Cohort:
    def __init__(self, program: Program | None, device: Device, table: LatencyTable | None) -> None:
        self.prior = Prior(program, device, table)
        self.table = table
        self.estimates: dict[Arrangement, float] = {}  # valid until an observation changes what they rest on
        self.num_observed = 0
        self.stale_since: int | None = None
        self._estimated: dict[Arrangement, list[Arrangement]] = {}  # the keys of `estimates` by bucket
        self._measured: dict[Arrangement, _Measured] = {}
        self._settled_at = 0  # the observation count when it was last decided what is forgotten, and calibrated
        self._calibrations: dict[Kind, float] = {}
        self._times: dict[tuple[int, int, bool], _Times] = {}
        self._drift: deque[float] = deque(maxlen=STALE_SAMPLES)
        buckets = [_bucket(int(units)) for units in self.prior.sizes]
        self._size_buckets = list(dict.fromkeys(buckets))
        self._size_index = np.searchsorted(self._size_buckets, buckets)

    def estimate_us(self, tenants: int, rows: int, units: int, fused: bool) -> float:
        """Worked out anew, and kept in `estimates`."""
        bucket = (_bucket(tenants), _bucket(rows), _bucket(units), fused)
        estimate = self.prior.lane_us(tenants, rows, units, fused) * self._factor(bucket)
        arrangement = (tenants, rows, units, fused)
        self._estimated.setdefault(bucket, []).append(arrangement)
        self.estimates[arrangement] = estimate
        return estimate

    def kernel_times(self, tenants: int, rows: int, fused: bool) -> KernelTimes:
        """The prior's, every column scaled as lanes of its size are. Made anew only when a scale has changed."""
        key = (tenants, rows, fused)
        kept = self._times.get(key)
        if kept is not None and kept.seen == self.num_observed:
            return kept.times
        lane = (_bucket(tenants), _bucket(rows))
        factors = np.array([self._factor((*lane, units, fused)) for units in self._size_buckets])
        if kept is not None and np.array_equal(kept.factors, factors):
            kept.seen = self.num_observed
            return kept.times
        times = KernelTimes(self.prior.kernels_us(tenants, rows, fused) * factors[self._size_index])
        if kept is None and len(self._times) >= MAX_TABLES:
            del self._times[next(iter(self._times))]
        self._times[key] = _Times(self.num_observed, factors, times)
        return times

    def observe(self, tenants: int, rows: int, units: int, fused: bool, duration_us: float) -> None:
        ratio = max(duration_us, 1) / self.prior.lane_us(tenants, rows, units, fused)  # clocks count whole microseconds
        bucket = (_bucket(tenants), _bucket(rows), _bucket(units), fused)
        measured = self._measured.setdefault(bucket, _Measured())
        if not self._confidence(measured):
            measured.samples.clear()  # what was forgotten must not outvote what is seen now
        self.num_observed += 1
        measured.add(ratio, self.num_observed)
        if len(measured.samples) == 1 or self.num_observed % RECALIBRATE_EVERY == 0:
            self._settle()
        for arrangement in self._estimated.pop(bucket, ()):
            del self.estimates[arrangement]
        self._watch(measured, ratio)

    @property
    def drift(self) -> tuple[float, int]:
        """Observed over expected, and of how many lanes."""
        return _median(self._drift), len(self._drift)

    def _factor(self, bucket: Arrangement) -> float:
        """By what to multiply the prior of an arrangement in this bucket."""
        measured = self._measured.get(bucket)
        confidence = 0 if measured is None else self._confidence(measured)
        if measured is None or not confidence:
            _, _, units, fused = bucket
            calibration, discount = self._calibration(fused, units)
            return calibration * discount
        return measured.over_prior * (1 - OPTIMISM / (1 + confidence))

    def fused_us(self, tenants: int, rows: int, units: int) -> tuple[float, float]:
        """A fused lane's prior, and what it is expected to take without any optimism."""
        prior_us = self.prior.lane_us(tenants, rows, units, True)
        measured = self._measured.get((_bucket(tenants), _bucket(rows), _bucket(units), True))
        if measured is not None and self._confidence(measured):
            return prior_us, prior_us * measured.over_prior
        return prior_us, prior_us * self._calibration(True, _bucket(units))[0]

    def _confidence(self, measured: _Measured) -> int:
        return len(measured.samples) >> max(0, self._settled_at - measured.seen_at) // FORGET_AFTER

    def _calibration(self, fused: bool, units: int) -> tuple[float, float]:
        """Measured over prior for arrangements of this kind; how good one never tried looks, so that it is tried."""
        known = self._calibrations.get((fused, units))
        if known is not None:
            return known, EXPLORE
        others = [(max(size, units) / min(size, units), -size) for form, size in self._calibrations if form == fused]
        if others:
            return self._calibrations[fused, -min(others)[1]], EXPLORE_SIZE
        return min(self._calibrations.values(), default=1.0), EXPLORE_FORM

    def _settle(self) -> None:
        """Forget, and calibrate: for every kind the median over the arrangements that are remembered."""
        self._settled_at = self.num_observed
        self.estimates.clear()
        self._estimated.clear()
        ratios: dict[Kind, list[float]] = {}
        for (_, _, units, fused), measured in self._measured.items():
            if self._confidence(measured):
                ratios.setdefault((fused, units), []).append(measured.over_prior)
        self._calibrations = {kind: _median(values) for kind, values in ratios.items()}

    def _watch(self, measured: _Measured, ratio: float) -> None:
        """Does the prior still fit as it did when this arrangement was new?"""
        if measured.reference is None:
            if len(measured.samples) == SAMPLES:
                measured.reference = measured.over_prior
                if self.table is not None:  # a table says what it means: only so much is put down to other things
                    measured.reference = min(max(measured.over_prior, 1 / TABLE_SLACK), TABLE_SLACK)
            return
        self._drift.append(ratio / measured.reference)
        drift, samples = self.drift
        if samples < STALE_SAMPLES:
            return
        if 1 / STALE_FACTOR <= drift <= STALE_FACTOR:
            self.stale_since = None
        elif self.stale_since is None:
            self.stale_since = self.num_observed


class _Merged:
    """Lanes of a merged execution: the prior of their loads times what such lanes took over it.

    Before any was seen: times what is known of the members' own lanes on as many units. None looks better than it is
    expected to be in order to be tried.
    """

    def __init__(self, program: MergedProgram, device: Device, members: Sequence[_Cohort]) -> None:
        self.program = program
        self._prior = MergedPrior(program, device, [member.prior for member in members])
        self._members = members
        self._num_observed = 0
        self._measured: dict[object, _Measured] = {}

    def estimate_us(self, loads: Loads, units: int) -> float:
        prior_us = self._prior.lane_us(loads, units)
        measured = self._measured.get(_merged_bucket(loads, units))
        confidence = 0 if measured is None else self._confidence(measured)
        if measured is None or not confidence:
            factor = self._factor_of_members(loads, units)
        else:
            factor = measured.over_prior * (1 - OPTIMISM / (1 + confidence))
        return prior_us * factor

    def observe(self, loads: Loads, units: int, duration_us: float) -> None:
        measured = self._measured.setdefault(_merged_bucket(loads, units), _Measured())
        if not self._confidence(measured):
            measured.samples.clear()
        self._num_observed += 1
        measured.add(max(duration_us, 1) / self._prior.lane_us(loads, units), self._now)

    def _factor_of_members(self, loads: Loads, units: int) -> float:
        expected = [
            member.fused_us(load.tenants, load.rows, units)
            for member, load in zip(self._members, loads, strict=True)
            if load.rows
        ]
        return sum([known_us for _, known_us in expected]) / sum([prior_us for prior_us, _ in expected])

    def _confidence(self, measured: _Measured) -> int:
        return len(measured.samples) >> (self._now - measured.seen_at) // FORGET_AFTER

    @property
    def _now(self) -> int:
        """Observations of it and of its members: while it is refused, theirs pass the time."""
        return self._num_observed + sum([member.num_observed for member in self._members])


class OnlineCosts:
    """A LearningCostModel, and one of merged lanes."""

    def __init__(self) -> None:
        self._cohorts: dict[str, _Cohort] = {}
        self._merged: dict[str, _Merged] = {}

    def register(self, cohort: str, program: Program | None, device: Device, table: LatencyTable | None = None) -> None:
        """Make a cohort known; `program` None: opaque. What was learned of a known cohort is kept.

        A table that was not there before replaces the prior, and learning begins anew.
        """
        known = self._cohorts.get(cohort)
        if known is None or (table is not None and table is not known.table):
            self._cohorts[cohort] = _Cohort(program, device, table)

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        known = self._cohorts.get(cohort) or self._find(cohort)
        estimate = known.estimates.get((tenants, rows, units, fused))
        if estimate is None:
            estimate = known.estimate_us(tenants, rows, units, fused)
        return estimate

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        """By kernel and number of atoms; the columns add up to `lane_us`."""
        known = self._cohorts.get(cohort) or self._find(cohort)
        return known.kernel_times(tenants, rows, fused)

    def observe(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool, duration_us: int) -> None:
        self._find(cohort).observe(tenants, rows, units, fused, duration_us)

    def register_merged(self, merged: str, program: MergedProgram, cohorts: Sequence[str], device: Device) -> None:
        """Make a merged execution known by its id; `cohorts` in the order of the program's members, known before."""
        known = self._merged.get(merged)
        if known is None or known.program != program:
            self._merged[merged] = _Merged(program, device, [self._find(cohort) for cohort in cohorts])

    def merged_us(self, merged: str, loads: Loads, *, units: int) -> float:
        return self._find_merged(merged).estimate_us(loads, units)

    def observe_merged(self, merged: str, loads: Loads, *, units: int, duration_us: int) -> None:
        self._find_merged(merged).observe(loads, units, duration_us)

    def forget_merged(self, merged: str) -> None:
        self._merged.pop(merged, None)

    def staleness(self, cohort: str) -> Staleness | None:
        """Set while the cohort's lanes keep differing from what its prior and its first lanes say."""
        known = self._find(cohort)
        if known.stale_since is None:
            return None
        ratio, samples = known.drift
        return Staleness(cohort, ratio, samples, known.stale_since)

    def _find(self, cohort: str) -> _Cohort:
        if cohort not in self._cohorts:
            known = ", ".join(sorted(self._cohorts)) or "none"
            raise OptionError(f"cohort {cohort!r} has no costs", f"known: {known}", "register it before it is used")
        return self._cohorts[cohort]

    def _find_merged(self, merged: str) -> _Merged:
        if merged not in self._merged:
            known = ", ".join(sorted(self._merged)) or "none"
            raise OptionError(f"{merged!r} has no costs", f"known: {known}", "register it before it is used")
        return self._merged[merged]


def _merged_bucket(loads: Loads, units: int) -> object:
    return (*[(_bucket(load.tenants), _bucket(load.rows)) for load in loads], _bucket(units))


def _bucket(count: int) -> int:
    """Small counts matter one by one, large ones by their order of magnitude."""
    return count if count <= 8 else 1 << (count - 1).bit_length()


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]  # the lower of two: optimistic
