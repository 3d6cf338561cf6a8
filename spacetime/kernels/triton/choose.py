"""(descriptor, device) -> config: from measurements if there are any, else the kernel's own rule. Pure; no triton."""

from __future__ import annotations

from typing import Any

from spacetime.kernels.triton import (
    convolution,
    grouped_linear,
    slot_conv2d,
    slot_depthwise,
    slot_embedding,
    slot_gemv,
    slot_layernorm,
    slot_linear,
)
from spacetime.kernels.triton.table import Table, key, shipped
from spacetime.kernels.triton.target import Target
from spacetime.values import decode

KERNELS: dict[str, Any] = {
    kernel.NAME: kernel
    for kernel in (slot_linear, slot_gemv, slot_conv2d, slot_depthwise, slot_embedding, slot_layernorm, grouped_linear)
}


def config_for(kernel: Any, shape: Any, target: Target, table: Table | None = None) -> Any:
    """The config of a kernel (a module of this package) for a shape."""
    measured = (shipped() if table is None else table).get(key(kernel.NAME, target.name, shape))
    return kernel.default(shape, target) if measured is None else decode(kernel.Config, measured.config)


def linear_for(shape: slot_linear.Shape, target: Target, table: Table | None = None) -> Any:
    """Which kernel serves a linear layer: the faster one where both are measured."""
    table = shipped() if table is None else table
    times = {}
    for kernel in (slot_linear, slot_gemv):
        measured = table.get(key(kernel.NAME, target.name, shape))
        if measured is not None:
            times[measured.time_us] = kernel
    if len(times) == 2:
        return times[min(times)]
    is_exact = shape.dtype == "fp32" and (shape.precision == "ieee" or not target.has_tf32)
    if shape.m <= slot_gemv.MOST_ROWS and (is_exact or shape.m == 1):
        return slot_gemv
    return slot_linear


def convolution_for(shape: convolution.Shape) -> Any:
    """Which kernel serves a convolution."""
    return slot_depthwise if shape.is_depthwise else slot_conv2d
