"""Which waiting requests are too old to serve: timeouts, deadlines that cannot be made. Only the loop imports it.

Only the head of a queue is looked at, and only when it may be due: a heap holds one time per tenant, so a step costs
nothing while nobody is late. Heads get younger, so a time in the heap is never too late, except that predictions
change: then the tenant is looked at again when its next lane ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from spacetime.device import Device
from spacetime.errors import RejectedError
from spacetime.plan import RequestView
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.queues import Queues, Tenant
from spacetime.scheduler.request import Request

TRUST_US = 100_000  # predictions reject nothing of a tenant that has not run for so long: they could never improve

Late = tuple[Tenant, Request, RejectedError]


class Lateness:
    """The times at which heads of queues become due."""

    def __init__(self, queues: Queues, costs: CostModel, device: Device) -> None:
        self._queues = queues
        self._costs = costs
        self._device = device
        self._checks: list[tuple[int, int, Tenant]] = []  # a heap; of a tenant's entries only `check_us` counts
        self._num_checks = 0
        self._forms: dict[str, set[bool]] = {}  # cohort -> fused or not: the forms that its lanes have had

    def __bool__(self) -> bool:
        return bool(self._checks)

    def lane_started(self, cohort: str, fused: bool) -> None:
        """A form that nobody ever runs is no way to make a deadline, however good it looks unmeasured."""
        self._forms.setdefault(cohort, set()).add(fused)

    def forget(self, cohort: str) -> None:
        self._forms.pop(cohort, None)

    def watch(self, tenant: Tenant) -> None:
        """Its head, or what is predicted of it, has changed."""
        if not tenant.spec.expires or not tenant.waiting:
            return
        due_us = self._due_us(tenant)
        if due_us is not None and (tenant.check_us is None or due_us < tenant.check_us):
            tenant.check_us = due_us
            self._num_checks += 1
            heappush(self._checks, (due_us, self._num_checks, tenant))

    def unwatch(self, tenant: Tenant) -> None:
        """It has left: its time may be hours away, and nothing of it is to be kept until then."""
        tenant.check_us = None
        kept = [check for check in self._checks if check[2] is not tenant]
        if len(kept) < len(self._checks):
            heapify(kept)
            self._checks = kept

    def next_us(self) -> int | None:
        """When to look again."""
        while self._checks and not self._counts(self._checks[0]):
            heappop(self._checks)
        return self._checks[0][0] if self._checks else None

    def take(self, now_us: int) -> list[Late]:
        """Take requests that are too old out of their queues; the caller ends them."""
        late: list[Late] = []
        while self._checks and self._checks[0][0] <= now_us:
            check = heappop(self._checks)
            if not self._counts(check):
                continue
            tenant = check[2]
            tenant.check_us = None
            while tenant.waiting:
                head = next(iter(tenant.waiting.values())).view
                error = self._verdict(tenant, head, now_us)
                if error is None:
                    break
                late.append((tenant, self._queues.pop(head), error))
            self.watch(tenant)
        return late

    def _counts(self, check: tuple[int, int, Tenant]) -> bool:
        due_us, _, tenant = check
        if tenant.check_us != due_us:
            return False
        if tenant.waiting and self._queues.tenants.get(tenant.spec.name) is tenant:
            return True
        tenant.check_us = None
        return False

    def _due_us(self, tenant: Tenant) -> int | None:
        """The first time at which the head is too old."""
        spec, head = tenant.spec, next(iter(tenant.waiting.values())).view
        times = []
        if spec.timeout_us is not None:
            times.append(head.arrival_us + spec.timeout_us)
        if spec.late == "reject" and head.deadline_us is not None:
            times.append(head.deadline_us - int(self._best_us(tenant, head)) + 1)
        return min(times, default=None)

    def _verdict(self, tenant: Tenant, head: RequestView, now_us: int) -> RejectedError | None:
        spec, waited_us = tenant.spec, now_us - head.arrival_us
        if spec.timeout_us is not None and waited_us >= spec.timeout_us:
            behind = len(tenant.waiting) - 1
            return RejectedError(
                f"tenant {spec.name!r}: a request timed out before it started",
                f"it waited {waited_us} us, the timeout is {spec.timeout_us} us; {behind} wait behind it",
                "submit slower, or raise timeout_ms",
            )
        if spec.late == "serve" or head.deadline_us is None:
            return None
        best_us, left_us = int(self._best_us(tenant, head)), head.deadline_us - now_us
        if best_us <= left_us:
            return None
        return RejectedError(
            f"tenant {spec.name!r}: a request cannot make its deadline",
            f"it waited {waited_us} us and is due {_in(left_us)}; alone on the whole device {head.rows} rows take "
            f"{best_us} us (predicted)",
            "submit slower, raise slo_ms, or have it served late with late='serve'",
        )

    def _best_us(self, tenant: Tenant, head: RequestView) -> float:
        """The request alone on the whole device; nothing, while there is no recent lane to base it on."""
        if tenant.ran_us is None or head.arrival_us - tenant.ran_us > TRUST_US:
            return 0.0
        cohort, units = tenant.spec.cohort, self._device.num_units
        forms: Sequence[bool] = sorted(self._forms.get(cohort, ())) if tenant.spec.fusible else (False,)
        return min(
            [self._costs.lane_us(cohort, tenants=1, rows=head.rows, units=units, fused=fused) for fused in forms],
            default=0.0,
        )


def _in(us: int) -> str:
    return f"in {us} us" if us >= 0 else f"since {-us} us"
