"""The compiled engine beside the same model written with simpy: one process per lane, sets of atoms, no arrays.

Both must agree to rounding on whatever hypothesis draws. Durations come from a seeded generator, so that no two phases
end at the same time by chance: where lanes compete for atoms, who is first would be up to the last bit.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from spacetime.device import Device
from spacetime.plan import Placement
from spacetime.scheduler.allocation import ORDERS, mask
from spacetime.scheduler.analytic import SATURATED_BY
from spacetime.sim.engine import FLOATS, Engine, Script
from spacetime.sim.state import STEP


@dataclass(frozen=True)
class KernelCase:
    compute_us: tuple[float, ...]  # by atoms - 1
    busy: tuple[int, ...]  # the same
    traffic_bytes: int
    serial_us: float
    atoms: int  # a mask, or, of a lane that floats, how many


@dataclass(frozen=True)
class LaneCase:
    start_us: float
    stretch: float
    placement: Placement | None
    kernels: tuple[KernelCase, ...]


@dataclass(frozen=True)
class Case:
    device: Device
    lanes: tuple[LaneCase, ...]  # in order of their start


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    num_atoms = draw(st.integers(1, 7))
    units_per_atom = draw(st.integers(1, 3))
    device = Device(
        "small",
        "model",
        num_units=num_atoms * units_per_atom + draw(st.integers(0, units_per_atom - 1)),
        units_per_atom=units_per_atom,
        num_groups=draw(st.integers(1, num_atoms)),
        bytes_per_us=100.0,
        cache_bytes=draw(st.sampled_from([0, 500, 5000])),
        hardware_queues=draw(st.sampled_from([0, 0, 1, 2, 3])),
        interference=draw(st.sampled_from([0.0, 0.1])),
        cache_penalty=draw(st.sampled_from([0.25, 0.5])),
    )
    starts = sorted(rng.uniform(0, 60) for _ in range(draw(st.integers(1, 12))))
    overlap = draw(st.integers(0, 2))
    least = draw(st.integers(1, device.num_units))
    lanes = tuple(_lane(draw, rng, device, start_us, Placement("packed", overlap, least)) for start_us in starts)
    return Case(device, lanes)


def _lane(draw: st.DrawFn, rng: random.Random, device: Device, start_us: float, like: Placement) -> LaneCase:
    placement = draw(st.sampled_from([None, *(replace(like, order=order) for order in ORDERS)]))
    kernels = tuple(
        _kernel(rng, device, placement is not None, draw(st.sampled_from(["both", "arithmetic", "traffic", "nothing"])))
        for _ in range(draw(st.integers(1, 4)))
    )
    return LaneCase(start_us, draw(st.sampled_from([1.0, 1.7])), placement, kernels)


def _kernel(rng: random.Random, device: Device, floats: bool, kind: str) -> KernelCase:
    if floats and kind == "nothing":
        kind = "arithmetic"  # what takes no time ends at the same time as others that take none: a tie
    one_atom_us = rng.uniform(5, 100) if kind in ("both", "arithmetic") else 0.0
    sizes = range(1, device.num_atoms + 1)
    return KernelCase(
        compute_us=tuple(one_atom_us / size for size in sizes),
        busy=tuple(rng.randint(1, size) for size in sizes),
        traffic_bytes=rng.randint(100, 4000) if kind in ("both", "traffic") else 0,
        serial_us=rng.choice([0.0, rng.uniform(1, 10)]),
        atoms=rng.choice(sizes) if floats else rng.randint(1, device.all_atoms),
    )


# -- the same with simpy -----------------------------------------------------------------------------------


@dataclass
class Working:
    """A kernel that works."""

    case: KernelCase
    atoms: frozenset[int]
    stretch: float
    done: simpy.Event
    remaining: float = 1.0
    rate: float = 0.0

    @property
    def compute_us(self) -> float:
        return self.case.compute_us[len(self.atoms) - 1]

    @property
    def busy(self) -> int:
        return self.case.busy[len(self.atoms) - 1]


@dataclass
class Oracle:
    device: Device
    env: simpy.Environment = field(default_factory=simpy.Environment)
    working: list[Working] = field(default_factory=list)
    holders: list[int] = field(default_factory=list)  # masks
    waiting: list[tuple[KernelCase, Placement, int, simpy.Event]] = field(default_factory=list)
    heads: list[list[simpy.Event]] = field(default_factory=list)  # by hardware queue: kernels, the first one works
    settled_us: float = 0.0
    lane_queues: list[int] = field(default_factory=list)  # hardware queues of the lanes that run
    version: int = 0
    busy_unit_us: float = 0.0

    def play(self, case: Case) -> list[float]:
        ends = [inf] * len(case.lanes)
        self.heads = [[] for _ in range(self.device.hardware_queues)]
        for index, lane in enumerate(case.lanes):
            self.env.process(self._lane(index, lane, ends))
        self.env.run()
        return ends

    def _lane(self, index: int, lane: LaneCase, ends: list[float]) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(lane.start_us)
        held, mine = 0, 0
        if self.heads:
            mine = min(range(len(self.heads)), key=self.lane_queues.count)
            self.lane_queues.append(mine)
        if lane.placement is None:
            for kernel in lane.kernels:
                held |= kernel.atoms
            self.holders.append(held)
        for kernel in lane.kernels:
            yield self.env.timeout(kernel.serial_us * lane.stretch)
            atoms = kernel.atoms
            if lane.placement is not None:
                granted = self.env.event()
                self.waiting.append((kernel, lane.placement, mine, granted))
                self._serve()
                atoms = yield granted
            elif self.heads:
                yield self._line_up(mine)
            work = Working(kernel, frozenset(_bits(atoms)), lane.stretch, self.env.event())
            self._change(begins=work)
            yield work.done
            if lane.placement is not None:
                self.holders.remove(atoms)
            self._change(ends=work)
            if self.heads:
                self.heads[mine].pop(0)
                for head in self.heads[mine][:1]:
                    head.succeed()
            if kernel is lane.kernels[-1] and held:
                self.holders.remove(held)
            self._serve()
        if self.heads:
            self.lane_queues.remove(mine)
        ends[index] = self.env.now

    def _line_up(self, hardware_queue: int) -> simpy.Event:
        """Succeeds when nothing is before it."""
        turn = self.env.event()
        self.heads[hardware_queue].append(turn)
        if len(self.heads[hardware_queue]) == 1:
            turn.succeed()
        return turn

    def _serve(self) -> None:
        while self.waiting:
            kernel, placement, mine, granted = self.waiting[0]
            if self.heads and self.heads[mine]:
                return
            atoms = mask(self.device, self.holders, kernel.atoms, placement)
            least = -(-placement.min_units // self.device.units_per_atom)
            if atoms.bit_count() < max(1, min(kernel.atoms, least)):
                return
            self.waiting.pop(0)
            self.holders.append(atoms)
            if self.heads:
                self._line_up(mine)
            granted.succeed(atoms)

    def _change(self, begins: Working | None = None, ends: Working | None = None) -> None:
        """Settle what was done at the old rates, then set new ones, and have everybody's end foreseen."""
        passed_us = self.env.now - self.settled_us
        self.settled_us = self.env.now
        self.busy_unit_us += passed_us * self._busy_units()
        for work in self.working:
            work.remaining -= passed_us * work.rate
        if begins is not None:
            self.working.append(begins)
        if ends is not None:
            self.working.remove(ends)
        self.version += 1
        for work, rate in zip(self.working, self._rates(), strict=True):
            work.rate = rate
            self.env.process(self._foresee(work, self.version))

    def _foresee(self, work: Working, version: int) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(max(0.0, work.remaining / work.rate))
        if version == self.version and not work.done.triggered:
            work.done.succeed()

    def _busy_units(self) -> int:
        covered = len(frozenset().union(*(work.atoms for work in self.working)))
        busy = min(covered, sum(work.busy for work in self.working))
        return self.device.num_units if busy == self.device.num_atoms else busy * self.device.units_per_atom

    def _rates(self) -> Iterator[float]:
        draws, most, durations = [], [], []
        total = sum(work.case.traffic_bytes for work in self.working)
        cache = self.device.cache_bytes
        for work in self.working:
            traffic = float(work.case.traffic_bytes)
            if cache and total > cache:
                displaced = min(total - traffic, total - cache)
                traffic *= 1 + self.device.cache_penalty * min(1, displaced / cache)
            duration = max(work.compute_us, traffic / self._most(work), 1e-9) * work.stretch
            load = sum(self._load_on(atom) for atom in work.atoms) / len(work.atoms)
            others = load - self._load(work)
            duration *= max(1.0, load) * (1 + self.device.interference * min(1.0, max(0.0, others)))
            draws.append(traffic / duration)
            most.append(self._most(work))
            durations.append(duration)
        for drawn, got, duration in zip(draws, _max_min(draws, most, self.device.bytes_per_us), durations, strict=True):
            yield 1 / duration * (got / drawn if drawn else 1.0)

    def _most(self, work: Working) -> float:
        units = len(work.atoms) * self.device.units_per_atom
        if len(work.atoms) == self.device.num_atoms:
            units = self.device.num_units
        return self.device.bytes_per_us * min(1.0, units / self.device.num_units / SATURATED_BY)

    def _load(self, work: Working) -> float:
        alone_us = max(work.compute_us, work.case.traffic_bytes / self._most(work), 1e-9)
        return work.busy / len(work.atoms) * work.compute_us / alone_us

    def _load_on(self, atom: int) -> float:
        return sum(self._load(work) for work in self.working if atom in work.atoms)


