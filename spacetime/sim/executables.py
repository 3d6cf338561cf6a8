"""What simulated lanes run, and how their requests end. The simulated backend, the simulator and tests import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spacetime.errors import SpacetimeError
from spacetime.ir import Program
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, Outcome


class SimExecutable:
    """The kernels of a cohort. Nothing is computed: every request ends well, with no value."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        return [Outcome()] * len(payloads)


def outcomes_of(executable: Executable, lane: Lane, payloads: Sequence[Any]) -> tuple[Outcome, ...]:
    """One outcome per request; an executable that raises, or answers too few, breaks its own lane only."""
    try:
        outcomes = tuple(executable.run(lane, payloads))
    except BaseException as error:  # even an exit: it is the request's
        return (Outcome(error=error),) * len(lane.requests)
    if len(outcomes) == len(lane.requests):
        return outcomes
    broken = SpacetimeError(
        f"a lane of cohort {lane.cohort!r} is broken",
        f"{len(lane.requests)} requests, {len(outcomes)} outcomes",
        "Executable.run() answers every request",
    )
    return (Outcome(error=broken),) * len(lane.requests)
