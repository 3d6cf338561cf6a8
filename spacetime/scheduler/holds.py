"""Whether it pays to hold a cohort back for its peers, learned from what came of it. Only the loop imports it.

A policy may hold back what waits, while units are free, because peers that were active lately would share its lane. No
average tells whether they will: ten callers who send by themselves and one who calls ten tenants in turn look alike,
but the one waits for the very request that waits for him. So it is tried, and given up where nobody comes; later it is
tried once more, since callers change.
"""

from __future__ import annotations

from dataclasses import dataclass

from spacetime.plan import Plan, Snapshot

WEIGHT = 0.125  # of the last hold in the share of those that paid
PAYS_FROM = 0.25  # of all holds, so many must have paid ...
RETRY_US = 100_000  # ... or nothing is held back for so long; then it is tried once ...
RENEWED = 0.5  # ... and if somebody comes, the share starts over from here


@dataclass(slots=True)
class _Record:
    """Of one cohort."""

    paid: float = 1.0  # the share of holds, of the last ones above all, that somebody joined
    since: int = 0  # tenants that waited when the present hold began; 0: it is not held back
    not_before_us: int = 0


class Holds:
    """Watches plans, and names the cohorts that are not worth a hold now."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._num_open = 0

    def in_vain(self, now_us: int) -> tuple[str, ...]:
        """Cohorts that were held back lately, and nobody came."""
        return tuple([name for name, record in self._records.items() if now_us < record.not_before_us])

    def watch(self, snapshot: Snapshot, plan: Plan) -> None:
        """A policy has decided."""
        if plan.wake_at_us is None and not self._num_open:
            return
        running = {lane.cohort for lane in snapshot.running}
        waiting: dict[str, set[str]] = {}
        for tenant in snapshot.tenants:
            if tenant.active_peers and not tenant.apart:
                waiting.setdefault(tenant.cohort, set()).add(tenant.name)
        left, started = snapshot.free_atoms & snapshot.device.all_atoms, set[str]()
        for lane in plan.lanes:
            started.update(lane.tenants)
            left &= ~lane.atoms
        for cohort, tenants in waiting.items():
            if not started.isdisjoint(tenants):
                self._ended(cohort, len(tenants & started), snapshot.now_us)
            elif plan.wake_at_us is not None and left and cohort not in running:  # or it waits for that lane's end
                self._began(cohort, len(tenants))

    def forget(self, cohort: str) -> None:
        """It is no more."""
        record = self._records.pop(cohort, None)
        if record is not None and record.since:
            self._num_open -= 1

    def _began(self, cohort: str, num_tenants: int) -> None:
        record = self._records.setdefault(cohort, _Record())
        if not record.since:
            record.since = num_tenants
            self._num_open += 1

    def _ended(self, cohort: str, num_tenants: int, now_us: int) -> None:
        record = self._records.get(cohort)
        if record is None or not record.since:
            return
        joined = num_tenants > record.since
        if joined and record.paid < PAYS_FROM:
            record.paid = RENEWED
        else:
            record.paid += WEIGHT * (joined - record.paid)
        if record.paid < PAYS_FROM:
            record.not_before_us = now_us + RETRY_US
        record.since = 0
        self._num_open -= 1
