"""Stacked launches as data: which launches are alike, what their table says, and that they compile like their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spacetime.kernels.triton import slot_gemv, slot_linear, stacked
from spacetime.kernels.triton.launch import Launch
from spacetime.kernels.triton.slot_linear import Shape
from spacetime.kernels.triton.target import Target
from tests.kernels.triton.compiled_cases import CORE

TARGET = Target("H200", "cuda", "90", 132, 232448)
SHAPE = Shape(4, 1, 32, 64, "fp32", bias=True, activation="relu")


def gemv(shape: Shape = SHAPE, seed: int = 0) -> Launch:
    config = slot_gemv.default(SHAPE, TARGET)
    return slot_gemv.launch(shape, config, slot_gemv.sample(shape, "cpu", slots=3, seed=seed), TARGET)


def test_launches_that_differ_in_addresses_and_rows_only_are_alike() -> None:
    assert stacked.kind(gemv()) == stacked.kind(gemv(seed=1)) == stacked.kind(gemv(replace(SHAPE, rows=7)))


@pytest.mark.parametrize(
    "change",
    [{"n": 48}, {"k": 32}, {"m": 2}, {"bias": False}, {"residual": True}, {"activation": "silu"}, {"dtype": "bf16"}],
)
def test_others_are_not(change: dict[str, object]) -> None:
    assert stacked.kind(gemv()) != stacked.kind(gemv(replace(SHAPE, **change)))  # type: ignore[arg-type]


def test_what_has_no_stacked_form_or_starts_anywhere_is_alone() -> None:
    config = slot_linear.default(SHAPE, TARGET)
    operands = slot_linear.sample(SHAPE, "cpu", slots=3, words=slot_linear.workspace_words(SHAPE, config))
    assert stacked.kind(slot_linear.launch(SHAPE, config, operands, TARGET)) is None
    launch = gemv()
    x = launch.arguments["x"]
    shifted = torch.zeros(x.numel() + 1)[1:].view(x.shape)
    assert stacked.kind(replace(launch, arguments={**launch.arguments, "x": shifted})) is None


def test_the_table_has_every_address_in_its_place() -> None:
    launches = [gemv(replace(SHAPE, rows=rows), seed) for seed, rows in enumerate((4, 7, 2))]
    table = stacked.address_table(launches)
    assert table.shape == (3, 16) and table.dtype == torch.int64
    for row, launch in zip(table.tolist(), launches, strict=True):
        for name, address in zip(stacked.POINTERS["slot_gemv"], row, strict=False):
            pointer = launch.arguments[name]
            assert address == (0 if pointer is None else pointer.data_ptr()), name
    together = stacked.stacked(launches, table)
    assert together.kernel == "stacked_gemv" and together.grid == (launches[0].grid[0], 7, 3)
    assert together.constants == launches[0].constants


STACKED = ("gemv fp32 m=1", "conv 3x3 bf16", "depthwise fp32")


@pytest.mark.parametrize("name", STACKED)
def test_stacking_costs_no_spills_no_tensor_cores_and_no_wide_copies(name: str) -> None:
    pytest.importorskip("triton")
    from tests.kernels.triton.offline import TARGETS, compile_for

    launch = CORE[name].launch(TARGETS["sm_90"])
    together = stacked.stacked([launch, launch], torch.empty(2, 16, dtype=torch.int64))
    own, found = (compile_for(each, TARGETS["sm_90"]) for each in (launch, together))
    assert (found.spilled, found.has_wgmma, found.wide_loads) == (0, own.has_wgmma, own.wide_loads)
    assert found.shared_bytes == own.shared_bytes
