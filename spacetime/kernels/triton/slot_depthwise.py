"""A depthwise convolution of each row with its own model's weights in one launch; exact, NHWC. See convolution.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from spacetime.errors import InputError
from spacetime.kernels.triton import convolution
from spacetime.kernels.triton.blocks import cdiv, power_of_two
from spacetime.kernels.triton.convolution import Operands, Shape, describe, reference, sample
from spacetime.kernels.triton.launch import Launch
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

NAME = "slot_depthwise"


@dataclass(frozen=True, slots=True)
class Config(Value):
    block_m: int  # pixels
    block_n: int  # channels
    num_warps: int


def default(shape: Shape, target: Target) -> Config:
    block_n = power_of_two(shape.out_channels, low=8, high=64)
    return Config(min(32, power_of_two(shape.pixels, low=8)), block_n, 4)


def candidates(shape: Shape, target: Target) -> Iterator[Config]:
    """What tuning tries."""
    for block_m, block_n, num_warps in product((8, 16, 32, 64), (16, 32, 64, 128), (1, 2, 4, 8)):
        if 4 <= block_m * block_n // (32 * num_warps) <= 32 and block_n < 2 * max(shape.out_channels, 16):
            yield Config(block_m, block_n, num_warps)


def workspace_words(shape: Shape, config: Config) -> int:
    return 0


def launch(shape: Shape, config: Config, operands: Operands, target: Target) -> Launch:
    if not shape.is_depthwise:
        facts = f"{shape.groups} groups of {shape.channels} channels"
        raise InputError(f"{NAME} of {shape}", facts, "use slot_conv2d")
    tiles = cdiv(shape.pixels, config.block_m) * cdiv(shape.out_channels, config.block_n)
    return Launch(
        NAME,
        (tiles, shape.rows),
        {**convolution.arguments(shape, operands), "OUT_C": shape.out_channels},
        {
            **convolution.constants(shape),
            "MULTIPLIER": shape.out_channels // shape.channels,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
        },
        config.num_warps,
        num_stages=1,
    )
