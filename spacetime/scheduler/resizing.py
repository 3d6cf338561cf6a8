"""Resizes that a policy asked for: checked, prepared off the hot path, put in force. Only the loop imports it.

What runs is never touched. The backend makes executables for the new size while lanes of the old one go on; when they
are ready, the swap is one assignment between two plans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

from spacetime.errors import PlanError
from spacetime.plan import Resize
from spacetime.scheduler.protocols import Backend
from spacetime.scheduler.queues import Queues, Tenant

_log = logging.getLogger("spacetime")


class Resizes:
    """Resizes on their way. A tenant that is removed meanwhile, or resized again, forgets the one before."""

    def __init__(self, queues: Queues, backend: Backend, post: Callable[[Callable[[], None]], None]) -> None:
        self._queues = queues
        self._backend = backend
        self._post = post
        self._refused: dict[str, set[int]] = {}  # cohort -> sizes that could not be had

    def forget(self, cohort: str) -> None:
        """Its last tenant has left."""
        self._refused.pop(cohort, None)

    def check(self, resizes: Iterable[Resize]) -> None:
        """Raise PlanError, naming the tenant, when one cannot be done."""
        seen = set()
        for resize in resizes:
            tenant = self._queues.tenants.get(resize.tenant)
            if tenant is None:
                facts = f"known: {', '.join(sorted(self._queues.tenants)) or 'none'}"
                raise PlanError(f"tenant {resize.tenant!r} cannot be resized", facts, "resize those of snapshot.roster")
            if resize.tenant in seen:
                facts = f"the second time to {resize.units} units"
                raise PlanError(f"tenant {resize.tenant!r} is resized twice in one plan", facts, "decide on one size")
            seen.add(resize.tenant)
            least, most = min(tenant.spec.min_units, self._backend.device.num_units), self._backend.device.num_units
            if not least <= resize.units <= most:
                what = f"tenant {resize.tenant!r} cannot have {resize.units} units"
                facts = f"the device has {most}, the tenant needs {least}"
                raise PlanError(what, facts, f"ask for {least}..{most} units")

    def begin(self, resizes: Iterable[Resize]) -> None:
        """Have them prepared. What is in force already, on its way, or could not be had before is left alone."""
        for resize in resizes:
            tenant = self._queues.tenants[resize.tenant]
            goal = tenant.share_units if tenant.preparing is None else tenant.preparing.units
            if resize.units != goal and resize.units not in self._refused.get(tenant.spec.cohort, ()):
                self._prepare(tenant, resize)

    def _prepare(self, tenant: Tenant, resize: Resize) -> None:
        # A copy: the object itself tells this preparation from all others.
        mine = Resize(resize.tenant, resize.units)
        tenant.resize(mine)
        ready = partial(self._post, partial(self._ready, tenant, mine))
        try:
            self._backend.prepare(tenant.spec.cohort, tenant.executable, resize.units, ready)
        except Exception:
            _log.exception("tenant %r keeps its size: %d units could not be prepared", resize.tenant, resize.units)
            self._refused.setdefault(tenant.spec.cohort, set()).add(resize.units)
            tenant.meter.failed_resizes += 1
            tenant.stays()

    def _ready(self, tenant: Tenant, resize: Resize) -> None:
        if tenant.preparing is resize:
            tenant.meter.resizes += 1
            tenant.resized(resize.units, self._backend.now_us())
