"""grouped_linear: tiles of many different products, worked off by a fixed number of programs. Device code."""

# mypy: ignore-errors
# ruff: noqa: PLR0915 - a kernel is one function

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import activate


@triton.jit
def grouped_linear_kernel(
    problems,
    tiles,
    num_tiles,
    like,
    bias_like,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNIT: tl.constexpr,  # elements in 16 bytes
    SWAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grid = (k,): at most k units are busy. problems: int64[P, 24], fields as in grouped_linear.FIELDS; tiles:
    int32[T, 4] = problem, row, first m, first n. `like`, `bias_like` give types only: problems hold addresses."""
    for t in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        d = problems + tl.load(tiles + t * 4) * 24
        r = tl.load(tiles + t * 4 + 1)
        om = tl.load(tiles + t * 4 + 2) + tl.arange(0, BLOCK_M)
        on = tl.load(tiles + t * 4 + 3) + tl.arange(0, BLOCK_N)
        ok = tl.arange(0, BLOCK_K)
        M = tl.load(d + 8).to(tl.int32)
        N = tl.load(d + 9).to(tl.int32)
        K = tl.multiple_of(tl.load(d + 10).to(tl.int32), UNIT)
        num_active = tl.load(tl.load(d + 7).to(tl.pointer_type(tl.int32)))
        entry = tl.load(tl.load(d + 5).to(tl.pointer_type(tl.int32)) + r, mask=r < num_active, other=-1).to(tl.int64)
        # An idle row is a loop without steps and a store without lanes: no branch around the product, which
        # the compiler could not pipeline or specialise across warps.
        live = entry >= 0
        entry = tl.where(live, entry, 0)
        depth = tl.where(live, K, 0)
        # Alignment is said after the cast: an address loses it on the way from integer to pointer.
        xb = tl.multiple_of(tl.load(d).to(like.dtype), 16) + tl.multiple_of(r * tl.load(d + 11), UNIT)
        places = tl.load(d + 17)
        place = tl.load(places.to(tl.pointer_type(tl.int64)) + r, mask=live & (places != 0), other=0)
        own = tl.load(d + 1) + entry * (tl.load(d + 12) * (16 // UNIT))
        wb = tl.multiple_of(tl.where(places != 0, place, own).to(like.dtype), 16)
        xm = tl.where(om < M, om, 0)
        wn = tl.where(on < N, on, 0)
        if SWAPPED:
            xp = xb + xm[None, :] * K + ok[:, None]
            wp = wb + wn[:, None] * K + ok[None, :]
            acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        else:
            xp = xb + xm[:, None] * K + ok[None, :]
            wp = wb + wn[None, :] * K + ok[:, None]
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, depth, BLOCK_K):
            inside = k + ok < K
            if SWAPPED:
                xt = tl.load(xp + k, mask=inside[:, None], other=0.0)
                wt = tl.load(wp + k, mask=inside[None, :], other=0.0)
                acc = tl.dot(wt, xt, acc, input_precision=PRECISION)
            else:
                xt = tl.load(xp + k, mask=inside[None, :], other=0.0)
                wt = tl.load(wp + k, mask=inside[:, None], other=0.0)
                acc = tl.dot(xt, wt, acc, input_precision=PRECISION)
        if SWAPPED:
            acc = tl.trans(acc)
        mask = (om < M)[:, None] & (on < N)[None, :] & live
        bias_address = tl.load(d + 2)
        bias_entry = tl.load(tl.load(d + 6).to(tl.pointer_type(tl.int32)) + r, mask=live & (bias_address != 0), other=0)
        bias = bias_address.to(bias_like.dtype) + bias_entry.to(tl.int64) * tl.load(d + 13)
        has_bias = (on < N) & live & (bias_address != 0)
        acc += tl.load(bias + on, mask=has_bias, other=0.0).to(tl.float32)[None, :]
        at = om[:, None] * N + on[None, :]
        res_address = tl.load(d + 3)
        res = res_address.to(like.dtype) + r * tl.load(d + 14)
        acc += tl.load(res + at, mask=mask & (res_address != 0), other=0.0).to(tl.float32)
        activation = tl.load(d + 16)
        if activation == 1:
            acc = activate(acc, "relu")
        elif activation == 2:
            acc = activate(acc, "relu6")
        elif activation == 3:
            acc = activate(acc, "gelu")
        elif activation == 4:
            acc = activate(acc, "gelu_tanh")
        elif activation == 5:
            acc = activate(acc, "silu")
        y = tl.load(d + 4).to(like.dtype) + r * tl.load(d + 15)
        tl.store(y + at, acc.to(like.dtype.element_ty), mask=mask)
