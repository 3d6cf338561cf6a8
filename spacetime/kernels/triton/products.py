"""Which way a product with a slab is computed: a slot kernel, or a library's. Descriptors and the choice; no triton.

Every way that is known for a mix of tenants has a time in the table (tune_products.py writes them), and the fastest
serves. What is not measured is served by the slot kernels. ways.py does what is decided here.

How a slab is read depends on the mix, so a mix is part of the descriptor: so many slots with equal rows each. A batch
whose owners only the device knows (a graph for any mix) may be any of those with as many rows; there a way is taken
only if it loses in none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from spacetime.kernels.triton import slot_linear
from spacetime.kernels.triton.blocks import power_of_two
from spacetime.kernels.triton.table import Table, key
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

SLOT, BADDBMM, GROUPED, BATCHED = "slot product", "baddbmm", "grouped_mm", "cublas batched"
WAYS = (SLOT, BADDBMM, GROUPED, BATCHED)
ANY_MIX = frozenset((SLOT, GROUPED, BATCHED))  # what reads the owners of rows from device memory
LEAST_GAIN = 0.03  # of the time; less is what two measurements differ by

_MOST_GROUPS = 1023  # of one torch._grouped_mm
_GROUPED_ARCHS = ("90", "100", "103")  # elsewhere it reads the offsets on the host, which no graph can


@dataclass(frozen=True, slots=True)
class Shape(Value):
    """`slots` entries of a slab, one behind the other, for equally many rows each, in the order of the rows."""

    linear: slot_linear.Shape
    slots: int

    @property
    def rows_each(self) -> int:
        return self.linear.rows // self.slots

    @property
    def layers(self) -> tuple[slot_linear.Shape, ...]:
        """What tuning compares by."""
        return (self.linear,)


@dataclass(frozen=True, slots=True)
class Decision(Value):
    way: str
    reason: str  # what was measured; empty where nothing is


UNMEASURED = Decision(SLOT, "")


def is_in(table: Table) -> bool:
    """Is there anything to decide by?"""
    return any(kernel in WAYS for kernel, _, _ in table)


def num_measured(table: Table, device: str) -> int:
    """Products of this device that there is something to decide by: shapes and mixes with a time of the slot kernel."""
    return sum(1 for kernel, of_device, _ in table if kernel == SLOT and of_device == device)


def refusal(way: str, shape: slot_linear.Shape, target: Target, num_entries: int) -> str | None:
    """Why a way cannot compute a product with a slab of so many entries; None if it can."""
    if way != GROUPED:
        return None
    if target.kind != "cuda" or target.arch not in _GROUPED_ARCHS:
        return f"{target.arch}: torch._grouped_mm reads offsets on the host there"
    if shape.dtype != "bf16":
        return f"{shape.dtype}: torch._grouped_mm is fast for bf16"
    if shape.n % 8 or shape.k % 8:
        return f"{shape.n} x {shape.k}: torch._grouped_mm takes rows of 16 bytes"
    too_many = num_entries > _MOST_GROUPS
    return f"{num_entries} entries; torch._grouped_mm takes {_MOST_GROUPS}" if too_many else None


def decide(shape: Shape, usable: Collection[str], target: Target, table: Table) -> Decision:
    """For a mix that the host knows: the fastest that is measured for it, or for powers of two of slots and rows."""
    times = _times(shape, usable, target, table)
    if SLOT not in times:
        slots, rows_each = power_of_two(shape.slots), power_of_two(shape.rows_each)
        like = Shape(replace(shape.linear, rows=slots * rows_each), slots)
        times = _times(like, usable, target, table)
    if SLOT not in times:
        return UNMEASURED
    best = min(times, key=lambda way: (times[way], WAYS.index(way)))
    return Decision(best if times[best] <= (1 - LEAST_GAIN) * times[SLOT] else SLOT, _told(times))


def decide_any(linear: slot_linear.Shape, usable: Collection[str], target: Target, table: Table) -> Decision:
    """For any mix of up to so many rows: the fastest over all mixes of them that are measured, if it loses in none."""
    rows = power_of_two(linear.rows)
    mixes = [_times(mix, ANY_MIX.intersection(usable), target, table) for mix in _mixes(replace(linear, rows=rows))]
    mixes = [times for times in mixes if SLOT in times]
    if not mixes:
        return UNMEASURED
    # What is measured for some mixes only may lose in the others.
    sums = {way: sum(times[way] for times in mixes) for way in WAYS if all(way in times for times in mixes)}
    kept = {way: time for way, time in sums.items() if all(times[way] <= times[SLOT] for times in mixes)}
    best = min(kept, key=lambda way: (kept[way], WAYS.index(way)))
    mean = {way: time / len(mixes) for way, time in sums.items()}
    chosen = best if kept[best] <= (1 - LEAST_GAIN) * kept[SLOT] else SLOT
    return Decision(chosen, f"{_told(mean)}, mean of {len(mixes)} mixes")


def _mixes(linear: slot_linear.Shape) -> Iterator[Shape]:
    """All mixes of equal powers of two of rows; a single slot is no mix."""
    slots = 2
    while slots <= linear.rows:
        yield Shape(linear, slots)
        slots *= 2


def _times(shape: Shape, usable: Collection[str], target: Target, table: Table) -> dict[str, float]:
    known = {way: table.get(key(way, target.name, shape)) for way in WAYS if way in usable}
    return {way: measured.time_us for way, measured in known.items() if measured is not None}


def _told(times: dict[str, float]) -> str:
    """The fastest first."""
    return "measured: " + ", ".join(f"{way} {times[way]:.1f} us" for way in sorted(times, key=times.__getitem__))
