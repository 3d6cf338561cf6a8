"""y[r] = activation(x[r] @ W[slot of r].T + b[slot of r] + residual[r]) in one launch. Needs triton to run only.

Few rows of x (M <= 16) put the weights on the M side of the tensor cores ("swapped"), and may split K: the parts are
summed in a fixed order, so the result does not depend on timing. slot_gemv.py does the same exactly, for M <= 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from spacetime.errors import InputError
from spacetime.kernels.triton.blocks import cdiv, largest_divisor, parts, power_of_two, stages_that_fit
from spacetime.kernels.triton.launch import (
    CONTRACT,
    ITEM_BYTES,
    Launch,
    Slotted,
    activated,
    check,
    check_options,
    check_rows,
    dtype_name,
    live_rows,
    product_precision,
    table_arguments,
)
from spacetime.kernels.triton.sampling import Sampler
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

NAME = "slot_linear"
FEW = 16  # rows of x: so many are less work than reading the weights that they meet
ARRIVALS = 4096  # words for arrivals at least, so that launches one after another can share a workspace


@dataclass(frozen=True, slots=True)
class Shape(Value):
    """x[rows, m, k] times the transpose of [n, k]."""

    rows: int
    m: int
    n: int
    k: int
    dtype: str
    precision: str = "ieee"
    bias: bool = False
    residual: bool = False
    activation: str = "none"


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_m: int
    block_n: int
    block_k: int
    swapped: bool
    split: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """weight.stack[slots, n, k], bias.stack[slots, n], residual and out like [rows, m, n]."""

    x: Tensor
    weight: Slotted
    num_active: Tensor
    out: Tensor
    bias: Slotted | None = None
    residual: Tensor | None = None
    workspace: Tensor | None = None  # int32[workspace_words], arrivals zero; not for two launches at a time


def folded(operands: Operands) -> Operands:
    """The same product as one row that has the rows of all, for rows that use the same entries.

    So weights are read once for many rows of x, and not once for each. Idle rows are computed with the others.
    """
    x, out, residual = operands.x, operands.out, operands.residual
    added = None if residual is None else residual.reshape(1, -1, residual.shape[2])
    return replace(operands, x=x.reshape(1, -1, x.shape[2]), out=out.view(1, -1, out.shape[2]), residual=added)


def describe(operands: Operands, activation: str = "none", precision: str = "ieee") -> Shape:
    """The descriptor of a launch; refuses operands that break the contract."""
    x, weight, bias = operands.x, operands.weight, operands.bias
    where = f"{NAME} of x{tuple(x.shape)} and weights {weight}"
    dtype = dtype_name(x, where)
    check_options(where, dtype, activation, precision)
    is_flat = x.ndim != 3 or weight.stack.ndim != 3
    if is_flat:
        raise InputError(where, "x is [rows, M, K] and the slab [slots, N, K]", CONTRACT)
    (rows, m, k), n = x.shape, weight.stack.shape[1]
    shape = (rows, m, n)
    check(
        *(where, rows, operands.num_active, [weight, *filter(None, [bias])]),
        *check_rows("x", x, (rows, m, k), x.dtype),
        *check_rows("out", operands.out, shape, x.dtype),
        *check_rows("residual", operands.residual, shape, x.dtype),
        (weight.stack.shape[2] != k, f"x has depth {k}, the slab {weight.stack.shape[2]}"),
        (weight.stack.dtype != x.dtype, f"weights are {weight.stack.dtype}"),
        (bias is not None and bias.stack.shape[1:] != (n,), f"bias is {bias} for {n} columns"),
    )
    return Shape(rows, m, n, k, dtype, precision, bias is not None, operands.residual is not None, activation)


def default(shape: Shape, target: Target) -> Config:
    """A config that runs well unmeasured; not claimed to be the best."""
    is_narrow = shape.dtype != "fp32"
    on_tensor_cores = is_narrow or (shape.precision != "ieee" and target.has_tf32)
    num_warps = 4
    if shape.m <= 16:
        block_k = 128 if is_narrow else 64 if on_tensor_cores else 32
        block_m, block_n, swapped, num_stages = 16, 64, True, 4
    elif shape.m <= 64 and on_tensor_cores:
        block_m, block_n, swapped, num_stages = power_of_two(shape.m), 64, True, 4
        block_k = 64 if is_narrow else 32
    elif on_tensor_cores and is_narrow:
        block_m, block_n, block_k, swapped, num_stages, num_warps = 128, 128, 64, False, 3, 8
    else:
        block_m, block_n, swapped, num_stages = 64, 64, False, 3
        block_k = 32 if on_tensor_cores else 16
    block_k = power_of_two(shape.k, low=16, high=block_k)
    split = 1
    if shape.m <= 16:
        num_tiles = shape.rows * cdiv(shape.n, block_n)
        split = parts(num_tiles, cdiv(shape.k, block_k), target.num_units)
    return _fitted(Config(block_m, block_n, block_k, swapped, split, num_warps, num_stages), shape, target)


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    """What tuning tries."""
    skinny = shape.m <= 16
    block_ms = [16] if skinny else [size for size in (32, 64, 128) if size < 2 * shape.m]
    splits = (1, 2, 4, 8) if skinny else (1,)
    for block_m, block_n, block_k, split in product(block_ms, (32, 64, 128), (16, 32, 64, 128), splits):
        too_deep = block_k * split >= 2 * max(shape.k, 16)
        if too_deep or (block_n >= 2 * shape.n and block_n > 32):
            continue
        for num_warps, num_stages in product((4, 8), (2, 3, 4)):
            config = Config(block_m, block_n, block_k, block_m <= 32, split, num_warps, num_stages)
            if _fitted(config, shape, target) == config:
                yield config


def _fitted(config: Config, shape: Shape, target: Target) -> Config:
    """With no more stages than the device's memory holds."""
    stage_bytes = (config.block_m + config.block_n) * config.block_k * ITEM_BYTES[shape.dtype]
    most = config.num_stages if target.kind == "cuda" else 2
    num_stages = stages_that_fit(stage_bytes, target.shared_bytes, most)
    tiles = (config.block_m, config.block_n, config.block_k)
    return Config(*tiles, config.swapped, config.split, config.num_warps, num_stages)


