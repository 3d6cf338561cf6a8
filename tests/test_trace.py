"""What a trace draws: rows, slices that never overlap, an arrow per request, counters. In Chrome's JSON here."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.device import Partition
from spacetime.plan import Lane, Placement, RequestView, Segment
from spacetime.trace import LaneEvent, Trace

LEFT, RIGHT = Partition(0b01, 1, 1), Partition(0b10, 1, 1)


def lane(*requests: RequestView, partition: Partition = LEFT, cohort: str = "c") -> Lane:
    placement = Placement() if partition.is_floating else None
    return Lane(cohort, requests, (Segment(partition),), placement=placement)


def row_of(ran: Lane) -> str:
    return f"partition {ran.atoms:#x}" if ran.atoms else "anywhere"


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Lanes that may overlap on a partition, queues that hold many requests at once, slices of no length."""
    events = []
    ids = iter(range(1000))
    for _ in range(draw(st.integers(0, 12))):
        start_us, length_us = draw(st.integers(0, 50)), draw(st.integers(0, 20))
        tenants = draw(st.lists(st.sampled_from(("a", "b", "ö")), min_size=1, max_size=4))
        requests = [
            RequestView(next(ids), tenant, draw(st.integers(1, 3)), draw(st.integers(0, start_us)))
            for tenant in tenants
        ]
        partition = draw(st.sampled_from((LEFT, RIGHT, Partition.floating(2))))
        events.append(
            LaneEvent(lane(*requests, partition=partition), start_us, start_us + length_us, draw(st.booleans()))
        )
    return Trace(tuple(sorted(events, key=lambda event: event.end_us)))


class Chrome:
    """The events of a trace, by kind, with the names of their rows."""

    def __init__(self, trace: Trace) -> None:
        events: list[dict[str, Any]] = json.loads(trace.to_chrome())["traceEvents"]
        self.by_kind: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in events:
            self.by_kind[event["ph"]].append(event)
        meta = self.by_kind["M"]
        self.groups = {event["pid"]: event["args"]["name"] for event in meta if event["name"] == "process_name"}
        self.rows = {event["tid"]: event["args"]["name"] for event in meta if event["name"] == "thread_name"}

    def slices(self, group: str) -> list[dict[str, Any]]:
        return [event for event in self.by_kind["X"] if self.groups[event["pid"]] == group]


def test_a_lane_is_a_slice_of_its_partition_with_what_it_held() -> None:
    requests = RequestView(0, "a", 2, 1), RequestView(1, "b", 1, 3)
    chrome = Chrome(Trace((LaneEvent(lane(*requests, partition=RIGHT), 5, 9, ok=False),)))
    (event,) = chrome.slices("partitions")
    assert (event["ts"], event["dur"], event["name"]) == (5, 4, "c x 2")
    assert chrome.rows[event["tid"]] == "partition 0x2"
    expected = {"cohort": "c", "tenants": ["a", "b"], "rows": 3, "units": 1, "fused": True, "ok": False}
    assert event["args"] == expected


def test_a_request_is_a_slice_of_its_tenant_from_arrival_to_start() -> None:
    view = RequestView(7, "a", 2, 1, deadline_us=20)
    chrome = Chrome(Trace((LaneEvent(lane(view), 5, 9),)))
    (event,) = chrome.slices("queues")
    assert (event["ts"], event["dur"], chrome.rows[event["tid"]]) == (1, 4, "a")
    assert event["args"] == {"request": 7, "rows": 2, "lane": "c", "slack at start (us)": 15}


@given(traces())
def test_slices_of_a_row_never_overlap_and_none_is_lost(trace: Trace) -> None:
    chrome = Chrome(trace)
    assert len(chrome.slices("partitions")) == len(trace.events)
    assert len(chrome.slices("queues")) == sum(len(event.lane.requests) for event in trace.events)
    rows: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in chrome.by_kind["X"]:
        rows[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@given(traces())
def test_every_request_has_one_arrow_to_its_lane(trace: Trace) -> None:
    chrome = Chrome(trace)
    starts = {event["id"]: event for event in chrome.by_kind["s"]}
    ends = {event["id"]: event for event in chrome.by_kind["f"]}
    assert starts.keys() == ends.keys()
    found = []
    for flow, start in starts.items():
        end = ends[flow]
        assert chrome.groups[start["pid"]] == "queues" and chrome.groups[end["pid"]] == "partitions"
        assert end["bp"] == "e" and start["ts"] <= end["ts"]
        found.append((chrome.rows[start["tid"]], start["ts"], chrome.rows[end["tid"]], end["ts"]))
    expected = [
        (
            view.tenant,
            view.arrival_us,
            f"partition {event.lane.atoms:#x}" if event.lane.atoms else "anywhere",
            event.start_us,
        )
        for event in trace.events
        for view in event.lane.requests
    ]
    assert sorted(found) == sorted(expected)


@given(traces(), st.integers(0, 80))
def test_counters_hold_what_runs_and_what_waits(trace: Trace, at_us: int) -> None:
    chrome = Chrome(trace)
    values: dict[str, int] = {}
    for event in chrome.by_kind["C"]:
        assert event["args"]["value"] >= 0
        if event["ts"] <= at_us:
            values[event["name"]] = event["args"]["value"]
    for partition in (LEFT, RIGHT):
        name = f"partition {partition.atoms:#x}: rows in flight"
        running = [e.lane for e in trace.events if e.lane.atoms == partition.atoms and e.start_us <= at_us < e.end_us]
        assert values.get(name, 0) == sum(lane.num_rows for lane in running)
    for tenant in ("a", "b", "ö"):
        waits = [
            view
            for event in trace.events
            for view in event.lane.requests
            if view.tenant == tenant and view.arrival_us <= at_us < event.start_us
        ]
        assert values.get(f"{tenant}: waiting", 0) == len(waits)


def test_a_row_has_no_more_tracks_than_it_has_slices_at_once() -> None:
    """A flood: 1000 requests wait in turn, three at a time."""
    events = [LaneEvent(lane(RequestView(i, "a", 1, 10 * i)), 10 * i + 30, 10 * i + 31) for i in range(1000)]
    chrome = Chrome(Trace(tuple(events)))
    assert list(chrome.rows.values()).count("a") == 3


def test_an_empty_trace_is_a_trace() -> None:
    assert Chrome(Trace(())).by_kind.keys() == {"M"}


@pytest.mark.parametrize("late_us", [0, 3])
def test_a_request_that_seems_to_arrive_after_its_start_has_no_length(late_us: int) -> None:
    (event,) = Chrome(Trace((LaneEvent(lane(RequestView(0, "a", 1, 5 + late_us)), 5, 9),))).slices("queues")
    assert (event["ts"], event["dur"]) == (5, 0)
