"""What a simulation found: a value that prints as a table. Only simulate.py makes it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spacetime._version import __version__
from spacetime.device import Device
from spacetime.errors import RejectedError
from spacetime.ir import Program
from spacetime.values import Value
from spacetime.workload import Resident

SHOWN_TENANTS = 24  # in print; the others are summed up


@dataclass(frozen=True, slots=True)
class TenantReport(Value):
    """Latencies are those of requests that were completed, from arrival to end."""

    name: str
    model: str
    slo_us: int | None
    submitted: int
    completed: int
    rejected: int
    failed: int
    late: int  # completed after the objective
    rows: int  # completed
    p50_us: int
    p99_us: int
    max_us: int
    requests_per_s: float
    goodput_per_s: float  # completed in time
    device_us: float  # lane durations, by the share of the lane's rows and of the device's units
    device_share: float  # of the time reported

    @property
    def violations(self) -> int:
        """Requests that did not get what they were promised."""
        return self.late + self.rejected + self.failed


@dataclass(frozen=True, slots=True)
class Report(Value):
    """A run without its warm-up. Every figure is modelled."""

    method: str
    version: str
    device: Device
    policy: str
    seed: int
    warm_up_us: int
    duration_us: int  # from the end of the warm-up to the end of the last lane
    tenants: tuple[TenantReport, ...]
    requests_per_s: float
    rows_per_s: float
    goodput_per_s: float
    p50_us: int
    p99_us: int
    max_us: int
    utilisation: float  # unit-time with a kernel's work over what there was
    bandwidth_share: float  # traffic over what memory could have moved
    energy_joules: float  # a proxy: idle power all the time, the rest in proportion to the busy units
    fairness: float  # Jain's index of device time per weight: 1 when all got the same, 1/n when one got all
    num_lanes: int
    num_decisions: int
    num_kernels: int
    weight_bytes: int  # of all tenants, nothing shared
    first_error: str | None

    @property
    def completed(self) -> int:
        return sum(tenant.completed for tenant in self.tenants)

    @property
    def violations(self) -> int:
        return sum(tenant.violations for tenant in self.tenants)

    @property
    def joules_per_request(self) -> float:
        return self.energy_joules / self.completed if self.completed else 0.0

    def __str__(self) -> str:
        return "\n".join(_lines(self))


@dataclass(frozen=True, slots=True)
class Totals:
    """What had been counted at some time."""

    now_us: int
    busy_unit_us: float
    moved_bytes: int
    num_kernels: int
    num_lanes: int
    num_decisions: int
    device_us: Mapping[str, float]


@dataclass(slots=True)
class _Account:
    latencies_us: array[int] = field(default_factory=lambda: array("q"))
    rows: int = 0
    rejected: int = 0
    failed: int = 0


class Book:
    """Takes down how requests end, and sums up."""

    def __init__(
        self,
        device: Device,
        policy: str,
        seed: int,
        residents: Mapping[str, tuple[Resident, Program]],
        warm_up_us: int,
    ) -> None:
        self._device = device
        self._policy = policy
        self._seed = seed
        self._residents = residents
        self._warm_up_us = warm_up_us
        self._accounts = {name: _Account() for name in residents}
        self._first_error: str | None = None
        self._opened: Totals | None = None

    def open(self, totals: Totals) -> None:
        """The warm-up is over."""
        self._opened = totals

    def enter(self, tenant: str, rows: int, latency_us: int, error: BaseException | None) -> None:
        account = self._accounts[tenant]
        if error is None:
            account.latencies_us.append(latency_us)
            account.rows += rows
            return
        if isinstance(error, RejectedError):
            account.rejected += 1
        else:
            account.failed += 1
        if self._first_error is None:
            self._first_error = f"{type(error).__name__}: {error}"

    def close(self, totals: Totals) -> Report:
        opened = self._opened or totals  # it ended before the warm-up did: nothing is left to report
        duration_us = totals.now_us - opened.now_us
        seconds = duration_us * 1e-6 or math.inf
        shares_us = {name: totals.device_us[name] - opened.device_us[name] for name in self._residents}
        tenants = tuple(self._tenant(name, seconds, shares_us[name]) for name in self._residents)
        latencies_us = sorted(us for account in self._accounts.values() for us in account.latencies_us)
        device, busy_unit_us = self._device, totals.busy_unit_us - opened.busy_unit_us
        busy_s = busy_unit_us / device.num_units * 1e-6
        weights = [resident.weight for resident, _ in self._residents.values()]
        return Report(
            method="modelled: analytic kernels, shared units, bandwidth and cache, virtual time",
            version=__version__,
            device=device,
            policy=self._policy,
            seed=self._seed,
            warm_up_us=self._warm_up_us,
            duration_us=duration_us,
            tenants=tenants,
            requests_per_s=len(latencies_us) / seconds,
            rows_per_s=sum(tenant.rows for tenant in tenants) / seconds,
            goodput_per_s=sum(tenant.goodput_per_s for tenant in tenants),
            p50_us=_quantile(latencies_us, 0.5),
            p99_us=_quantile(latencies_us, 0.99),
            max_us=latencies_us[-1] if latencies_us else 0,
            utilisation=busy_s / seconds,
            bandwidth_share=(totals.moved_bytes - opened.moved_bytes) / (device.bytes_per_us * 1e6) / seconds,
            energy_joules=device.idle_watts * duration_us * 1e-6 + (device.busy_watts - device.idle_watts) * busy_s,
            fairness=jain([us / weight for us, weight in zip(shares_us.values(), weights, strict=True)]),
            num_lanes=totals.num_lanes - opened.num_lanes,
            num_decisions=totals.num_decisions - opened.num_decisions,
            num_kernels=totals.num_kernels - opened.num_kernels,
            weight_bytes=sum(program.bytes(rows=0) for _, program in self._residents.values()),
            first_error=self._first_error,
        )

    def _tenant(self, name: str, seconds: float, device_us: float) -> TenantReport:
        (resident, _), account = self._residents[name], self._accounts[name]
        latencies_us = sorted(account.latencies_us)
        completed, slo_us = len(latencies_us), resident.slo_us
        late = 0 if slo_us is None else sum(us > slo_us for us in latencies_us)
        return TenantReport(
            name=name,
            model=resident.model,
            slo_us=slo_us,
            submitted=completed + account.rejected + account.failed,
            completed=completed,
            rejected=account.rejected,
            failed=account.failed,
            late=late,
            rows=account.rows,
            p50_us=_quantile(latencies_us, 0.5),
            p99_us=_quantile(latencies_us, 0.99),
            max_us=latencies_us[-1] if latencies_us else 0,
            requests_per_s=completed / seconds,
            goodput_per_s=(completed - late) / seconds,
            device_us=device_us,
            device_share=device_us * 1e-6 / seconds,
        )


def _quantile(ordered: list[int], fraction: float) -> int:
    """Nearest rank; 0 when there is none."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] if ordered else 0


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1/n when one has everything.

    >>> jain([3.0, 3.0]), jain([1.0, 0.0]), jain([0.0, 0.0])
    (1.0, 0.5, 1.0)
    """
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _lines(report: Report) -> list[str]:
    device = report.device
    lines = [
        f"modelled: {device.name}, {device.num_units} units, policy {report.policy}, seed {report.seed}",
        f"  {report.completed} requests in {report.duration_us / 1e6:.3f} s: {report.requests_per_s:.0f} requests/s, "
        f"{report.rows_per_s:.0f} rows/s, {report.goodput_per_s:.0f} in time",
        f"  latency p50 {report.p50_us / 1e3:.2f} ms, p99 {report.p99_us / 1e3:.2f} ms, "
        f"max {report.max_us / 1e3:.2f} ms; {report.violations} promises broken",
        f"  units busy {report.utilisation:.1%}, bandwidth {report.bandwidth_share:.1%}, "
        f"{report.energy_joules:.1f} J ({report.joules_per_request * 1e3:.2f} mJ/request), "
        f"fairness {report.fairness:.3f}",
        f"  {report.num_lanes} lanes, {report.num_decisions} decisions, {report.num_kernels} kernels",
    ]
    if device.memory_bytes is not None and report.weight_bytes > device.memory_bytes:
        needed, present = report.weight_bytes / 1e9, device.memory_bytes / 1e9
        lines.append(f"  the weights do not fit: {needed:.1f} GB, the device has {present:.1f} GB")
    if report.first_error is not None:
        lines.append(f"  first error: {report.first_error}")
    lines.append(
        f"  {'tenant':<20} {'model':<18} {'done':>8} {'req/s':>8} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9} "
        f"{'broken':>7} {'share':>7}"
    )
    shown = report.tenants
    if len(shown) > SHOWN_TENANTS:
        shown = tuple(sorted(shown, key=lambda tenant: -tenant.p99_us)[:SHOWN_TENANTS])
    for tenant in shown:
        lines.append(
            f"  {tenant.name:<20} {tenant.model:<18} {tenant.completed:>8} {tenant.requests_per_s:>8.1f} "
            f"{tenant.p50_us / 1e3:>9.2f} {tenant.p99_us / 1e3:>9.2f} {tenant.max_us / 1e3:>9.2f} "
            f"{tenant.violations:>7} {tenant.device_share:>7.1%}"
        )
    if len(shown) < len(report.tenants):
        lines.append(f"  ... and {len(report.tenants) - len(shown)} tenants with a lower p99")
    return lines
