"""What merged lanes should take, by the analytic model. The online cost model and merging/ import it; no torch.

A launch that members share has their rows and their sets of weights together; a grouped one divides its blocks among
the units. Members without rows are left out, with the launches that are theirs alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program
from spacetime.merged import MergedProgram
from spacetime.plan import Load
from spacetime.scheduler.analytic import Analytic, Floats, KernelWork, lane_sizes
from spacetime.scheduler.prior import Prior

MAX_LOADS = 4096  # mixes of loads whose lane times are kept (8 bytes per atom each)

Loads = tuple[Load, ...]  # by member
Index = NDArray[np.intp]


class Launches:
    """Kernels, each launched with a load of its own."""

    def __init__(self, kernels: Sequence[Kernel], device: Device) -> None:
        self._model = Analytic(Program("", (), (), (), tuple(kernels)), device)
        self._num_atoms = device.num_atoms

    def work(self, tenants: Index, rows: Index) -> KernelWork:
        """By kernel; those without rows have no work at all."""
        compute_us = np.zeros((len(rows), self._num_atoms))
        traffic_bytes, serial_us = np.zeros(len(rows)), np.zeros(len(rows))
        loads, which = np.unique(np.stack((tenants, rows)), axis=1, return_inverse=True)
        for number, (num_tenants, num_rows) in enumerate(loads.T.tolist()):
            if num_rows:
                its = np.flatnonzero(which.reshape(-1) == number)
                part = self._model.work(num_tenants, num_rows, fused=True).take(self._model.index[its])
                compute_us[its], traffic_bytes[its], serial_us[its] = (
                    part.compute_us,
                    part.traffic_bytes,
                    part.serial_us,
                )
        return KernelWork(compute_us, traffic_bytes, serial_us)


def launches_work(kernels: Sequence[Kernel], loads: Sequence[Load], device: Device) -> KernelWork:
    """One launch of every kernel with its load. Equal kernels of many members are one kernel with their loads added."""
    tenants = np.array([load.tenants for load in loads], dtype=np.intp)
    return Launches(kernels, device).work(tenants, np.array([load.rows for load in loads], dtype=np.intp))


def grouped_work(parts: KernelWork, device: Device) -> KernelWork:
    """All parts in one launch, whose blocks fill the units as they become free.

    Arithmetic divides evenly, but takes no less than the slowest part takes by itself on the whole device.
    """
    work_us = parts.compute_us[:, 0].sum() * lane_sizes(device)[0] / lane_sizes(device)
    compute_us = np.maximum(work_us, parts.compute_us[:, -1].max())
    return KernelWork(compute_us[None, :], parts.traffic_bytes.sum(keepdims=True), parts.serial_us.max(keepdims=True))


class MergedWork:
    """The launches of one merged program on one device, for any loads. Who asks often keeps it."""

    def __init__(self, merged: MergedProgram, device: Device) -> None:
        self._device = device
        kernels: list[Kernel] = []
        uses: list[list[int]] = []  # [launch or part of a group][member]
        self._groups: list[tuple[int, int, int]] = []  # step, and its parts
        first: list[int] = []  # of every step
        for index, step in enumerate(merged.steps):
            at: dict[str, int] = {}
            first.append(len(kernels))
            for part in step.parts:
                kernel = merged.kernel(part)
                row = at.setdefault(kernel.key if step.form == "grouped" else "", len(kernels))
                if row == len(kernels):
                    kernels.append(kernel)
                    uses.append([0] * len(merged.programs))
                uses[row][part.member] += 1
            if len(kernels) - first[-1] > 1:
                self._groups.append((index, first[-1], len(kernels)))
        self._first = np.array(first, dtype=np.intp)
        self._uses = np.array(uses, dtype=np.intp).reshape(len(kernels), len(merged.programs))
        self._launches = Launches(kernels, device)

    def work(self, loads: Sequence[Load]) -> KernelWork:
        """Step by step; nothing for steps of members without rows."""
        tenants = self._uses @ np.array([load.tenants for load in loads], dtype=np.intp)
        rows = self._uses @ np.array([load.rows for load in loads], dtype=np.intp)
        parts = self._launches.work(tenants, rows)
        steps = parts.take(self._first)
        for index, begin, end in self._groups:
            active = begin + np.flatnonzero(rows[begin:end])
            if len(active):
                work = parts.take(active)
                whole = grouped_work(work, self._device) if len(active) > 1 else work
                steps.compute_us[index], steps.traffic_bytes[index] = whole.compute_us[0], whole.traffic_bytes[0]
                steps.serial_us[index] = whole.serial_us[0]
        return steps


def by_step(members: Sequence[Floats], steps_of: Sequence[Sequence[int]], num_steps: int) -> Floats:
    """Times of the members' kernels, added up for every step that they are in."""
    totals = np.zeros((num_steps, members[0].shape[1]))
    np.add.at(totals, np.concatenate(steps_of).astype(np.intp), np.concatenate(members))
    return totals


class MergedPrior:
    """Lane times of one merged program on one device, remembered. Profiles of its members scale it, step by step."""

    def __init__(self, merged: MergedProgram, device: Device, members: Sequence[Prior]) -> None:
        self._merged = merged
        self._device = device
        self._members = members
        self._work = MergedWork(merged, device)
        has_tables = any(prior.has_table for prior in members)
        self._models = [Analytic(program, device) for program in merged.programs] if has_tables else []
        atoms = np.searchsorted(lane_sizes(device), np.arange(device.num_units + 1), side="right") - 1
        self._column: list[int] = np.maximum(atoms, 0).tolist()  # of the atoms that so many units hold
        self._lanes: OrderedDict[Loads, Floats] = OrderedDict()

    def lane_us(self, loads: Loads, units: int) -> float:
        if len(loads) != len(self._merged.programs) or not any(load.rows for load in loads):
            raise OptionError(
                f"a merged lane of loads {[(load.tenants, load.rows) for load in loads]} has no cost",
                f"it has {len(self._merged.programs)} members",
                "give a load for every member, one with rows at least",
            )
        us = self._lanes.get(loads)
        if us is None:
            us = self._lanes[loads] = self._steps_us(loads).sum(axis=0)
            if len(self._lanes) > MAX_LOADS:
                self._lanes.popitem(last=False)
        return float(us[self._column[units]])

    def _steps_us(self, loads: Loads) -> Floats:
        us = self._work.work(loads).times(self._device).us
        active = [(member, load) for member, load in enumerate(loads) if load.rows]
        if not self._models:
            return us
        modelled, expected = [], []
        for member, load in active:
            model = self._models[member]
            modelled.append(model.work(load.tenants, load.rows, fused=True).times(self._device).us[model.index])
            expected.append(self._members[member].kernels_us(load.tenants, load.rows, True))
        steps_of = [self._merged.steps_of[member] for member, _ in active]
        total, over = by_step(expected, steps_of, len(us)), by_step(modelled, steps_of, len(us))
        scaled: Floats = us * np.divide(total, over, out=np.zeros_like(us), where=over > 0)
        return scaled
