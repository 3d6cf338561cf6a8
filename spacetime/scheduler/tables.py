"""Latencies by kernel: of a lane on every number of atoms, which is what right-sizing looks at, and as measured.

Policies and cost models share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LaneSize = tuple[int, int, int, bool]  # tenants, rows, units, fused: the arguments of CostModel.lane_us

TOLERANCE = 0.05  # the knee is the least size within this part of the best latency


@dataclass(frozen=True, eq=False)
class KernelTimes:
    """`us[k, a - 1]` is the latency of kernel k on a atoms, alone on the device. Read-only.

    >>> times = KernelTimes.of([[8.0, 4.0, 4.0], [3.0, 3.0, 3.0]])
    >>> times.lane_us(2), times.knee(), times.knees().tolist()
    (7.0, 2, [2, 1])
    """

    us: NDArray[np.float64]

    def __post_init__(self) -> None:
        assert self.us.ndim == 2 and self.us.size, "at least one kernel on at least one atom"
        self.us.setflags(write=False)

    @cached_property
    def derived(self) -> dict[object, Any]:
        """What others have worked out from these times, by a key of their own: it lives as long as they do."""
        return {}

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> KernelTimes:
        return cls(np.array(rows, dtype=np.float64))

    @property
    def num_kernels(self) -> int:
        return int(self.us.shape[0])

    @property
    def num_atoms(self) -> int:
        return int(self.us.shape[1])

    def lane_us(self, atoms: int) -> float:
        """All kernels one after another on so many atoms."""
        return float(self.us[:, atoms - 1].sum())

    def knee(self, tolerance: float = TOLERANCE) -> int:
        """The least number of atoms on which the whole lane is within the tolerance of its best."""
        return int(_knees(self.us.sum(axis=0, keepdims=True), tolerance)[0])

    def knees(self, tolerance: float = TOLERANCE) -> NDArray[np.int64]:
        """The same for every kernel by itself."""
        return _knees(self.us, tolerance)


class LatencyTable(Protocol):
    """Measured latencies of kernels, launch included: one tenant's weights, alone on so many units."""

    def kernel_us(self, key: str, rows: int, units: int) -> float | None:
        """Of the kernel with this `ir.Kernel.key`; None: not measured."""

    def measured(self, key: str) -> Sequence[tuple[int, int]]:
        """The (rows, units) for which `kernel_us` has an answer."""


class ListCostModel(Protocol):
    """What a cost model may have beside `lane_us`: who compares many lanes of one cohort asks once."""

    def lanes_us(self, cohort: str, lanes: Sequence[LaneSize]) -> list[float]:
        """`lane_us` of every one of them."""


def units_law(units: NDArray[np.float64], us: NDArray[np.float64]) -> tuple[float, float]:
    """(m, b) of l(u) = m / u + b, closest in relative terms to latencies measured on two or more sizes.

    >>> units_law(np.array([1.0, 2.0, 4.0]), np.array([9.0, 5.0, 3.0]))
    (8.0, 1.0)
    """
    shrinking, constant = 1 / units / us, 1 / us  # m * shrinking + b * constant should be 1
    (parallel, serial), *_ = np.linalg.lstsq(np.stack([shrinking, constant], axis=1), np.ones_like(us), rcond=None)
    if parallel < 0:
        parallel, serial = 0.0, constant.sum() / (constant @ constant)
    elif serial < 0:
        parallel, serial = shrinking.sum() / (shrinking @ shrinking), 0.0
    return round(float(parallel), 9), round(float(serial), 9)


def _knees(us: NDArray[np.float64], tolerance: float) -> NDArray[np.int64]:
    within = us <= us.min(axis=1, keepdims=True) * (1 + tolerance)
    knees: NDArray[np.int64] = within.argmax(axis=1).astype(np.int64) + 1
    return knees
