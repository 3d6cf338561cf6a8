"""slot_conv2d: an implicit GEMM over NHWC pixels. Device code; see the wrapper of the same name."""

# mypy: ignore-errors
# ruff: noqa: PLR0915 - a kernel is one function

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import activate, entry_of, per_output, weights_of


@triton.jit
def slot_conv2d_kernel(
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
    OUT_C,  # of one group
    GROUPS,
    x_row,
    w_slot,
    bias_slot,
    scale_slot,
    shift_slot,
    res_row,
    y_row,
    C: tl.constexpr,  # of one group
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
    BLOCK_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grid = (tiles of pixels x groups x tiles of a group's output channels, rows). M is pixels, N channels."""
    r = tl.program_id(1)
    entry = entry_of(w_entry, num_active, r)
    if entry < 0:
        return
    DEPTH: tl.constexpr = KERNEL_H * KERNEL_W * C
    tiles_n = tl.cdiv(OUT_C, BLOCK_N)
    pid = tl.program_id(0)
    group = pid // tiles_n % GROUPS
    M = IMAGES * OUT_H * OUT_W
    om = pid // tiles_n // GROUPS * BLOCK_M + tl.arange(0, BLOCK_M)
    on = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = tl.arange(0, BLOCK_K)
    pixel = tl.where(om < M, om, 0)
    top = pixel // OUT_W % OUT_H * STRIDE_H - PAD_H
    left = pixel % OUT_W * STRIDE_W - PAD_W
    corner = (pixel // OUT_W // OUT_H * H + top) * W + left  # of the window; may lie outside: masked below
    channels = C * GROUPS
    xb = x + r.to(tl.int64) * x_row + group * C
    wn = group * OUT_C + tl.where(on < OUT_C, on, 0)
    wp = weights_of(w, entry, w_slot, 1) + wn[None, :] * DEPTH + ok[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if C % BLOCK_K == 0:  # a block lies in one tap of the window
        for k in range(0, DEPTH, BLOCK_K):
            tap = k // C
            down = tap // KERNEL_W * DILATION_H
            right = tap % KERNEL_W * DILATION_W
            inside = (top + down >= 0) & (top + down < H) & (left + right >= 0) & (left + right < W)
            first = tl.multiple_of(k % C, BLOCK_K)  # not seen by the compiler: it would load one element at a time
            at = (corner + down * W + right)[:, None] * channels + (first + ok)[None, :]
            xt = tl.load(xb + at, mask=inside[:, None], other=0.0)
            wt = tl.load(wp + k)
            acc = tl.dot(xt, wt, acc, input_precision=PRECISION)
    else:
        for k in range(0, DEPTH, BLOCK_K):
            tap = (k + ok) // C
            down = (tap // KERNEL_W * DILATION_H)[None, :]
            right = (tap % KERNEL_W * DILATION_W)[None, :]
            ih = top[:, None] + down
            iw = left[:, None] + right
            deep = k + ok < DEPTH
            inside = (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W) & deep[None, :]
            at = (corner[:, None] + down * W + right) * channels + ((k + ok) % C)[None, :]
            xt = tl.load(xb + at, mask=inside, other=0.0)
            wt = tl.load(wp + k, mask=deep[:, None], other=0.0)
            acc = tl.dot(xt, wt, acc, input_precision=PRECISION)
    oc = group * OUT_C + on
    if bias is not None:
        acc += per_output(bias, bias_entry, bias_slot, r, oc, (group + 1) * OUT_C)[None, :]
    if scale is not None:
        acc *= per_output(scale, scale_entry, scale_slot, r, oc, (group + 1) * OUT_C)[None, :]
    if shift is not None:
        acc += per_output(shift, shift_entry, shift_slot, r, oc, (group + 1) * OUT_C)[None, :]
    mask = (om < M)[:, None] & (on < OUT_C)[None, :]
    at = om[:, None] * (OUT_C * GROUPS) + oc[None, :]
    if res is not None:
        acc += tl.load(res + r.to(tl.int64) * res_row + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + r.to(tl.int64) * y_row + at, activate(acc, ACTIVATION).to(y.dtype.element_ty), mask=mask)
