"""Slot kernels in Triton for NVIDIA and AMD GPUs: every row of a batch reads the weights of its own model.

A kernel is a module with the same stem as its device code in sources/: `Shape` (the descriptor), `Config`,
`Operands` (tensors), `describe(operands) -> Shape`, `default(shape, target)` and `candidates(shape, target)`,
`launch(shape, config, operands, target) -> Launch`, and `reference(shape, operands)` in plain torch. `choose.py` finds
the config, from measurements if there are any; `tune.py` makes them, offline. Products of libraries that compete with
the slot kernels are in `ways.py`, chosen by `products.py`, measured by `tune_products.py`.

Who a row belongs to lies in device memory, so a captured graph serves any mix of tenants: for each operand a table
int32[rows] with the entry of its slab that the row uses (-1: an idle row, neither read nor written), and num_active:
int32[1], the number of leading rows that count. Importing this package needs no triton. Used by backends/ and above.
"""

from __future__ import annotations

from importlib.util import find_spec


def missing() -> str | None:
    """What the kernels lack to run here; None when they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    import torch

    return None if torch.cuda.is_available() else "there is no GPU that PyTorch can use"
