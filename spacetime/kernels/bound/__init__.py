"""Slot operations of fused programs in the form for GPUs (capture/on_gpu.py): a Triton kernel, or plain torch.

Each file is one operation. A bound operation is called with the rows of its lane, the lane's owners (owners.py) and
its inputs, and chooses: the Triton kernel for its shape where there is one (triton/choose.py), plain torch otherwise;
for products also what libraries have, where that is measured to be faster (products.py). What it chose last, and why,
is `choice`. Used by kernels/ and backends/; importing it needs no triton.

For who captures graphs: run the program with AnyRows (rowmap.py) instead of a RowMap. The graph then serves every mix
of up to so many rows: `fill` words on the host, copy them into the words it was captured with, replay. It keeps the
slabs and the table of entries (`entry_table`) that it was captured with; when one of them is another, capture again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from spacetime.kernels.bound.operation import Bound, Choice
from spacetime.kernels.bound.owners import EntryTable, MakeOwners
from spacetime.kernels.rowmap import AnyRows, MixError, num_words

__all__ = ["Choice", "choices", "entry_table", "gains_from_own_graph", "warm"]


def choices(kernels: Iterable[Any]) -> tuple[Choice, ...]:
    """What the slot kernels of a program run as, in order; for explain()."""
    return tuple(kernel.choice for kernel in kernels if isinstance(kernel, Bound))


def entry_table(kernels: Iterable[Any]) -> EntryTable | None:
    """The table of a program; `current()` brings it up to date, which a replay does not. None: it has no owners."""
    return next((kernel.table for kernel in kernels if isinstance(kernel, MakeOwners)), None)


def gains_from_own_graph(kernels: Iterable[Any], parts: Sequence[tuple[int, int]]) -> bool:
    """Is a lane of these (tenant, rows) faster in a graph of its mix alone than in one of any mix?

    So it is where products are computed on the slab as it lies, which takes knowing that its entries have equal rows.
    What earlier lanes of as many rows chose tells.
    """
    counts = [rows for _, rows in parts]
    is_even = len(set(counts)) == 1
    return is_even and any(isinstance(kernel, Bound) and sum(counts) in kernel.whole_rows for kernel in kernels)


def warm(run: Callable[..., Any], inputs: Sequence[Tensor], row_counts: Iterable[int]) -> str | None:
    """Compile the kernels of a program for batches of so many rows, off the hot path. All rows are idle: it is quick.

    `inputs`: one row or more of each input, whatever it holds. The answer is why some kernels could not be compiled:
    the program has a step that must know its rows.
    """
    for count in row_counts:
        words = torch.zeros(num_words(count), dtype=torch.int32, device=inputs[0].device)
        batch = [tensor[:1].expand(count, *tensor.shape[1:]).contiguous() for tensor in inputs]
        try:
            with torch.no_grad():
                run(AnyRows(count, words), *batch)
        except MixError as error:
            return error.facts
    return None
