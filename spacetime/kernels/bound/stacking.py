"""Equal layers of several programs as one launch of their kernel (triton/stacked.py). Used by bound/ only."""

from __future__ import annotations

from collections.abc import Hashable

from spacetime.kernels.together import Spans
from spacetime.kernels.triton.launch import Launch
from spacetime.kernels.triton.stacked import address_table, kind, stacked


def run_stacked(spans: Spans, launches: dict[int, Launch]) -> list[int]:
    """Launch those that differ in addresses only together. Which of them are left, each by itself, in order."""
    kinds: dict[Hashable, list[int]] = {}
    for part, launch in launches.items():
        of_launch = kind(launch)
        kinds.setdefault(("alone", part) if of_launch is None else of_launch, []).append(part)
    left = []
    for parts in kinds.values():
        if len(parts) == 1:
            left += parts
            continue
        alike = [launches[part] for part in parts]
        table = spans.upload(address_table(alike), alike[0].arguments["x"].device)
        stacked(alike, table).run()
    return left
