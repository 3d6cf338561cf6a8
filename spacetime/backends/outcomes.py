"""Runs an executable so that every request of its lane ends, whatever it does. Used by backends/; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spacetime.errors import SpacetimeError
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, Outcome


def outcomes_of(executable: Executable, lane: Lane, payloads: Sequence[Any]) -> tuple[Outcome, ...]:
    """One outcome per request; an executable that raises, or answers too few, breaks its own lane only."""
    try:
        outcomes = tuple(executable.run(lane, payloads))
        if len(outcomes) != len(lane.requests):
            raise SpacetimeError(
                f"a lane of cohort {lane.cohort!r} is broken",
                f"{len(lane.requests)} requests, {len(outcomes)} outcomes",
                "Executable.run() answers every request",
            )
    except BaseException as error:  # even an exit: it is the request's, and a worker's thread must live on
        return (Outcome(error=error),) * len(lane.requests)
    return outcomes
