"""out[r, m] = table[slot of r][indices[r, m]] in one launch. Needs triton to run only.

A kernel cannot raise: an index outside the table gives NaN and sets faults[r], so that whoever completes the request
fails it; nothing of another tenant is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from spacetime.errors import InputError
from spacetime.kernels.triton.blocks import cdiv, power_of_two
from spacetime.kernels.triton.launch import CONTRACT, Launch, Slotted, check, check_rows, dtype_name, live_rows
from spacetime.kernels.triton.sampling import Sampler
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

NAME = "slot_embedding"


@dataclass(frozen=True, slots=True)
class Shape(Value):
    rows: int
    m: int  # indices of one row
    num_embeddings: int
    width: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_m: int
    block_n: int
    num_warps: int


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """indices[rows, m] (int32 or int64), weight.stack[slots, num_embeddings, width], out[rows, m, width]."""

    indices: Tensor
    weight: Slotted
    num_active: Tensor
    out: Tensor
    faults: Tensor  # int32[rows]: 1 is written where an index is outside; never cleared here


def describe(operands: Operands) -> Shape:
    """The descriptor of a launch; refuses operands that break the contract."""
    indices, stack, faults = operands.indices, operands.weight.stack, operands.faults
    where = f"{NAME} of indices{tuple(indices.shape)} and tables {operands.weight}"
    dtype = dtype_name(stack, where)
    if indices.ndim != 2 or stack.ndim != 3:
        raise InputError(where, "indices are [rows, M], tables [slots, embeddings, width]", CONTRACT)
    (rows, m), (_, num_embeddings, width) = indices.shape, stack.shape
    check(
        *(where, rows, operands.num_active, [operands.weight]),
        *check_rows("indices", indices, (rows, m), indices.dtype),
        *check_rows("out", operands.out, (rows, m, width), stack.dtype),
        (indices.dtype not in (torch.int32, torch.int64), f"indices are {indices.dtype}"),
        (faults.dtype != torch.int32 or faults.numel() < rows, f"faults are {faults.dtype}[{faults.numel()}]"),
    )
    return Shape(rows, m, num_embeddings, width, dtype)


def default(shape: Shape, target: Target) -> Config:
    block_n = power_of_two(shape.width, low=16, high=512)
    block_m = max(1, min(power_of_two(shape.m), 2048 // block_n))
    return Config(block_m, block_n, power_of_two(block_m * block_n // 256, high=4))


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    """What tuning tries."""
    for block_m, block_n, num_warps in product((1, 2, 4, 8, 16, 32), (64, 128, 256, 512, 1024), (1, 2, 4, 8)):
        fits = block_n < 2 * max(shape.width, 64) and block_m < 2 * shape.m
        if fits and 4 <= block_m * block_n // (32 * num_warps) <= 64:
            yield Config(block_m, block_n, num_warps)


def workspace_words(shape: Shape, config: Config) -> int:
    return 0


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    weight = operands.weight
    return Launch(
        NAME,
        (cdiv(shape.m, config.block_m) * cdiv(shape.width, config.block_n), shape.rows),
        {
            **{"indices": operands.indices, "w": weight.stack, "w_entry": weight.table, "w_slot": weight.stride},
            **{"y": operands.out, "num_active": operands.num_active, "faults": operands.faults},
            **{"M": shape.m, "NUM_EMBEDDINGS": shape.num_embeddings, "WIDTH": shape.width},
            **{"indices_row": operands.indices.stride(0), "y_row": operands.out.stride(0)},
        },
        {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n},
        config.num_warps,
        num_stages=1,
    )


def reference(shape: Shape, operands: Operands) -> Tensor:
    """What `launch` leaves in `out`; what it leaves in `faults` is where this has NaN in an active row."""
    result = operands.out.double()
    for row, entry in live_rows(operands.weight.entries, operands.num_active):
        indices = operands.indices[row].long()
        known = (indices >= 0) & (indices < shape.num_embeddings)
        values = operands.weight.stack[entry].double()[indices.where(known, torch.zeros_like(indices))]
        result[row] = values.where(known[:, None], torch.full_like(values, float("nan")))
    return result


def sample(shape: Shape, device: str, *, slots: int, seed: int = 0, words: int = 0) -> Operands:
    """Random operands of a shape, see sampling.py."""
    make = Sampler(device, shape.dtype, shape.rows, slots, seed)
    return Operands(
        make.indices(shape.num_embeddings, shape.rows, shape.m),
        make.slotted(shape.num_embeddings, shape.width),
        make.num_active,
        make.blank(shape.rows, shape.m, shape.width),
        make.words(shape.rows),
    )
