"""slot_layernorm: normalise (x + res), then each row's own affine. Device code; see the wrapper of the same name."""

# mypy: ignore-errors

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import entry_of


@triton.jit
def slot_layernorm_kernel(
    x,
    res,
    w,
    bias,
    y,
    total,
    slot,
    w_entry,
    bias_entry,
    num_active,
    M,
    epsilon,
    x_row,
    res_row,
    w_slot,
    bias_slot,
    y_row,
    total_row,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """grid = (tiles of M, rows). Two passes over registers: the mean first, then squares of what differs from it."""
    r = tl.program_id(1)
    if entry_of(slot, num_active, r) < 0:
        return
    om = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    on = tl.arange(0, BLOCK_N)
    column = on < WIDTH
    mask = (om < M)[:, None] & column[None, :]
    at = om[:, None] * WIDTH + on[None, :]
    v = tl.load(x + r.to(tl.int64) * x_row + at, mask=mask, other=0.0).to(tl.float32)
    if res is not None:
        v += tl.load(res + r.to(tl.int64) * res_row + at, mask=mask, other=0.0).to(tl.float32)
    if total is not None:
        rounded = v.to(total.dtype.element_ty)
        tl.store(total + r.to(tl.int64) * total_row + at, rounded, mask=mask)
    mean = tl.sum(v, 1) / WIDTH
    v = tl.where(column[None, :], v - mean[:, None], 0.0)
    v *= (1.0 / tl.sqrt(tl.sum(v * v, 1) / WIDTH + epsilon))[:, None]
    if w is not None:
        entry = tl.load(w_entry + r).to(tl.int64)
        v *= tl.load(w + entry * w_slot + on, mask=column, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        entry = tl.load(bias_entry + r).to(tl.int64)
        v += tl.load(bias + entry * bias_slot + on, mask=column, other=0.0).to(tl.float32)[None, :]
    tl.store(y + r.to(tl.int64) * y_row + at, v.to(y.dtype.element_ty), mask=mask)
