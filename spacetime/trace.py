"""What happened, as data: one event per lane; Perfetto's and Chrome's formats for viewing. Bottom layer, no torch.

Both show the same drawing: a row per partition with its lanes, a row per tenant with its requests from arrival to
start, an arrow from each request to its lane, and how many rows run and how many requests wait.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

from spacetime import perfetto
from spacetime.perfetto import Drawing, Note, Sample, Slice, Track
from spacetime.plan import Lane, RequestView
from spacetime.values import Value, quickly_made


@quickly_made
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

    def to_perfetto(self) -> bytes:
        """Perfetto's TrackEvent format, for a .pftrace file; ui.perfetto.dev opens it."""
        return perfetto.encode(_draw(self.events))

    def to_chrome(self) -> str:
        """Chrome's trace JSON; chrome://tracing and ui.perfetto.dev open it."""
        return json.dumps({"traceEvents": list(_chrome_events(_draw(self.events))), "displayTimeUnit": "ms"})


# -- the drawing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """A slice before it has a track."""

    row: str
    start_us: int
    end_us: int
    weight: int  # what it adds to the row's counter
    name: str
    notes: dict[str, Note]
    flows_out: tuple[int, ...] = ()
    flows_in: tuple[int, ...] = ()


def _draw(events: Sequence[LaneEvent]) -> Drawing:
    flows = count(1)
    lanes, requests = [], []
    for event in events:
        ids = tuple([next(flows) for _ in event.lane.requests])
        lanes.append(_lane_span(event, ids))
        requests += [_request_span(view, event, flow) for view, flow in zip(event.lane.requests, ids, strict=True)]
    rows = _Rows()
    rows.add("queues", "queue", "waiting", requests)  # first: at equal times a request's slice precedes its lane's
    rows.add("partitions", "lane", "rows in flight", lanes)
    return Drawing(tuple(rows.tracks), tuple(rows.slices), tuple(rows.samples))


def _lane_span(event: LaneEvent, flows: tuple[int, ...]) -> _Span:
    lane = event.lane
    notes: dict[str, Note] = {
        "cohort": lane.cohort,
        "tenants": lane.tenants,
        "rows": lane.num_rows,
        "units": lane.units,
        "fused": lane.fused,
        "ok": event.ok,
    }
    row = f"partition {lane.atoms:#x}" if lane.atoms else "anywhere"
    name = f"{lane.cohort} x {len(lane.tenants)}"
    return _Span(row, event.start_us, event.end_us, lane.num_rows, name, notes, flows_in=flows)


def _request_span(view: RequestView, event: LaneEvent, flow: int) -> _Span:
    notes: dict[str, Note] = {"request": view.id, "rows": view.rows, "lane": event.lane.cohort}
    if view.deadline_us is not None:
        notes["slack at start (us)"] = view.deadline_us - event.start_us
    arrival_us = min(view.arrival_us, event.start_us)
    return _Span(view.tenant, arrival_us, event.start_us, 1, f"request {view.id}", notes, flows_out=(flow,))


class _Rows:
    """Lays spans on tracks. A row has as many tracks as it has spans at once; viewers draw them as one."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self.slices: list[Slice] = []
        self.samples: list[Sample] = []

    def add(self, group: str, category: str, counter: str, spans: Iterable[_Span]) -> None:
        """A group of rows, and beneath each row a counter of what its spans weigh at a time."""
        parent = self._track(group)
        rows: defaultdict[str, list[_Span]] = defaultdict(list)
        for span in sorted(spans, key=lambda span: (span.start_us, span.end_us)):
            rows[span.row].append(span)
        for name, row in sorted(rows.items()):
            layers = _layers([(span.start_us, span.end_us) for span in row])
            tracks = [self._track(name, parent) for _ in range(max(layers) + 1)]
            for span, layer in zip(row, layers, strict=True):
                times = span.start_us, span.end_us
                ends = span.flows_out, span.flows_in
                self.slices.append(Slice(tracks[layer], span.name, category, *times, span.notes, *ends))
            total = self._track(f"{name}: {counter}", parent, is_counter=True)
            self.samples += [Sample(total, at_us, value) for at_us, value in _totals(row)]

    def _track(self, name: str, parent: int | None = None, is_counter: bool = False) -> int:
        self.tracks.append(Track(len(self.tracks) + 1, name, parent, is_counter))
        return len(self.tracks)


def _layers(spans: Iterable[tuple[int, int]]) -> list[int]:
    """For spans in order of their start: the lowest layer that is free, so that those of one layer never overlap.

    >>> _layers([(0, 10), (5, 7), (8, 20), (10, 11)])
    [0, 1, 1, 0]
    """
    busy: list[tuple[int, int]] = []  # until when, layer
    free: list[int] = []
    chosen = []
    for start, end in spans:
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        layer = heappop(free) if free else len(busy)
        heappush(busy, (end, layer))
        chosen.append(layer)
    return chosen


def _totals(spans: Iterable[_Span]) -> Iterator[tuple[int, int]]:
    """The weight of all spans together whenever it changes, once per time."""
    changes: defaultdict[int, int] = defaultdict(int)
    for span in spans:
        changes[span.start_us] += span.weight
        changes[span.end_us] -= span.weight
    total = 0
    for at_us, change in sorted(changes.items()):
        if change:
            total += change
            yield at_us, total


# -- Chrome's JSON ------------------------------------------------------------------------------------


def _chrome_events(drawing: Drawing) -> Iterator[dict[str, Any]]:
    """Groups are processes, tracks are threads; an arrow binds to the slice that it lies in."""
    places: dict[int, dict[str, int]] = {}
    for track in drawing.tracks:
        group = track.parent or track.id
        places[track.id] = place = {"pid": group, "tid": track.id}
        kind = "thread_name" if track.parent else "process_name"
        if not track.is_counter:
            yield {"ph": "M", **place, "name": kind, "args": {"name": track.name}}
    for slice_ in drawing.slices:
        place, start_us = places[slice_.track], slice_.start_us
        about = {"name": slice_.name, "cat": slice_.category, "args": dict(slice_.notes)}
        yield {"ph": "X", **place, "ts": start_us, "dur": slice_.end_us - start_us, **about}
        flow = {"name": "request", "cat": "flow", **place, "ts": start_us}
        yield from ({"ph": "s", "id": id_, **flow} for id_ in slice_.flows_out)
        yield from ({"ph": "f", "bp": "e", "id": id_, **flow} for id_ in slice_.flows_in)
    names = {track.id: track.name for track in drawing.tracks}
    for sample in drawing.samples:
        name = names[sample.track]
        yield {"ph": "C", **places[sample.track], "name": name, "ts": sample.at_us, "args": {"value": sample.value}}