def workspace_words(shape: Shape, config: Config) -> int:
    """int32 words of `Operands.workspace`: arrivals, then partial sums. Every launch leaves the arrivals at zero."""
    if config.split == 1:
        return 0
    return arrivals_words(shape, config) + _tiles(shape, config) * config.split * config.block_m * config.block_n


def _tiles(shape: Shape, config: Config) -> int:
    return shape.rows * cdiv(shape.m, config.block_m) * cdiv(shape.n, config.block_n)


def arrivals_words(shape: Shape, config: Config) -> int:
    """The first words of the workspace, which must be zeros; partial sums follow, at 16 bytes."""
    return max(ARRIVALS, cdiv(_tiles(shape, config), 4) * 4)


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    needed = workspace_words(shape, config)
    partials = arrivals = None
    if needed:
        workspace = operands.workspace
        if workspace is None or workspace.dtype != torch.int32 or workspace.numel() < needed:
            facts = f"split {config.split} needs int32[{needed}], got {None if workspace is None else workspace.shape}"
            raise InputError(f"{NAME} of {shape}", facts, "allocate workspace_words(shape, config) zeros beforehand")
        num_arrivals = arrivals_words(shape, config)
        arrivals, partials = workspace[:num_arrivals], workspace[num_arrivals:].view(torch.float32)
    tiles = cdiv(shape.m, config.block_m) * cdiv(shape.n, config.block_n)
    return Launch(
        NAME,
        (tiles * config.split, shape.rows),
        {**arguments(operands), "partials": partials, "arrivals": arrivals, "M": shape.m},
        {
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "SPLIT": config.split,
            "SWAPPED": config.swapped,
            "EVEN_K": shape.k % config.block_k == 0,
            **multiples(operands),
            "ACTIVATION": shape.activation,
            "PRECISION": product_precision(shape.precision, target.has_tf32),
        },
        config.num_warps,
        config.num_stages,
    )


def arguments(operands: Operands) -> dict[str, object]:
    """What both kernels for linear layers take."""
    x, out, residual = operands.x, operands.out, operands.residual
    tables = table_arguments(w=operands.weight, bias=operands.bias)
    return {
        **{"x": x, "y": out, "res": residual, "num_active": operands.num_active, **tables},
        **{"N": out.shape[2], "K": x.shape[2], "x_row": x.stride(0), "y_row": out.stride(0)},
        "res_row": 0 if residual is None else residual.stride(0),
    }


def multiples(operands: Operands) -> dict[str, int]:
    """What K, N and the strides of their tensors are multiples of: how wide an access may be, in elements."""
    x, out, residual = operands.x, operands.out, operands.residual
    deep = (x.shape[2], x.stride(0), operands.weight.stride)
    wide = (out.shape[2], out.stride(0), out.stride(0) if residual is None else residual.stride(0))
    k_multiple, n_multiple = (min(largest_divisor(stride, 16) for stride in strides) for strides in (deep, wide))
    return {"K_MULTIPLE": k_multiple, "N_MULTIPLE": n_multiple}


def reference(shape: Shape, operands: Operands) -> Tensor:
    """What `launch` leaves in `out`, computed in float64, row by row."""
    result = operands.out.double()
    bias, residual = operands.bias, operands.residual
    for row, entry in live_rows(operands.weight.entries, operands.num_active):
        value = operands.x[row].double() @ operands.weight.stack[entry].double().T
        if bias is not None:
            value += bias.stack[int(bias.entries[row])].double()
        if residual is not None:
            value += residual[row].double()
        result[row] = activated(value, shape.activation)
    return result


def sample(shape: Shape, device: str, *, slots: int, seed: int = 0, words: int = 0) -> Operands:
    """Random operands of a shape, see sampling.py; `words` of workspace."""
    make = Sampler(device, shape.dtype, shape.rows, slots, seed)
    out = (shape.rows, shape.m, shape.n)
    return Operands(
        make.random(shape.rows, shape.m, shape.k),
        make.slotted(shape.n, shape.k, scale=shape.k**-0.5),
        make.num_active,
        make.blank(*out),
        make.slotted(shape.n) if shape.bias else None,
        make.random(*out) if shape.residual else None,
        make.words(words) if words else None,
    )
