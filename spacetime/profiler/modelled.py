"""Profiles of devices that are not here: the analytic model's times, named as such. Used by `run`; no torch.

They cost nothing to make again, so they are never taken from a store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from spacetime.device import Device
from spacetime.ir import Program
from spacetime.profiler.campaign import subjects_of
from spacetime.profiler.curves import Point
from spacetime.profiler.few_points import Search, search
from spacetime.profiler.profile import Ceilings
from spacetime.profiler.records import Key, Measurement
from spacetime.scheduler.analytic import kernel_work, lane_sizes

NO_CACHE = "model"


def sizes_of(device: Device) -> tuple[int, ...]:
    """Units of 1, 2, ... atoms."""
    return tuple(int(units) for units in lane_sizes(device))


def modelled(
    program: Program, device: Device, rows: Sequence[int], sizes: Sequence[int], *, exact: bool, tolerance: float
) -> tuple[Measurement, ...]:
    """Every unique kernel at every row count, on as many sizes as would have been measured."""
    date, columns = datetime.now(UTC).date().isoformat(), sizes_of(device)
    found = []
    for count in rows:
        times = kernel_work(program, device, tenants=1, rows=count, fused=True).times(device).us
        for subject in subjects_of(program, with_between=False):
            latencies_us = dict(zip(columns, times[subject.indices[0]].tolist(), strict=True))
            points = _points(search(sizes, tolerance, exact=exact), latencies_us)
            found += [
                Measurement(
                    key=Key(subject.key, count, point.units, NO_CACHE),
                    op=subject.op,
                    dtype=subject.dtype,
                    samples_us=point.samples_us,
                    calls=1,
                    overhead_us=0.0,
                    num_disturbed=0,
                    method="modelled",
                    date=date,
                )
                for point in points
            ]
    return tuple(found)


def _points(asking: Search, latencies_us: Mapping[int, float]) -> list[Point]:
    found: list[Point] = []
    sizes = next(asking)
    while True:
        points = [Point(units, (latencies_us[units],)) for units in sizes]
        found += points
        try:
            sizes = asking.send(points)
        except StopIteration:
            return sorted(found, key=lambda point: point.units)


def ceilings_of(device: Device) -> Ceilings:
    return Ceilings(device.flops_per_unit_us * device.num_units, device.bytes_per_us, device.launch_us)
