"""The TrackEvent file, read back by a decoder that knows protobuf's wire format and nothing of the encoder.

Field numbers are written out here once more, from protos/perfetto/trace/{trace_packet,track_event/*}.proto. Where the
`perfetto` package is installed its own generated classes must read the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.errors import OptionError
from spacetime.perfetto import Drawing, Sample, Slice, Track, encode
from spacetime.plan import RequestView
from spacetime.trace import LaneEvent, Trace
from tests.test_trace import lane, row_of, traces

VARINT, FIXED64, BYTES = 0, 1, 2
BEGIN, END, COUNTER = 1, 2, 4  # TrackEvent.Type

Message = dict[int, list[Any]]


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        assert shift <= 70, "a varint has at most ten bytes"
        if not byte & 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) one after another; the data must end with the last one."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, kind, value
            continue
        assert kind in (FIXED64, BYTES), f"field {number} has wire type {kind}"
        size = 8
        if kind == BYTES:
            size, at = varint(data, at)
        assert at + size <= len(data), f"field {number} is cut off"
        content = data[at : at + size]
        yield number, kind, int.from_bytes(content, "little") if kind == FIXED64 else content
        at += size


def message(data: bytes, schema: dict[int, int]) -> Message:
    """The values of every field; each must be in the schema, with its wire type."""
    found: Message = defaultdict(list)
    for number, kind, value in fields(data):
        assert schema.get(number) == kind, f"field {number} has wire type {kind}"
        found[number].append(value)
    return found


# number -> wire type, of the fields that are used
PACKET = {8: VARINT, 10: VARINT, 11: BYTES, 13: VARINT, 60: BYTES}  # timestamp, sequence, event, flags, descriptor
TRACK = {1: VARINT, 2: BYTES, 5: VARINT, 8: BYTES, 11: VARINT}  # uuid, name, parent_uuid, counter, child_ordering
EVENT = {4: BYTES, 9: VARINT, 11: VARINT, 22: BYTES, 23: BYTES, 30: VARINT, 47: FIXED64, 48: FIXED64}
ANNOTATION = {2: VARINT, 4: VARINT, 6: BYTES, 10: BYTES, 12: BYTES}  # bool, int, string, name, array


class File:
    """A decoded trace file: tracks by uuid, and events in order of time as a reader takes them."""

    def __init__(self, data: bytes) -> None:
        packets = [message(packet, PACKET) for packet in message(data, {1: BYTES})[1]]
        assert {sequence for packet in packets for sequence in packet[10]} <= {1}, "one writer"
        assert [packet[13] for packet in packets] == [[1 if i == 0 else 2] for i in range(len(packets))]
        self.tracks = {
            track[1][0]: track for packet in packets for data in packet[60] for track in [message(data, TRACK)]
        }
        events = [(packet[8][0], message(data, EVENT)) for packet in packets for data in packet[11]]
        self.events = sorted(events, key=lambda event: event[0])  # stable, like the trace processor's

    def name(self, track: int) -> str:
        return str(self.tracks[track][2][0].decode())

    def path(self, track: int) -> str:
        """Its name and those of the groups that it is in."""
        parents = self.tracks[track].get(5)
        return f"{self.path(parents[0])}/{self.name(track)}" if parents else self.name(track)

    def slices(self) -> list[dict[str, Any]]:
        """BEGIN and END matched track by track, as the format demands."""
        open_: dict[int, dict[str, Any]] = {}
        closed = []
        for at_ns, event in self.events:
            (kind,), (track,) = event[9], event[11]
            if kind == BEGIN:
                assert track not in open_, "slices of a track do not overlap"
                notes = dict(annotation(data) for data in event[4])
                about = {"name": event[23][0].decode(), "category": event[22][0].decode(), "notes": notes}
                open_[track] = {"row": self.path(track), "ts": at_ns, "out": event[47], "in": event[48], **about}
            elif kind == END:
                closed.append({**open_.pop(track), "end": at_ns})
        assert not open_, "every slice ends"
        return closed


def annotation(data: bytes) -> tuple[str, Any]:
    found = message(data, ANNOTATION)
    name = found[10][0].decode() if found[10] else ""
    if 12 in found:
        return name, [annotation(item)[1] for item in found[12]]
    if 2 in found:
        return name, bool(found[2][0])
    return name, found[4][0] if 4 in found else found[6][0].decode()


def test_a_lane_and_its_requests_are_slices_joined_by_arrows() -> None:
    requests = RequestView(0, "a", 2, 1), RequestView(1, "b", 1, 3)
    slices = File(Trace((LaneEvent(lane(*requests), 5, 9, ok=False),)).to_perfetto()).slices()
    (run,) = [each for each in slices if each["category"] == "lane"]
    assert (run["row"], run["name"], run["ts"], run["end"]) == ("partitions/partition 0x1", "c x 2", 5000, 9000)
    expected = {"cohort": "c", "tenants": ["a", "b"], "rows": 3, "units": 1, "fused": True, "ok": False}
    assert run["notes"] == expected
    waits = [each for each in slices if each["category"] == "queue"]
    assert [(each["row"], each["ts"], each["end"]) for each in waits] == [
        ("queues/a", 1000, 5000),
        ("queues/b", 3000, 5000),
    ]
    assert [flow for each in waits for flow in each["out"]] == run["in"]


@given(traces())
def test_everything_in_a_trace_can_be_read_back(trace: Trace) -> None:
    file = File(trace.to_perfetto())
    slices = file.slices()
    found = sorted((each["row"], each["name"], each["ts"], each["end"]) for each in slices)
    expected = []
    for event in trace.events:
        row = f"partitions/{row_of(event.lane)}"
        expected.append((row, f"c x {len(event.lane.tenants)}", event.start_us * 1000, event.end_us * 1000))
        for view in event.lane.requests:
            waited = view.arrival_us * 1000, event.start_us * 1000
            expected.append((f"queues/{view.tenant}", f"request {view.id}", *waited))
    assert found == sorted(expected)
    out, into = ([flow for each in slices for flow in each[end]] for end in ("out", "in"))
    assert sorted(out) == sorted(into) and len(set(out)) == len(out)


@given(traces())
def test_an_arrow_leaves_before_it_arrives_even_at_the_same_time(trace: Trace) -> None:
    """The direction of an arrow is the order of its slices."""
    seen: set[int] = set()
    for _, event in File(trace.to_perfetto()).events:
        seen |= set(event[47])
        assert set(event[48]) <= seen


@given(traces())
def test_counters_live_on_counter_tracks_and_end_at_zero(trace: Trace) -> None:
    file = File(trace.to_perfetto())
    last: dict[int, int] = {}
    for _, event in file.events:
        track = event[11][0]
        is_counter = 8 in file.tracks[track]
        assert is_counter == (event[9] == [COUNTER])
        if is_counter:
            last[track] = event[30][0]
    assert set(last.values()) <= {0}


def test_siblings_that_share_a_row_share_its_name_and_groups_are_sorted() -> None:
    overlapping = [LaneEvent(lane(RequestView(i, "a", 1, 0)), 10 + i, 20 + i) for i in range(3)]
    file = File(Trace(tuple(overlapping)).to_perfetto())
    paths = [file.path(track) for track in file.tracks]
    assert paths.count("queues/a") == 3 and paths.count("partitions/partition 0x1") == 3
    assert all(track[11] == [1] for track in file.tracks.values())  # child_ordering: LEXICOGRAPHIC


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_of_all_sizes_survive(value: int) -> None:
    drawing = Drawing(
        (Track(1, "t"), Track(2**63, "c", is_counter=True)),
        (Slice(1, "s", "k", 0, 2**50, {"number": value}),),
        (Sample(2**63, 1, value),),
    )
    file = File(encode(drawing))
    unsigned = value % 2**64  # how protobuf writes a negative int64
    (sample,) = [event for _, event in file.events if event[9] == [COUNTER]]
    assert sample[30] == [unsigned] and sample[11] == [2**63]
    (slice_,) = file.slices()
    assert slice_["notes"] == {"number": unsigned} and slice_["end"] == 2**50 * 1000


def test_times_before_zero_are_refused() -> None:
    with pytest.raises(OptionError, match="first event is at -1 us"):
        encode(Drawing((Track(1, "t"),), (Slice(1, "s", "k", -1, 2),)))


def test_no_events_are_a_file_of_tracks() -> None:
    file = File(Trace(()).to_perfetto())
    assert [file.name(track) for track in file.tracks] == ["queues", "partitions"] and file.events == []


@settings(max_examples=20)
@given(trace=traces())
def test_the_generated_classes_of_perfetto_read_the_same(trace: Trace) -> None:
    pb = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    data = trace.to_perfetto()
    parsed = pb.Trace.FromString(data)
    ours = File(data)
    events = [(p.timestamp, p.track_event) for p in parsed.packet if p.HasField("track_event")]
    assert len(events) == len(ours.events)
    for (at_ns, event), (our_at_ns, our) in zip(events, ours.events, strict=True):
        assert (at_ns, event.type, event.track_uuid) == (our_at_ns, our[9][0], our[11][0])
        assert (list(event.flow_ids), list(event.terminating_flow_ids)) == (our[47], our[48])
        if event.type == BEGIN:
            assert (event.name, list(event.categories)) == (our[23][0].decode(), [our[22][0].decode()])
            notes = {note.name: note for note in event.debug_annotations}
            assert notes.keys() == dict(annotation(data) for data in our[4]).keys()
            if "tenants" in notes:
                assert all(item.string_value for item in notes["tenants"].array_values)
    tracks = [p.track_descriptor for p in parsed.packet if p.HasField("track_descriptor")]
    assert [(t.uuid, t.name, t.parent_uuid) for t in tracks] == [
        (track, ours.name(track), next(iter(about.get(5, [0])))) for track, about in ours.tracks.items()
    ]
