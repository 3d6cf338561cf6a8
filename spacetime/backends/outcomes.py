"""Runs an executable so that every request of its lane ends, whatever it does. Used by backends/; no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from spacetime.errors import SpacetimeError
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, Outcome
from spacetime.scheduler.serving import enter, leave


def outcomes_of(executable: Executable, lane: Lane, payloads: Sequence[Any]) -> tuple[Outcome, ...]:
    """One outcome per request; an executable that raises, or answers too few, breaks its own lane only."""
    outcomes: tuple[Outcome, ...] = ()
    before = enter(lane)
    try:
        outcomes = tuple(executable.run(lane, payloads))
        if len(outcomes) != len(lane.requests):
            raise SpacetimeError(
                f"a lane of cohort {lane.cohort!r} is broken",
                f"{len(lane.requests)} requests, {len(outcomes)} outcomes",
                "Executable.run() answers every request",
            )
        _forget_callers(outcomes)
        return outcomes
    except BaseException as error:  # even an exit: it is the request's, and a worker's thread must live on
        return (Outcome(error=error),) * len(lane.requests)
    finally:
        leave(before)
        del outcomes, payloads, executable, lane  # as `_forget_callers` explains


def _forget_callers(outcomes: Sequence[Outcome]) -> None:
    """Empty the frames between those that caught errors and the caller's.

    A traceback holds the frames of the code that failed, and those hold their callers: of the whole lane, with inputs
    and results of other tenants, and with this very error, a cycle that lives until Python looks for some. What the
    tenant's own code had in its frames stays for who wants to debug it.
    """
    here = sys._getframe(1)
    for error in [outcome.error for outcome in outcomes if outcome.error is not None]:
        traceback = error.__traceback__
        frame: FrameType | None = None if traceback is None else traceback.tb_frame
        while frame is not None and frame is not here:
            try:
                frame.clear()
            except RuntimeError:  # it is still running
                break
            frame = frame.f_back
