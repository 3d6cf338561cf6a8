"""stacked_gemv: slot_gemv once for each of several programs. Device code; see the wrapper stacked.py."""

# mypy: ignore-errors

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.slot_gemv import slot_gemv_kernel


@triton.jit
def stacked_gemv_kernel(
    table,
    x,
    w,
    bias,
    res,
    y,
    w_entry,
    bias_entry,
    num_active,
    N,
    K,
    x_row,
    w_slot,
    bias_slot,
    res_row,
    y_row,
    M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN_K: tl.constexpr,
    K_MULTIPLE: tl.constexpr,
    N_MULTIPLE: tl.constexpr,
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
    slot_gemv_kernel(
        x,
        w,
        bias,
        res,
        y,
        w_entry,
        bias_entry,
        num_active,
        N,
        K,
        x_row,
        w_slot,
        bias_slot,
        res_row,
        y_row,
        M,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        STAGES,
        EVEN_K,
        K_MULTIPLE,
        N_MULTIPLE,
        ACTIVATION,
    )
