"""Interleaved timing: the sides take turns, so that what the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

Action = Callable[[], object]


def duration_us(action: Action) -> float:
    start_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start_ns) / 1e3


def block_median_us(action: Action, rounds: int) -> float:
    """Several rounds of one side in a row. What ran before may still disturb the first, so that one does not count."""
    return median([duration_us(action) for _ in range(rounds)][1:])


def interleaved_us(sides: Sequence[Callable[[], float]], count: int) -> list[list[float]]:
    """`count` measurements of each side; who comes first changes from turn to turn."""
    measured_us: list[list[float]] = [[] for _ in sides]
    for turn in range(count):
        for place in range(len(sides)):
            side = (turn + place) % len(sides)
            measured_us[side].append(sides[side]())
    return measured_us
