"""Every kernel against float64: shapes with partial tiles, every epilogue, any mix of tenants, idle rows, garbage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from spacetime.kernels.triton import slot_gemv, slot_linear
from spacetime.kernels.triton.launch import ACTIVATIONS
from spacetime.kernels.triton.slot_linear import Shape
from tests.kernels.triton.interpreted import cases
from tests.kernels.triton.interpreted.harness import HOPPER, MIXES, ROWS, SLOTS, arrange, compare, verify


def name(case: cases.Case) -> str:
    return f"{case[1]}".replace(" ", "")[:90]


@pytest.mark.parametrize("case", cases.LINEAR, ids=name)
def test_slot_linear(case: cases.Case) -> None:
    cases.run(case)


@pytest.mark.parametrize("case", cases.GEMV, ids=name)
def test_slot_gemv(case: cases.Case) -> None:
    cases.run(case)


@pytest.mark.parametrize("case", cases.CONVOLUTION, ids=name)
def test_slot_conv2d(case: cases.Case) -> None:
    cases.run(case)


@pytest.mark.parametrize("case", cases.DEPTHWISE, ids=name)
def test_slot_depthwise(case: cases.Case) -> None:
    cases.run(case)


@pytest.mark.parametrize("case", cases.LAYERNORM, ids=name)
def test_slot_layernorm(case: cases.Case) -> None:
    cases.run(case)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_slot_embedding(dtype: str) -> None:
    cases.run_embedding(dtype)


@pytest.mark.parametrize(("dtype", "num_units", "swapped"), [("fp32", 1, True), ("fp32", 7, False), ("bf16", 3, True)])
def test_grouped_linear_on_any_number_of_units(dtype: str, num_units: int, swapped: bool) -> None:
    cases.run_grouped(dtype, num_units, swapped)


def test_row_entries() -> None:
    cases.run_entries()


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_any_mix_of_tenants(mix: Sequence[int]) -> None:
    shape = Shape(ROWS, 2, 40, 48, "fp32", bias=True, residual=True)
    verify(slot_linear, shape, slot_linear.Config(16, 32, 16, True, 2, 4, 2), mix=mix)
    verify(slot_gemv, shape, mix=mix)


def test_one_launch_serves_another_mix_after_its_tables_were_rewritten() -> None:
    """What a replayed graph does: the same launch, other contents of the tables."""
    shape = Shape(ROWS, 2, 40, 48, "fp32")
    config = slot_linear.default(shape, HOPPER)
    words = slot_linear.workspace_words(shape, config)
    operands = arrange(slot_linear.sample(shape, "cpu", slots=SLOTS, words=words), (0, 1, 2, 3))
    operands.weight.stack.normal_(generator=torch.Generator().manual_seed(1))
    launch = slot_linear.launch(shape, config, operands, HOPPER)
    for mix in ((0, 1, 2, 3), (3, -1, 4), (2,)):
        table = [*mix, *[1] * (ROWS - len(mix))]
        operands.weight.entries.copy_(torch.tensor(table, dtype=torch.int32))
        operands.num_active.fill_(len(mix))
        operands.out.fill_(float("nan"))
        launch.run()
        blank = torch.full_like(operands.out, float("nan"))
        expected = slot_linear.reference(
            shape, slot_linear.Operands(operands.x, operands.weight, operands.num_active, blank)
        )
        compare(operands.out, expected, "fp32")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_that_a_nan_stays_a_nan(activation: str) -> None:
    shape = Shape(ROWS, 4, 16, 16, "fp32", activation=activation)
    operands = arrange(slot_gemv.sample(shape, "cpu", slots=SLOTS), (0, 1, 2, 3))
    operands.x.mul_(4.0)
    operands.x[1, 2, 3] = float("nan")
    slot_gemv.launch(shape, slot_gemv.Config(4, 16, 4, 1), operands, HOPPER).run()
    blank = torch.full_like(operands.out, float("nan"))
    expected = slot_gemv.reference(shape, replace(operands, out=blank))
    compare(operands.out, expected, "fp32")
    assert torch.isnan(operands.out[1, 2]).all()


def test_split_k_gives_the_same_bits_every_time() -> None:
    _, shape, config, mix = cases.linear(3, 40, 256, "fp32", 4, True, "none")
    first, second = (verify(slot_linear, shape, config, mix=mix).out for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2])
