"""What the two convolution kernels share: descriptor, operands, checks, arguments, reference. No triton.

Tensors are NHWC: x[rows, images, H, W, C], weights [slots, out channels, kernel H, kernel W, C of a group], which is
the memory of channels-last tensors. y = activation((conv + bias) * scale + shift + residual); a BatchNorm is given as
scale and shift, or folded into weights and bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spacetime.errors import InputError
from spacetime.kernels.triton.launch import (
    CONTRACT,
    Slotted,
    activated,
    check,
    check_options,
    check_rows,
    dtype_name,
    live_rows,
    table_arguments,
)
from spacetime.kernels.triton.sampling import Sampler
from spacetime.values import Value

Pair = tuple[int, int]


def out_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """H, W of the output."""
    height, width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


@dataclass(frozen=True, slots=True)
class Shape(Value):
    """One convolution of `rows` rows with `images` images each."""

    rows: int
    images: int
    size: Pair  # H, W of the input
    channels: int  # of all groups together
    out_channels: int
    kernel: Pair
    dtype: str
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    precision: str = "ieee"
    bias: bool = False
    scale: bool = False  # and shift
    residual: bool = False
    activation: str = "none"

    @property
    def out_size(self) -> Pair:
        return out_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def pixels(self) -> int:
        """Of one row's output."""
        return self.images * self.out_size[0] * self.out_size[1]

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.channels > 1


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """bias, scale and shift are [slots, out channels]; residual and out [rows, images, out H, out W, out channels]."""

    x: Tensor
    weight: Slotted
    num_active: Tensor
    out: Tensor
    bias: Slotted | None = None
    scale: Slotted | None = None
    shift: Slotted | None = None
    residual: Tensor | None = None


def describe(
    operands: Operands,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    activation: str = "none",
    precision: str = "ieee",
) -> Shape:
    """The descriptor of a launch; refuses operands that break the contract."""
    x, stack = operands.x, operands.weight.stack
    where = f"a convolution of x{tuple(x.shape)} and weights {operands.weight}"
    dtype = dtype_name(x, where)
    check_options(where, dtype, activation, precision)
    if x.ndim != 5 or stack.ndim != 5:
        facts = "x is [rows, images, H, W, C], weights are [slots, out channels, kH, kW, C of a group]"
        raise InputError(where, facts, CONTRACT)
    rows, images, height, width, channels = x.shape
    _, out_channels, kernel_h, kernel_w, group_channels = stack.shape
    tables = [operands.bias, operands.scale, operands.shift]
    shape = Shape(
        *(rows, images, (height, width), channels, out_channels, (kernel_h, kernel_w), dtype),
        *(stride, padding, dilation, groups, precision),
        bias=operands.bias is not None,
        scale=operands.scale is not None,
        residual=operands.residual is not None,
        activation=activation,
    )
    out = (rows, images, *shape.out_size, out_channels)
    check(
        *(where, rows, operands.num_active, [operands.weight, *filter(None, tables)]),
        (channels % groups != 0 or out_channels % groups != 0, f"{groups} groups of {channels} -> {out_channels}"),
        (group_channels * groups != channels, f"{groups} groups of {group_channels} channels, x has {channels}"),
        (stack.dtype != x.dtype, f"weights are {stack.dtype}"),
        (min(shape.out_size) < 1, f"the output would have {shape.out_size} pixels"),
        *check_rows("x", x, (rows, images, height, width, channels), x.dtype),
        *check_rows("out", operands.out, out, x.dtype),
        *check_rows("residual", operands.residual, out, x.dtype),
        ((operands.scale is None) != (operands.shift is None), "scale and shift come together"),
        *((table is not None and table.stack.shape[1:] != (out_channels,), f"{table}") for table in tables),
    )
    return shape


def arguments(shape: Shape, operands: Operands) -> dict[str, Any]:
    """What both kernels take at run time."""
    x, out, residual = operands.x, operands.out, operands.residual
    tables = table_arguments(w=operands.weight, bias=operands.bias, scale=operands.scale, shift=operands.shift)
    return {
        **{"x": x, "y": out, "res": residual, "num_active": operands.num_active, **tables},
        **{"IMAGES": shape.images, "H": shape.size[0], "W": shape.size[1]},
        **{"OUT_H": shape.out_size[0], "OUT_W": shape.out_size[1]},
        **{"x_row": x.stride(0), "y_row": out.stride(0), "res_row": 0 if residual is None else residual.stride(0)},
    }


def constants(shape: Shape) -> dict[str, Any]:
    """What both kernels are compiled for."""
    geometry = {"KERNEL": shape.kernel, "STRIDE": shape.stride, "PAD": shape.padding, "DILATION": shape.dilation}
    pairs = {f"{name}_{axis}": value for name, pair in geometry.items() for axis, value in zip("HW", pair, strict=True)}
    return {**pairs, "ACTIVATION": shape.activation}


def reference(shape: Shape, operands: Operands) -> Tensor:
    """What `launch` leaves in `out`, computed in float64, row by row."""
    result = operands.out.double()
    geometry = (shape.stride, shape.padding, shape.dilation, shape.groups)
    for row, entry in live_rows(operands.weight.entries, operands.num_active):
        weight = operands.weight.stack[entry].double().permute(0, 3, 1, 2)
        image = operands.x[row].double().permute(0, 3, 1, 2)
        value = torch.nn.functional.conv2d(image, weight, None, *geometry).permute(0, 2, 3, 1)
        for operand, apply in ((operands.bias, Tensor.add), (operands.scale, Tensor.mul), (operands.shift, Tensor.add)):
            if operand is not None:
                value = apply(value, operand.stack[int(operand.entries[row])].double())
        if operands.residual is not None:
            value = value + operands.residual[row].double()
        result[row] = activated(value, shape.activation)
    return result


def sample(shape: Shape, device: str, *, slots: int, seed: int = 0, words: int = 0) -> Operands:
    """Random operands of a shape, see sampling.py."""
    make = Sampler(device, shape.dtype, shape.rows, slots, seed)
    per_group = shape.channels // shape.groups
    depth = per_group * shape.kernel[0] * shape.kernel[1]
    out = (shape.rows, shape.images, *shape.out_size, shape.out_channels)
    bias, scale, shift = (
        make.slotted(shape.out_channels) if is_there else None for is_there in (shape.bias, shape.scale, shape.scale)
    )
    return Operands(
        make.random(shape.rows, shape.images, *shape.size, shape.channels),
        make.slotted(shape.out_channels, *shape.kernel, per_group, scale=depth**-0.5),
        make.num_active,
        make.blank(*out),
        bias,
        scale,
        shift,
        make.random(*out) if shape.residual else None,
    )
