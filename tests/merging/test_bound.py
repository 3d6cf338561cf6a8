"""The fewest launches that are possible: no alignment beats them, and where sequences agree one reaches them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from spacetime.ir import Kernel, Program
from spacetime.merged import is_product
from spacetime.merging import align, fewest_launches
from spacetime.sim.architectures import program as architecture
from spacetime.sim.architectures.transformers import bert
from tests.merging.programs import chain, make_program, mixes


def every(kernel: Kernel) -> bool:
    return True


@settings(max_examples=150, deadline=None)
@given(mixes(1, 4))
def test_no_alignment_needs_fewer(mix: list[Program]) -> None:
    merged = align(mix)
    products = sum(is_product(merged.kernel(step.parts[0])) for step in merged.steps)
    assert fewest_launches(mix) <= products
    assert fewest_launches(mix, every) <= merged.num_launches


@settings(max_examples=50, deadline=None)
@given(mixes(1, 1))
def test_one_member_needs_its_chains_of_products_and_everything_else(mix: list[Program]) -> None:
    others = sum(not is_product(kernel) for kernel in mix[0].kernels)
    assert fewest_launches(mix, every) == fewest_launches(mix) + others


def test_by_hand() -> None:
    assert fewest_launches([chain("one", "8 r8 8 16"), chain("other", "8 16 16")]) == 2 + 2
    assert fewest_launches([chain("one", "8 r8 8 16"), chain("other", "8 16 16")], every) == 2 + 2 + 1
    siblings = make_program("q, k, v", [("linear", 8, ()), ("linear", 8, ()), ("linear", 8, ()), ("linear", 8, (0, 1))])
    assert fewest_launches([siblings]) == 2


@pytest.mark.parametrize(
    "mix",
    [
        [architecture(name) for name in ("resnet18", "resnet34")],
        [architecture(name, folded=True) for name in ("vgg16", "vgg19")],
        [bert(depth=4), bert(depth=8)],
    ],
    ids=["resnets", "vggs", "berts"],
)
def test_relatives_are_aligned_as_well_as_can_be(mix: list[Program]) -> None:
    merged = align(mix)
    assert sum(is_product(merged.kernel(step.parts[0])) for step in merged.steps) == fewest_launches(mix)
