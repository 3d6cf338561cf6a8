"""slot_depthwise: a convolution in which every channel stands alone. Device code; see the wrapper of the same name."""

# mypy: ignore-errors

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import activate, entry_of, per_output, weights_of


@triton.jit
def slot_depthwise_kernel(
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
    """grid = (tiles of pixels x tiles of channels, rows)."""
    r = tl.program_id(1)
    entry = entry_of(w_entry, num_active, r)
    if entry < 0:
        return
    tiles_n = tl.cdiv(OUT_C, BLOCK_N)
    pid = tl.program_id(0)
    M = IMAGES * OUT_H * OUT_W
    om = pid // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    oc = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    top = om // OUT_W % OUT_H * STRIDE_H - PAD_H
    left = om % OUT_W * STRIDE_W - PAD_W
    corner = (om // OUT_W // OUT_H * H + top) * W + left
    mask = (om < M)[:, None] & (oc < OUT_C)[None, :]
    xb = x + r.to(tl.int64) * x_row + (oc // MULTIPLIER)[None, :]
    wp = weights_of(w, entry, w_slot, 1) + oc * (KERNEL_H * KERNEL_W)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for kh in range(KERNEL_H):  # not unrolled: all taps' loads at once would fill the registers
        for kw in tl.static_range(KERNEL_W):
            ih = top + kh * DILATION_H
            iw = left + kw * DILATION_W
            inside = ((ih >= 0) & (ih < H) & (iw >= 0) & (iw < W))[:, None] & mask
            at = (corner + kh * DILATION_H * W + kw * DILATION_W)[:, None] * (OUT_C // MULTIPLIER)
            xt = tl.load(xb + at, mask=inside, other=0.0).to(tl.float32)
            wt = tl.load(wp + kh * KERNEL_W + kw, mask=oc < OUT_C, other=0.0).to(tl.float32)
            acc += xt * wt[None, :]
    if bias is not None:
        acc += per_output(bias, bias_entry, bias_slot, r, oc, OUT_C)[None, :]
    if scale is not None:
        acc *= per_output(scale, scale_entry, scale_slot, r, oc, OUT_C)[None, :]
    if shift is not None:
        acc += per_output(shift, shift_entry, shift_slot, r, oc, OUT_C)[None, :]
    at = om[:, None] * OUT_C + oc[None, :]
    if res is not None:
        acc += tl.load(res + r.to(tl.int64) * res_row + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + r.to(tl.int64) * y_row + at, activate(acc, ACTIVATION).to(y.dtype.element_ty), mask=mask)
