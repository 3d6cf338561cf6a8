"""What a lane should take before any was seen: measured kernels where a table has them, the analytic model elsewhere.

Only the online cost model imports it (costs.py), and corrects it by what lanes really take. Where the table has some
sizes of a kernel, those between follow l(u) = m / u + b in units and straight lines in rows; beyond the measured
rows, on a size that stands alone, and for more weight sets in one launch, the analytic model gives the proportions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from math import inf

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.scheduler.analytic import Analytic, Floats, lane_sizes, weight_sets
from spacetime.scheduler.tables import LatencyTable, units_law

OPAQUE_US = 50.0  # a lane of which nothing is known, and one that launches nothing
MAX_LANES = 4096  # arrangements whose lane times are kept (8 bytes per atom each)
MAX_TABLES = 32  # arrangements whose kernel times are kept

Key = tuple[int, int, bool]  # tenants, rows, fused


class Prior:
    """Lane and kernel times of one program on one device, remembered. The same question has the same answer."""

    def __init__(self, program: Program | None, device: Device, table: LatencyTable | None) -> None:
        self.device = device
        self.sizes = lane_sizes(device)
        self.has_table = table is not None
        self._model = Analytic(program, device) if program is not None and program.kernels else None
        self._measured = _measured_kernels(self._model, table) if self._model and table else []
        self._lanes: dict[Key, Floats] = {}
        self._tables: dict[Key, Floats] = {}
        atoms = np.searchsorted(self.sizes, np.arange(device.num_units + 1), side="right") - 1
        self._column: list[int] = np.maximum(atoms, 0).tolist()  # of the atoms that so many units hold

    def lane_us(self, tenants: int, rows: int, units: int, fused: bool) -> float:
        if self._model is None:
            return OPAQUE_US
        if not 0 < units <= self.device.num_units:
            raise OptionError(
                f"a lane on {units} units has no cost",
                f"{self.device.name} has {self.device.num_units}",
                f"ask for 1..{self.device.num_units} units",
            )
        return float(self.lanes_us(tenants, rows, fused)[self._column[units]])

    def lanes_us(self, tenants: int, rows: int, fused: bool) -> Floats:
        """The lane on every number of atoms."""
        if self._model is None:
            return np.full(len(self.sizes), OPAQUE_US)
        key = (tenants, rows, fused)
        us = self._lanes.get(key)
        if us is None:
            us = np.asarray(self._model.counts @ self._kernels_us(self._model, key))
            _keep(self._lanes, key, us, MAX_LANES)
        return us

    def kernels_us(self, tenants: int, rows: int, fused: bool) -> Floats:
        """The same lane kernel by kernel."""
        if self._model is None:
            return np.full((1, len(self.sizes)), OPAQUE_US)
        key = (tenants, rows, fused)
        us = self._tables.get(key)
        if us is None:
            us = self._kernels_us(self._model, key)
            _keep(self._tables, key, us, MAX_TABLES)
        return us[self._model.index]

    def _kernels_us(self, model: Analytic, key: Key) -> Floats:
        tenants, rows, fused = key
        if not self._measured:
            return _analytic_us(model, tenants, rows, fused)
        if fused:
            return _analytic_us(model, tenants, rows, fused) * self._over_analytic(model, rows)
        us = np.zeros((len(model.kernels), len(self.sizes)))
        for count, own_rows in weight_sets(tenants, rows):  # the tenants' own launches are just what was measured
            us += count * _analytic_us(model, 1, own_rows, True) * self._over_analytic(model, own_rows)
        return us

    def _over_analytic(self, model: Analytic, rows: int) -> Floats:
        """What was measured over what the analytic model says, for every kernel with the weights of one tenant."""
        ratio = np.ones((len(model.kernels), len(self.sizes)))
        for curves in self._measured:
            ratio[curves.kernels] = curves.over(_analytic_us(model, 1, rows, True)[curves.kernels], rows)
        return ratio


@dataclass(frozen=True, eq=False)
class _Curves:
    """Kernels measured at the same row counts: `us[r, k, a - 1]`, and `ratio`, the same over the analytic model."""

    kernels: NDArray[np.intp]
    rows: tuple[int, ...]
    us: Floats
    ratio: Floats

    def over(self, analytic_us: Floats, rows: int) -> Floats:
        above = bisect_left(self.rows, rows)
        if above == 0 or above == len(self.rows):
            edge: Floats = self.ratio[min(above, len(self.rows) - 1)]
            return edge
        low, high = self.rows[above - 1 : above + 1]
        weight = (rows - low) / (high - low)
        ratio: Floats = ((1 - weight) * self.us[above - 1] + weight * self.us[above]) / analytic_us
        return ratio


def _measured_kernels(model: Analytic, table: LatencyTable) -> list[_Curves]:
    """Everything that the table knows of the program's kernels, those with the same row counts together."""
    alone_us = cache(partial(_analytic_us, model, 1, fused=True))
    by_rows: dict[tuple[int, ...], list[tuple[int, list[Floats]]]] = {}
    for kernel, points in enumerate(_points(model, table)):
        if points:
            rows = tuple(sorted(points))
            curves = [_curve(points[count], lane_sizes(model.device), alone_us(count)[kernel]) for count in rows]
            by_rows.setdefault(rows, []).append((kernel, curves))
    measured = []
    for rows, found in by_rows.items():
        kernels = np.array([kernel for kernel, _ in found], dtype=np.intp)
        us = np.array([curves for _, curves in found]).swapaxes(0, 1)
        analytic_us = np.array([alone_us(count)[kernels] for count in rows])
        measured.append(_Curves(kernels, rows, us, us / analytic_us))
    return measured


def _points(model: Analytic, table: LatencyTable) -> Iterator[dict[int, dict[int, float]]]:
    """For every kernel: rows -> units -> latency."""
    for kernel in model.kernels:
        points: dict[int, dict[int, float]] = {}
        for rows, units in table.measured(kernel.key):
            us = table.kernel_us(kernel.key, rows, units)
            if us is None or not 0 < us < inf:
                raise OptionError(
                    f"the profile of {kernel.key} cannot be used",
                    f"{rows} rows on {units} units took {us} us",
                    "profile this kernel again",
                )
            points.setdefault(rows, {})[units] = us
        yield points


def _curve(points: dict[int, float], sizes: Floats, analytic_us: Floats) -> Floats:
    """One kernel at one row count on every number of atoms: as measured, and by a law where it was not."""
    units, us = np.array(list(points), dtype=np.float64), np.array(list(points.values()))
    if len(units) > 1:
        parallel, serial = units_law(units, us)
        curve = parallel / sizes + serial
    else:
        curve = analytic_us * (us[0] / np.interp(units[0], sizes, analytic_us))
    for count, measured_us in points.items():
        curve[sizes == count] = measured_us
    return curve


def _analytic_us(model: Analytic, tenants: int, rows: int, fused: bool) -> Floats:
    return model.work(tenants, rows, fused).times(model.device).us


def _keep(kept: dict[Key, Floats], key: Key, us: Floats, most: int) -> None:
    """Remember; the oldest goes when there are too many."""
    if len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = us