def _max_min(draws: list[float], most: list[float], available: float) -> list[float]:
    """Everybody gets what it draws, or level * most; the level by bisection."""
    if sum(draws) <= available:
        return draws
    low, high = 0.0, 1.0
    for _ in range(200):
        level = (low + high) / 2
        if sum(min(drawn, level * claim) for drawn, claim in zip(draws, most, strict=True)) > available:
            high = level
        else:
            low = level
    return [min(drawn, low * claim) for drawn, claim in zip(draws, most, strict=True)]


def _bits(atoms: int) -> list[int]:
    return [atom for atom in range(atoms.bit_length()) if atoms >> atom & 1]


# -- the engine --------------------------------------------------------------------------------------------


def script(engine: Engine, lane: LaneCase) -> Script:
    steps = np.zeros(len(lane.kernels), STEP)
    held = 0
    for step, kernel in zip(steps, lane.kernels, strict=True):
        step["traffic_bytes"], step["serial_us"] = kernel.traffic_bytes, kernel.serial_us
        if lane.placement is not None:
            step["atoms"] = kernel.atoms
            step["row"] = engine.table(np.array([kernel.compute_us]), np.array([kernel.busy]))
        else:
            num_atoms = kernel.atoms.bit_count()
            held |= kernel.atoms
            step["atoms"], step["region"] = num_atoms, engine.region(kernel.atoms)
            step["compute_us"], step["busy_atoms"] = kernel.compute_us[num_atoms - 1], kernel.busy[num_atoms - 1]
    return Script(steps, FLOATS if lane.placement is not None else engine.region(held), lane.placement)


def play(engine: Engine, case: Case) -> list[float]:
    """When each lane ends."""
    ends = [inf] * len(case.lanes)

    def advance(until_us: float) -> bool:
        numbers = engine.advance(until_us)
        for number in numbers:
            ends[number] = engine.now_us
        return bool(numbers)

    for index, lane in enumerate(case.lanes):
        while advance(lane.start_us):
            pass
        assert engine.now_us == pytest.approx(lane.start_us)  # a sum of steps may be the next number
        assert engine.start(script(engine, lane), lane.stretch) == index
    while engine.num_lanes:
        assert advance(inf), "lanes that never end"
    return ends


@given(cases())
@settings(max_examples=300)
def test_the_engine_agrees_with_simpy(case: Case) -> None:
    engine, oracle = Engine(case.device), Oracle(case.device)
    assert play(engine, case) == pytest.approx(oracle.play(case), rel=1e-9, abs=1e-6)
    assert engine.busy_unit_us == pytest.approx(oracle.busy_unit_us, rel=1e-9, abs=1e-6)
    kernels = [kernel for lane in case.lanes for kernel in lane.kernels]
    assert engine.num_kernels == len(kernels)
    assert engine.moved_bytes == sum(kernel.traffic_bytes for kernel in kernels)
