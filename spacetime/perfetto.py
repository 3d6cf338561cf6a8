"""Perfetto's TrackEvent files: tracks, slices, flow arrows and counters as protobuf. Bottom layer; trace imports it.

Field numbers are those of protos/perfetto/trace in github.com/google/perfetto. The few messages that are needed are
written by hand, so that viewing a trace takes no dependency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from spacetime.errors import OptionError

Note = str | int | bool | tuple[str, ...]

_SEQUENCE = 1  # there is one writer; its packets are read in this order
_STATE_CLEARED, _NEEDS_STATE = 1, 2  # TracePacket.SequenceFlags
_SLICE_BEGIN, _SLICE_END, _COUNTER = 1, 2, 4  # TrackEvent.Type
_LEXICOGRAPHIC = 1  # TrackDescriptor.ChildTracksOrdering
_COUNT = 2  # CounterDescriptor.Unit


@dataclass(frozen=True, slots=True)
class Track:
    """A row. Its slices follow each other; where they would overlap, siblings of one name are drawn as one row."""

    id: int  # positive; 0 is the trace itself
    name: str
    parent: int | None = None
    is_counter: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that lasted. A flow arrow leads from the slice it leaves to the slice it ends in."""

    track: int
    name: str
    category: str
    start_us: int
    end_us: int
    notes: Mapping[str, Note] = field(default_factory=dict)
    flows_out: tuple[int, ...] = ()
    flows_in: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """From now on a counter has this value."""

    track: int
    at_us: int
    value: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a viewer shows. Slices of one track do not overlap and are in order, as are samples."""

    tracks: tuple[Track, ...]
    slices: tuple[Slice, ...]
    samples: tuple[Sample, ...] = ()


def encode(drawing: Drawing) -> bytes:
    """The bytes of a .pftrace file: a Trace message, whose field 1 repeats packets."""
    # Sorting is stable: at equal times a slice begins before it ends, and an arrow leaves before it arrives.
    events = sorted(_events(drawing), key=lambda event: event[0])
    if events and events[0][0] < 0:
        raise OptionError("a trace cannot be written", f"its first event is at {events[0][0]} us", "shift its clock")
    packets = [_message(60, _track(track)) for track in drawing.tracks]
    packets += [_number(8, at_us * 1000) + _message(11, event) for at_us, event in events]
    flags = _STATE_CLEARED
    written = bytearray()
    for packet in packets:
        written += _message(1, packet + _number(10, _SEQUENCE) + _number(13, flags))
        flags = _NEEDS_STATE
    return bytes(written)


def _track(track: Track) -> bytes:
    """A TrackDescriptor."""
    written = _number(1, track.id) + _text(2, track.name) + _number(11, _LEXICOGRAPHIC)
    if track.parent is not None:
        written += _number(5, track.parent)
    if track.is_counter:
        written += _message(8, _number(3, _COUNT))
    return written


def _events(drawing: Drawing) -> Iterator[tuple[int, bytes]]:
    """TrackEvents with their times; those of one track are in order."""
    for slice_ in drawing.slices:
        yield slice_.start_us, _begin(slice_)
        yield slice_.end_us, _number(9, _SLICE_END) + _number(11, slice_.track)
    for sample in drawing.samples:
        yield sample.at_us, _number(9, _COUNTER) + _number(11, sample.track) + _number(30, sample.value)


def _begin(slice_: Slice) -> bytes:
    written = _number(9, _SLICE_BEGIN) + _number(11, slice_.track) + _text(22, slice_.category) + _text(23, slice_.name)
    written += b"".join(_fixed64(47, flow) for flow in slice_.flows_out)
    written += b"".join(_fixed64(48, flow) for flow in slice_.flows_in)
    return written + b"".join(_message(4, _annotation(name, note)) for name, note in slice_.notes.items())


def _annotation(name: str, note: Note) -> bytes:
    """A DebugAnnotation."""
    if isinstance(note, bool):
        return _text(10, name) + _number(2, note)
    if isinstance(note, int):
        return _text(10, name) + _number(4, note)
    if isinstance(note, str):
        return _text(10, name) + _text(6, note)
    return _text(10, name) + b"".join(_message(12, _text(6, item)) for item in note)  # array_values, without names


# -- protobuf: a tag (field number, wire type), then a varint, eight bytes, or a length and so many bytes ------------


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _fixed64(number: int, value: int) -> bytes:
    return _varint(number << 3 | 1) + value.to_bytes(8, "little")


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _varint(value: int) -> bytes:
    """Seven bits per byte, lowest first; negative numbers are those of 64 bits."""
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
