"""The groups `tenants`, `interference` and `overheads` under pytest-benchmark: `pytest bench/ [--device cuda:0]`.

One round, one call or one batch of decisions at a time, for a closer look or to compare two commits. Open-loop
traffic, objectives and the searches for the highest rate are in `spacetime bench`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bench.decision import decisions_us
from bench.traffic import capabilities_of, policies
from spacetime import Runtime, Tenant, zoo

pytest.importorskip("pytest_benchmark")

MODELS = ("mlp", "gru", "resnet18")
VICTIM, AGGRESSOR = "mlp", "resnet18"
TENANTS = 8
OUTSTANDING = 16
DECISIONS = 20

pytestmark = pytest.mark.benchmark(warmup=True, warmup_iterations=3, min_rounds=5, max_time=0.5)


@pytest.fixture(params=("space_time", "time_slice", "streams", "static", "gslice", "krisp"))
def policy(request: pytest.FixtureRequest, device: str) -> str:
    name: str = request.param
    why = dict(policies(capabilities_of(device))).get(name)
    if why is not None:
        pytest.skip(why)
    return name


def residents(runtime: Runtime, models: tuple[str, ...], device: str) -> list[tuple[Tenant, tuple[Any, ...]]]:
    """A tenant for each of the models, with a row for it."""
    served = []
    for number, model in enumerate(models):
        module = zoo.build(model, seed=number).to(device)
        tenant = runtime.add(module, zoo.example(model), f"{model}/{number}")
        served.append((tenant, zoo.example(model, rows=1)))
    return served


@contextmanager
def flooding(tenant: Tenant, args: tuple[Any, ...]) -> Iterator[None]:
    """So many requests of the tenant are under way at any time."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for future in [tenant.submit(*args) for _ in range(OUTSTANDING)]:
                future.result()

    thread = threading.Thread(target=work, name="flood")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_tenants(benchmark: Any, device: str, policy: str) -> None:
    benchmark.group = f"tenants, a round of {TENANTS}"
    with torch.no_grad(), Runtime(device, policy) as runtime:
        served = residents(runtime, tuple(MODELS[index % len(MODELS)] for index in range(TENANTS)), device)

        def round_of_all() -> None:
            for future in [tenant.submit(*args) for tenant, args in served]:
                future.result()

        benchmark(round_of_all)


@pytest.mark.parametrize("flooded", [False, True], ids=["alone", "beside a flood"])
def test_interference(benchmark: Any, device: str, policy: str, flooded: bool) -> None:
    benchmark.group = f"interference, a call of {VICTIM}"
    with torch.no_grad(), Runtime(device, policy) as runtime:
        (victim, args), (aggressor, theirs) = residents(runtime, (VICTIM, AGGRESSOR), device)
        if not flooded:
            benchmark(victim, *args)
            return
        with flooding(aggressor, theirs):
            benchmark(victim, *args)


def test_decisions(benchmark: Any, policy: str) -> None:
    benchmark.group = f"overheads, {DECISIONS} decisions with 64 waiting, and serving them on a null device"
    benchmark(decisions_us, policy, DECISIONS)


def test_add(benchmark: Any, device: str) -> None:
    """To a cohort that is known: a copy of weights."""
    benchmark.group = "overheads, add() and remove() of a known architecture"
    with Runtime(device) as runtime:
        residents(runtime, (VICTIM,), device)
        module, example = zoo.build(VICTIM, seed=1).to(device), zoo.example(VICTIM)

        def add_and_remove() -> None:
            runtime.add(module, example, "guest")
            runtime.remove("guest")

        benchmark(add_and_remove)
