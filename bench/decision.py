"""Case `decision`: what the loop itself takes to decide, with many tenants waiting. No torch, no device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from time import perf_counter_ns
from typing import Any

from bench.cases import Scale
from bench.results import Figure, Measurement
from spacetime.backends.null import NullBackend
from spacetime.errors import RejectedError
from spacetime.plan import Lane
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import Outcome
from spacetime.scheduler.registry import get_policy, policy_names
from spacetime.scheduler.request import TenantSpec, make_request
from spacetime.scheduler.verify import verify

NUM_TENANTS = 64
MANY_TENANTS = 1000
NUM_COHORTS = 8
LANE_US = 500


def _method(num_tenants: int) -> str:
    return (
        f"{num_tenants} tenants of {NUM_COHORTS} cohorts, one request of 1..3 rows each, an idle null device of 8 "
        "units; costs learned from earlier lanes"
    )


DECISION = Figure("decision", "snapshot and policy", "us", _method(NUM_TENANTS), goal="<= 100")
VERIFICATION = Figure("decision", "verification of the plan", "us", _method(NUM_TENANTS))
DECISION_OF_MANY = Figure(
    "decision",
    f"snapshot and policy, {MANY_TENANTS} tenants",
    "us",
    _method(MANY_TENANTS).replace("earlier lanes", "nothing: what waits is rejected between decisions"),
    goal="<= 1000",
)


def run(scale: Scale) -> Iterator[Measurement]:
    for policy in policy_names():
        decided_us, verified_us = decisions_us(policy, scale.num_calls)
        yield DECISION.of(policy, decided_us)
        yield VERIFICATION.of(policy, verified_us)
        decided_us, _ = decisions_us(policy, max(3, scale.num_calls // 20), MANY_TENANTS, serve=False)
        yield DECISION_OF_MANY.of(policy, decided_us)


def decisions_us(
    policy_name: str, num_decisions: int, num_tenants: int = NUM_TENANTS, *, serve: bool = True
) -> tuple[list[float], list[float]]:
    """Everybody submits, a decision and its verification are timed, the loop serves (or rejects) them all; again."""
    policy, costs, backend = get_policy(policy_name), OnlineCosts(), NullBackend(latency_us=LANE_US)
    posted: deque[Callable[[], None]] = deque()
    scheduler = Scheduler(backend, policy, costs, posted.append)
    specs = [TenantSpec(f"tenant {i}", f"cohort {i % NUM_COHORTS}", max_concurrency=8) for i in range(num_tenants)]
    for spec in specs:
        costs.register(spec.cohort, None, backend.device)
        scheduler.add_tenant(spec, _Nothing())
    ids = count()

    decided_us, verified_us = [], []
    for _ in range(num_decisions):
        for index, spec in enumerate(specs):
            scheduler.submit(make_request(spec, next(ids), 1 + index % 3, None, backend.now_us()))
        start_ns = perf_counter_ns()
        snapshot = scheduler.snapshot()
        plan = policy(snapshot, costs)
        decided_ns = perf_counter_ns()
        verify(plan, snapshot, backend.capabilities)
        verified_us.append((perf_counter_ns() - decided_ns) / 1e3)
        decided_us.append((decided_ns - start_ns) / 1e3)
        del snapshot, plan  # a step, too, has let go of them before the next one
        if not serve:
            scheduler.reject_waiting(RejectedError("what waited was rejected", "the case is over", "nothing"))
        while not scheduler.idle:
            scheduler.step()
            backend.advance(LANE_US)
            while posted:
                posted.popleft()()
    return decided_us, verified_us


class _Nothing:
    """An executable that answers None."""

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        return [Outcome()] * len(payloads)
