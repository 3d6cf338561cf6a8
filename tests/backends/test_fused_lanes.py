"""What a fused lane gives back: every request its own results, in order, in its own structure and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture.cohort import Cohort
from spacetime.capture.selfcheck import TOLERANCE, problem
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment
from spacetime.scheduler.protocols import Outcome
from tests.capture.sketches import draw, sketch
from tests.capture.tenants import capture, weights_of

Request = tuple[str, tuple[Tensor, ...]]


def run(executable: CohortExecutable, requests: Sequence[Request], *, fused: bool = True) -> list[Outcome]:
    views = tuple(RequestView(i, name, args[0].shape[0], 0) for i, (name, args) in enumerate(requests))
    lane = Lane("cohort", views, (Segment(Partition(1, 1, 1)),), fused)
    return list(executable.run(lane, [Call(args, args) for _, args in requests]))


def executable_of(modules: dict[str, nn.Module], inputs: tuple[Tensor, ...]) -> CohortExecutable:
    captured = capture(next(iter(modules.values())), inputs)
    executable = CohortExecutable(Cohort(captured), modules)
    for name, module in modules.items():
        executable.join(name, weights_of(captured, module))
    return executable


def lookup(m: Any, x: Tensor) -> dict[str, Any]:
    rows = m.tokens(x)
    return {"rows": rows, "pooled": (rows.mean(1), None), "version": 3, "steps_first": rows.transpose(0, 1)}


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    return {name: sketch(lookup, {"tokens": lambda: nn.Embedding(6, 5)}, seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def executable(modules: dict[str, nn.Module]) -> CohortExecutable:
    return executable_of(modules, draw((6,), 2, seed=0))


ROWS = [("c", 2), ("a", 1), ("c", 1), ("b", 3), ("a", 2)]
REQUESTS: list[Request] = [(name, draw((6,), rows, seed)) for seed, (name, rows) in enumerate(ROWS)]


def check(modules: dict[str, nn.Module], request: Request, outcome: Outcome) -> None:
    assert outcome.error is None
    name, args = request
    with torch.no_grad():
        leaves, spec = pytree.tree_flatten(modules[name](*args))
    results, found = pytree.tree_flatten(outcome.value)
    assert found == spec
    assert problem(results, leaves) is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("count", range(1, len(REQUESTS) + 1))
def test_requests_in_any_mix_get_their_own_results_in_order(
    modules: dict[str, nn.Module], executable: CohortExecutable, count: int, fused: bool
) -> None:
    """Several requests of one tenant lie apart in the lane."""
    for request, outcome in zip(REQUESTS[:count], run(executable, REQUESTS[:count], fused=fused), strict=True):
        check(modules, request, outcome)


def test_a_failing_request_fails_alone(modules: dict[str, nn.Module], executable: CohortExecutable) -> None:
    broken = torch.tensor([[0, 1, 6, 2]])
    requests = [*REQUESTS[:2], ("b", (broken,)), *REQUESTS[2:]]
    outcomes = run(executable, requests)
    assert isinstance(outcomes[2].error, IndexError)
    for request, outcome in zip(requests[:2] + requests[3:], outcomes[:2] + outcomes[3:], strict=True):
        check(modules, request, outcome)


def test_a_failing_request_of_its_own_lane_fails(executable: CohortExecutable) -> None:
    (outcome,) = run(executable, [("b", (torch.tensor([[0, 1, -1, 2]]),))])
    assert isinstance(outcome.error, IndexError)


def storages(outcome: Outcome) -> set[int]:
    leaves = pytree.tree_leaves(outcome.value)
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)}


def test_results_of_different_requests_share_no_memory(executable: CohortExecutable) -> None:
    seen: set[int] = set()
    outcomes = run(executable, REQUESTS)
    for outcome in outcomes:
        assert not seen & storages(outcome)
        seen |= storages(outcome)
    for outcome in outcomes:
        for leaf in pytree.tree_leaves(outcome.value):
            if isinstance(leaf, Tensor):
                assert leaf.untyped_storage().nbytes() == leaf.nbytes, "memory of neighbours behind the result"


def test_writing_into_a_result_changes_nobody(modules: dict[str, nn.Module], executable: CohortExecutable) -> None:
    first = run(executable, REQUESTS)
    for leaf in pytree.tree_leaves(first[0].value):
        if isinstance(leaf, Tensor):
            leaf.fill_(float("nan"))
    for request, outcome in zip(REQUESTS[1:], first[1:], strict=True):
        check(modules, request, outcome)
    check(modules, REQUESTS[0], run(executable, REQUESTS[:1])[0])


def test_outputs_of_transformers_keep_their_class() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    berts: dict[str, nn.Module] = {name: transformers.BertModel(config).eval() for name in "ab"}
    inputs = draw((50,), 2, seed=0)
    executable = executable_of(berts, inputs)
    requests = [("b", draw((50,), 1, seed=1)), ("a", draw((50,), 3, seed=2))]
    for (name, args), outcome in zip(requests, run(executable, requests), strict=True):
        with torch.no_grad():
            plain = berts[name](*args)
        assert type(outcome.value) is type(plain)
        assert outcome.value.keys() == plain.keys()
        assert problem(list(outcome.value.values()), list(plain.values())) is None


def test_half_precision_stays_half_precision() -> None:
    parts = {"linear": lambda: nn.Linear(8, 5), "norm": lambda: nn.LayerNorm(5)}
    modules: dict[str, nn.Module] = {
        name: sketch(lambda m, x: m.norm(m.linear(x)), parts, seed).bfloat16() for seed, name in enumerate("ab")
    }
    inputs = [tensor.bfloat16() for tensor in draw(((8,), (8,)), 2, seed=0)]
    executable = executable_of(modules, (inputs[0],))
    for (tensor, module), outcome in zip(
        zip(inputs, modules.values(), strict=True),
        run(executable, [(name, (tensor,)) for name, tensor in zip("ab", inputs, strict=True)]),
        strict=True,
    ):
        with torch.no_grad():
            assert problem([outcome.value], [module(tensor)]) is None
        assert outcome.value.dtype is torch.bfloat16
        assert TOLERANCE[torch.bfloat16] == 2e-2
