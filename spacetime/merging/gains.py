"""What a launch fewer is worth: the weights under which programs are aligned. merging/ and its callers import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device
from spacetime.ir import Kernel
from spacetime.plan import Load
from spacetime.scheduler.analytic import lane_sizes
from spacetime.scheduler.merged_prior import launches_work

Floats = NDArray[np.float64]

NEARLY = 0.999  # of two partners that save a launch each, the one with equal shapes is preferred


class Gains(Protocol):
    """Of distinct kernels, by index. Nothing is fused for a gain of 0 or less."""

    @property
    def shared(self) -> Floats:
        """For every kernel: what it gains if two launches of it become one."""

    def grouped(self, kernel: int) -> Floats | None:
        """What a launch of this one and each of the others gains; only kernels of one kind are ever asked for."""


class Weights(Protocol):
    """Tells what fusing gains. Implementations are pure."""

    def gains(self, kernels: Sequence[Kernel]) -> Gains: ...


class Launches:
    """Every launch counts the same. Groups are an option: not every device runs them well."""

    def __init__(self, *, grouped: bool = False) -> None:
        self.grouped = grouped

    def gains(self, kernels: Sequence[Kernel]) -> Gains:
        return _Counted(np.ones(len(kernels)), self.grouped)


class _Counted:
    def __init__(self, shared: Floats, groups: bool) -> None:
        self.shared = shared
        self._groups = groups

    def grouped(self, kernel: int) -> Floats | None:
        return np.full(len(self.shared), NEARLY) if self._groups else None


class PredictedTime:
    """Microseconds that the analytic model expects to spare on the whole device, with so many rows in each launch."""

    def __init__(self, device: Device, rows: int = 1) -> None:
        self.device = device
        self.rows = rows

    def gains(self, kernels: Sequence[Kernel]) -> Gains:
        return _Predicted(kernels, self.device, self.rows)


class _Predicted:
    """A group's time is that of `merged_prior.grouped_work` on the whole device, computed for many pairs at once."""

    def __init__(self, kernels: Sequence[Kernel], device: Device, rows: int) -> None:
        self._launch_us = device.launch_us
        once = launches_work(kernels, [Load(1, rows)] * len(kernels), device)
        twice = launches_work(kernels, [Load(2, 2 * rows)] * len(kernels), device)
        sizes = lane_sizes(device)
        self._work_us = once.compute_us[:, 0] * sizes[0] / sizes[-1]
        self._longest_us = once.compute_us[:, -1]
        self._traffic_us = once.traffic_bytes / device.bytes_per_us
        self._alone_us = np.maximum(self._longest_us, self._traffic_us) + device.launch_us
        both_us = np.maximum(twice.compute_us[:, -1], twice.traffic_bytes / device.bytes_per_us) + device.launch_us
        self.shared = 2 * self._alone_us - both_us

    def grouped(self, kernel: int) -> Floats | None:
        together_us = np.maximum(self._work_us + self._work_us[kernel], self._traffic_us + self._traffic_us[kernel])
        longest_us = np.maximum(self._longest_us, self._longest_us[kernel])
        gain: Floats = self._alone_us + self._alone_us[kernel] - np.maximum(together_us, longest_us) - self._launch_us
        return gain
