"""slot_embedding: a gather that stays in its tenant's table. Device code; see the wrapper of the same name."""

# mypy: ignore-errors

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import entry_of, weights_of


@triton.jit
def slot_embedding_kernel(
    indices,
    w,
    y,
    w_entry,
    num_active,
    faults,
    M,
    NUM_EMBEDDINGS,
    WIDTH,
    indices_row,
    w_slot,
    y_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """grid = (tiles of M x WIDTH, rows)."""
    r = tl.program_id(1)
    entry = entry_of(w_entry, num_active, r)
    if entry < 0:
        return
    tiles_n = tl.cdiv(WIDTH, BLOCK_N)
    pid = tl.program_id(0)
    om = pid // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    on = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    index = tl.load(indices + r.to(tl.int64) * indices_row + om, mask=om < M, other=0).to(tl.int64)
    known = (index >= 0) & (index < NUM_EMBEDDINGS)
    mask = (om < M)[:, None] & (on < WIDTH)[None, :]
    at = index[:, None] * WIDTH + on[None, :]
    # An index outside reads nothing, not its neighbour's weights: NaN, and a mark that fails the request.
    v = tl.load(weights_of(w, entry, w_slot, 1) + at, mask=mask & known[:, None], other=0.0)
    v = tl.where(known[:, None], v.to(tl.float32), float("nan")).to(y.dtype.element_ty)
    tl.store(y + r.to(tl.int64) * y_row + om[:, None].to(tl.int64) * WIDTH + on[None, :], v, mask=mask)
    wrong = tl.max(tl.where(known, 0, 1), 0)
    tl.store(faults + r, 1, mask=wrong > 0)
