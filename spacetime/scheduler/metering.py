"""What each tenant asked for and used: counters and a latency histogram. The queues and the loop feed it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_GROWTH = 1.02  # bucket i holds (_GROWTH**(i-1), _GROWTH**i]: its middle is within 1 % of every member
_LOG_GROWTH = math.log(_GROWTH)


class Histogram:
    """Quantiles of non-negative integers within 1 %, in a few hundred counters; histograms can be merged."""

    __slots__ = ("_counts", "max", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.max = 0
        self.total = 0

    def add(self, value: int) -> None:
        bucket = math.ceil(math.log(value) / _LOG_GROWTH) if value > 0 else -1
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.total += 1
        self.max = max(self.max, value)

    def merge(self, other: Histogram) -> None:
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.total += other.total
        self.max = max(self.max, other.max)

    def quantile(self, fraction: float) -> float:
        """The value below or at which `fraction` of all values lie (nearest rank); 0 when there is none."""
        rank = max(1, math.ceil(fraction * self.total))
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return 0.0 if bucket < 0 else min(2 * _GROWTH**bucket / (1 + _GROWTH), float(self.max))
        return 0.0


@dataclass(slots=True)
class Meter:
    """One tenant. Every submitted request ends in exactly one of the four counters below `submitted`."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    rows: int = 0
    device_us: float = 0.0  # lane durations, by the share of the lane's rows and of the device's units
    latency_us: Histogram = field(default_factory=Histogram)

    def record(self, rows: int, device_us: float, latency_us: int, ok: bool) -> None:
        """A request that ran has ended."""
        if ok:
            self.completed += 1
        else:
            self.failed += 1
        self.rows += rows
        self.device_us += device_us
        self.latency_us.add(latency_us)

    def as_dict(self) -> dict[str, int | float]:
        return {
            "submitted": self.submitted,
            "completed": self.completed,
            "failed": self.failed,
            "rejected": self.rejected,
            "cancelled": self.cancelled,
            "rows": self.rows,
            "device_us": self.device_us,
            "p50_us": self.latency_us.quantile(0.5),
            "p99_us": self.latency_us.quantile(0.99),
            "max_us": self.latency_us.max,
        }
