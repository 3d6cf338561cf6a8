"""What the kernels are asked to do, by kernel. The planted bugs must each fail at least one of them."""

from __future__ import annotations

from typing import Any

import torch

from spacetime.kernels.triton import (
    grouped_linear,
    row_entries,
    slot_conv2d,
    slot_depthwise,
    slot_embedding,
    slot_gemv,
    slot_layernorm,
    slot_linear,
)
from spacetime.kernels.triton.convolution import Shape as Convolution
from spacetime.kernels.triton.launch import live_rows
from spacetime.kernels.triton.slot_linear import Shape as Linear
from spacetime.kernels.triton.target import Target
from tests.kernels.triton.interpreted.harness import ON_CPU, ROWS, SLOTS, arrange, compare, verify

Case = tuple[Any, ...]  # (kernel, shape, config, mix)
MIX = (4, 0, 2)
WITH_IDLE = (2, -1, 3)


def linear(m: int, n: int, k: int, dtype: str, split: int, swapped: bool, epilogue: str) -> Case:
    shape = Linear(ROWS, m, n, k, dtype, bias=epilogue != "none", residual=epilogue == "silu", activation=epilogue)
    return slot_linear, shape, slot_linear.Config(16, 32, 32, swapped, split, 4, 2), WITH_IDLE


def gemv(m: int, n: int, k: int, dtype: str, epilogue: str) -> Case:
    shape = Linear(ROWS, m, n, k, dtype, bias=True, residual=m == 3, activation=epilogue)
    return slot_gemv, shape, slot_gemv.Config(4, 64, 4, 2), MIX


def convolution(channels: int, out_channels: int, kernel: int, dtype: str, **options: Any) -> Case:
    batch_norm = options.pop("scale", False)
    shape = Convolution(
        *(ROWS, 2, (6, 5), channels, out_channels, (kernel, kernel), dtype),
        **{"bias": True, "scale": batch_norm, "residual": True, "activation": "relu", **options},
    )
    if shape.is_depthwise:
        return slot_depthwise, shape, slot_depthwise.Config(16, 8, 4), WITH_IDLE
    return slot_conv2d, shape, slot_conv2d.Config(32, 16, 16, 4, 2), WITH_IDLE


def layernorm(m: int, width: int, dtype: str, **options: bool) -> Case:
    shape = slot_layernorm.Shape(ROWS, m, width, dtype, **options)
    return slot_layernorm, shape, slot_layernorm.Config(2, 4), WITH_IDLE


LINEAR = [
    linear(*tile, dtype, split, swapped, epilogue)
    for dtype in ("fp32", "bf16")
    for tile, split, swapped, epilogue in (
        ((1, 64, 64), 1, True, "none"),
        ((3, 40, 72), 3, True, "silu"),
        ((8, 70, 200), 4, True, "gelu"),
        ((33, 70, 40), 1, False, "relu"),
        ((20, 33, 100), 2, False, "silu"),
    )
]
LINEAR += [linear(5, 33, 48, "fp16", 2, True, "relu6"), linear(17, 20, 8, "fp32", 1, False, "gelu_tanh")]
GEMV = [
    gemv(m, 21, 150, dtype, epilogue)
    for dtype in ("fp32", "bf16")
    for m, epilogue in ((1, "relu"), (3, "gelu"), (8, "silu"))
]
GEMV += [gemv(2, 8, 128, "fp16", "none")]
CONVOLUTION = [
    convolution(3, 20, 5, "fp32", stride=(2, 2), padding=(2, 2)),
    convolution(32, 24, 3, "fp32", padding=(1, 1), scale=True),
    convolution(16, 40, 1, "fp32", stride=(2, 1), activation="none"),
    convolution(32, 36, 3, "fp32", padding=(2, 1), dilation=(2, 1), groups=2, activation="relu6"),
    convolution(12, 20, 3, "fp32", padding=(1, 0), groups=4, scale=True, bias=False, residual=False),
    convolution(3, 20, 3, "bf16", stride=(2, 2), padding=(1, 1)),
    convolution(32, 12, 3, "bf16", padding=(1, 1), groups=2, scale=True),
]
DEPTHWISE = [
    convolution(20, 20, 3, "fp32", padding=(1, 1), groups=20, scale=True, activation="relu6"),
    convolution(6, 12, 5, "fp32", stride=(2, 2), padding=(2, 4), dilation=(1, 2), groups=6, activation="silu"),
    convolution(8, 8, 3, "bf16", padding=(1, 1), groups=8, scale=True),
]
LAYERNORM = [
    case
    for dtype in ("fp32", "bf16")
    for case in (
        layernorm(5, 100, dtype, residual=True),
        layernorm(1, 64, dtype, bias=False),
        layernorm(4, 70, dtype, weight=False, bias=False, residual=True, total=True),
    )
]


