"""Tenants and requests on their way through the loop. The scheduler and the runtime import it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any

from spacetime.errors import InputError, OptionError, SpacetimeError
from spacetime.plan import RequestView

LATE = ("serve", "reject")
COUNTS = ("max_concurrency", "max_queue", "min_units", "slo_us", "timeout_us")


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """What the scheduler knows about a tenant; plan.TenantView explains the fields."""

    name: str
    cohort: str
    fusible: bool = True
    weight: float = 1.0
    priority: int = 0  # lower comes first
    slo_us: int | None = None
    max_concurrency: int = 1
    max_queue: int = 10_000
    min_units: int = 1
    timeout_us: int | None = None  # a request that has not started by then is rejected
    late: str = "serve"  # "reject": a request that cannot make its deadline any more is rejected early

    def __post_init__(self) -> None:
        for option in COUNTS:
            value = getattr(self, option)
            if value is None and option in ("slo_us", "timeout_us"):
                continue
            if not (isinstance(value, Integral) and int(value) > 0):
                raise _wrong(self.name, option, value, "a positive whole number")
            object.__setattr__(self, option, int(value))  # numpy's numbers, say, could not be written as JSON
        if not (isinstance(self.weight, Real) and 0 < self.weight < inf):
            raise _wrong(self.name, "weight", self.weight, "a positive number")
        if not isinstance(self.priority, Integral):
            raise _wrong(self.name, "priority", self.priority, "a whole number; lower ones come first")
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "priority", int(self.priority))
        if self.late not in LATE:
            what = f"tenant {self.name!r}: late is {self.late!r}"
            raise OptionError(what, f"known: {', '.join(LATE)}", "name one of these, or leave it out")
        if self.late == "reject" and self.slo_us is None:
            what = f"tenant {self.name!r}: late='reject' without an objective"
            raise OptionError(what, "a request is late when its deadline cannot be made", "pass slo_ms as well")

    @property
    def expires(self) -> bool:
        """Whether its requests may be rejected for their age."""
        return self.timeout_us is not None or self.late == "reject"


def limit_us(tenant: str, option: str, value_ms: float | None) -> int | None:
    """A limit as users give it, `slo_ms` say, in the unit of the scheduler."""
    if value_ms is None:
        return None
    value_us = float(value_ms) * 1000 if isinstance(value_ms, Real) else 0.0
    if not 1 <= value_us < inf:
        raise _wrong(tenant, option, value_ms, "a number of milliseconds, 0.001 or more")
    return round(value_us)


def _wrong(tenant: str, option: str, value: Any, expected: str) -> OptionError:
    return OptionError(
        f"tenant {tenant!r}: {option} is {value!r}", f"it must be {expected}", "correct it, or leave it out"
    )


@dataclass(slots=True, eq=False)
class Request:
    """A submitted request: what policies see of it, what runs, and where its result goes."""

    view: RequestView
    payload: Any
    future: Future[Any] = field(default_factory=Future)
    input_bytes: int = 0

    @property
    def is_cancelled(self) -> bool:
        """Asked without a consequence: whoever drops the request for it calls begin()."""
        return self.future.cancelled()

    def begin(self) -> bool:
        """From here on the future cannot be cancelled; False when it was cancelled before."""
        return self.future.set_running_or_notify_cancel()

    def reject(self, error: SpacetimeError) -> bool:
        """End a request that never ran; False when it was cancelled before."""
        if not self.begin():
            return False
        self.future.set_exception(error)
        return True


def make_request(
    spec: TenantSpec,
    request_id: int,
    rows: int,
    payload: Any,
    now_us: int,
    future: Future[Any] | None = None,
    *,
    input_bytes: int = 0,
) -> Request:
    """A request that arrives now and is due within the tenant's objective. Ids must be unique in a tenant."""
    if rows < 1:
        raise InputError(
            f"tenant {spec.name!r}: a request of {rows} rows", "a request has at least one row", "leave it out"
        )
    deadline_us = None if spec.slo_us is None else now_us + spec.slo_us
    view = RequestView(request_id, spec.name, rows, now_us, deadline_us)
    return Request(view, payload, Future() if future is None else future, input_bytes)
