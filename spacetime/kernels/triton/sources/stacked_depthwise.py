"""stacked_depthwise: slot_depthwise once for each of several programs. Device code; see the wrapper stacked.py."""

# mypy: ignore-errors

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.slot_depthwise import slot_depthwise_kernel


@triton.jit
def stacked_depthwise_kernel(
    table,
    x,
    w,
    bias,
    scale,
    shift,
    res,
    y,
    w_entry,
    bias_entry,
    scale_entry,
    shift_entry,
    num_active,
    IMAGES,
    H,
    W,
    OUT_H,
    OUT_W,
    OUT_C,
    x_row,
    w_slot,
    bias_slot,
    scale_slot,
    shift_slot,
    res_row,
    y_row,
    MULTIPLIER: tl.constexpr,  # output channels per input channel
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """grid = (tiles, rows, programs). table: int64[programs, 16], pointers in the order of stacked.POINTERS; those that
    are given tell types only."""
    row = table + tl.program_id(2) * 16
    x = tl.multiple_of(tl.load(row + 0).to(x.dtype), 16)
    w = tl.multiple_of(tl.load(row + 1).to(w.dtype), 16)
    if bias is not None:
        bias = tl.multiple_of(tl.load(row + 2).to(bias.dtype), 16)
        bias_entry = tl.multiple_of(tl.load(row + 6).to(bias_entry.dtype), 16)
    if res is not None:
        res = tl.multiple_of(tl.load(row + 3).to(res.dtype), 16)
    y = tl.multiple_of(tl.load(row + 4).to(y.dtype), 16)
    w_entry = tl.multiple_of(tl.load(row + 5).to(w_entry.dtype), 16)
    num_active = tl.multiple_of(tl.load(row + 7).to(num_active.dtype), 16)
    if scale is not None:
        scale = tl.multiple_of(tl.load(row + 8).to(scale.dtype), 16)
        scale_entry = tl.multiple_of(tl.load(row + 10).to(scale_entry.dtype), 16)
    if shift is not None:
        shift = tl.multiple_of(tl.load(row + 9).to(shift.dtype), 16)
        shift_entry = tl.multiple_of(tl.load(row + 11).to(shift_entry.dtype), 16)
    slot_depthwise_kernel(
        x,
        w,
        bias,
        scale,
        shift,
        res,
        y,
        w_entry,
        bias_entry,
        scale_entry,
        shift_entry,
        num_active,
        IMAGES,
        H,
        W,
        OUT_H,
        OUT_W,
        OUT_C,
        x_row,
        w_slot,
        bias_slot,
        scale_slot,
        shift_slot,
        res_row,
        y_row,
        MULTIPLIER,
        KERNEL_H,
        KERNEL_W,
        STRIDE_H,
        STRIDE_W,
        PAD_H,
        PAD_W,
        DILATION_H,
        DILATION_W,
        BLOCK_M,
        BLOCK_N,
        ACTIVATION,
    )
