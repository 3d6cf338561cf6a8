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

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.merged import MergedProgram
from spacetime.scheduler.learned import (
    OPTIMISM,
    Arrangement,
    LearnedCohort,
    Measured,
    bucket_of,
    median,
)
from spacetime.scheduler.merged_prior import Loads, MergedPrior
from spacetime.scheduler.tables import KernelTimes, LatencyTable
from spacetime.values import Value

MOST_RETIRED = 32  # cohorts without tenants whose lessons are kept


@dataclass(frozen=True, slots=True)
class Staleness(Value):
    """A cohort whose lanes no longer take what its prior, once calibrated, says."""

    cohort: str
    ratio: float  # observed over expected: the median of the last samples
    samples: int
    since: int  # the cohort's observation count when it became stale

    def __str__(self) -> str:
        return (
            f"cohort {self.cohort}: lanes take {self.ratio:.2f}x as long as its first ones let expect (median of "
            f"{self.samples}, since lane {self.since}): the device or its load is another now. Estimates follow; a "
            "profile does not: profile it again"
        )


class _Merged:
    """Lanes of a merged execution: the prior of their loads times what such lanes took over it.

    Before any was seen: times what is known of the members' own lanes on as many units. None looks better than it is
    expected to be in order to be tried.
    """

    def __init__(self, program: MergedProgram, device: Device, members: Sequence[LearnedCohort]) -> None:
        self.program = program
        self._prior = MergedPrior(program, device, [member.prior for member in members])
        self._members = members
        self._num_observed = 0
        self._measured: dict[object, Measured] = {}

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
        measured = self._measured.setdefault(_merged_bucket(loads, units), Measured())
        if measured.samples and not self._confidence(measured):
            measured.begin_again()
        self._num_observed += 1
        measured.add(max(duration_us, 1) / self._prior.lane_us(loads, units), self._now)

    def _factor_of_members(self, loads: Loads, units: int) -> float:
        expected = [
            member.fused_us(load.tenants, load.rows, units)
            for member, load in zip(self._members, loads, strict=True)
            if load.rows
        ]
        return sum([known_us for _, known_us in expected]) / sum([prior_us for prior_us, _ in expected])

    def _confidence(self, measured: Measured) -> int:
        return measured.confidence_at(self._now)

    @property
    def _now(self) -> int:
        """Observations of it and of its members: while it is refused, theirs pass the time."""
        return self._num_observed + sum([member.num_observed for member in self._members])


class OnlineCosts:
    """A LearningCostModel, and one of merged lanes."""

    def __init__(self) -> None:
        self._cohorts: dict[str, LearnedCohort] = {}
        self._retired: OrderedDict[str, None] = OrderedDict()  # of these, the first to go first
        self._merged: dict[str, _Merged] = {}

    def register(self, cohort: str, program: Program | None, device: Device, table: LatencyTable | None = None) -> None:
        """Make a cohort known; `program` None: opaque. What was learned of a known cohort is kept.

        A table that was not there before replaces the prior, and learning begins anew.
        """
        self._retired.pop(cohort, None)
        known = self._cohorts.get(cohort)
        if known is None or (table is not None and table is not known.table):
            self._cohorts[cohort] = LearnedCohort(program, device, table)

    def retire(self, cohort: str) -> None:
        """Its last tenant has left. What was learned waits for the next one until many others have left since."""
        if cohort in self._cohorts:
            self._retired[cohort] = None
            self._retired.move_to_end(cohort)
        while len(self._retired) > MOST_RETIRED:
            del self._cohorts[self._retired.popitem(last=False)[0]]

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        known = self._cohorts.get(cohort) or self._find(cohort)
        estimate = known.estimates.get((tenants, rows, units, fused))
        if estimate is None:
            estimate = known.estimate_us((tenants, rows, units, fused))
        return estimate

    def lanes_us(self, cohort: str, lanes: Sequence[Arrangement]) -> list[float]:
        """`lane_us` of many arrangements at once."""
        known = self._cohorts.get(cohort) or self._find(cohort)
        kept_us = list(map(known.estimates.get, lanes))
        if all(kept_us):  # nothing takes no time
            return kept_us  # type: ignore[return-value]
        estimate_us = known.estimate_us
        return [us or estimate_us(lane) for us, lane in zip(kept_us, lanes, strict=True)]

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        """By kernel and number of atoms; the columns add up to `lane_us`."""
        known = self._cohorts.get(cohort) or self._find(cohort)
        kept = known.times.get((tenants, rows, fused))
        return kept.times if kept is not None and kept.is_current else known.kernel_times(tenants, rows, fused)

    def observe(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool, duration_us: int) -> None:
        self._find(cohort).observe((tenants, rows, units, fused), duration_us)

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
        ratios = known.drift.ratios
        return Staleness(cohort, median(ratios), len(ratios), known.stale_since)

    def _find(self, cohort: str) -> LearnedCohort:
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
    return (*[(bucket_of(load.tenants), bucket_of(load.rows)) for load in loads], bucket_of(units))
