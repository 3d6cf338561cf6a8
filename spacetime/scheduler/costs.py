"""How long will a lane take: a roofline at first, what was measured later. Policies ask it, the loop feeds it.

It is optimistic where it knows little, so that an alternative is tried a few times before it is given up, and
it forgets what it has not seen for long, so that the alternative is tried again. It has no clock: time is counted in
observations of a cohort, and the same observations give the same answers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.scheduler.tables import KernelTimes

SAMPLES = 15  # the median of so many lanes shrugs off a few disturbed ones
OPTIMISM = 0.5  # an estimate from n samples is lowered by this part over (1 + n)
EXPLORE_KIND = 0.25  # a form of lane (fused or plain, on so many units) never measured is priced at this part
EXPLORE = 0.8  # an arrangement never measured is priced at this part of its calibrated prior
FORGET_AFTER = 200  # observations elsewhere in the cohort that halve the confidence in an arrangement
RECALIBRATE_EVERY = 16  # observations
OPAQUE_US = 50.0  # prior for a lane of which nothing is known

Arrangement = tuple[int, int, int, bool]  # tenants, rows, units, fused


@dataclass(slots=True)
class _Measured:
    """What lanes of one arrangement took."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    median_us: float = 0.0
    over_prior: float = 1.0
    seen_at: int = 0  # the cohort's observation count then


@dataclass(slots=True)
class _Cohort:
    program: Program | None
    device: Device
    measured: dict[Arrangement, _Measured] = field(default_factory=dict)
    estimates: dict[Arrangement, float] = field(default_factory=dict)  # valid until the next observation
    num_observed: int = 0
    calibrations: dict[tuple[bool, int], float] = field(default_factory=dict)  # by (fused, units)

    def prior_us(self, tenants: int, rows: int, units: int) -> float:
        """Roofline: arithmetic or traffic, whichever is slower, plus the launches."""
        if self.program is None:
            return OPAQUE_US
        device = self.device
        share = units / device.num_units
        compute_us = self.program.flops(rows) / (device.flops_per_unit_us * units)
        traffic_us = self.program.bytes(rows, tenants) / (device.bytes_per_us * share)
        return max(compute_us, traffic_us) + len(self.program.kernels) * device.launch_us

    def kernel_priors_us(self, tenants: int, rows: int, units: int) -> list[float]:
        if self.program is None:
            return [OPAQUE_US]
        device = self.device
        flops_per_us, bytes_per_us = device.flops_per_unit_us * units, device.bytes_per_us * units / device.num_units
        return [
            max(kernel.flops(rows) / flops_per_us, kernel.bytes(rows, tenants) / bytes_per_us) + device.launch_us
            for kernel in self.program.kernels
        ]

    def confidence(self, measured: _Measured) -> int:
        return len(measured.samples) >> (self.num_observed - measured.seen_at) // FORGET_AFTER

    def estimate_us(self, tenants: int, rows: int, units: int, fused: bool) -> float:
        measured = self.measured.get((_bucket(tenants), _bucket(rows), units, fused))
        confidence = 0 if measured is None else self.confidence(measured)
        if measured is None or not confidence:
            return self.prior_us(tenants, rows, units) * self.calibration(fused, units)
        return measured.median_us * (1 - OPTIMISM / (1 + confidence))

    def calibration(self, fused: bool, units: int) -> float:
        """Measured over prior for arrangements of this kind. A kind never tried looks good, so that it is tried."""
        known = self.calibrations.get((fused, units))
        if known is not None:
            return known * EXPLORE
        return min(self.calibrations.values(), default=1.0) * EXPLORE_KIND

    def calibrate(self) -> None:
        """For every kind the median over the arrangements that are remembered."""
        ratios: dict[tuple[bool, int], list[float]] = {}
        for (_, _, units, fused), measured in self.measured.items():
            if self.confidence(measured):
                ratios.setdefault((fused, units), []).append(measured.over_prior)
        self.calibrations = {kind: _median(values) for kind, values in ratios.items()}


class OnlineCosts:
    """A LearningCostModel."""

    def __init__(self) -> None:
        self._cohorts: dict[str, _Cohort] = {}

    def register(self, cohort: str, program: Program | None, device: Device) -> None:
        """Make a cohort known; `program` None: opaque. What was learned of a known cohort is kept."""
        self._cohorts.setdefault(cohort, _Cohort(program, device))

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        known = self._cohorts.get(cohort) or self._find(cohort)
        arrangement = (tenants, rows, units, fused)
        estimate = known.estimates.get(arrangement)
        if estimate is None:
            estimate = known.estimates[arrangement] = known.estimate_us(tenants, rows, units, fused)
        return estimate

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        """The roofline per kernel, each column scaled to what lanes of this size take."""
        known = self._cohorts.get(cohort) or self._find(cohort)
        device = known.device
        sizes = [atoms * device.units_per_atom for atoms in range(1, device.num_atoms)] + [device.num_units]
        columns = []
        for units in sizes:
            lane_us = self.lane_us(cohort, tenants=tenants, rows=rows, units=units, fused=fused)
            column = known.kernel_priors_us(tenants, rows, units)
            columns.append([us * lane_us / sum(column) for us in column])
        return KernelTimes.of(list(zip(*columns, strict=True)))

    def observe(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool, duration_us: int) -> None:
        known = self._find(cohort)
        known.estimates.clear()
        measured = known.measured.setdefault((_bucket(tenants), _bucket(rows), units, fused), _Measured())
        if not known.confidence(measured):
            measured.samples.clear()  # what was forgotten must not outvote what is seen now
        known.num_observed += 1
        measured.seen_at = known.num_observed
        measured.samples.append(duration_us)
        measured.median_us = _median(measured.samples)
        measured.over_prior = measured.median_us / known.prior_us(tenants, rows, units)
        if len(measured.samples) == 1 or known.num_observed % RECALIBRATE_EVERY == 0:
            known.calibrate()

    def _find(self, cohort: str) -> _Cohort:
        if cohort not in self._cohorts:
            known = ", ".join(sorted(self._cohorts)) or "none"
            raise OptionError(f"cohort {cohort!r} has no costs", f"known: {known}", "register it before it is used")
        return self._cohorts[cohort]


def _bucket(count: int) -> int:
    """Small counts matter one by one, large ones by their order of magnitude."""
    return count if count <= 8 else 1 << (count - 1).bit_length()


def _median(values: deque[float] | list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]  # the lower of two: optimistic
