"""Arithmetic of tiles that the configs share. No torch, no triton."""

from __future__ import annotations


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int, low: int = 1, high: int = 1 << 30) -> int:
    """The least power of two that is no less than n, between low and high."""
    return min(high, max(low, 1 << max(0, n - 1).bit_length()))


def largest_divisor(n: int, high: int) -> int:
    """The greatest power of two up to `high` that divides n."""
    return min(high, n & -n)


def stages_that_fit(stage_bytes: int, shared_bytes: int, wanted: int) -> int:
    """How many stages of a pipeline the memory of one program holds, at least one."""
    return max(1, min(wanted, shared_bytes // max(1, stage_bytes)))


def parts(num_tiles: int, num_blocks: int, num_units: int, most: int = 16) -> int:
    """Into how many parts to split K: as few as give every unit two tiles, each part at least two blocks deep."""
    split = 1
    while num_tiles * split < 2 * num_units and split * 2 <= most and num_blocks >= 4 * split:
        split *= 2
    return split
