"""A lane of several plain requests: each is replayed by its tenant's own graph. Only backend.py uses it.

Such a lane is not fused because that was slower; run eagerly its kernels are launched one by one from the host, request
after request. A graph of the lane as a whole would be worth little: it comes again with other tenants. So its requests
are looked up as lanes of one, which share their graphs with those that came alone.

A graph has one set of buffers, so a second request of a tenant finds its graph busy until the lane has ended. It runs
eagerly, with whatever else has no graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spacetime.backends.cuda.forms import Made
from spacetime.backends.cuda.graphs import Graphs
from spacetime.backends.outcomes import outcomes_of
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, Outcome


def run_apart(
    graphs: Graphs, executable: Executable, lane: Lane, calls: Sequence[Any], atoms: int
) -> tuple[tuple[Outcome, ...], list[Made]] | None:
    """On the current stream; None where no request has a graph. `release` the graphs when the lane has ended."""
    if lane.fused or len(lane.requests) < 2:
        return None
    outcomes: dict[int, Outcome] = {}
    held: list[Made] = []
    for index, (request, call) in enumerate(zip(lane.requests, calls, strict=True)):
        try:
            replayed = graphs.run(executable, replace(lane, requests=(request,)), [call], atoms, is_spare=True)
        except Exception as error:  # it is the request's; its graph is released already
            outcomes[index] = Outcome(error=error)
            continue
        if replayed is not None:
            (outcomes[index],), graph = replayed
            held.append(graph)
    return (_rest(executable, lane, calls, outcomes), held) if outcomes else None


def _rest(
    executable: Executable, lane: Lane, calls: Sequence[Any], outcomes: dict[int, Outcome]
) -> tuple[Outcome, ...]:
    """All outcomes, in the order of the requests: those that are missing are made eagerly."""
    left = [index for index in range(len(calls)) if index not in outcomes]
    if left:
        requests = tuple([lane.requests[index] for index in left])
        made = outcomes_of(executable, replace(lane, requests=requests), [calls[index] for index in left])
        outcomes |= dict(zip(left, made, strict=True))
    return tuple([outcomes[index] for index in range(len(calls))])
