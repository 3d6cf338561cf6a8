"""y[row] = table[slot of row][indices[row]]. Plain torch.

One lookup per tenant, not one in the concatenated tables: an index out of range must fail for its own tenant
instead of reading its neighbour's weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.kernels.rowmap import RowMap


def slot_embedding(rows: RowMap, indices: Tensor, table: Layer, row_dim: int = 0) -> Tensor:
    runs = rows.layout(table).runs
    if len(runs) == 1:
        return F.embedding(indices, table.entry(runs[0].entry))
    multiple = indices.shape[row_dim] // rows.total
    parts = indices.split([run.count * multiple for run in runs], row_dim)
    found = [F.embedding(part, table.entry(run.entry)) for part, run in zip(parts, runs, strict=True)]
    return torch.cat(found, row_dim)
