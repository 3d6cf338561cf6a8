"""The numerics contract: any subset of tenants, any rows, results equal to those of the plain modules."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spacetime.capture.selfcheck import TOLERANCE, deviation, magnitude, problem
from spacetime.zoo import SMALL, build, example
from tests.capture.sketches import draw, sketch
from tests.capture.tenants import Inputs, Tenants, capture, named_tensors, zoo_capture
from tests.slow import LONG_EXPORTS, mostly

TENANTS = 4


@cache
def tenants(name: str) -> Tenants:
    """Tenants 0 and 1 are of one seed, and differ in the last weight only: the other layers are shared."""
    modules = [build(name, seed) for seed in (0, 0, 1, 2)]
    with torch.no_grad():
        last = [tensor for tensor in named_tensors(modules[1]).values() if tensor.is_floating_point()][-1]
        last.mul_(1.5)
    return Tenants(zoo_capture(name), modules)


mixes = st.dictionaries(st.integers(0, TENANTS - 1), st.integers(1, 5), min_size=1).map(lambda mix: list(mix.items()))


@pytest.mark.parametrize("name", mostly(SMALL, slow=(*LONG_EXPORTS, "resnet18")))
def test_every_subset_with_any_rows_keeps_the_contract(name: str) -> None:
    @settings(max_examples=4)
    @given(mixes, st.integers(0, 1000))
    def check(mix: list[tuple[int, int]], seed: int) -> None:
        inputs = [example(name, rows, seed + slot) for slot, rows in mix]
        usual = example(name, rows=8, seed=0)
        assert tenants(name).deviation([slot for slot, _ in mix], inputs, usual) <= TOLERANCE[torch.float32]

    check()


def test_tenants_of_one_seed_share_all_layers_but_one() -> None:
    cohort = tenants("mlp").cohort
    layers = len(cohort.layers)
    assert [cohort.shared_layers(str(slot)) for slot in range(TENANTS)] == [layers - 1, layers - 1, 0, 0]


def convnet() -> nn.Module:
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.Flatten(), nn.Linear(72, 5))


HALF = {
    "mlp": ([build("mlp", seed) for seed in range(3)], ((256,),)),
    "convnet": ([sketch(lambda m, x: m.net(x), {"net": convnet}, seed) for seed in range(3)], ((3, 8, 8),)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", HALF)
def test_other_precisions_keep_their_own_contract(name: str, dtype: torch.dtype) -> None:
    originals, row = HALF[name]
    modules = [deepcopy(module).to(dtype) for module in originals]

    def inputs(rows: int, seed: int) -> Inputs:
        return tuple(tensor.to(dtype) for tensor in draw(row, rows, seed))

    made = Tenants(capture(modules[0], inputs(2, 0)), modules)
    for slots, counts in (((0, 1, 2), (1, 3, 2)), ((2, 0), (1, 1)), ((1,), (4,))):
        batch = [inputs(rows, seed) for seed, rows in enumerate(counts)]
        assert made.deviation(slots, batch, inputs(8, 0)) <= TOLERANCE[dtype]


# -- the contract as code -----------------------------------------------------------------------------

ONES = torch.ones(3)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("result", "reference", "expected"),
    [
        (ONES, ONES, 0.0),
        (torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0]), 0.25),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.tensor([1e-9]), torch.zeros(1), INF),
        (ONES, torch.ones(3, 1), INF),
        (ONES, ONES.double(), INF),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), 0.0),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), INF),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), 0.0),
        (torch.tensor([NAN, 1.0]), torch.tensor([1.0, 1.0]), INF),
        (torch.tensor([1.0, 1.0]), torch.tensor([NAN, 1.0]), INF),
        (torch.tensor([INF, 1.0]), torch.tensor([INF, 2.0]), 0.5),
        (torch.tensor([-INF, 1.0]), torch.tensor([INF, 1.0]), INF),
        (torch.tensor([NAN, 1.0]), torch.tensor([INF, 1.0]), INF),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (torch.tensor([3.0, 4.0j]), torch.tensor([2.0, 4.0j]), 0.25),
        (torch.tensor([complex(NAN, 1)]), torch.tensor([complex(1, 1)]), INF),
    ],
)
def test_deviations(result: Tensor, reference: Tensor, expected: float) -> None:
    assert deviation(result, reference) == expected


def test_problems_name_the_output_and_the_numbers() -> None:
    assert problem([ONES, 3, None], [ONES, 3, None]) is None
    assert (
        problem([ONES, ONES * 1.1], [ONES, ONES])
        == "output 1 deviates by 1.0e-01 of its largest value; 1e-05 is allowed"
    )
    assert problem([3], [4]) == "output 0 is 3, the plain module's is 4"
    assert problem([3], [ONES]) == "output 0 is 3, the plain module's is a tensor"
    assert problem([ONES.double()], [ONES]) == "output 0 is float64[3], the plain module's is float32[3]"
    assert problem([ONES[None]], [ONES]) == "output 0 is float32[1, 3], the plain module's is float32[3]"
    assert problem([ONES + 0j], [ONES * (1 + 1e-6j)]) is None


def test_one_small_answer_is_judged_beside_the_larger_ones() -> None:
    nearly_nothing, others = torch.tensor([[1e-4]]), torch.tensor([[3.0], [NAN]])
    result = nearly_nothing + 2e-6
    assert deviation(result, nearly_nothing) == pytest.approx(2e-2, rel=1e-2)
    assert deviation(result, nearly_nothing, magnitude(others)) < 1e-6
    assert problem([result], [nearly_nothing]) is not None
    assert problem([result], [nearly_nothing], [magnitude(others)]) is None
    assert problem([result + 1], [nearly_nothing], [magnitude(others)]) is not None


@pytest.mark.parametrize("without", [3, None, torch.tensor([1, 2]), torch.tensor([NAN]), torch.zeros(0)])
def test_what_has_no_size(without: object) -> None:
    assert magnitude(without) == 0.0
