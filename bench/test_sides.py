"""Sides of the cases `gemm` and `models` under pytest-benchmark: `pytest bench/ [--device cuda:0]`.

For a closer look at one side, or to compare two commits: `--benchmark-autosave`, then `--benchmark-compare`. The
suite's own figures come from `spacetime bench`: there the sides take turns, and processes keep them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.gemm_sides import SIDES as GEMM_SIDES
from bench.gemm_work import SHAPES, Shape, Work, make_weights
from bench.models_sides import COMPILED, Subject
from bench.models_sides import SIDES as MODEL_SIDES
from bench.sides import Unavailable
from bench.timing import Action

pytest.importorskip("pytest_benchmark")

COUNTS = (1, 8, 32)
MODELS = ("mlp", "resnet18")
TENANTS = 8

pytestmark = pytest.mark.benchmark(warmup=True, warmup_iterations=3, min_rounds=5, max_time=0.3)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def work(request: pytest.FixtureRequest, device: str) -> Work:
    shape: Shape = request.param
    return Work(shape, "float32", make_weights(shape, "float32", device, 4 * max(COUNTS)), max(COUNTS))


def finished(action: Action) -> Action:
    """With the wait for a GPU."""
    if not torch.cuda.is_available():
        return action

    def run() -> None:
        action()
        torch.cuda.synchronize()

    return run


def made(make: Callable[[], Any]) -> Any:
    """A side that cannot run here is skipped with its reason."""
    try:
        return make()
    except Exception as why:  # whatever a library raises
        if isinstance(why, Unavailable):
            pytest.skip(str(why))
        pytest.skip(f"{type(why).__name__}: {str(why).partition(chr(10))[0]}")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("side", GEMM_SIDES)
def test_gemm(benchmark: Any, work: Work, side: str, count: int) -> None:
    action = made(lambda: GEMM_SIDES[side](work, count))
    benchmark.group = f"gemm {work.shape}, R = {count}"
    benchmark.extra_info |= {"side": side, "shape": str(work.shape), "tenants": count, "cache": "warm"}
    benchmark(finished(action))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("side", [side for side in MODEL_SIDES if side not in COMPILED])
def test_models(benchmark: Any, device: str, side: str, model: str) -> None:
    serving = made(lambda: MODEL_SIDES[side](Subject(model, (1,) * TENANTS, device, "float32")))
    benchmark.group = f"models {model}, R = {TENANTS}"
    benchmark.extra_info |= {"side": side, "model": model, "tenants": TENANTS}
    try:
        benchmark(serving.serve, range(TENANTS))
    finally:
        getattr(serving, "close", lambda: None)()
