"""slot_gemv: products and sums in fp32, no tensor cores. Device code; see the wrapper of the same name."""

# mypy: ignore-errors

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import entry_of, finish, weights_of


@triton.jit
def slot_gemv_kernel(
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
    """grid = (tiles of N, rows); all M rows of x are kept whole, so that a weight is read once."""
    # Multiples of 8 make accesses of 16 bytes; by itself the compiler only notices multiples of 16.
    K = K // K_MULTIPLE * K_MULTIPLE
    N = N // N_MULTIPLE * N_MULTIPLE
    r = tl.program_id(1)
    entry = entry_of(w_entry, num_active, r)
    if entry < 0:
        return
    om = tl.arange(0, BLOCK_M)
    on = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = tl.arange(0, BLOCK_K)
    xm = tl.where(om < M, om, 0)
    wn = tl.where(on < N, on, 0)
    xb = x + tl.multiple_of(r.to(tl.int64) * x_row, K_MULTIPLE)
    wb = weights_of(w, entry, w_slot, K_MULTIPLE)
    xp = xb + xm[:, None, None] * K + ok[None, None, :]
    wp = wb + wn[None, :, None] * K + ok[None, None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_K), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            xt = tl.load(xp + k)
            wt = tl.load(wp + k)
        else:
            inside = (k + ok < K)[None, None, :]
            xt = tl.load(xp + k, mask=inside, other=0.0)
            wt = tl.load(wp + k, mask=inside, other=0.0)
        acc += xt.to(tl.float32) * wt.to(tl.float32)
    total = tl.sum(acc, 2)
    finish(total, bias, bias_entry, res, y, r, om, on, M, N, bias_slot, res_row, y_row, N_MULTIPLE, ACTIVATION)
