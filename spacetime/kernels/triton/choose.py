"""(descriptor, device) -> config: from measurements if there are any, else the kernel's own rule. Pure; no triton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

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
from spacetime.kernels.triton.blocks import power_of_two
from spacetime.kernels.triton.launch import Launch
from spacetime.kernels.triton.table import Table, key, shipped
from spacetime.kernels.triton.target import Target
from spacetime.values import decode

KERNELS: dict[str, Any] = {
    kernel.NAME: kernel
    for kernel in (slot_linear, slot_gemv, slot_conv2d, slot_depthwise, slot_embedding, slot_layernorm, grouped_linear)
}


# How fp32 may be multiplied without breaking the numerics contract: exactly, or in three terms on tensor cores.
_EXACT_ENOUGH = ("ieee", "tf32x3")


@dataclass(frozen=True, slots=True)
class Plan:
    """The kernel that serves a shape, the shape as it is computed, and the config."""

    kernel: Any
    shape: Any
    config: Any

    def launch(self, operands: Any, target: Target, workspace: Callable[[int, int], Tensor]) -> Launch:
        """`workspace(words, arrivals)` gives memory for one launch: int32, the arrivals zero."""
        words = self.kernel.workspace_words(self.shape, self.config)
        if words:
            arrivals = self.kernel.arrivals_words(self.shape, self.config)
            operands = replace(operands, workspace=workspace(words, arrivals))
        launch: Launch = self.kernel.launch(self.shape, self.config, operands, target)
        return launch


def linear_plan(shape: slot_linear.Shape, target: Target, table: Table | None = None) -> Plan:
    """For a linear layer: the fastest that is measured, else the rule of `linear_for`."""
    table = shipped() if table is None else table
    like = _planned_as(shape, (slot_linear, slot_gemv), target, table)
    kernel = linear_for(like, target, table)
    return Plan(kernel, replace(like, rows=shape.rows), config_for(kernel, like, target, table))


def convolution_plan(shape: convolution.Shape, target: Target, table: Table | None = None) -> Plan:
    """The same for a convolution."""
    table = shipped() if table is None else table
    kernel = convolution_for(shape)
    like = _planned_as(shape, (kernel,), target, table)
    return Plan(kernel, replace(like, rows=shape.rows), config_for(kernel, like, target, table))


def _planned_as(shape: Any, kernels: tuple[Any, ...], target: Target, table: Table) -> Any:
    """The shape that the config is looked up for: this one if it is measured, else with rows as a power of two.

    Every config is a compilation, and batches come with any number of rows.
    """
    is_measured = any(key(kernel.NAME, target.name, shape) in table for kernel in kernels)
    like = shape if is_measured else replace(shape, rows=power_of_two(shape.rows))
    return _fastest(like, kernels, target, table)


def _fastest(shape: Any, kernels: tuple[Any, ...], target: Target, table: Table) -> Any:
    """The shape in the precision that is measured to be the fastest; as it is where nothing else is measured."""
    if shape.dtype != "fp32" or shape.precision != "ieee":
        return shape
    times: dict[float, Any] = {}
    for precision in _EXACT_ENOUGH:
        other = replace(shape, precision=precision)
        known = [table.get(key(kernel.NAME, target.name, other)) for kernel in kernels]
        times |= {measured.time_us: other for measured in known if measured is not None}
    is_comparable = len({other.precision for other in times.values()}) > 1
    return times[min(times)] if is_comparable else shape


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
