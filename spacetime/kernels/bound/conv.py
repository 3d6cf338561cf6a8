"""A convolution with its BatchNorm, residual and activation in one launch: slot_conv2d, slot_depthwise, or plain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.kernels.bound.operation import ONE_FOR_ALL, Bound, Engine, attributes_of, operands_of, refusal
from spacetime.kernels.bound.owners import Owners
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_conv import SlotConv
from spacetime.kernels.triton import convolution
from spacetime.kernels.triton.choose import Plan, convolution_plan
from spacetime.kernels.triton.convolution import Pair
from spacetime.kernels.triton.launch import activated


class BoundConv(Bound):
    """y = activation((conv(x) + bias) * scale + shift + residual), then clamped to `bounds` if there are any."""

    def __init__(self, step: Step, layers: list[Layer]) -> None:
        operands = operands_of(step, layers)
        super().__init__(step, operands)
        weight, self._bias, self._scale, self._shift = operands
        assert weight is not None
        self._weight = weight
        names = ("name", "stride", "padding", "dilation", "groups")
        self._name, self._stride, self._padding, self._dilation, self._groups = attributes_of(step, *names)
        self._activation, self._bounds = attributes_of(step, "epilogue", "bounds")
        of_plain = dict(zip(names, attributes_of(step, *names), strict=True))
        plain_layers = [None if operand is None else operand.layer for operand in operands]
        self._plain = SlotConv(*plain_layers, **of_plain, activation=None)  # type: ignore[arg-type]
        self._plans: dict[convolution.Shape, Plan] = {}

    def __call__(self, rows: RowMap, owners: Owners, x: Tensor, residual: Tensor | None = None) -> Tensor:
        reason = owners.reason or self.refusal(x) or (ONE_FOR_ALL if self._is_one_for_all(rows) else None)
        if reason is None:
            return self._launch(rows, owners, x, residual)
        self._chose_plain(rows, reason)
        y = self._plain(rows, x)
        return self._clamped(activated(y if residual is None else y.add_(residual), self._activation))

    def refusal(self, x: Tensor) -> str | None:
        """Why no kernel takes it."""
        if self._name != "conv2d":
            return f"{self._name}: kernels know conv2d"
        if isinstance(self._padding, str):
            return f"padding {self._padding!r}: kernels take numbers"
        return refusal(x, self._weight.layer.stack)

    def operands(
        self, rows: RowMap, owners: Owners, x: Tensor, residual: Tensor | None = None
    ) -> tuple[convolution.Operands, convolution.Shape]:
        """What a kernel gets, with memory for its output."""
        images = _nhwc(x, rows.total)
        weight = owners.slotted(self._weight)
        weight = replace(weight, stack=weight.stack.permute(0, 1, 3, 4, 2))
        stride, padding, dilation = (_pair(value) for value in (self._stride, self._padding, self._dilation))
        _, out_channels, *kernel, _ = weight.stack.shape
        size = convolution.out_size((x.shape[2], x.shape[3]), _pair(kernel), stride, padding, dilation)
        out = x.new_empty(*images.shape[:2], *size, out_channels)
        bias, scale, shift = (
            None if operand is None else owners.slotted(operand) for operand in (self._bias, self._scale, self._shift)
        )
        added = None if residual is None else _nhwc(residual, rows.total)
        operands = convolution.Operands(images, weight, owners.num_active, out, bias, scale, shift, added)
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": self._groups}
        return operands, convolution.describe(operands, **geometry, activation=self._activation)

    def result(self, out: Tensor) -> Tensor:
        """The output of a kernel as the program knows it: [images, channels, H, W]."""
        return self._clamped(out.view(-1, *out.shape[2:]).permute(0, 3, 1, 2))

    def _clamped(self, y: Tensor) -> Tensor:
        return y if self._bounds is None else y.clamp_(*self._bounds)

    def _launch(self, rows: RowMap, owners: Owners, x: Tensor, residual: Tensor | None) -> Tensor:
        engine = owners.engine
        assert isinstance(engine, Engine)
        operands, described = self.operands(rows, owners, x, residual)
        plan = self._plans.get(described)
        if plan is None:
            plan = self._plans[described] = convolution_plan(described, engine.target, engine.table)
        self._chose(plan.kernel.NAME)
        plan.launch(operands, engine.target, owners.workspace).run()
        return self.result(operands.out)


def _nhwc(x: Tensor, rows: int) -> Tensor:
    """[rows, images of a row, H, W, channels]; a copy only where the memory is in another order."""
    last = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    # Where a dimension is 1, torch calls other strides contiguous too; the kernel wants the plain ones.
    return last.contiguous().view(rows, -1, *last.shape[1:])


def _pair(values: Any) -> Pair:
    numbers = [int(value) for value in (values if isinstance(values, (list, tuple)) else [values])]
    return (numbers[0], numbers[-1])
