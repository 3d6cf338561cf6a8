"""Slot operations: what a step with weights does to rows of many tenants. One file per kernel.

`bind` is the table from the names that capture/ emits to their implementations: plain torch (this folder), or, for
programs in the form for GPUs, what chooses between Triton kernels and plain torch (bound/).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.kernels.per_tenant import PerTenant
from spacetime.kernels.prepacked_conv import PrepackedConv, available
from spacetime.kernels.rowmap import AnyRows, MixError, RowMap
from spacetime.kernels.slot_broadcast import affine, gather, layer_norm
from spacetime.kernels.slot_conv import SlotConv
from spacetime.kernels.slot_embedding import slot_embedding
from spacetime.kernels.slot_linear import slot_linear
from spacetime.kernels.vector.host import host
from spacetime.kernels.vector_conv import VectorConv

SlotKernel = Callable[..., Any]  # (rows: RowMap, *values) -> value

__all__ = ["AnyRows", "MixError", "RowMap", "SlotKernel", "bind"]


def bind(step: Step, layers: list[Layer], *, prepack: bool = False) -> SlotKernel:
    """The kernel for a slot operation, with its layers and attributes filled in. `prepack`: memory for speed."""
    operands = [None if ref is None else layers[ref.index] for ref in step.operands]
    kernel = _KERNELS[str(step.target)](step, operands, layers)
    return _fast(kernel, prepack=prepack) if isinstance(kernel, SlotConv) else kernel


def _fast(plain: SlotConv, *, prepack: bool) -> SlotKernel:
    """Small images by vector kernels where the processor has them; the others packed, if that is wanted."""
    others = PrepackedConv(plain) if prepack and available() else plain
    on = host()
    return others if on is None else VectorConv(plain, others, on)


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


def _bound(module: str, name: str) -> Callable[[Step, Operands, list[Layer]], SlotKernel]:
    """Of bound/, which is only for programs in the form for GPUs: nobody else waits for its import."""

    def build(step: Step, operands: Operands, layers: list[Layer]) -> SlotKernel:
        kernel: SlotKernel = getattr(import_module(f"spacetime.kernels.bound.{module}"), name)(step, layers)
        return kernel

    return build


def _owners(step: Step, operands: Operands, layers: list[Layer]) -> SlotKernel:
    from spacetime.kernels.bound.owners import MakeOwners

    return MakeOwners(layers)


def _faults(step: Step, operands: Operands, layers: list[Layer]) -> SlotKernel:
    from spacetime.kernels.bound.owners import CheckFaults

    return CheckFaults()


_KERNELS: dict[str, Callable[[Step, Operands, list[Layer]], SlotKernel]] = {
    "linear": _positional(slot_linear),
    "conv": _conv,
    "affine": _positional(affine),
    "layer_norm": _positional(layer_norm),
    "gather": _positional(gather),
    "embedding": _positional(slot_embedding),
    "per_tenant": _per_tenant,
    "gpu_owners": _owners,
    "gpu_faults": _faults,
    "gpu_linear": _bound("linear", "BoundLinear"),
    "gpu_conv": _bound("conv", "BoundConv"),
    "gpu_layer_norm": _bound("lookup", "BoundLayerNorm"),
    "gpu_embedding": _bound("lookup", "BoundEmbedding"),
    "gpu_gather": _bound("lookup", "BoundGather"),
    "gpu_affine": _bound("lookup", "BoundAffine"),
}
