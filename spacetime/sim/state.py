"""The simulated device's state as flat arrays: what the compiled loop (fluid.py) works on. Only sim/ imports it.

Compiled code and Python share these arrays without a copy. Records, because a lane's facts are used together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# A lane's phases. It launches, is blocked while another lane's kernel is at the head of its hardware queue, waits for
# units (if it floats and too few are free), works; then its next kernel.
FREE, LAUNCH, WAIT, WORK, BLOCKED = range(5)

LOAD_ONE = float(1 << 40)  # a unit that is busy all the time; whole numbers add up the same in any order

# A kernel of one lane. A floating lane's kernels have a row of `tables` instead of work: it depends on the grant.
STEP = np.dtype(
    [
        ("compute_us", "f8"),
        ("traffic_bytes", "i8"),
        ("serial_us", "f8"),
        ("busy_atoms", "i8"),  # how many of its atoms it keeps busy
        ("atoms", "i8"),  # granted, or, if it floats, wanted
        ("region", "i8"),
        ("row", "i8"),
    ]
)

LANE = np.dtype(
    [
        ("number", "i8"),
        ("phase", "i8"),
        ("kernel", "i8"),
        ("num_kernels", "i8"),
        ("held", "i8"),  # the region that is this lane's from start to end; -1: it floats
        ("own_region", "i8"),  # where a floating lane keeps what it is granted
        ("order", "i8"),
        ("max_overlap", "i8"),
        ("least_atoms", "i8"),  # a kernel that floats waits rather than take fewer, unless it wants fewer
        ("hardware_queue", "i8"),
        ("blocked_at", "i8"),  # the order in which lanes were blocked
        ("stretch", "f8"),  # it takes so many times as long as it should
        ("remaining", "f8"),  # of the phase: us of a launch, part of a kernel
        ("rate", "f8"),  # how much of that in a us
        ("lasts_us", "f8"),  # us for one of it: 1 / rate
        ("due_us", "f8"),  # when nothing is left, from now
        # the kernel that works
        ("region", "i8"),
        ("compute_us", "f8"),
        ("traffic_bytes", "i8"),
        ("alone_us", "f8"),
        ("most_bytes_per_us", "f8"),  # what its units can draw
        ("draws_bytes_per_us", "f8"),
        ("is_fed", "i8"),  # it gets what it draws
        ("load", "i8"),  # of each of its atoms, in parts of LOAD_ONE
        ("busy_atoms", "i8"),
    ]
)

ATOM = np.dtype([("load", "i8"), ("num_kernels", "i8")])

REGION = np.dtype([("num_atoms", "i8"), ("mean_load", "i8"), ("seen_at", "i8")])

DEVICE = np.dtype(
    [
        ("bytes_per_us", "f8"),
        ("cache_bytes", "f8"),
        ("interference", "f8"),
        ("cache_penalty", "f8"),
        ("num_atoms", "i8"),
        ("num_units", "i8"),
        ("units_per_atom", "i8"),
        ("num_groups", "i8"),
        # how things stand
        ("now_us", "f8"),
        ("busy_unit_us", "f8"),
        ("moved_bytes", "i8"),
        ("num_kernels", "i8"),  # that have ended
        ("num_lanes", "i8"),  # that run
        ("queue_head", "i8"),
        ("queue_size", "i8"),
        ("hardware_queues", "i8"),  # 0: every lane has its own
        ("num_blocked", "i8"),
        ("blocks", "i8"),  # counts them
        ("working_set_bytes", "i8"),  # of all kernels that work
        ("busy_atoms", "i8"),  # of the same
        ("covered_atoms", "i8"),  # with a kernel on them
        ("shared_atoms", "i8"),  # with several
        ("stamp", "i8"),  # counts the changes of rates
    ]
)


class State(NamedTuple):
    """Everything. Arrays that are full are replaced by longer ones, so a State is made for each call."""

    device: Any  # a DEVICE
    lanes: NDArray[Any]  # LANE by slot
    steps: NDArray[Any]  # STEP by slot and kernel
    active: NDArray[np.int64]  # slots of the lanes that run, in order of their start
    queue: NDArray[np.int64]  # slots of the lanes that wait for units: a ring
    heads: NDArray[np.int64]  # by hardware queue: the slot of the lane whose kernel is at its head; -1: none
    atoms: NDArray[Any]  # ATOM by atom
    holders: NDArray[np.int32]  # by atom: lanes that hold it and floating kernels on it; what `masks.place` looks at
    regions: NDArray[Any]  # REGION by region
    region_atoms: NDArray[np.int32]  # by region: its atoms; the rest of the row is room for `masks.place`
    most_bytes_per_us: NDArray[np.float64]  # what so many atoms can draw
    table_us: NDArray[np.float64]  # by row and atoms - 1: compute_us
    table_busy: NDArray[np.int64]  # the same for busy_atoms
