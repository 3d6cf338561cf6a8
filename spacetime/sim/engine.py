"""Lanes on a simulated device: add them, let time pass. The simulated backend and the engine's tests import it.

What a lane asks of the device is a `Script`: one step per kernel (work.py makes them from programs). How lanes slow
each other down is the model of fluid.py, whose compiled loop does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spacetime.device import Device
from spacetime.plan import Placement
from spacetime.scheduler.analytic import bandwidth_share
from spacetime.scheduler.masks import order_code, places
from spacetime.sim import fluid
from spacetime.sim.state import ATOM, DEVICE, LANE, LAUNCH, REGION, STEP, State

FLOATS = -1  # the region of a lane that holds no atoms


@dataclass(frozen=True, eq=False)
class Script:
    """The kernels of a lane on one engine; may be started any number of times."""

    steps: NDArray[Any]  # STEP
    held: int  # the region of all its atoms; FLOATS: none
    placement: Placement | None = None


class Engine:
    """A device with a clock in fractions of microseconds."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._num_started = 0
        self._free_slots: list[int] = []
        self._region_ids: dict[int, int] = {}
        self._num_regions = 0
        self._num_rows = 0
        self._queue_lanes = [0] * device.hardware_queues  # that run, by hardware queue
        self._ended = np.zeros(0, np.int64)
        num_atoms = device.num_atoms
        record = np.zeros(1, DEVICE)
        record["bytes_per_us"], record["cache_bytes"] = device.bytes_per_us, device.cache_bytes
        record["interference"], record["cache_penalty"] = device.interference, device.cache_penalty
        record["hardware_queues"] = device.hardware_queues
        record["num_atoms"], record["num_units"] = num_atoms, device.num_units
        record["units_per_atom"], record["num_groups"] = device.units_per_atom, device.num_groups
        width = places(num_atoms, device.num_groups)
        self._state = State(
            device=record[0],
            lanes=np.zeros(0, LANE),
            steps=np.zeros((0, 0), STEP),
            active=np.zeros(0, np.int64),
            queue=np.zeros(0, np.int64),
            heads=np.full(max(1, device.hardware_queues), -1, np.int64),
            atoms=np.zeros(num_atoms, ATOM),
            holders=np.zeros(num_atoms, np.int32),
            regions=np.zeros(0, REGION),
            region_atoms=np.zeros((0, width), np.int32),
            most_bytes_per_us=device.bytes_per_us * np.concatenate([[0.0], bandwidth_share(device)]),
            table_us=np.zeros((0, num_atoms)),
            table_busy=np.zeros((0, num_atoms), np.int64),
        )
        self._totals = record[0]
        self._add_slots(8, 64)

    @property
    def now_us(self) -> float:
        return float(self._totals["now_us"])

    @property
    def num_lanes(self) -> int:
        """Lanes that run."""
        return int(self._totals["num_lanes"])

    @property
    def num_kernels(self) -> int:
        """Kernels that have ended."""
        return int(self._totals["num_kernels"])

    @property
    def busy_unit_us(self) -> float:
        """For how long units have had work, all units together."""
        return float(self._totals["busy_unit_us"])

    @property
    def moved_bytes(self) -> int:
        """The traffic of all kernels that have ended, without what displacement adds."""
        return int(self._totals["moved_bytes"])

    def region(self, atoms: int) -> int:
        """What steps call this set of atoms."""
        known = self._region_ids.get(atoms)
        if known is None:
            members = [atom for atom in range(self._device.num_atoms) if atoms >> atom & 1]
            known = self._region_ids[atoms] = self._add_regions(1)
            self._state.region_atoms[known, : len(members)] = members
            self._state.regions[known]["num_atoms"] = len(members)
        return known

    def table(self, compute_us: NDArray[np.float64], busy_atoms: NDArray[np.int64]) -> int:
        """Keep what floating kernels ask by kernel and number of atoms. Returns the first one's row."""
        first, self._num_rows = self._num_rows, self._num_rows + len(compute_us)
        state = self._state
        if self._num_rows > len(state.table_us):
            longer = 2 * self._num_rows
            self._state = state._replace(
                table_us=_longer(state.table_us, longer), table_busy=_longer(state.table_busy, longer)
            )
        self._state.table_us[first : self._num_rows] = compute_us
        self._state.table_busy[first : self._num_rows] = busy_atoms
        return first

    def start(self, script: Script, stretch: float = 1.0) -> int:
        """Begin a lane now; its number will be what advance() returns. With `stretch` 2 it takes twice as long."""
        num_kernels = len(script.steps)
        if not self._free_slots or num_kernels > self._state.steps.shape[1]:
            self._add_slots(len(self._state.lanes) + (not self._free_slots) * len(self._state.lanes), num_kernels)
        state, slot = self._state, self._free_slots.pop()
        state.steps[slot, :num_kernels] = script.steps
        order, max_overlap, least_atoms = 0, 0, 1
        if script.placement is not None:
            order, max_overlap = order_code(script.placement.order), script.placement.max_overlap
            least_atoms = -(-script.placement.min_units // self._device.units_per_atom)
        if script.held != FLOATS:
            held = state.region_atoms[script.held, : state.regions[script.held]["num_atoms"]]
            state.holders[held] += 1
        lane = state.lanes[slot]
        lane["number"], lane["phase"], lane["kernel"], lane["num_kernels"] = self._num_started, LAUNCH, 0, num_kernels
        lane["held"], lane["order"], lane["max_overlap"], lane["stretch"] = script.held, order, max_overlap, stretch
        lane["least_atoms"] = least_atoms
        if self._queue_lanes:
            emptiest = min(range(len(self._queue_lanes)), key=self._queue_lanes.__getitem__)
            self._queue_lanes[emptiest] += 1
            lane["hardware_queue"] = emptiest
        lane["remaining"], lane["rate"], lane["lasts_us"] = script.steps[0]["serial_us"] * stretch, 1.0, 1.0
        state.active[self._totals["num_lanes"]] = slot
        self._totals["num_lanes"] += 1
        self._num_started += 1
        return self._num_started - 1

    def advance(self, until_us: float = inf) -> list[int]:
        """Let time pass until the next lane ends: the numbers of those that end then. None ends by `until_us`: []."""
        num_ended = fluid.advance(until_us, self._ended, *self._state)
        slots = self._ended[:num_ended].tolist()
        self._free_slots += slots
        if self._queue_lanes:
            for slot in slots:
                self._queue_lanes[int(self._state.lanes[slot]["hardware_queue"])] -= 1
        return [int(self._state.lanes[slot]["number"]) for slot in slots]

    def _add_slots(self, num_slots: int, num_kernels: int) -> None:
        """Room for so many lanes of so many kernels."""
        state, known = self._state, len(self._state.lanes)
        steps = np.zeros((num_slots, max(num_kernels, state.steps.shape[1])), STEP)
        steps[:known, : state.steps.shape[1]] = state.steps
        queue = np.roll(state.queue, -int(self._totals["queue_head"]))  # a ring of another length begins at 0
        self._totals["queue_head"] = 0
        self._state = state._replace(
            lanes=_longer(state.lanes, num_slots),
            steps=steps,
            active=_longer(state.active, num_slots),
            queue=_longer(queue, num_slots),
        )
        self._ended = np.zeros(num_slots, np.int64)
        if num_slots > known:
            self._state.lanes["own_region"][known:] = self._add_regions(num_slots - known) + np.arange(
                num_slots - known
            )
            self._free_slots += reversed(range(known, num_slots))

    def _add_regions(self, count: int) -> int:
        first, self._num_regions = self._num_regions, self._num_regions + count
        state = self._state
        if self._num_regions > len(state.regions):
            longer = 2 * self._num_regions
            self._state = state._replace(
                regions=_longer(state.regions, longer), region_atoms=_longer(state.region_atoms, longer)
            )
        return first


def _longer(array: NDArray[Any], length: int) -> NDArray[Any]:
    """A copy with room at its end."""
    copy = np.zeros((length, *array.shape[1:]), array.dtype)
    copy[: len(array)] = array
    return copy
