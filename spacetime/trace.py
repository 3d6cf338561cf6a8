"""What happened, as data: one event per lane, with Chrome's JSON for viewing. Bottom layer, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spacetime.plan import Lane
from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class LaneEvent(Value):
    """A lane that ran. The plan's lane is kept whole, so a trace can be replayed and verified."""

    lane: Lane
    start_us: int
    end_us: int
    ok: bool = True


@dataclass(frozen=True, slots=True)
class Trace(Value):
    """Lane events in order of their end."""

    events: tuple[LaneEvent, ...]

    def to_chrome(self) -> str:
        """Chrome's trace JSON: one row per partition; chrome://tracing and ui.perfetto.dev open it."""
        return json.dumps({"traceEvents": list(_chrome_events(self.events)), "displayTimeUnit": "ms"})


def _chrome_events(events: Iterable[LaneEvent]) -> Iterable[dict[str, Any]]:
    for event in events:
        lane = event.lane
        yield {
            "ph": "X",
            "pid": "spacetime",
            "tid": f"partition {lane.atoms:#x}",
            "name": f"{lane.cohort} x {len(lane.tenants)}",
            "ts": event.start_us,
            "dur": event.end_us - event.start_us,
            "args": {
                "tenants": list(lane.tenants),
                "rows": lane.num_rows,
                "units": lane.units,
                "fused": lane.fused,
                "ok": event.ok,
            },
        }
