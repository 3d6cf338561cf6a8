"""What each tenant asked for and used: counters, recent averages, a latency histogram. Queues and loop feed it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from typing import Any

_GROWTH = 1.02  # bucket i holds (_GROWTH**(i-1), _GROWTH**i]: its middle is within 1 % of every member
_LOG_GROWTH = math.log(_GROWTH)
_COUNT_EVERY = 64  # values: few enough that nobody notices who has to count them

RECENT_US = 1_000_000  # the time constant of recent averages: what happened this long ago counts 1/e
_PER_S = 1e6 / RECENT_US


class Histogram:
    """Quantiles of non-negative integers within 1 %, in a few hundred counters; histograms can be merged.

    Values are counted when somebody asks, or when there are some: one by one it would cost several times as much.
    """

    __slots__ = ("_counts", "_fresh", "_max", "_sum", "_total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._fresh: list[int] = []  # not counted yet
        self._max = 0
        self._sum = 0
        self._total = 0

    @property
    def max(self) -> int:
        self._count()
        return self._max

    @property
    def total(self) -> int:
        self._count()
        return self._total

    @property
    def sum(self) -> int:
        self._count()
        return self._sum

    def add(self, value: int) -> None:
        self._fresh.append(value)
        if len(self._fresh) >= _COUNT_EVERY:
            self._count()

    def merge(self, other: Histogram) -> None:
        self._count()
        other._count()
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self._total += other._total
        self._sum += other._sum
        self._max = max(self._max, other._max)

    def _count(self) -> None:
        if not self._fresh:
            return
        counts, log, ceil = self._counts, math.log, math.ceil
        for value in self._fresh:
            bucket = ceil(log(value) / _LOG_GROWTH) if value > 0 else -1
            counts[bucket] = counts.get(bucket, 0) + 1
        self._total += len(self._fresh)
        self._sum += sum(self._fresh)
        self._max = max(self._max, *self._fresh)
        self._fresh.clear()

    def quantile(self, fraction: float) -> float:
        """The value below or at which `fraction` of all values lie (nearest rank); 0 when there is none."""
        rank = max(1, math.ceil(fraction * self.total))
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return 0.0 if bucket < 0 else min(2 * _GROWTH**bucket / (1 + _GROWTH), float(self._max))
        return 0.0


class Recent:
    """How often something happens of late, and its mean: averages whose weights fall by 1/e every RECENT_US.

    A steady rate shows to 63 % after one time constant, to 95 % after three: it rises from nought, never from a guess.
    """

    __slots__ = ("_at_us", "_count", "_total")

    def __init__(self) -> None:
        self._at_us = 0
        self._count = 0.0
        self._total = 0.0

    def add(self, at_us: int, value: float = 0.0) -> None:
        age_us = self._at_us - at_us
        if age_us < 0:
            decay = exp(age_us / RECENT_US)
            self._count = self._count * decay + 1
            self._total = self._total * decay + value
            self._at_us = at_us
        else:  # threads note the time before they queue up: it may go back a little
            self._count += 1
            self._total += value

    def per_s(self, now_us: int) -> float:
        age_us = self._at_us - now_us
        per_s = self._count * _PER_S
        return per_s * exp(age_us / RECENT_US) if age_us < 0 else per_s

    @property
    def mean(self) -> float:
        return self._total / self._count if self._count else 0.0


def value_bytes(value: Any) -> int:
    """Bytes of the tensors (whatever has `nbytes`) in nested tuples, lists and mappings; other things count nothing.

    It may be anything that a tenant's module returns: what cannot be looked into counts nothing either.
    """
    try:
        num_bytes = getattr(value, "nbytes", None)
        return _nested_bytes(value) if num_bytes is None else int(num_bytes)
    except Exception:  # a sparse tensor, a list that holds itself: the books must cost nobody a result
        return 0


def _nested_bytes(value: Any) -> int:
    num_bytes = getattr(value, "nbytes", None)
    if num_bytes is not None:
        return int(num_bytes)
    if not isinstance(value, (tuple, list)):
        if not isinstance(value, Mapping):
            return 0
        value = value.values()
    return sum([_nested_bytes(item) for item in value])


@dataclass(slots=True)
class Meter:
    """One tenant. Every submitted request ends in exactly one of the four counters below `submitted`."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    rows: int = 0
    bytes: int = 0  # of the inputs and results of requests that ran; weights and activations are not counted
    resizes: int = 0
    failed_resizes: int = 0  # sizes that the backend could not prepare; the old one stayed
    device_us: float = 0.0  # lane durations, by the share of the lane's rows and of the device's units
    exclusive_us: float = 0.0  # of these, in lanes that overlapped no others: only they add up to a device's time
    latency_us: Histogram = field(default_factory=Histogram)
    arrivals: Recent = field(default_factory=Recent)
    completions: Recent = field(default_factory=Recent)  # their mean is the recent latency
    seen_us: int = 0  # when the last request came or ended

    def arrived(self, at_us: int) -> None:
        """A request was submitted, whatever becomes of it."""
        self.submitted += 1
        self.arrivals.add(at_us)
        self.seen_us = max(self.seen_us, at_us)

    def record(
        self,
        rows: int,
        device_us: float,
        latency_us: int,
        ok: bool,
        at_us: int = 0,
        num_bytes: int = 0,
        exclusive: bool = True,
    ) -> None:
        """A request that ran has ended."""
        if ok:
            self.completed += 1
            self.completions.add(at_us, latency_us)
        else:
            self.failed += 1
        self.seen_us = max(self.seen_us, at_us)
        self.rows += rows
        self.bytes += num_bytes
        self.device_us += device_us
        if exclusive:
            self.exclusive_us += device_us
        self.latency_us.add(latency_us)

    def load(self, now_us: int) -> float:
        """Device time asked for per time, of late: 1.0 is all that a device has. Overlapping lanes ask for nothing."""
        ended = self.completed + self.failed
        us_per_request = self.exclusive_us / ended if ended else 0.0
        return self.arrivals.per_s(now_us) * us_per_request * 1e-6

    @property
    def num_open(self) -> int:
        """Requests that wait or run."""
        return self.submitted - self.completed - self.failed - self.rejected - self.cancelled

    def as_dict(self) -> dict[str, int | float]:
        return {
            "submitted": self.submitted,
            "completed": self.completed,
            "failed": self.failed,
            "rejected": self.rejected,
            "cancelled": self.cancelled,
            "rows": self.rows,
            "bytes": self.bytes,
            "resizes": self.resizes,
            "failed_resizes": self.failed_resizes,
            "device_us": self.device_us,
            "p50_us": self.latency_us.quantile(0.5),
            "p99_us": self.latency_us.quantile(0.99),
            "max_us": self.latency_us.max,
            "latency_sum_us": self.latency_us.sum,
        }
