"""out[r] = layer_norm(x[r] + residual[r]) * weight[slot of r] + bias[slot of r] in one launch. No triton.

`total` also keeps the sum x + residual, which a pre-norm transformer goes on with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from spacetime.errors import InputError
from spacetime.kernels.triton.blocks import cdiv, power_of_two
from spacetime.kernels.triton.launch import (
    CONTRACT,
    Launch,
    Slotted,
    check,
    check_rows,
    dtype_name,
    live_rows,
    table_arguments,
)
from spacetime.kernels.triton.sampling import Sampler
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

NAME = "slot_layernorm"
MOST_COLUMNS = 16384  # a row is kept in registers


@dataclass(frozen=True, slots=True)
class Shape(Value):
    rows: int
    m: int  # vectors of one row
    width: int
    dtype: str
    weight: bool = True
    bias: bool = True
    residual: bool = False
    total: bool = False
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_m: int
    num_warps: int


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """x, residual, total and out are [rows, m, width]; weight and bias [slots, width]; `entries` tells idle rows."""

    x: Tensor
    entries: Tensor
    num_active: Tensor
    out: Tensor
    weight: Slotted | None = None
    bias: Slotted | None = None
    residual: Tensor | None = None
    total: Tensor | None = None


def describe(operands: Operands, epsilon: float = 1e-5) -> Shape:
    """The descriptor of a launch; refuses operands that break the contract."""
    x, weight, bias = operands.x, operands.weight, operands.bias
    where = f"{NAME} of x{tuple(x.shape)}"
    dtype = dtype_name(x, where)
    if x.ndim != 3:
        raise InputError(where, "x is [rows, M, width]", CONTRACT)
    rows, m, width = x.shape
    affine = [operand for operand in (weight, bias) if operand is not None]
    tensors = {"x": x, "out": operands.out, "residual": operands.residual, "total": operands.total}
    problems = [check_rows(name, tensor, tuple(x.shape), x.dtype) for name, tensor in tensors.items()]
    check(
        *(where, rows, operands.num_active, affine),
        *chain(*problems),
        *((operand.stack.shape[1:] != (width,), f"{operand} for {width} columns") for operand in affine),
        (operands.entries.dtype != torch.int32 or operands.entries.numel() < rows, f"{operands.entries.dtype} entries"),
        (width > MOST_COLUMNS, f"{width} columns; a program keeps at most {MOST_COLUMNS}"),
    )
    has = (weight is not None, bias is not None, operands.residual is not None, operands.total is not None)
    return Shape(rows, m, width, dtype, *has, epsilon)


def default(shape: Shape, target: Target) -> Config:
    columns = power_of_two(shape.width)
    num_warps = power_of_two(columns // 512, low=1, high=16)
    return Config(max(1, min(power_of_two(shape.m), 1024 // columns)), num_warps)


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    """What tuning tries."""
    columns = power_of_two(shape.width)
    for block_m in (1, 2, 4, 8, 16):
        for num_warps in (1, 2, 4, 8, 16):
            if 2 <= block_m * columns // (32 * num_warps) <= 64 and block_m < 2 * shape.m:
                yield Config(block_m, num_warps)


def workspace_words(shape: Shape, config: Config) -> int:
    return 0


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    residual, total = operands.residual, operands.total
    return Launch(
        NAME,
        (cdiv(shape.m, config.block_m), shape.rows),
        {
            **table_arguments(w=operands.weight, bias=operands.bias),
            **{"x": operands.x, "y": operands.out, "res": residual, "total": total},
            **{"slot": operands.entries, "num_active": operands.num_active, "M": shape.m, "epsilon": shape.epsilon},
            **{"x_row": operands.x.stride(0), "y_row": operands.out.stride(0)},
            "res_row": 0 if residual is None else residual.stride(0),
            "total_row": 0 if total is None else total.stride(0),
        },
        {"WIDTH": shape.width, "BLOCK_M": config.block_m, "BLOCK_N": power_of_two(shape.width)},
        config.num_warps,
        num_stages=1,
    )


def reference(shape: Shape, operands: Operands) -> Tensor:
    """What `launch` leaves in `out`, computed in float64, row by row."""
    result = operands.out.double()
    for row, _ in live_rows(operands.entries, operands.num_active):
        value = operands.x[row].double()
        if operands.residual is not None:
            value = value + operands.residual[row].double()
        weight, bias = (
            None if operand is None else operand.stack[int(operand.entries[row])].double()
            for operand in (operands.weight, operands.bias)
        )
        result[row] = torch.nn.functional.layer_norm(value, (shape.width,), weight, bias, shape.epsilon)
    return result


def sample(shape: Shape, device: str, *, slots: int, seed: int = 0, words: int = 0) -> Operands:
    """Random operands of a shape, see sampling.py."""
    make = Sampler(device, shape.dtype, shape.rows, slots, seed)
    full = (shape.rows, shape.m, shape.width)
    return Operands(
        make.random(*full),
        make.entries,
        make.num_active,
        make.blank(*full),
        make.slotted(shape.width) if shape.weight else None,
        make.slotted(shape.width) if shape.bias else None,
        make.random(*full) if shape.residual else None,
        make.blank(*full) if shape.total else None,
    )
