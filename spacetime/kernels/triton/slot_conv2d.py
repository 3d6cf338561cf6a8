"""A convolution of each row with its own model's weights in one launch, groups too: an implicit GEMM, NHWC.

See convolution.py for the tensors. Fast where the channels of a group are a multiple of 16; pad an image's 3 to 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from spacetime.kernels.triton import convolution
from spacetime.kernels.triton.blocks import cdiv, largest_divisor, power_of_two, stages_that_fit
from spacetime.kernels.triton.convolution import Operands, Shape, describe, reference, sample
from spacetime.kernels.triton.launch import ITEM_BYTES, Launch, product_precision
from spacetime.kernels.triton.target import Target
from spacetime.values import Value

__all__ = [
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

NAME = "slot_conv2d"


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_m: int  # pixels
    block_n: int  # channels
    block_k: int
    num_warps: int
    num_stages: int


def default(shape: Shape, target: Target) -> Config:
    is_narrow = shape.dtype != "fp32"
    on_tensor_cores = is_narrow or (shape.precision != "ieee" and target.has_tf32)
    block_n = power_of_two(shape.out_channels // shape.groups, low=16, high=128 if is_narrow else 64)
    block_m = 128 if is_narrow and block_n <= 64 else 64
    while block_m > 64 and shape.rows * cdiv(shape.pixels, block_m) * cdiv(shape.out_channels, block_n) < (
        2 * target.num_units
    ):
        block_m //= 2
    num_warps = 8 if block_m * block_n >= 64 * 128 else 4
    block_k = _block_k(shape, 64 if is_narrow else 32 if on_tensor_cores else 16)
    return _fitted(Config(block_m, block_n, block_k, num_warps, 3), shape, target)


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    """What tuning tries."""
    out_channels = shape.out_channels // shape.groups
    block_ks = {_block_k(shape, high) for high in (16, 32, 64, 128)}
    for block_m, block_n, block_k in product((32, 64, 128, 256), (16, 32, 64, 128, 256), sorted(block_ks)):
        if block_m * block_n > 128 * 256 or (block_n >= 2 * out_channels and block_n > 16):
            continue
        for num_warps, num_stages in product((4, 8), (2, 3, 4)):
            config = Config(block_m, block_n, block_k, num_warps, num_stages)
            if _fitted(config, shape, target) == config:
                yield config


def _block_k(shape: Shape, high: int) -> int:
    """A block that lies in one tap of the window, if channels allow it."""
    divisor = largest_divisor(shape.channels // shape.groups, high)
    return divisor if divisor >= 16 else power_of_two(_depth(shape), low=16, high=32)


def _depth(shape: Shape) -> int:
    return shape.channels // shape.groups * shape.kernel[0] * shape.kernel[1]


def _fitted(config: Config, shape: Shape, target: Target) -> Config:
    stage_bytes = (config.block_m + config.block_n) * config.block_k * ITEM_BYTES[shape.dtype]
    most = config.num_stages if target.kind == "cuda" else 2
    num_stages = stages_that_fit(stage_bytes, target.shared_bytes, most)
    return Config(config.block_m, config.block_n, config.block_k, config.num_warps, num_stages)


def workspace_words(shape: Shape, config: Config) -> int:
    return 0


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    out_channels = shape.out_channels // shape.groups
    tiles = cdiv(shape.pixels, config.block_m) * shape.groups * cdiv(out_channels, config.block_n)
    return Launch(
        NAME,
        (tiles, shape.rows),
        {**convolution.arguments(shape, operands), "OUT_C": out_channels, "GROUPS": shape.groups},
        {
            **convolution.constants(shape),
            "C": shape.channels // shape.groups,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "PRECISION": product_precision(shape.precision, target.has_tf32),
        },
        config.num_warps,
        config.num_stages,
    )
