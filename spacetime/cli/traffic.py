"""The demo's traffic: 16 models of 4 architectures, the same requests under every policy. Imported by cli/demo.py."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime import zoo
from spacetime.capture.selfcheck import magnitude, problem
from spacetime.cli.output import Show
from spacetime.loadgen import Load, closed_loop
from spacetime.runtime.runtime import Runtime
from spacetime.runtime.tenant import Tenant
from spacetime.trace import Trace
from spacetime.values import Value
from spacetime.workload import Arrival, Workload
from spacetime.workload import closed_loop as closed_loop_workload

ARCHITECTURES = ("mlp", "gru_cell", "resnet18", "bert")
ROWS = (1, 2, 3)
WARM_UP_SHARE = 0.5  # requests before the measured ones, as a part of these: policies learn meanwhile
FEWEST_REQUESTS = 4  # per tenant


@dataclass(frozen=True)
class Model:
    """A tenant to be: the module, and for each row count an input with the plain module's outputs for it."""

    name: str
    architecture: str
    module: nn.Module
    inputs: dict[int, tuple[Tensor, ...]]
    references: dict[int, list[Any]]

    @cached_property
    def scales(self) -> list[float]:
        """How large each output gets, over all row counts."""
        return [max(map(magnitude, leaves)) for leaves in zip(*self.references.values(), strict=True)]


@dataclass(frozen=True, slots=True)
class PolicyRun(Value):
    """One policy under the traffic."""

    policy: str
    load: Load
    num_wrong: int  # results that break the numerics contract
    first_problem: str | None


def prepare(num_tenants: int, seconds: float, seed: int) -> tuple[list[Model], Workload, Workload]:
    """The models, the warm-up and the measured traffic.

    Computed on a thread that ends: OpenMP threads left behind would make those of the lanes slower.
    """

    def work() -> tuple[list[Model], Workload, Workload]:
        models = build_models(num_tenants, seed)
        return models, *workloads(models, seconds, seed)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def build_models(num_tenants: int, seed: int) -> list[Model]:
    """Architectures take turns; every model has weights of its own."""
    return [_model(ARCHITECTURES[i % len(ARCHITECTURES)], i // len(ARCHITECTURES), seed) for i in range(num_tenants)]


def _model(architecture: str, number: int, seed: int) -> Model:
    module = zoo.build(architecture, seed=seed + number)
    inputs = {rows: zoo.example(architecture, rows, seed=seed + rows) for rows in ROWS}
    with torch.no_grad():
        references = {rows: pytree.tree_leaves(module(*args)) for rows, args in inputs.items()}
    return Model(f"{architecture}/{number}", architecture, module, inputs, references)


def plain_round_s(models: list[Model]) -> float:
    """How long the plain modules take one after another, two rows each; sizes the traffic."""
    durations_s = []
    with torch.no_grad():
        for _ in range(3):
            start_s = time.monotonic()
            for model in models:
                model.module(*model.inputs[2])
            durations_s.append(time.monotonic() - start_s)
    return min(durations_s)


def workloads(models: list[Model], seconds: float, seed: int) -> tuple[Workload, Workload]:
    """Warm-up and measured traffic: about `seconds` in all, if the models were called one after another."""
    names = [model.name for model in models]
    per_tenant = seconds / plain_round_s(models) / (1 + WARM_UP_SHARE)
    num_requests = max(FEWEST_REQUESTS, round(per_tenant))
    num_warm_up = max(FEWEST_REQUESTS, round(per_tenant * WARM_UP_SHARE))
    return (
        closed_loop_workload(names, num_warm_up, ROWS, seed),
        closed_loop_workload(names, num_requests, ROWS, seed + 1),
    )


def run_policy(
    policy: str, device: str, models: list[Model], warm_up: Workload, measured: Workload, progress: Show
) -> tuple[PolicyRun, Trace]:
    """Serve the traffic in a runtime of its own; then, off the clock, check every result."""
    with Runtime(device, policy) as runtime:
        tenants: dict[str, Tenant] = {}
        for model in models:
            progress(f"{policy}: adding tenants", len(tenants), len(models))
            tenants[model.name] = runtime.add(model.module, model.inputs[2], model.name)
        traffic = _Traffic(models, tenants, progress)
        traffic.play(f"{policy}: warming up", warm_up)
        load, results = traffic.play(f"{policy}: measuring", measured)
        trace = runtime.trace()
    problems = [found for found in map(traffic.problem, measured.arrivals, results) if found is not None]
    return PolicyRun(policy, load, len(problems), problems[0] if problems else None), trace


class _Traffic:
    """Turns arrivals into requests, and judges their results."""

    def __init__(self, models: list[Model], tenants: dict[str, Tenant], progress: Show) -> None:
        self._models = {model.name: model for model in models}
        self._tenants = tenants
        self._progress = progress

    def play(self, what: str, workload: Workload) -> tuple[Load, list[Future[Any] | None]]:
        total = len(workload.arrivals)
        results: list[Future[Any] | None] = [None] * total

        def submit(index: int, arrival: Arrival) -> Future[Any]:
            if index % 64 == 0:
                self._progress(what, index, total)
            args = self._models[arrival.tenant].inputs[arrival.rows]
            results[index] = future = self._tenants[arrival.tenant].submit(*args)
            return future

        return closed_loop(workload, submit), results

    def problem(self, arrival: Arrival, result: Future[Any] | None) -> str | None:
        """How this result breaks the numerics contract, if it does. Requests without a result are the load's errors."""
        if result is None or result.exception() is not None:
            return None
        model = self._models[arrival.tenant]
        found = problem(pytree.tree_leaves(result.result()), model.references[arrival.rows], model.scales)
        return None if found is None else f"{arrival.tenant}, {arrival.rows} rows: {found}"
