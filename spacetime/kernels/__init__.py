"""Slot operations: what a step with weights does to rows of many tenants. One file per kernel.

`bind` is the table from the names that capture/fuse.py emits to the implementations of this device class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.kernels.per_tenant import PerTenant
from spacetime.kernels.prepacked_conv import PrepackedConv, available
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_broadcast import affine, gather, layer_norm
from spacetime.kernels.slot_conv import SlotConv
from spacetime.kernels.slot_embedding import slot_embedding
from spacetime.kernels.slot_linear import slot_linear

SlotKernel = Callable[..., Any]  # (rows: RowMap, *values) -> value

__all__ = ["RowMap", "SlotKernel", "bind"]


def bind(step: Step, layers: list[Layer], *, prepack: bool = False) -> SlotKernel:
    """The kernel for a slot operation, with its layers and attributes filled in. `prepack`: memory for speed."""
    operands = [None if ref is None else layers[ref.index] for ref in step.operands]
    kernel = _KERNELS[str(step.target)](step, operands, layers)
    return PrepackedConv(kernel) if prepack and isinstance(kernel, SlotConv) and available() else kernel


Operands = list[Any]  # Layer, or None where the operation has none


def _positional(kernel: Callable[..., Any]) -> Callable[[Step, Operands, list[Layer]], SlotKernel]:
    """Kernels of the form kernel(rows, *values, *layers, **attributes)."""

    def build(step: Step, operands: Operands, layers: list[Layer]) -> SlotKernel:
        return lambda rows, *values: kernel(rows, *values, *operands, **step.attributes)

    return build


def _conv(step: Step, operands: Operands, layers: list[Layer]) -> SlotKernel:
    return SlotConv(*operands, **step.attributes)


def _per_tenant(step: Step, operands: Operands, layers: list[Layer]) -> SlotKernel:
    return PerTenant(**step.attributes, layers=layers)


_KERNELS: dict[str, Callable[[Step, Operands, list[Layer]], SlotKernel]] = {
    "linear": _positional(slot_linear),
    "conv": _conv,
    "affine": _positional(affine),
    "layer_norm": _positional(layer_norm),
    "gather": _positional(gather),
    "embedding": _positional(slot_embedding),
    "per_tenant": _per_tenant,
}
