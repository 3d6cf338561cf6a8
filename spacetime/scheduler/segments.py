"""Runs of consecutive kernels on partitions of their own, by dynamic programming. Only `space_time` imports it.

Every kernel has its own right size, but switching at every kernel measurably loses (ECLIP's slowest variant), so a lane
may switch a few times only, and pays for each. `fastest_runs` looks for the least latency; `leanest_runs` for the least
unit-time that is hardly slower. All functions are pure; what they remember, they would answer again.

>>> from spacetime.scheduler.tables import KernelTimes
>>> times = KernelTimes.of([[8.0, 4.0, 3.9], [8.0, 4.0, 3.9], [3.0, 3.0, 3.0], [3.0, 3.0, 3.0]])
>>> [(run.atoms, run.first_kernel, run.last_kernel) for run in leanest_runs(times, 1, switch_us=0.1)]
[(2, 0, 2), (1, 2, -1)]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spacetime.scheduler.tables import TOLERANCE, KernelTimes

SEGMENTS_FROM_US = 2000  # in a shorter lane there is less to gain than deciding takes
SWITCH_BUDGET = 4  # switches per lane
LEAST_GAIN = 0.05  # of a lane's latency (`fastest_runs`) or unit-time (`leanest_runs`); switching for less is noise
MAX_BLOCKS = 48  # longer programs are looked at in blocks of about equal duration: few switches need no finer grain
MAX_SIZES = 16  # more atoms than that are looked at in steps of about equal ratio
NUM_PRICES = 12  # of latency in unit-time: what is within the bound and leanest among their answers is taken

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Run(NamedTuple):
    """Kernels first_kernel .. last_kernel (exclusive; -1: to the end) on so many atoms."""

    atoms: int
    first_kernel: int
    last_kernel: int


def fastest_runs(times: KernelTimes, most_atoms: int, switch_us: float) -> tuple[Run, ...]:
    """The least latency on at most so many atoms; one run on all of them where switching gains too little."""
    return _remembered(times, ("fastest", most_atoms, switch_us), lambda: _fastest(times, most_atoms, switch_us))


def leanest_runs(
    times: KernelTimes, least_atoms: int, switch_us: float, tolerance: float = TOLERANCE
) -> tuple[Run, ...]:
    """The least unit-time within the tolerance of the best latency; one run where switching gains too little."""
    key = ("leanest", least_atoms, switch_us, tolerance)
    return _remembered(times, key, lambda: _leanest(times, least_atoms, switch_us, tolerance))


def _remembered(times: KernelTimes, key: tuple[object, ...], make: Callable[[], tuple[Run, ...]]) -> tuple[Run, ...]:
    """Too slow to work out again for every decision."""
    runs: tuple[Run, ...] | None = times.derived.get(key)
    if runs is None:
        runs = times.derived[key] = make()
    return runs


def _fastest(times: KernelTimes, most_atoms: int, switch_us: float) -> tuple[Run, ...]:
    us = times.us[:, :most_atoms]
    one_us = float(us[:, -1].sum())
    one = (Run(most_atoms, 0, -1),)
    enough_us = one_us * (1 - LEAST_GAIN)
    # One run on fewer atoms switches nothing; everything else switches once or more.
    if min(float(us.sum(axis=0).min()), float(us.min(axis=1).sum()) + switch_us) > enough_us:
        return one  # nor would it be enough if every kernel had its best size
    table = _Table(us, 1, switch_us)
    (path,) = table.paths(0.0, np.ones(1))
    found_us, _ = table.totals(path)
    return table.runs(path) if found_us <= enough_us else one


def _leanest(times: KernelTimes, least_atoms: int, switch_us: float, tolerance: float) -> tuple[Run, ...]:
    us = times.us[:, least_atoms - 1 :]
    lane_us = us.sum(axis=0)
    bound_us = float(lane_us.min()) * (1 + tolerance)
    areas = np.where(lane_us <= bound_us, lane_us * np.arange(least_atoms, times.num_atoms + 1), np.inf)
    best: tuple[Run, ...] = (Run(int(areas.argmin()) + least_atoms, 0, -1),)
    best_area = float(areas.min()) * (1 - LEAST_GAIN)
    table = _Table(us, least_atoms, switch_us)
    for path in table.paths(1.0, np.geomspace(0.25, 64.0 * times.num_atoms, NUM_PRICES)):
        found_us, area = table.totals(path)
        if found_us <= bound_us and area < best_area:
            best_area, best = area, table.runs(path)
    return best


class _Table:
    """Latencies of blocks of kernels on the sizes that are looked at."""

    def __init__(self, us: Floats, least_atoms: int, switch_us: float) -> None:
        """`us[k, i]`: kernel k on least_atoms + i."""
        self._starts = _block_starts(us)
        columns = _columns(us.shape[1])
        self._sizes = columns + least_atoms
        self._us: Floats = np.add.reduceat(us, self._starts, axis=0)[:, columns]
        self._switch_us = switch_us

    def paths(self, area_price: float, us_prices: Floats) -> list[Ints]:
        """For every price of latency, beside that of unit-time, the cheapest size of every block: indices of `_sizes`.

        cost[p, s, a]: of the blocks so far, by price, switches made, and the size of the last block.
        """
        price = area_price * self._sizes + us_prices[:, None]  # of a microsecond, by size
        num_prices, num_sizes = price.shape
        cost = np.full((num_prices, SWITCH_BUDGET + 1, num_sizes), np.inf)
        cost[:, 0] = price * self._us[0]
        before: list[Ints] = []  # by block: the size index of the block before; -1: the same
        for block_us in self._us[1:]:
            cheapest = cost.argmin(axis=2)
            moved = np.full_like(cost, np.inf)
            least = np.take_along_axis(cost, cheapest[:, :, None], axis=2)
            moved[:, 1:] = least[:, :-1] + (price * self._switch_us)[:, None, :]
            moves = moved < cost
            cost = np.where(moves, moved, cost) + (price * block_us)[:, None, :]
            source = np.full(moves.shape, -1, dtype=np.int64)
            source[:, 1:] = np.where(moves[:, 1:], cheapest[:, :-1, None], -1)
            before.append(source)
        return [self._path(cost[index], [source[index] for source in before]) for index in range(num_prices)]

    def totals(self, path: Ints) -> tuple[float, float]:
        """Latency and unit-time, in atoms."""
        us = self._us[np.arange(len(path)), path].copy()
        us[1:][np.diff(path) != 0] += self._switch_us
        return float(us.sum()), float(us @ self._sizes[path])

    def runs(self, path: Ints) -> tuple[Run, ...]:
        changes = [0, *(np.flatnonzero(np.diff(path)) + 1).tolist()]
        firsts = [int(self._starts[block]) for block in changes]
        lasts = [*firsts[1:], -1]
        sizes = self._sizes[path[changes]].tolist()
        return tuple(map(Run, sizes, firsts, lasts))

    def _path(self, cost: Floats, before: list[Ints]) -> Ints:
        switches, size = np.unravel_index(int(cost.argmin()), cost.shape)
        path = [int(size)]
        for source in reversed(before):
            came_from = int(source[switches, path[-1]])
            if came_from >= 0:
                switches -= 1
            path.append(path[-1] if came_from < 0 else came_from)
        return np.array(path[::-1], dtype=np.int64)


def _block_starts(us: Floats) -> Ints:
    """The first kernel of every block."""
    if len(us) <= MAX_BLOCKS:
        return np.arange(len(us))
    until = np.cumsum(us.mean(axis=1))
    block = np.minimum(MAX_BLOCKS - 1, (until / until[-1] * MAX_BLOCKS).astype(np.int64))
    return np.concatenate([[0], np.flatnonzero(np.diff(block)) + 1])


def _columns(num_sizes: int) -> Ints:
    """Which sizes are looked at."""
    if num_sizes <= MAX_SIZES:
        return np.arange(num_sizes)
    return np.unique(np.rint(np.geomspace(1, num_sizes, MAX_SIZES)).astype(np.int64)) - 1
