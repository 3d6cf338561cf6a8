"""The fake device: virtual time, order, failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from spacetime.backends.null import NULL_DEVICE, NullBackend
from spacetime.errors import ClosedError
from spacetime.plan import Lane, RequestView, Segment
from spacetime.scheduler.protocols import Executable, LaneResult, Outcome


class Upper:
    """A lane's payloads in capitals."""

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        return [Outcome(payload.upper()) for payload in payloads]


def lane_of(*rows: int) -> Lane:
    views = tuple(RequestView(i, "a", count, 0) for i, count in enumerate(rows))
    return Lane("cohort", views, (Segment(NULL_DEVICE.whole),))


def start(backend: NullBackend, lane: Lane, *payloads: str, executable: Executable | None = None) -> list[LaneResult]:
    results: list[LaneResult] = []
    backend.start(lane, executable or Upper(), payloads, results.append)
    return results


def test_without_latency_a_lane_ends_as_it_starts() -> None:
    backend = NullBackend(tick_us=0)
    lane = lane_of(1, 1)
    assert start(backend, lane, "a", "b") == [LaneResult((Outcome("A"), Outcome("B")), 0, 0)]
    assert backend.lanes == [lane] and backend.num_running == 0


def test_lanes_end_when_their_virtual_time_has_passed_in_order_of_their_end() -> None:
    backend = NullBackend(latency_us=lambda lane: 100 * lane.num_rows, tick_us=0)
    ended: list[tuple[str, int]] = []
    for name, rows in (("long", 3), ("short", 1)):

        def note(result: LaneResult, name: str = name) -> None:
            ended.append((name, result.end_us - result.start_us))
            assert backend.now_us() == result.end_us

        backend.start(lane_of(rows), Upper(), [name], note)
    backend.advance(99)
    assert ended == [] and backend.num_running == 2
    backend.advance(1)
    assert ended == [("short", 100)]
    backend.advance(1000)
    assert ended == [("short", 100), ("long", 300)] and backend.now_us() == 1100


def test_what_ends_may_start_the_next_lane() -> None:
    backend = NullBackend(latency_us=10, tick_us=0)
    ends: list[int] = []

    def again(result: LaneResult) -> None:
        ends.append(result.end_us)
        backend.start(lane_of(1), Upper(), ["a"], again)

    again(LaneResult((), 0, 0))
    backend.advance(35)
    assert ends == [0, 10, 20, 30]


def test_each_look_at_the_clock_takes_a_tick() -> None:
    backend = NullBackend(tick_us=2)
    assert [backend.now_us() for _ in range(3)] == [2, 4, 6]


def test_an_executable_that_raises_ends_its_lane_with_errors() -> None:
    class Broken:
        def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
            raise ValueError("no")

    (result,) = start(NullBackend(), lane_of(1, 1), "a", "b", executable=Broken())
    assert [str(outcome.error) for outcome in result.outcomes] == ["no", "no"]


def test_a_closed_backend_starts_nothing() -> None:
    backend = NullBackend()
    backend.close()
    with pytest.raises(ClosedError, match="null backend"):
        start(backend, lane_of(1), "a")
