"""Launches of one slot kernel that differ in nothing but addresses, as one: the same kernel once for each, in a third
dimension of the grid. Needs triton to run only.

That is a layer of several programs with equal shapes. Numbers of rows may differ: rows that a launch has not are idle
by its num_active. The table of addresses is int64[launches, 16] in device memory, pointers in the order of POINTERS.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spacetime.kernels.triton.launch import Launch

_EPILOGUE = ("x", "w", "bias", "res", "y", "w_entry", "bias_entry", "num_active")
_CONVOLUTION = (*_EPILOGUE, "scale", "shift", "scale_entry", "shift_entry")
# The device code reads them by position.
POINTERS = {"slot_gemv": _EPILOGUE, "slot_conv2d": _CONVOLUTION, "slot_depthwise": _CONVOLUTION}
_WORDS = 16
_WIDTH_BYTES = 16  # of loads: where data must start


def kind(launch: Launch) -> Hashable | None:
    """Launches of equal kinds may be stacked; None for one that never is."""
    names = POINTERS.get(launch.kernel)
    if names is None:
        return None
    pointers = [launch.arguments[name] for name in names]
    if any(pointer is not None and pointer.data_ptr() % _WIDTH_BYTES for pointer in pointers):
        return None
    scalars = tuple(sorted((name, value) for name, value in launch.arguments.items() if name not in names))
    types = tuple([None if pointer is None else pointer.dtype for pointer in pointers])
    constants = tuple(sorted(launch.constants.items()))
    return (launch.kernel, launch.grid[0], scalars, types, constants, launch.num_warps, launch.num_stages)


def address_table(launches: Sequence[Launch]) -> Tensor:
    """On the host."""
    table = torch.zeros(len(launches), _WORDS, dtype=torch.int64)
    for row, launch in zip(table, launches, strict=True):
        pointers = [launch.arguments[name] for name in POINTERS[launch.kernel]]
        row[: len(pointers)] = torch.tensor([0 if pointer is None else pointer.data_ptr() for pointer in pointers])
    return table


def stacked(launches: Sequence[Launch], table: Tensor) -> Launch:
    """One launch for all, of one kind. The first one's tensors tell types only; `table`: theirs, on the device."""
    first, rows = launches[0], max(launch.grid[1] for launch in launches)
    return replace(
        first,
        kernel=f"stacked_{first.kernel.removeprefix('slot_')}",
        grid=(first.grid[0], rows, len(launches)),
        arguments={"table": table, **first.arguments},
    )
