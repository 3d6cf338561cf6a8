"""From a lane to what the engine runs: its kernels on its partitions. Only the simulated backend imports it.

The truth of the simulation is the analytic model (scheduler/analytic.py): of the whole lane when it is fused, of
every request by itself when it is plain. On top of it comes what the cost model cannot know: `model_error` makes
every kernel slower or faster than the model says, by a factor of its own.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import exp
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device, Partition
from spacetime.errors import PlanError
from spacetime.ir import Program
from spacetime.plan import Lane
from spacetime.scheduler.analytic import Analytic, KernelWork
from spacetime.scheduler.prior import OPAQUE_US
from spacetime.sim.engine import FLOATS, Engine, Script
from spacetime.sim.state import STEP

MAX_SCRIPTS = 4096  # lanes that are remembered
MAX_WORKS = 512  # mixes of tenants and rows that are remembered

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Work:
    """The distinct kernels of a lane, and which of them each kernel is."""

    distinct: KernelWork
    busy_atoms: NDArray[np.int64]  # [kernel, atoms - 1]
    index: NDArray[np.intp]


class Works:
    """Scripts for one engine, remembered."""

    def __init__(self, engine: Engine, device: Device, *, model_error: float = 0.0, seed: int = 0) -> None:
        self._engine = engine
        self._device = device
        self._model_error = model_error
        self._seed = seed
        self._models: dict[str, tuple[Analytic, NDArray[np.float64]]] = {}
        self._works: OrderedDict[Hashable, _Work] = OrderedDict()
        self._rows: dict[Hashable, int] = {}  # where the engine's table has a floating lane
        self._scripts: OrderedDict[Hashable, tuple[Script, Lane]] = OrderedDict()

    def script(self, lane: Lane, program: Program | None) -> Script:
        """`program` None, or one without kernels: a lane of which nothing is known takes OPAQUE_US."""
        sets = len(lane.tenants) if lane.fused else len(lane.requests)
        key = (lane.cohort, sets, lane.num_rows, lane.fused)
        # Policies make long lists of segments once and hand them out again: who they are says what they are.
        where = lane.segments[0].partition if len(lane.segments) == 1 else id(lane.segments)
        script, _ = _remember(
            self._scripts,
            (*key, where, lane.placement),
            MAX_SCRIPTS,
            lambda: (self._make(key, lane, program), lane),  # the lane keeps its segments, and so their id
        )
        return script

    def _make(self, key: Hashable, lane: Lane, program: Program | None) -> Script:
        work = _remember(self._works, key, MAX_WORKS, lambda: self._work(lane, program))
        steps = np.zeros(len(work.index), STEP)
        steps["traffic_bytes"] = np.rint(work.distinct.traffic_bytes[work.index])
        steps["serial_us"] = work.distinct.serial_us[work.index]
        floats = lane.segments[0].partition.is_floating
        if floats:
            if key not in self._rows:
                self._rows[key] = self._engine.table(work.distinct.compute_us, work.busy_atoms)
            steps["row"] = self._rows[key] + work.index
        before: Partition | None = None
        for segment in lane.segments:
            first, last = segment.first_kernel, segment.last_kernel
            last = len(steps) if last == -1 else last
            if not first < last <= len(steps):
                facts = f"the program has {len(steps)}"
                raise PlanError(
                    f"a lane of cohort {lane.cohort!r} has kernels {first}..{last}",
                    facts,
                    "plan 0..-1, or kernels that it has",
                )
            part, partition = steps[first:last], segment.partition
            part["atoms"] = atoms = self._num_atoms(partition)
            if not floats:
                part["region"] = self._engine.region(partition.atoms)
                part["compute_us"] = work.distinct.compute_us[work.index[first:last], atoms - 1]
                part["busy_atoms"] = work.busy_atoms[work.index[first:last], atoms - 1]
                if before is not None and before.atoms != partition.atoms:
                    part["serial_us"][0] += self._device.switch_us  # a floating kernel's place costs nothing: hardware
            before = partition
        return Script(steps, FLOATS if floats else self._engine.region(lane.atoms), lane.placement)

    def _num_atoms(self, partition: Partition) -> int:
        if not partition.is_floating:
            return partition.atoms.bit_count()
        return min(self._device.num_atoms, -(-partition.granted_units // self._device.units_per_atom))

    def _work(self, lane: Lane, program: Program | None) -> _Work:
        if program is None or not program.kernels:
            opaque = KernelWork(np.full((1, self._device.num_atoms), OPAQUE_US), np.zeros(1), np.zeros(1))
            return _Work(opaque, np.arange(1, self._device.num_atoms + 1)[None, :], np.zeros(1, np.intp))
        model, errors = self._model(program)
        if lane.fused:
            work = model.work(len(lane.tenants), lane.num_rows, True)
        else:
            work = model.work(len(lane.requests), lane.num_rows, False)
        work = KernelWork(work.compute_us * errors[:, None], work.traffic_bytes * errors, work.serial_us)
        return _Work(work, busy_atoms(work.compute_us), model.index)

    def _model(self, program: Program) -> tuple[Analytic, NDArray[np.float64]]:
        known = self._models.get(program.signature)
        if known is None:
            model = Analytic(program, self._device)
            rngs = [random.Random(f"{self._seed}/{kernel.key}") for kernel in model.kernels]
            errors = np.array([exp(rng.gauss(0.0, self._model_error)) for rng in rngs])
            known = self._models[program.signature] = model, errors
        return known


def busy_atoms(compute_us: NDArray[np.float64]) -> NDArray[np.int64]:
    """The least atoms on which each kernel computes as fast as on so many: the others have no part in its last wave.

    >>> busy_atoms(np.array([[8.0, 4.0, 4.0, 2.0], [0.0, 0.0, 0.0, 0.0]])).tolist()
    [[1, 2, 2, 4], [1, 2, 3, 4]]
    """
    busy: NDArray[np.int64] = np.empty(compute_us.shape, np.int64)
    busy[:, 0] = 1
    for atom in range(1, compute_us.shape[1]):
        no_faster = compute_us[:, atom] >= compute_us[:, atom - 1] * (1 - 1e-9)
        moves_only = compute_us[:, atom] == 0.0  # what does not compute still moves data, from all of its units
        busy[:, atom] = np.where(no_faster & ~moves_only, busy[:, atom - 1], atom + 1)
    return busy


def _remember(kept: OrderedDict[Any, T], key: Hashable, most: int, make: Callable[[], T]) -> T:
    """The least recently used go when there are too many."""
    value = kept.get(key)
    if value is None:
        value = kept[key] = make()
        if len(kept) > most:
            kept.popitem(last=False)
    else:
        kept.move_to_end(key)
    return value
