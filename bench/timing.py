"""Interleaved timing: the sides take turns, so that what the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

Action = Callable[[], object]


def duration_us(action: Action) -> float:
    start_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start_ns) / 1e3


def device_duration_us(action: Action) -> float:
    """Between two events on the current stream: what the GPU took, and how long it waited for the host meanwhile."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def clock_of(device: str) -> Callable[[Action], float]:
    """How an action is timed on a device."""
    return duration_us if device == "cpu" else device_duration_us


def repeats_for(action_us: float, block_us: float, most: int = 1000) -> int:
    """How often an action fits into a block; at least once."""
    return max(1, min(most, round(block_us / max(action_us, 1e-3))))


def block_median_us(action: Action, rounds: int, least_us: float = 0.0) -> float:
    """Rounds of one side in a row: so many, and until they have lasted so long.

    What ran before may still disturb the first, so that one does not count.
    """
    durations_us = [duration_us(action) for _ in range(rounds)]
    while sum(durations_us) < least_us:
        durations_us.append(duration_us(action))
    return median(durations_us[1:])


def interleaved_us(sides: Sequence[Callable[[], float]], count: int) -> list[list[float]]:
    """`count` measurements of each side; who comes first changes from turn to turn."""
    measured_us: list[list[float]] = [[] for _ in sides]
    for turn in range(count):
        for place in range(len(sides)):
            side = (turn + place) % len(sides)
            measured_us[side].append(sides[side]())
    return measured_us
