"""row_entries: whose weights every row uses in every layer. Device code; see the wrapper of the same name."""

# mypy: ignore-errors

import triton
import triton.language as tl

from spacetime.kernels.triton.sources.common import entry_of


@triton.jit
def row_entries_kernel(
    entries,
    slots,
    num_active,
    y,
    LAYERS,
    SLOTS,
    ROWS,
    BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """grid = (tiles of layers, tiles of rows). A slot outside the table is an idle row, never another's weights."""
    layer = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    slot = entry_of(slots, num_active, row)
    known = (slot >= 0) & (slot < SLOTS) & (row < ROWS)
    at = layer.to(tl.int64)[:, None] * SLOTS + slot[None, :]
    value = tl.load(entries + at, mask=(layer < LAYERS)[:, None] & known[None, :], other=-1)
    mask = (layer < LAYERS)[:, None] & (row < ROWS)[None, :]
    tl.store(y + layer.to(tl.int64)[:, None] * ROWS + row[None, :], value, mask=mask)
