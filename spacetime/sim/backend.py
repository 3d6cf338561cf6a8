"""A Backend with a virtual clock: lanes take what the contention model says. The simulator, studies and tests use it.

Time passes only in `advance`. Nothing is computed: what a lane takes depends on its program (SimExecutable), and a
lane of any other executable takes OPAQUE_US, wherever it runs.

>>> from spacetime.sim.devices import find
>>> backend = SimBackend(find("h200"))
>>> backend.device.num_atoms, backend.now_us(), backend.num_running
(16, 0, 0)
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import ceil, exp, inf
from typing import Any

from spacetime.device import Capabilities, Device
from spacetime.errors import ClosedError, OptionError
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Executable, LaneResult, Outcome
from spacetime.sim.engine import Engine
from spacetime.sim.executables import SimExecutable, outcomes_of
from spacetime.sim.work import Works
from spacetime.values import Value

SIM_CAPABILITIES = Capabilities(partitions=True, segments=True, graphs=False, placement=True)
ROUNDING_US = 1e-6  # the engine's clock has fractions: so much past a whole microsecond is still that microsecond


@dataclass(frozen=True, slots=True)
class Slowdown(Value):
    """A straggler: lanes with rows of this tenant that start within the time take `factor` times as long."""

    tenant: str
    factor: float
    from_us: int = 0
    until_us: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.factor < inf:
            raise OptionError(
                f"tenant {self.tenant!r}: a slowdown by {self.factor}",
                "the factor must be positive and finite",
                "correct it",
            )

    def applies(self, at_us: int) -> bool:
        return self.from_us <= at_us and (self.until_us is None or at_us < self.until_us)


@dataclass(frozen=True, slots=True)
class _Running:
    lane: Lane
    start_us: int
    outcomes: tuple[Outcome, ...]
    done: Callable[[LaneResult], None]


class SimBackend:
    """A Backend.

    `noise`: the standard deviation of the logarithm of every lane's duration. `model_error`: the same for each
    kernel's work, drawn once: what the cost model must find out. `prepare_us`: how long an executable is in the making.
    """

    def __init__(
        self,
        device: Device,
        *,
        noise: float = 0.0,
        model_error: float = 0.0,
        slowdowns: Sequence[Slowdown] = (),
        prepare_us: int = 0,
        seed: int = 0,
    ) -> None:
        for option, value in (("noise", noise), ("model_error", model_error), ("prepare_us", prepare_us)):
            if not 0 <= value < inf:
                raise OptionError(f"{option} is {value}", "it must be a finite number, 0 or more", "correct it")
        self.device = device
        self.capabilities = SIM_CAPABILITIES
        self.engine = Engine(device)
        self.num_started = 0  # lanes
        self.closed = False
        self._works = Works(self.engine, device, model_error=model_error, seed=seed)
        self._noise = noise
        self._rng = random.Random(f"{seed}/noise")
        self._slowdowns: defaultdict[str, list[Slowdown]] = defaultdict(list)
        for slowdown in slowdowns:
            self._slowdowns[slowdown.tenant].append(slowdown)
        self._prepare_us = prepare_us
        self._running: dict[int, _Running] = {}
        self._preparing: list[tuple[int, int, Callable[[], None]]] = []  # when, a tie-break, whom to tell
        self._num_prepared = count()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def now_us(self) -> int:
        return ceil(self.engine.now_us - ROUNDING_US)

    def start(
        self, lane: Lane, executable: Executable, payloads: Sequence[Any], done: Callable[[LaneResult], None]
    ) -> None:
        if self.closed:
            raise ClosedError("a lane was started on a simulated backend", "it is closed", "make another backend")
        program = executable.program if isinstance(executable, SimExecutable) else None
        script, now_us = self._works.script(lane, program), self.now_us()
        running = _Running(lane, now_us, outcomes_of(executable, lane, payloads), done)
        self.num_started += 1
        self._running[self.engine.start(script, self._stretch(lane, now_us))] = running

    def advance(self, until_us: float = inf) -> bool:
        """Let time pass until something happens: lanes end, something is ready. False: nothing did by `until_us`."""
        next_us = self._preparing[0][0] if self._preparing else inf
        ended = self.engine.advance(min(until_us, next_us))
        for number in ended:
            running = self._running.pop(number)
            running.done(LaneResult(running.outcomes, running.start_us, self.now_us()))
        if ended or next_us > until_us or self.engine.now_us < next_us:
            return bool(ended)
        heappop(self._preparing)[2]()
        return True

    def prepare(self, cohort: str, executable: Executable, units: int, ready: Callable[[], None]) -> None:
        if self._prepare_us:
            heappush(self._preparing, (self.now_us() + self._prepare_us, next(self._num_prepared), ready))
        else:
            ready()

    def assist(self, pump: Callable[[], None], most_us: int | None = None) -> bool:
        pump()
        return False

    def close(self) -> None:
        self.closed = True

    def _stretch(self, lane: Lane, now_us: int) -> float:
        """By how much chance and stragglers lengthen a lane; its rows go in lockstep, so the slowest tenant counts."""
        stretch = exp(self._rng.gauss(0.0, self._noise)) if self._noise else 1.0
        if not self._slowdowns:
            return stretch
        factors = [
            slowdown.factor
            for tenant in lane.tenants
            for slowdown in self._slowdowns.get(tenant, ())
            if slowdown.applies(now_us)
        ]
        return stretch * max(factors, default=1.0)
