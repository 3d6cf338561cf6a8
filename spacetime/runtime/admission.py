"""Feeds scheduler/admission.py with figures, and acts on its answer. Only the runtime imports it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.backends import DeviceMemory
from spacetime.backends.threads import on_passing_thread
from spacetime.device import Device
from spacetime.errors import AdmissionError
from spacetime.runtime.memory import available_bytes, weight_bytes
from spacetime.scheduler.admission import LoadNeed, MemoryNeed, check_option, load_problem, memory_problem
from spacetime.scheduler.protocols import CostModel
from spacetime.scheduler.request import TenantSpec

REAL = ("cpu", "cuda", "hip")  # kinds of devices whose clock is the one on the wall
Stats = Mapping[str, Mapping[str, int | float]]

MAX_RUNS = 20  # of an example: the first ones are slow for reasons of their own, others because of what else runs ...
MAX_RUNS_S = 1.0  # ... and what is still too slow after so long is slow


@dataclass(frozen=True)
class Candidate:
    """A tenant that wants to come in."""

    name: str
    module: nn.Module
    example: tuple[Any, ...]

    @property
    def rows(self) -> int:
        leaves = pytree.tree_leaves(self.example)
        return next((int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)


class Admission:
    """One decision per tenant, in two parts: memory before anything is copied, load once it is known what would run."""

    def __init__(self, mode: str, device: Device, costs: CostModel, memory: DeviceMemory, *, copies: int = 1) -> None:
        """`copies`: how many of its weights a tenant may need."""
        check_option(mode)
        self._mode = mode
        self._device = device
        self._costs = costs
        self._memory = memory
        self._copies = copies

    @property
    def is_off(self) -> bool:
        return self._mode == "off"

    def check_memory(self, tenant: Candidate, residents: Iterable[nn.Module]) -> AdmissionError | None:
        """Raises when it must not come in; otherwise returns what there is to warn of."""
        if self.is_off:
            return None
        needed_bytes = weight_bytes([tenant.module]) * self._copies
        need = MemoryNeed(tenant.name, needed_bytes, *self._room(residents))
        return self._judge(memory_problem(need, self._device.name))

    def check_lane(self, tenant: Candidate, lane_bytes: int, residents: Iterable[nn.Module]) -> AdmissionError | None:
        """The same for what a lane of its example takes beside the weights, known once it has been captured."""
        if self.is_off:
            return None
        resident_bytes, limit_bytes = self._room(residents)
        if limit_bytes is None or lane_bytes + resident_bytes <= limit_bytes:
            return None
        left_bytes = max(0, limit_bytes - resident_bytes)
        what = f"tenant {tenant.name!r} does not fit into the memory of {self._device.name}"
        facts = (
            f"a lane of {tenant.rows} rows takes {lane_bytes / 1e6:.1f} MB beside the weights, "
            f"{left_bytes / 1e6:.1f} MB are left"
        )
        return self._judge(AdmissionError(what, facts, "remove a tenant, or pass an example of fewer rows"))

    def _room(self, residents: Iterable[nn.Module]) -> tuple[int, int | None]:
        """What residents have of the limit, and the limit; None: not known. What is free is without theirs already."""
        free_bytes = self._memory.free_bytes()
        if free_bytes is not None:
            return 0, free_bytes
        if self._device.memory_bytes is not None:
            return weight_bytes(residents), self._device.memory_bytes
        return 0, available_bytes() if self._device.kind == "cpu" else None

    def check_load(self, tenant: Candidate, spec: TenantSpec, loop: LoopFigures) -> AdmissionError | None:
        """The same, for its SLO and the time that others need."""
        if self.is_off:
            return None
        best_us = None if spec.slo_us is None else self._best_us(tenant, spec, spec.slo_us, loop)
        need = LoadNeed(tenant.name, spec.slo_us, tenant.rows, best_us, loop.num_tenants, loop.load)
        return self._judge(load_problem(need, self._device.name))

    def warn(self, problems: Iterable[AdmissionError | None], stacklevel: int) -> None:
        """Say everything that was found, once."""
        found = [str(problem) for problem in problems if problem is not None]
        if found:
            warnings.warn("\n".join(found), RuntimeWarning, stacklevel + 1)

    def _judge(self, problem: AdmissionError | None) -> AdmissionError | None:
        if problem is not None and self._mode == "reject":
            raise problem
        return problem

    def _best_us(self, tenant: Candidate, spec: TenantSpec, enough_us: float, loop: LoopFigures) -> float | None:
        """What is measured here and now counts; a prediction only when lanes have shown it to be right."""
        known = []
        if loop.has_run:
            forms = (True, False) if spec.fusible else (False,)
            lane = {"tenants": 1, "rows": tenant.rows, "units": self._device.num_units}
            known = [self._costs.lane_us(spec.cohort, **lane, fused=fused) for fused in forms]
        if self._device.kind in REAL and not any(us <= enough_us for us in known):
            known.append(_measure_us(tenant, enough_us))
        return min(known, default=None)


@dataclass(frozen=True)
class LoopFigures:
    """What the scheduler knows at this moment."""

    num_tenants: int
    load: float
    has_run: bool  # lanes of the candidate's cohort

    @classmethod
    def of(cls, stats: Stats, peers: Iterable[str]) -> LoopFigures:
        """`peers`: tenants of the candidate's cohort."""
        load = sum([books["load"] for books in stats.values()])
        return cls(len(stats), load, any(stats[name]["rows"] for name in peers if name in stats))


def _measure_us(tenant: Candidate, enough_us: float) -> float:
    """The plain module on its example: the best of a few runs, fewer if it is fast enough."""
    buffers = [(buffer, buffer.clone()) for buffer in tenant.module.buffers()]  # a module may count its calls
    best_us = on_passing_thread(lambda: _best_run_us(tenant, enough_us))
    with torch.no_grad():
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.copy_(value)
    return best_us


def _best_run_us(tenant: Candidate, enough_us: float) -> float:
    best_us, start = float("inf"), time.perf_counter()
    for _ in range(MAX_RUNS):
        best_us = min(best_us, _run_us(tenant))
        if best_us <= enough_us or time.perf_counter() - start > MAX_RUNS_S:
            break
    return best_us


def _run_us(tenant: Candidate) -> float:
    with torch.no_grad():
        start = time.perf_counter()
        for leaf in pytree.tree_leaves(tenant.module(*tenant.example)):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                torch.cuda.current_stream(leaf.device).synchronize()
        return (time.perf_counter() - start) * 1e6