def run(case: Case, on: tuple[str, Target] = ON_CPU) -> None:
    kernel, shape, config, mix = case
    operands = verify(kernel, shape, config, mix=mix, again=kernel is slot_linear, on=on)
    if getattr(operands, "workspace", None) is not None:
        tiles = operands.workspace[: shape.rows * -(-shape.m // 16) * -(-shape.n // 32)]
        assert not tiles.any(), "the next replay would find arrivals"
    if getattr(operands, "total", None) is not None:
        for row, _ in live_rows(operands.entries, operands.num_active):
            total = operands.x[row].double() + operands.residual[row].double()
            torch.testing.assert_close(operands.total[row].double(), total, rtol=8e-3, atol=1e-2)


def run_embedding(dtype: str = "fp32", on: tuple[str, Target] = ON_CPU) -> None:
    """Two indices are outside: they give NaN and a mark, and no other row notices."""
    shape = slot_embedding.Shape(ROWS, 6, 11, 40, dtype)
    operands = arrange(slot_embedding.sample(shape, on[0], slots=SLOTS), WITH_IDLE)
    operands.indices[0, 4], operands.indices[2, 1] = -1, 11
    operands.indices[1, 0], operands.indices[3, 5] = 10**9, -7  # nobody's rows
    expected = slot_embedding.reference(shape, operands)
    slot_embedding.launch(shape, slot_embedding.Config(4, 16, 4), operands, on[1]).run()
    compare(operands.out, expected, dtype)
    assert operands.faults.tolist() == [1, 0, 1, 0]


def run_grouped(
    dtype: str = "fp32", num_units: int = 3, swapped: bool = False, on: tuple[str, Target] = ON_CPU
) -> None:
    """Four layers of different shapes, each with a mix of tenants of its own."""
    mixes = ((4, 0, 2), (2, -1, 3), (0, 1, 1, 3), (3,))
    layers = (
        Linear(ROWS, 1, 70, 64, dtype, bias=True, activation="relu"),
        Linear(ROWS, 40, 33, 48, dtype, residual=True),
        Linear(ROWS, 5, 8, 128, dtype, bias=True, residual=True, activation="silu"),
        Linear(ROWS, 17, 64, 16, dtype, activation="gelu"),
    )
    shape = grouped_linear.Shape(layers, num_units)
    config = grouped_linear.Config(16, 32, 32, swapped, 4, 2)
    sampled = grouped_linear.sample(shape, on[0], slots=SLOTS).layers
    arranged = tuple(arrange(operands, mix) for operands, mix in zip(sampled, mixes, strict=True))
    operands = grouped_linear.prepare(shape, config, grouped_linear.Operands(arranged))
    expected = grouped_linear.reference(shape, operands)
    launch = grouped_linear.launch(shape, config, operands, on[1])
    assert launch.grid == (num_units,)
    launch.run()
    for layer, wanted in zip(operands.layers, expected, strict=True):
        compare(layer.out, wanted, dtype)


def run_entries(on: tuple[str, Target] = ON_CPU) -> None:
    """More layers and rows than a tile has; idle rows, slots that do not exist, garbage beyond num_active."""
    shape = row_entries.Shape(48, 11, 7)
    operands = row_entries.sample(shape, on[0], slots=SLOTS)
    operands.slots[3], operands.slots[5], operands.num_active[0] = 7, -9, 41
    operands.slots[41:] = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    expected = row_entries.reference(shape, operands)
    for config in (row_entries.default(shape, on[1]), row_entries.Config(4, 16, 4)):
        operands.out.fill_(10**6)
        row_entries.launch(row_entries.describe(operands), config, operands, on[1]).run()
        assert torch.equal(operands.out, expected)
    assert (expected[:, 41:] == -1).all() and (expected[:, 3] == -1).all() and (expected[:, 5] == -1).all()
