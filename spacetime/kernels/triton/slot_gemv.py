"""slot_linear with products and sums in fp32 and no tensor cores, for M <= 8: exact, and bound by memory alone.

Takes the shapes and operands of slot_linear.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from spacetime.errors import InputError
from spacetime.kernels.triton import slot_linear
from spacetime.kernels.triton.blocks import cdiv, power_of_two
from spacetime.kernels.triton.launch import Launch
from spacetime.kernels.triton.slot_linear import Operands, Shape, describe, reference, sample
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

__all__ = [
    "MOST_ROWS",
    "NAME",
    "Config",
    "Operands",
    "Shape",
    "candidates",
    "default",
    "describe",
    "launch",
    "reference",
    "sample",
    "workspace_words",
]

NAME = "slot_gemv"
MOST_ROWS = 8
_PER_THREAD = 64  # products in flight in one thread: more would spill


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def default(shape: Shape, target: Target) -> Config:
    """Loads of 16 bytes by a whole warp along K; as many columns as registers allow."""
    num_warps = 4
    block_k = power_of_two(shape.k, low=16, high=256 if shape.dtype == "fp32" else 512)
    block_m = power_of_two(shape.m)
    most = _PER_THREAD * num_warps * 32 // (block_m * block_k)
    # Enough programs for every unit matter more than reading x less often.
    block_n = max(1, min(16, most, power_of_two(shape.n)))
    while block_n > 2 and cdiv(shape.n, block_n) * shape.rows < 4 * target.num_units:
        block_n //= 2
    return Config(block_n, block_k, num_warps, 2)


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    if shape.m > MOST_ROWS:
        return
    for block_n, block_k, num_warps in product((1, 2, 4, 8, 16, 32), (64, 128, 256, 512, 1024), (1, 2, 4, 8)):
        per_thread = power_of_two(shape.m) * block_n * block_k / (32 * num_warps)
        if 4 <= per_thread <= _PER_THREAD and block_k < 2 * max(shape.k, 64):
            yield from (Config(block_n, block_k, num_warps, num_stages) for num_stages in (1, 2, 3))


def workspace_words(shape: Shape, config: Config) -> int:
    return 0


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    if shape.m > MOST_ROWS:
        facts = f"M is {shape.m}, it keeps at most {MOST_ROWS} rows in registers"
        raise InputError(f"{NAME} of {shape}", facts, "use slot_linear")
    return Launch(
        NAME,
        (cdiv(shape.n, config.block_n), shape.rows),
        slot_linear.arguments(operands),
        {
            "M": shape.m,
            "BLOCK_M": power_of_two(shape.m),
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "STAGES": config.num_stages,
            "EVEN_K": shape.k % config.block_k == 0,
            **slot_linear.multiples(operands),
            "ACTIVATION": shape.activation,
        },
        config.num_warps,
        config.num_stages,
    )
