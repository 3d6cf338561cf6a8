"""Case `masks`: what it takes to choose a kernel's units, compiled (the simulator) and in Python (policies)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from time import perf_counter_ns

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bench.cases import Scale
from bench.results import Figure, Measurement
from spacetime.device import Device
from spacetime.plan import Placement
from spacetime.scheduler.allocation import ORDERS, UNLIMITED, Allocator
from spacetime.scheduler.masks import order_code, place, places

DEVICES = [  # atoms/groups
    Device("60/4", "model", num_units=60, num_groups=4),
    Device("132/8", "model", num_units=132, num_groups=8),
    Device("304/32", "model", num_units=304, num_groups=32),
]
NUM_KERNELS = 256  # different ones, so that neither the processor nor a cache of answers knows them by heart
MOST_HELD = 3
METHOD = (
    f"mean over {NUM_KERNELS} kernels that want any number of atoms, each where every atom is held by 0..{MOST_HELD} "
    "others at random (isolated: by 0 or 1); seeded"
)
PLACE = Figure("masks", "place, compiled", "ns", METHOD, goal="<= 5000")
TAKE = Figure("masks", "Allocator and first take, Python", "ns", METHOD)


def run(scale: Scale) -> Iterator[Measurement]:
    for device, order, max_overlap in product(DEVICES, ORDERS, (0, UNLIMITED)):
        placement = Placement(order, max_overlap)
        subject = f"{device.name} {order} {'overlap' if max_overlap else 'isolated'}"
        counters, wanted = kernels(device, placement)
        yield PLACE.of(subject, compiled_ns(device, placement, counters, wanted, scale.num_calls))
        yield TAKE.of(subject, python_ns(device, placement, counters, wanted, max(1, scale.num_calls // 100)))


def kernels(device: Device, placement: Placement) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Counters and wanted atoms, one row per kernel."""
    rng = np.random.default_rng(0)
    most_held = MOST_HELD if placement.max_overlap else 1
    counters = rng.integers(0, most_held + 1, (NUM_KERNELS, device.num_atoms), dtype=np.int32)
    return counters, rng.integers(1, device.num_atoms + 1, NUM_KERNELS, dtype=np.int32)


def compiled_ns(
    device: Device, placement: Placement, counters: NDArray[np.int32], wanted: NDArray[np.int32], num_calls: int
) -> list[float]:
    chosen = np.empty(places(device.num_atoms, device.num_groups), dtype=np.int32)
    order = order_code(placement.order)
    measured_ns = []
    for _ in range(1 + num_calls):  # the first one compiles
        start_ns = perf_counter_ns()
        _place_all(counters, device.num_groups, wanted, order, placement.max_overlap, chosen)
        measured_ns.append((perf_counter_ns() - start_ns) / NUM_KERNELS)
    return measured_ns[1:]


def python_ns(
    device: Device, placement: Placement, counters: NDArray[np.int32], wanted: NDArray[np.int32], num_calls: int
) -> list[float]:
    held = [_masks_of(row) for row in counters]
    sizes = wanted.tolist()
    measured_ns = []
    for _ in range(1 + num_calls):
        start_ns = perf_counter_ns()
        for lanes, size in zip(held, sizes, strict=True):
            Allocator(device, placement, lanes).take(size)
        measured_ns.append((perf_counter_ns() - start_ns) / NUM_KERNELS)
    return measured_ns[1:]


def _masks_of(counters: NDArray[np.int32]) -> list[int]:
    """Lanes that hold the atoms so often."""
    return [
        sum(1 << atom for atom in np.flatnonzero(counters > count).tolist()) for count in range(int(counters.max()))
    ]


@njit
def _place_all(
    counters: NDArray[np.int32],
    num_groups: int,
    wanted: NDArray[np.int32],
    order: int,
    max_overlap: int,
    chosen: NDArray[np.int32],
) -> int:
    total = 0
    for kernel in range(wanted.size):
        total += place(counters[kernel], num_groups, wanted[kernel], order, max_overlap, chosen)
    return total
