"""The work of single launches, by the analytic model: alone, shared by equal kernels, grouped. merging/ imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spacetime.device import Device
from spacetime.ir import Kernel, Program
from spacetime.scheduler.analytic import Analytic, KernelWork, lane_sizes


@dataclass(frozen=True, slots=True)
class Load:
    """What a launch is given: rows in all, and the sets of weights that they meet."""

    tenants: int
    rows: int

    def __add__(self, other: Load) -> Load:
        """Together in one launch."""
        return Load(self.tenants + other.tenants, self.rows + other.rows)


def launches_work(kernels: Sequence[Kernel], loads: Sequence[Load], device: Device) -> KernelWork:
    """One launch of every kernel with its load. Equal kernels of many members are one kernel with their loads added."""
    model = Analytic(Program("", (), (), (), tuple(kernels)), device)
    compute_us = np.empty((len(kernels), device.num_atoms))
    traffic_bytes, serial_us = np.empty(len(kernels)), np.empty(len(kernels))
    rows_with: dict[Load, list[int]] = {}
    for row, load in enumerate(loads):
        rows_with.setdefault(load, []).append(row)
    for load, rows in rows_with.items():
        part = model.work(load.tenants, load.rows, fused=True).take(model.index[rows])
        compute_us[rows], traffic_bytes[rows], serial_us[rows] = part.compute_us, part.traffic_bytes, part.serial_us
    return KernelWork(compute_us, traffic_bytes, serial_us)


def grouped_work(parts: KernelWork, device: Device) -> KernelWork:
    """All parts in one launch, whose blocks fill the units as they become free.

    Arithmetic divides evenly, but takes no less than the slowest part takes by itself on the whole device.
    """
    work_us = parts.compute_us[:, 0].sum() * lane_sizes(device)[0] / lane_sizes(device)
    compute_us = np.maximum(work_us, parts.compute_us[:, -1].max())
    return KernelWork(compute_us[None, :], parts.traffic_bytes.sum(keepdims=True), parts.serial_us.max(keepdims=True))
