"""slot_linear on tensor cores (or FMA units, for exact fp32). Device code; see the wrapper of the same name."""

# mypy: ignore-errors
# ruff: noqa: PLR0912, PLR0915 - a kernel is one function

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import entry_of, finish, weights_of


@triton.jit
def slot_linear_kernel(
    x,
    w,
    bias,
    res,
    y,
    w_entry,
    bias_entry,
    num_active,
    partials,
    arrivals,
    M,
    N,
    K,
    x_row,
    w_slot,
    bias_slot,
    res_row,
    y_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    SWAPPED: tl.constexpr,
    EVEN_K: tl.constexpr,
    K_MULTIPLE: tl.constexpr,
    N_MULTIPLE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grid = (tiles of M x N times SPLIT, rows). SWAPPED puts the weights on the MMA's M side, for few rows of x."""
    # Multiples of 8 make accesses of 16 bytes; by itself the compiler only notices multiples of 16.
    K = K // K_MULTIPLE * K_MULTIPLE
    N = N // N_MULTIPLE * N_MULTIPLE
    r = tl.program_id(1)
    entry = entry_of(w_entry, num_active, r)
    if entry < 0:
        return
    pid = tl.program_id(0)
    part = pid % SPLIT
    tile = pid // SPLIT
    tiles_n = tl.cdiv(N, BLOCK_N)
    om = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    on = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = tl.arange(0, BLOCK_K)
    # Rows and columns outside are clamped, not masked: loads stay unpredicated, the store is masked.
    xm = tl.where(om < M, om, 0)
    wn = tl.where(on < N, on, 0)
    xb = x + tl.multiple_of(r.to(tl.int64) * x_row, K_MULTIPLE)
    wb = weights_of(w, entry, w_slot, K_MULTIPLE)
    if SWAPPED:
        xp = xb + xm[None, :] * K + ok[:, None]
        wp = wb + wn[:, None] * K + ok[None, :]
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        xp = xb + xm[:, None] * K + ok[None, :]
        wp = wb + wn[None, :] * K + ok[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    blocks = tl.cdiv(K, BLOCK_K)
    blocks_per_part = tl.cdiv(blocks, SPLIT)
    first = part * blocks_per_part
    for block in range(first, tl.minimum(first + blocks_per_part, blocks)):
        k = block * BLOCK_K
        if EVEN_K:
            xt = tl.load(xp + k)
            wt = tl.load(wp + k)
        else:
            inside = k + ok < K
            if SWAPPED:
                xt = tl.load(xp + k, mask=inside[:, None], other=0.0)
                wt = tl.load(wp + k, mask=inside[None, :], other=0.0)
            else:
                xt = tl.load(xp + k, mask=inside[None, :], other=0.0)
                wt = tl.load(wp + k, mask=inside[:, None], other=0.0)
        if SWAPPED:
            acc = tl.dot(wt, xt, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(xt, wt, acc, input_precision=PRECISION)
    if SWAPPED:
        acc = tl.trans(acc)
    if SPLIT > 1:
        # The last program to arrive at a tile sums the parts in a fixed order: one launch, the same bits every time.
        tiles = tl.num_programs(0) // SPLIT
        place = r.to(tl.int64) * tiles + tile
        cell = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partials + place * (SPLIT * BLOCK_M * BLOCK_N) + cell
        tl.store(parts + part * (BLOCK_M * BLOCK_N), acc)
        tl.debug_barrier()
        before = tl.atomic_add(arrivals + place, 1, sem="acq_rel")
        if before != SPLIT - 1:
            return
        tl.debug_barrier()
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in tl.static_range(SPLIT):
            acc += tl.load(parts + i * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
        tl.store(arrivals + place, 0)  # the next launch finds zeros again
    finish(acc, bias, bias_entry, res, y, r, om, on, M, N, bias_slot, res_row, y_row, N_MULTIPLE, ACTIVATION)
