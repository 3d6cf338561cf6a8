"""What a merged lane takes, and whether it beats the members' own lanes. Pure; policies may ask it; no torch.

A launch that members share has their rows and their sets of weights together; a grouped one divides its blocks among
the units. Both by the model of scheduler/analytic.py, corrected by what the cost model knows of each member's lanes:
a step is scaled as the kernels in it are, taken together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.merged import MergedProgram
from spacetime.plan import Load
from spacetime.scheduler.analytic import KernelWork, kernel_work
from spacetime.scheduler.merged_prior import MergedWork, by_step
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.tables import KernelTimes
from spacetime.values import Value

MARGIN = 0.05  # predictions are no better than that: merging must promise more

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Worth(Value):
    """Predicted time until all members are done, for the three ways to run them on the whole device."""

    merged_us: float
    in_turn_us: float  # a lane each, one after another
    side_by_side_us: float  # a lane each, all at once, on parts of the device sized so that they end together

    @property
    def separate_us(self) -> float:
        return min(self.in_turn_us, self.side_by_side_us)

    @property
    def pays(self) -> bool:
        return self.merged_us < self.separate_us * (1 - MARGIN)

    def __str__(self) -> str:
        verdict = "merge" if self.pays else "do not merge"
        return (
            f"{verdict}: merged {self.merged_us:.0f} us, in turn {self.in_turn_us:.0f} us, "
            f"side by side {self.side_by_side_us:.0f} us"
        )


def worth(
    merged: MergedProgram,
    loads: Sequence[Load],
    device: Device,
    costs: CostModel | None = None,
    cohorts: Sequence[str] = (),
) -> Worth:
    """`loads[m]` is what member m is to run; `cohorts[m]` its name in the cost model, by default its signature."""
    _check(merged, loads, cohorts)
    members = [program_work(merged, member, loads[member], device) for member in range(len(loads))]
    modelled = [work.times(device).us for work in members]
    expected = modelled if costs is None else _expected(merged, loads, costs, cohorts)
    lanes = [KernelTimes(us) for us in expected]
    whole = lane_times(merged, loads, device, modelled, expected).lane_us(device.num_atoms)
    in_turn = sum(lane.lane_us(device.num_atoms) for lane in lanes)
    traffic_us = sum(float(work.traffic_bytes.sum()) for work in members) / device.bytes_per_us
    return Worth(whole, in_turn, side_by_side_us(lanes, traffic_us))


def lane_times(
    merged: MergedProgram,
    loads: Sequence[Load],
    device: Device,
    modelled: Sequence[Floats] = (),
    expected: Sequence[Floats] = (),
) -> KernelTimes:
    """Step by step, by the model; where given, scaled by what is expected of the members' kernels over `modelled`."""
    us = MergedWork(merged, device).work(loads).times(device).us
    if modelled:
        us = us * by_step(expected, merged.steps_of, len(us)) / by_step(modelled, merged.steps_of, len(us))
    return KernelTimes(us)


def side_by_side_us(lanes: Sequence[KernelTimes], traffic_us: float) -> float:
    """All at once, each on its own atoms; in any case the memory has to move what they read and write.

    The device is divided greedily: an atom goes to whom it lets end last. Infinite where there are fewer atoms.
    """
    free = lanes[0].num_atoms - len(lanes)
    if free < 0:
        return float("inf")
    totals = [np.minimum.accumulate(lane.us.sum(axis=0)) for lane in lanes]
    atoms = [0] * len(lanes)
    for _ in range(free):
        last = max(range(len(lanes)), key=lambda lane: float(totals[lane][atoms[lane]]))
        atoms[last] += 1
    return max(traffic_us, *(float(total[own]) for total, own in zip(totals, atoms, strict=True)))


def program_work(merged: MergedProgram, member: int, load: Load, device: Device) -> KernelWork:
    """Of a member's own lane."""
    return kernel_work(merged.programs[member], device, tenants=load.tenants, rows=load.rows)


def _expected(merged: MergedProgram, loads: Sequence[Load], costs: CostModel, cohorts: Sequence[str]) -> list[Floats]:
    names = cohorts or [program.signature for program in merged.programs]
    return [
        costs.kernel_times(name, tenants=load.tenants, rows=load.rows).us
        for name, load in zip(names, loads, strict=True)
    ]


def _check(merged: MergedProgram, loads: Sequence[Load], cohorts: Sequence[str]) -> None:
    wrong = [load for load in loads if not 1 <= load.tenants <= load.rows]
    if len(loads) != len(merged.programs) or (cohorts and len(cohorts) != len(loads)) or wrong:
        raise OptionError(
            "a merged lane cannot be predicted for these loads",
            f"{len(merged.programs)} members, {len(loads)} loads, {len(cohorts)} cohort names, impossible: {wrong}",
            "give every member a load of 1 or more rows, of at most as many tenants; restrict() leaves members out",
        )
